"""A suite file of one's own: what it may say, and that a value no run can use is refused before a file is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokbench.errors import CardError
from tokbench.spec import AudioPrepare, ImagePrepare
from tokbench.suite import load_suites

HEAD = 'name = "mine"\nmodality = "image"\ndataset = "sample:image"\nmetrics = ["psnr"]\n'


def _load(tmp_path: Path, text: str):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return load_suites([str(path)])


def test_the_example_of_the_documentation_is_a_suite(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    (example,) = (block for block in page.split("```toml\n")[1:] if "[prepare]" in block)
    (suite,) = _load(tmp_path, example.partition("```")[0])
    assert suite.prepare == ImagePrepare("adm", 512)
    assert suite.tokenizers[-1] == "my_tokenizer.py:Mine"


def test_a_native_size_and_a_native_rate_can_be_said(tmp_path: Path) -> None:
    (suite,) = _load(tmp_path, HEAD + '[prepare]\npreset = "native"\n')
    assert suite.prepare == ImagePrepare("native", None)
    (suite,) = _load(tmp_path, HEAD.replace('"image"', '"audio"') + '[prepare]\nsample_rate = "native"\n')
    assert suite.prepare == AudioPrepare(None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[prepare]", 'rounding = "up"\n[prepare]'), "rounding = 'up'; choose round, truncate, none"),
        (('"adm"', '"adn"'), "[prepare] preset = 'adn'; choose adm, pil-bicubic"),
        (("size = 64", "size = 0"), "[prepare] size = 0; give a positive number"),
        (("size = 64", "sizes = 64"), "[prepare]: got an unexpected keyword argument 'sizes'"),
        (('modality = "image"', 'modality = "picture"'), "modality = 'picture'; choose image, video, audio"),
        (('["psnr"]', '"psnr"'), "metrics = 'psnr'; give a list of names"),
        (("modality", "modalities"), "unknown key 'modalities'"),
    ],
)
def test_a_wrong_value_is_named_with_its_choices(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    text = (HEAD + '[prepare]\npreset = "adm"\nsize = 64\n').replace(*change, 1)
    with pytest.raises(CardError) as caught:
        _load(tmp_path, text)
    assert message in str(caught.value)
    assert str(caught.value).startswith("mine.toml: ")


def test_a_suite_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"none\.toml: no such file or directory"):
        load_suites([str(tmp_path / "none.toml")])
