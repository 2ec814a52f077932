"""Seeded weights of the feature networks, written once a session: real ones are never needed to prove arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokbench.metrics import seeded


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of an Inception weight file drawn from a seed."""
    return str(seeded.write("inception", tmp_path_factory.mktemp("weights") / "inception.pth"))


@pytest.fixture(scope="session")
def trunk_weights(tmp_path_factory: pytest.TempPathFactory):
    """Return a function: trunk of LPIPS -> path of a weight file drawn from a seed."""
    folder: Path = tmp_path_factory.mktemp("trunks")

    def path(net: str) -> str:
        file = folder / f"{net}.pth"
        return str(file if file.exists() else seeded.write(net, file))

    return path
