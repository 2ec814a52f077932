"""Where the weights of feature networks are found, and that nothing in a weight file is run."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tokbench.errors import UsageError, WeightsAbsent
from tokbench.metrics import _backbones, features
from tokbench.metrics._backbones import ABSENT, digest, find, require
from tokbench.metrics.features import INCEPTION, Inception
from tokbench.metrics.frechet import Rfid
from tokbench.weights import WeightsRefused


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No weights in any usual place of this machine."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("TOKBENCH_WEIGHTS", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _backbones._download.cache_clear()
    return tmp_path


def put(path: Path, text: bytes = b"weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    return path


KNOWN = replace(INCEPTION, sha256=hashlib.sha256(b"weights").hexdigest()[:8])


@pytest.mark.parametrize("name", INCEPTION.files)
def test_the_torch_hub_cache_is_searched_under_both_published_names(nowhere: Path, name: str) -> None:
    path = put(nowhere / "torch" / "hub" / "checkpoints" / name)
    assert find(KNOWN) == path
    assert digest(KNOWN) == hashlib.sha256(b"weights").hexdigest()


def test_tokbench_weights_comes_before_the_hub_cache(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(nowhere / "torch" / "hub" / "checkpoints" / INCEPTION.files[0])
    with pytest.raises(WeightsRefused):  # not the published digest
        require(INCEPTION)
    mine = put(nowhere / "mine" / INCEPTION.files[1])
    monkeypatch.setenv("TOKBENCH_WEIGHTS", str(nowhere / "mine"))
    assert find(KNOWN) == mine


def test_a_file_of_another_digest_is_refused_unless_it_is_named(nowhere: Path) -> None:
    path = put(nowhere / "torch" / "hub" / "checkpoints" / INCEPTION.files[0], b"something else")
    with pytest.raises(WeightsRefused, match="begins with 6726825d"):
        find(INCEPTION)
    assert digest(INCEPTION) == ABSENT
    assert find(INCEPTION, str(path)) == path
    assert digest(INCEPTION, str(path)) == hashlib.sha256(b"something else").hexdigest()


def test_absent_weights_say_where_to_put_them(nowhere: Path) -> None:
    assert find(INCEPTION) is None
    assert Rfid().spec.protocol["weights"] == ABSENT
    with pytest.raises(WeightsAbsent) as caught:
        require(INCEPTION)
    fix = caught.value.fix
    assert INCEPTION.url in fix
    assert str(nowhere / "torch" / "hub" / "checkpoints" / INCEPTION.files[0]) in fix
    assert "weights=" in fix


def test_offline_and_a_failed_download_leave_the_weights_absent() -> None:
    metric = Rfid()
    metric.fetch(offline=True)
    metric.fetch(offline=False)  # HF_HUB_OFFLINE forbids it
    assert metric.spec.protocol["weights"] == ABSENT


def test_a_named_file_that_is_not_there_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="no such file"):
        find(INCEPTION, "/nowhere/at/all.pth")


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("exploded"),))


def test_a_file_that_would_run_code_is_refused(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(nowhere)
    path = put(nowhere / "bomb.pth", pickle.dumps({"fc.weight": Bomb()}))
    with pytest.raises(WeightsRefused, match="never runs the code"):
        Inception("tf1", str(path)).of(torch.zeros(1, 3, 32, 32))
    assert not (nowhere / "exploded").exists()


def test_a_file_of_another_network_is_refused(nowhere: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, nowhere / "other.pth")
    with pytest.raises(WeightsRefused, match="not Inception's"):
        Inception("tf1", str(nowhere / "other.pth")).of(torch.zeros(1, 3, 32, 32))


def test_unknown_front_ends_are_named() -> None:
    with pytest.raises(UsageError, match="unknown front end 'cubic'; one of tf1, bilinear, antialias, clean"):
        Inception("cubic")  # type: ignore[arg-type]
    assert set(features.FRONTS) == {"tf1", "bilinear", "antialias", "clean"}
