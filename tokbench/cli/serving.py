"""Shows one HTML page on a local port: to this machine only, read-only, nothing but that page."""

from __future__ import annotations

from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class PageServer(ThreadingHTTPServer):
    """Serves `body` at `/` on 127.0.0.1; every other path is 404, every other host name 403.

    A thread a connection: browsers open some that they send nothing on, and those must not hold up the others.
    """

    daemon_threads = True

    def __init__(self, body: bytes, port: int = 0) -> None:
        self.body = body
        super().__init__(("127.0.0.1", port), _Page)

    @property
    def url(self) -> str:
        """Return where the page is."""
        return f"http://127.0.0.1:{self.server_port}/"


class _Page(BaseHTTPRequestHandler):
    server: PageServer
    server_version, sys_version = "tokbench", ""

    def do_GET(self) -> None:
        if self._answer():
            self.wfile.write(self.server.body)

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> bool:
        # A page of another site that resolves its name to this machine must not read what is here.
        if self.headers.get("Host", "").rpartition(":")[0] not in {"127.0.0.1", "localhost"}:
            self.send_error(HTTPStatus.FORBIDDEN)
            return False
        if self.path.partition("?")[0] != "/":
            self.send_error(HTTPStatus.NOT_FOUND)
            return False
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(self.server.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        return True

    def log_message(self, format: str, *args: object) -> None:
        del format, args
