"""Cards are data: what a catalog may say, what an error names, and how a name with options becomes an operating point."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokbench.catalog import at_point, parse_options, read_catalog
from tokbench.errors import CardError, UnknownName, UsageError
from tokbench.registry import catalogs, expand, metric_names

CATALOG = """
[family]
name = "toy"
target = "somewhere:Toy"
licence = "MIT"
[family.spec]
modality = "audio"
kind = "discrete"
sample_rate = 24000
[[tokenizer]]
name = "toy"
points = ["bandwidth=1.5", "bandwidth=6"]
[[tokenizer.option]]
name = "bandwidth"
default = 1.5
choices = [1.5, 6.0]
[[tokenizer.option]]
name = "strict"
default = false
[tokenizer.spec]
codebook_size = 1024
num_codebooks = 2
[tokenizer.point."bandwidth=6"]
codebook_size = 1024
num_codebooks = 8
"""


@pytest.fixture
def card(tmp_path: Path):
    (tmp_path / "toy.toml").write_text(CATALOG)
    return read_catalog(tmp_path / "toy.toml")[0]


def test_options_choose_the_operating_point_and_its_geometry(card) -> None:
    assert at_point(card, {}).spec.name == "toy?bandwidth=1.5"
    point = at_point(card, parse_options("bandwidth=6.0&strict=true"))
    assert point.spec.name == "toy?bandwidth=6&strict=true"
    assert point.spec.codebook_size == (1024,) * 8
    assert point.options == {"bandwidth": 6.0, "strict": True}
    assert at_point(card, {}).identity() != point.identity()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("bandwidth=2", "toy: bandwidth=2 is not one of 1.5, 6"),
        ("bandwidth=x", "toy: bandwidth=x is not of type float"),
        ("rate=2", "toy has no option 'rate'; its options: bandwidth, strict"),
        ("bandwidth", "'bandwidth' is not key=value"),
    ],
)
def test_a_wrong_option_says_what_is_right(card, query: str, message: str) -> None:
    with pytest.raises(CardError, match=message.replace("(", r"\(")):
        at_point(card, parse_options(query))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("licence", "license"), "unknown key 'license'"),
        (("sample_rate", "samplerate"), "unknown key 'samplerate'; TokenizerSpec has"),
        (('name = "toy"\npoints', 'name = "a/b"\npoints'), "names are letters"),
        (('modality = "audio"\n', ""), "needs target, spec.modality and spec.kind"),
        (("[family]", "[family"), "toy.toml"),
        (('points = ["bandwidth=1.5"', 'points = ["bandwidth=7"'), "bandwidth=7 is not one of"),
    ],
)
def test_a_wrong_catalog_names_file_and_key(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in CATALOG
    (tmp_path / "toy.toml").write_text(CATALOG.replace(*change))
    with pytest.raises(CardError, match=r"toy\.toml") as error:
        read_catalog(tmp_path / "toy.toml")
    assert message in str(error.value)


def test_globs_reach_names_and_operating_points() -> None:
    assert [c.spec.name for c in expand(["jpeg?quality=[1-3]0"])] == [f"jpeg?quality={q}" for q in (10, 20, 30)]
    assert {c.name for c in expand(["taesd*"])} == {"taesd", "taesdxl", "taesd3"}
    assert [c.name for c in expand(["jpeg", "jpeg"])] == ["jpeg"]
    with pytest.raises(UnknownName):
        expand(["nothing*"])


def test_two_tokenizers_of_one_name_are_refused(tmp_path: Path, mine: str) -> None:
    copy = tmp_path / "copy.py"
    copy.write_text(Path(mine.partition(":")[0]).read_text() + "# edited")
    with pytest.raises(UsageError, match="both called 'mine'"):
        expand([mine, f"{copy}:Mine"])


def test_a_list_file_and_a_card_file_are_names_too(tmp_path: Path, card) -> None:
    (tmp_path / "names.txt").write_text("# mine\nresize\n\njpeg?quality=30\n")
    assert [c.spec.name for c in expand([f"@{tmp_path / 'names.txt'}"])] == ["resize", "jpeg?quality=30"]
    assert expand([f"{tmp_path / 'toy.toml'}:toy?bandwidth=6"])[0].spec.name == "toy?bandwidth=6"


def test_every_card_of_the_house_resolves_and_names_its_licence() -> None:
    cards = catalogs().cards
    assert len(cards) > 30
    for base in cards.values():
        for point in ("", *base.points):
            resolved = at_point(base, parse_options(point))
            assert resolved.spec.name.startswith(base.name)
        assert base.licence, base.name
        assert base.summary, base.name
    assert not catalogs().broken


def test_every_metric_builds_and_no_two_share_a_column() -> None:
    from tokbench.plan import check_columns
    from tokbench.registry import build_metric

    specs = [build_metric(name).spec for name in metric_names()]
    assert [spec.name for spec in specs] == metric_names()
    check_columns(specs)
    for spec in specs:
        assert spec.summary, spec.name
        assert spec.columns
