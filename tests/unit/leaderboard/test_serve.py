"""`tokbench leaderboard --serve`: the page and nothing else, to this machine and no other, until Ctrl-C."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokbench.store import Store

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[subprocess.Popen[str], int, bytes]]:
    """Return the running command, its port, and the page it wrote."""
    folder = tmp_path_factory.mktemp("served")
    Store(folder / "store").create()
    words = [
        "leaderboard",
        "--from",
        str(ROOT / "leaderboards"),
        "--to",
        str(folder),
        "--suite",
        "video-sample",
        "--serve",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "tokbench", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.match(r"http://127\.0\.0\.1:(\d+)/ \(Ctrl-C ends it\)", line):
            yield process, int(found[1]), (folder / "leaderboard.html").read_bytes()
            break
    else:
        pytest.fail("the command ended without an address")
    process.kill()
    process.wait()


def _ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_it_serves_the_page_and_nothing_else(served) -> None:
    _, port, page = served
    assert _ask(port, "/") == (200, page)
    assert _ask(port, "/?from=somewhere") == (200, page)
    assert _ask(port, "/", "HEAD") == (200, b"")
    for path in (
        "/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/leaderboard.csv",
        "/store/",
        "*",
    ):
        status, body = _ask(port, path)
        assert status == 404
        assert b"root:" not in body
    assert _ask(port, "/", "POST")[0] == 501
    assert _ask(port, "/", Host="evil.example:80")[0] == 403


def test_an_idle_connection_holds_up_nobody_and_no_other_address_listens(served) -> None:
    _, port, page = served
    with socket.create_connection(("127.0.0.1", port)):
        assert _ask(port, "/") == (200, page)
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), timeout=2):  # noqa: PT011
        pass


def test_a_browser_shows_it_without_a_complaint(served, chromium) -> None:
    _, port, _ = served
    page = chromium.new_page()
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("response", lambda answer: heard.append(f"{answer.status} {answer.url}") if answer.status != 200 else None)
    page.goto(f"http://127.0.0.1:{port}/")
    assert page.locator("section:visible tbody tr").count() > 3
    page.close()
    assert heard == []


def test_a_port_that_is_taken_is_said(served, tokbench_cli, tmp_path: Path) -> None:
    _, port, _ = served
    done = tokbench_cli("leaderboard", "--from", str(ROOT / "leaderboards"), "--to", str(tmp_path), "--suite", "video-sample",
                        "--serve", "--port", str(port))  # fmt: skip
    assert done.returncode == 2
    assert f"--port {port}: address already in use" in done.stderr


def test_ctrl_c_ends_it_quietly(served) -> None:  # the last test: it ends the command
    process, port, _ = served
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 0
    assert process.stderr is not None
    assert process.stderr.read().strip() == ""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=2)
