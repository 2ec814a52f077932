"""Fixtures every room's tests share: small pictures on disk and a way to run the CLI as a user does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).parent

# A shell that starts a run in the background has it ignore Ctrl-C, and children inherit that: tests that send it would hang.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 11 small PNG pictures of two sizes, the fourth of them dark."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.Generator(np.random.PCG64(3))
    for index in range(11):
        height, width = (48, 64) if index % 2 else (40, 40)
        y, x = np.mgrid[0:height, 0:width]
        wave = 128 + 60 * np.sin(x / (5 + index) + index) + 40 * np.cos(y / 7)
        picture = np.stack([wave, wave[::-1], 255 - wave], -1) + rng.normal(0, 5, (height, width, 3))
        if index == 3:
            picture *= 0.05
        (folder / "sub").mkdir(exist_ok=True)
        name = f"sub/{index:02d}.png" if index > 7 else f"{index:02d}.png"
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / name)
    return folder


@pytest.fixture(scope="session")
def suite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small image suite at 32x32."""
    path = tmp_path_factory.mktemp("suite") / "small.toml"
    path.write_text(
        'name = "small"\nmodality = "image"\ndataset = "sample:image"\nrounding = "round"\n'
        'metrics = ["psnr", "mae", "ssim", "codebook", "rate"]\n[prepare]\npreset = "adm"\nsize = 32\n'
    )
    return path


def cli(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `tokbench WORDS` in a fresh process."""
    return subprocess.run(
        [sys.executable, "-m", "tokbench", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **env},
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="session")
def tokbench_cli():
    """Return `cli`."""
    return cli


@pytest.fixture(scope="session")
def hostile() -> str:
    """Return the path of the file of misbehaving tokenizers."""
    return str(HERE / "e2e" / "hostile_tokenizers.py")


@pytest.fixture(scope="session")
def mine() -> str:
    """Return the reference of the third party's tokenizer."""
    return f"{HERE / 'e2e' / 'my_tokenizer.py'}:Mine"
