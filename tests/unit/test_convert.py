"""Checkpoints that need a full unpickle are refused, and converted only in another process and on the user's word."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tokbench.cli import app
from tokbench.convert import convert
from tokbench.errors import UsageError
from tokbench.weights import WeightsRefused, load_state


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a Lightning-like file: weights under `state_dict`, beside an object that only a full unpickle can make."""
    path = tmp_path / "model.ckpt"
    state = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}
    torch.save({"state_dict": state, "callbacks": Path("somewhere"), "epoch": 3}, path)
    return path


def test_it_is_refused_as_it_is_and_the_message_names_the_converter(checkpoint: Path) -> None:
    with pytest.raises(WeightsRefused, match=r"tokbench convert model\.ckpt"):
        load_state(checkpoint, inside=("state_dict",))


def test_what_is_converted_loads_as_the_card_says(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    assert convert(checkpoint, target, "state_dict") == 2
    state = load_state(target, inside=("state_dict",))
    assert torch.equal(state["a.weight"], torch.arange(6.0).view(2, 3))
    with pytest.raises(UsageError, match="is there already"):
        convert(checkpoint, target, "state_dict")


def test_a_wrong_place_names_the_right_ones_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    with pytest.raises(UsageError, match="name one with --inside: state_dict"):
        convert(checkpoint, tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="no 'model'"):
        convert(checkpoint, tmp_path / "x.safetensors", "model")
    assert set(tmp_path.iterdir()) == before


def test_nothing_runs_without_the_users_word(checkpoint: Path) -> None:
    refused = CliRunner().invoke(app, ["convert", str(checkpoint), "--inside", "state_dict"], input="n\n")
    assert refused.exit_code != 0
    assert not checkpoint.with_suffix(".safetensors").exists()
    agreed = CliRunner().invoke(app, ["convert", str(checkpoint), "--inside", "state_dict", "--yes"])
    assert agreed.exit_code == 0, agreed.output
    assert checkpoint.with_suffix(".safetensors").exists()


class _Scaled(torch.nn.Module):
    """A parameter, a buffer that is saved, and one that Python would not save but TorchScript does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(2, 2)
        self.register_buffer("scale", torch.full((2,), 3.0))
        self.register_buffer("table", torch.arange(4.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.scale + self.table[:2]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Return a TorchScript archive."""
    path = tmp_path / "model.jit"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(_Scaled().bfloat16()), path)
    return path


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file:UserWarning")
def test_torchscript_is_refused_and_the_message_names_the_converter(archive: Path) -> None:
    with pytest.raises(WeightsRefused, match="is TorchScript, a program") as refused:
        load_state(archive)
    assert f"tokbench convert {archive} model.safetensors" in refused.value.fix
    disguised = archive.rename(archive.with_suffix(".pt"))
    with pytest.raises(WeightsRefused, match=r"tokbench convert model\.pt"):
        load_state(disguised)


@pytest.mark.parametrize("suffix", [".jit", ".pt"])
def test_torchscript_is_converted_with_all_its_tensors(archive: Path, suffix: str, tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    assert convert(archive.rename(archive.with_suffix(suffix)), target) == 4
    state = load_state(target)
    assert set(state) == {"inner.weight", "inner.bias", "scale", "table"}
    assert torch.equal(state["scale"], torch.full((2,), 3.0, dtype=torch.bfloat16))


def test_torchscript_has_nothing_inside(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave --inside out"):
        convert(archive, tmp_path / "model.safetensors", "state_dict")
    assert not (tmp_path / "model.safetensors").exists()
