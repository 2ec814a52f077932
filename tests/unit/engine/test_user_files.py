"""Classes of a user's own file: what they may import, what makes them another tokenizer, and how their errors read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tokbench import contract
from tokbench.device import evaluating, move
from tokbench.errors import ContractError, UnknownName, UsageError
from tokbench.reconstruct import Engine
from tokbench.registry import as_tokenizer, build_metric, build_tokenizer, expand

HEAD = "from tokbench.spec import TokenizerSpec\nSPEC = TokenizerSpec('toy', 'image', 'none')\n"
BODY = "    encode = decode = lambda self, x: x\n"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text: str, name: str = "toy.py") -> str:
        (tmp_path / name).write_text(HEAD + text)
        return f"{tmp_path / name}:Toy"

    return write


def _key(reference: str) -> object:
    (card,) = expand([reference])
    return card.identity()


def test_a_file_imports_what_lies_beside_it(file, tmp_path: Path) -> None:
    (tmp_path / "toy_network_beside.py").write_text("WIDTH = 7\n")
    text = f"from toy_network_beside import WIDTH\nclass Toy:\n    spec, width = SPEC, WIDTH\n{BODY}"
    (card,) = expand([file(text)])
    assert build_tokenizer(card, {}).width == 7


def test_a_checkpoint_that_was_overwritten_is_another_tokenizer(file, tmp_path: Path) -> None:
    reference = file(f"class Toy:\n    spec = SPEC\n    def __init__(self, weights='', steps=1): pass\n{BODY}")
    checkpoint = tmp_path / "last.pt"
    checkpoint.write_bytes(b"one")
    before = _key(f"{reference}?weights={checkpoint}")
    assert _key(f"{reference}?weights={checkpoint}") == before
    checkpoint.write_bytes(b"two")
    assert _key(f"{reference}?weights={checkpoint}") != before
    folder = tmp_path / "step"
    folder.mkdir()
    empty = _key(f"{reference}?weights={folder}")
    (folder / "model.safetensors").write_bytes(b"three")
    assert _key(f"{reference}?weights={folder}") != empty
    assert _key(f"{reference}?steps=2") != _key(f"{reference}?steps=3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_library_at_all\n", "toy.py, line 3: ModuleNotFoundError: No module named"),
        ("def broken(:\n", "toy.py, line 3: SyntaxError: invalid syntax"),
        (f"class Toy:\n    def __init__(self):\n        raise KeyError('model')\n{BODY}", "toy.py, line 5: KeyError: 'model'"),
        (f"class Toy:\n    def __init__(self, levels): pass\n{BODY}", "toy.py:Toy: Toy.__init__() missing 1 required"),
    ],
)  # fmt: skip
def test_an_error_of_the_file_is_told_with_its_line(file, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        expand([file(text)])
    assert str(caught.value).startswith(message)
    assert message[-8:] != "required" or str(caught.value).endswith("'levels'; its options: levels")


def test_a_file_without_a_class_and_a_class_that_is_not_there_say_how(file, tmp_path: Path) -> None:
    reference = file(f"class Toy:\n    spec = SPEC\n{BODY}")
    with pytest.raises(UsageError, match=r"toy\.py: name the class in it: .*toy\.py:Class"):
        expand([reference.removesuffix(":Toy")])
    with pytest.raises(UsageError, match=r"name the class in it"):
        build_metric(str(tmp_path / "toy.py"))
    with pytest.raises(UnknownName, match=r"unknown class of toy\.py 'Toys'; did you mean Toy\?$"):
        expand([f"{reference}s"])
    with pytest.raises(UnknownName, match=r"there is Toy\.$"):
        expand([reference.replace(":Toy", ":Unlike")])


def test_an_edited_metric_file_is_another_metric(file, tmp_path: Path) -> None:
    text = "from tokbench.spec import Column, MetricSpec\n"
    text += "class Toy:\n    spec = MetricSpec('toy', ('image',), (Column('toy'),))\n"
    reference = file(text)
    before = build_metric(reference).spec
    assert build_metric(reference).spec == before
    assert build_metric(reference).spec.protocol == before.protocol
    file(f"{text}    scale = 2\n")
    assert build_metric(reference).spec.protocol != before.protocol
    file("class Toy: pass\n")
    with pytest.raises(ContractError, match=r"toy\.py: the metric has no `spec`"):
        build_metric(reference)
    with pytest.raises(UsageError, match="unexpected keyword argument 'x'; its options: "):
        build_metric("psnr?x=1")


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        ("raise ValueError('boom')", "ValueError: boom (toy.py, line 6)"),
        ("return x", "toy: encode returned a Tensor, not tokbench.types.Code"),
        ("pass", "toy: encode returned nothing, not tokbench.types.Code"),
        ("return Code(side={'x': x})", "toy: decode returned a tuple, not a tensor"),
    ],
)
def test_the_contract_says_what_is_wrong_and_where(file, encode: str, message: str) -> None:
    text = "from tokbench.types import Code\nclass Toy:\n    spec = SPEC\n"
    text += f"    def encode(self, x): {encode}\n    def decode(self, code): return (1,)\n"
    (card,) = expand([file(text)])
    found = contract.check(build_tokenizer(card, {}), Engine())
    (runs,) = (item for item in found if item.name == "runs")
    assert runs.verdict == "fail"
    assert runs.detail.startswith(message)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.frozen = torch.nn.Linear(2, 2), torch.nn.Dropout().eval()


def test_a_module_is_evaluated_in_evaluation_mode(file) -> None:
    text = f"import torch\nclass Toy(torch.nn.Linear):\n    spec = SPEC\n    def __init__(self): super().__init__(2, 2)\n{BODY}"
    (card,) = expand([file(text)])
    built = build_tokenizer(card, {})
    assert not built.training


def test_an_object_in_training_is_given_back_as_it_was() -> None:
    net = Net()
    move(net, "cpu", "bfloat16")
    assert net.layer.weight.dtype is torch.bfloat16
    with evaluating(net):
        assert not net.training
        assert not net.layer.training
    assert net.training
    assert net.layer.training
    assert not net.frozen.training


@pytest.mark.parametrize(
    ("thing", "message"),
    [(Net, "is a class; give an object of it"), (7, "has no spec, encode, decode"), (Net(), "has no spec")],
)
def test_what_is_no_tokenizer_is_refused(thing: object, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        as_tokenizer(thing, "it")
