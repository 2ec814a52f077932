"""Where a number comes from: versions, commit, device, and the command that asked for it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tokbench import __version__

_PACKAGES = (
    "torch", "torchvision", "torch-fidelity", "lpips", "scikit-image", "pandas", "numpy", "pillow", "av", "soundfile",
    "diffusers", "transformers", "easyocr", "insightface", "onnxruntime", "safetensors", "scipy",
)  # fmt: skip


def provenance(device: str, argv: Sequence[str]) -> dict[str, Any]:
    """Return what a reader needs to reproduce or distrust a result. Holds no user name and no absolute path.

    Args:
        device: As torch spells it.
        argv: The command line; paths in it are cut to their last part.
    """
    return {
        "tokbench": {"version": __version__, **_revision()},
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "device": _device(device),
        "packages": dict(_versions()),
        "argv": [_without_folder(word) for word in argv],
    }


def utc_now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = []
    for name in _PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return tuple(found)


@cache
def _device(device: str) -> dict[str, Any]:
    import torch

    from tokbench.device import device_name

    about: dict[str, Any] = {"type": device.partition(":")[0], "name": device_name(device), "cpus": os.cpu_count()}
    if device.startswith("cuda"):
        about["cuda"] = torch.version.cuda
        about["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return about


@cache
def _revision() -> dict[str, Any]:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=5, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def _without_folder(word: str) -> str:
    prefix, sign, value = word.rpartition("=")
    path = Path(value if sign else word)
    return f"{prefix}{sign}{path.name}" if path.is_absolute() else word


def command_line() -> list[str]:
    """Return this process's command line with the program cut to its name."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv else []
