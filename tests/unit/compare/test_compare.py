"""What a user sees of `tokbench compare`: verdicts, refusals that name the fields, exit codes, the gate file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tokbench.cli import app
from tokbench.compare import compare, find
from tokbench.errors import UsageError
from tokbench.gate import Gate, Limit, parse_gate

RNG = np.random.default_rng(5)
PSNR = list(RNG.normal(30, 3, 60))
NOISE = list(RNG.normal(0, 0.2, 60))


def _shift(by: float) -> list[float]:
    return [value + by + noise for value, noise in zip(PSNR, NOISE, strict=True)]


def _verdict(pair, column: str) -> str:
    return next(item.verdict for item in pair.columns if item.column == column)


def _run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["compare", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def test_a_result_is_the_same_as_itself(make) -> None:
    place = make("base", {"psnr": PSNR})
    (pair,) = compare(find(str(place)), find(str(place))).pairs
    assert (pair.verdict, pair.digest, pair.rows) == ("fine", "equal", 60)
    assert _verdict(pair, "psnr") == "same"


def test_a_drop_is_worse_and_names_the_samples_that_lost_most(make) -> None:
    dropped = _shift(-0.3)
    dropped[17] -= 5
    base, new = make("base", {"psnr": PSNR}), make("new", {"psnr": dropped}, digest="e" * 64)
    (pair,) = compare(find(str(base)), find(str(new)), worst=2).pairs
    assert (pair.verdict, pair.digest) == ("worse", "differs")
    assert pair.worst[0].key == "0017"
    assert len(pair.worst) == 2
    (back,) = compare(find(str(new)), find(str(base))).pairs
    assert (back.verdict, _verdict(back, "psnr")) == ("fine", "better")


def test_lower_is_better_columns_get_worse_upwards(make) -> None:
    base = make("base", {"mae": [0.1 + i * 1e-3 for i in range(30)]})
    new = make("new", {"mae": [0.12 + i * 1.1e-3 for i in range(30)]})
    assert compare(find(str(base)), find(str(new))).exit_code == 1
    assert compare(find(str(new)), find(str(base))).exit_code == 0


def test_a_gate_allows_what_it_says_and_judges_nothing_else(make) -> None:
    base = make("base", {"psnr": PSNR, "ssim": [0.9] * 60})
    new = make("new", {"psnr": _shift(-0.3), "ssim": [0.8] * 60})
    entries = find(str(base)), find(str(new))
    assert compare(*entries, Gate({"psnr": Limit(0.5)})).exit_code == 0
    assert compare(*entries, Gate({"psnr": Limit(0.1)})).exit_code == 1
    assert compare(*entries, Gate({"ssim": Limit(0.05)})).exit_code == 1
    with pytest.raises(UsageError, match="the gate names lpips"):
        compare(*entries, Gate({"lpips": Limit(0.1)}))


def test_rows_that_fail_or_lose_their_value_are_no_improvement(make) -> None:
    base = make("base", {"psnr": PSNR})
    (pair,) = compare(find(str(base)), find(str(make("failed", {"psnr": PSNR}, failed=[3])))).pairs
    assert (pair.verdict, pair.failed) == ("worse", ("0003",))
    lost = [None if i == 4 else value for i, value in enumerate(PSNR)]
    (pair,) = compare(find(str(base)), find(str(make("lost", {"psnr": lost})))).pairs
    assert (pair.verdict, _verdict(pair, "psnr"), pair.columns[0].lost) == ("worse", "lost", 1)
    gate = Gate({"psnr": Limit(0.1, max_lost=1)})
    assert compare(find(str(base)), find(str(make("lost", {"psnr": lost}))), gate).exit_code == 0


def test_corpus_numbers_decide_only_when_a_gate_names_them(make) -> None:
    base = find(str(make("base", {"psnr": PSNR}, corpus={"fid": 2.0})))
    new = find(str(make("new", {"psnr": PSNR}, corpus={"fid": 2.5})))
    assert compare(base, new).exit_code == 0
    assert _verdict(compare(base, new).pairs[0], "fid") == "worse"
    assert compare(base, new, Gate({"fid": Limit(0.1)})).exit_code == 1
    assert compare(base, new, Gate({"fid": Limit(0.6)})).exit_code == 0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"protocol": {"prepare": {"preset": "adm", "size": 64}}}, "protocol.prepare.size: 32 != 64"),
        ({"protocol": {"dataset": "9" * 64}}, "protocol.dataset: bbbbbbbbbbbb… != 999999999999…"),
        ({"protocol": {"limit": 10}}, "protocol.limit: absent != 10"),
        ({"metrics": {"psnr": {"version": 2}}}, "protocol.metrics.psnr.version: 1 != 2"),
        ({"metrics": {"psnr": {"version": 1, "window": 7}}}, "protocol.metrics.psnr.window: absent != 7"),
    ],
)
def test_what_cannot_be_compared_exits_2_and_names_the_field(make, change, field: str) -> None:
    base, new = make("base", {"psnr": PSNR}), make("new", {"psnr": PSNR}, **change)
    code, out = _run(base, new, "--json")
    (pair,) = json.loads(out)["pairs"]
    assert code == 2
    assert pair["refused"] == [field]
    assert pair["columns"] == []
    code, out = _run(base, new)
    assert field in out


def test_stores_are_paired_by_name_and_names_in_a_store_by_themselves(make, tmp_path: Path) -> None:
    for store in ("base", "new"):
        make(store, {"psnr": PSNR}, name="a?q=1")
        make(store, {"psnr": _shift(-0.5)}, name="b")
    make("new", {"psnr": PSNR}, name="c")
    found = compare(find(str(tmp_path / "base")), find(str(tmp_path / "new")))
    assert [(pair.base, pair.candidate) for pair in found.pairs] == [("a?q=1", "a?q=1"), ("b", "b")]
    assert found.notes == ("c on small: only in the candidate, not compared",)
    one = compare(find(f"{tmp_path / 'base'}:a?q=1"), find(f"{tmp_path / 'base'}:b"))
    assert [(pair.base, pair.candidate, pair.verdict) for pair in one.pairs] == [("a?q=1", "b", "worse")]
    with pytest.raises(UsageError, match=r"did you mean a\?q=1"):
        find(f"{tmp_path / 'base'}:a?q=2")
    with pytest.raises(UsageError, match="no such directory"):
        find(str(tmp_path / "nowhere"))


def test_speed_is_compared_on_one_device_and_judged_by_a_gate_only(make) -> None:
    base = find(str(make("base", {"psnr": PSNR})))
    slow = find(str(make("slow", {"psnr": PSNR}, seconds=0.03)))
    assert compare(base, slow).exit_code == 0
    assert compare(base, slow).pairs[0].speed[0].ratio == pytest.approx(3)
    assert compare(base, slow, Gate(max_ratio=1.5)).exit_code == 1
    elsewhere = find(str(make("gpu", {"psnr": PSNR}, seconds=0.03, device="H100")))
    assert compare(base, elsewhere).pairs[0].speed == ()
    assert compare(base, elsewhere, Gate(max_ratio=1.5)).exit_code == 1  # asked to judge, and cannot


def test_a_gate_can_ask_for_the_same_tokens(make) -> None:
    base, new = find(str(make("base", {"psnr": PSNR}))), find(str(make("new", {"psnr": PSNR}, digest="e" * 64)))
    assert compare(base, new).exit_code == 0
    assert compare(base, new, parse_gate({"digest": {"equal": True}})).exit_code == 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"metrics": {}}, "unknown key metrics"),
        ({"metric": {"psnr": {"min_drop": 1}}}, "unknown key metric.psnr.min_drop"),
        ({"metric": {"psnr": {"max_drop": "a lot"}}}, "metric.psnr.max_drop is a number"),
        ({"metric": {"psnr": {"max_drop": -1}}}, "metric.psnr.max_drop is a number that is not negative"),
        ({"metric": {"psnr": 0.1}}, "metric.psnr is a table"),
        ({"speed": {}, "digest": {"equal": 1}}, "digest.equal is true or false"),
    ],
)
def test_a_gate_file_with_a_mistake_is_refused(table, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_gate(table)


def test_the_cli_prints_a_table_json_and_markdown_with_everything_escaped(make, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>|x"
    base = make("base", {"psnr": PSNR}, name="ok")
    new = make("new", {"psnr": _shift(-1)}, name="ok2")
    result = json.loads((new / "result.json").read_text())
    result["tokenizer"]["name"] = evil
    (new / "result.json").write_text(json.dumps(result))
    (tmp_path / "gate.toml").write_text("[metric]\npsnr = { max_drop = 0.1 }\n")
    code, out = _run(base, new, "--gate", tmp_path / "gate.toml", "--markdown", tmp_path / "comment.md")
    assert code == 1
    assert "worse" in out
    text = (tmp_path / "comment.md").read_text()
    assert text.startswith("## tokbench: regression")
    assert "<script>" not in text
    assert "alert(1)" in text
    code, out = _run(base, new, "--json")
    assert json.loads(out)["exit_code"] == code == 1


def test_the_documented_gate_file_is_one() -> None:
    import tomllib

    text = (Path(__file__).parents[3] / "docs" / "regression-checks.md").read_text()
    gate = parse_gate(tomllib.loads(text.partition("```toml\n")[2].partition("```")[0]))
    assert gate.columns is not None
    assert gate.columns["psnr"] == Limit(0.1)
    assert (gate.max_ratio, gate.digest_equal, gate.max_failed) == (1.2, True, 0)


def test_the_token_digest_tells_encoders_apart_and_repeats() -> None:
    from tokbench.contract import check, token_digest
    from tokbench.reconstruct import Engine
    from tokbench.registry import build_tokenizer, expand

    def digest(name: str) -> str | None:
        (card,) = expand([name])
        return token_digest(check(build_tokenizer(card, {}), Engine("cpu", "float32")))

    assert digest("jpeg?quality=30") == digest("jpeg?quality=30")
    assert digest("jpeg?quality=30") != digest("jpeg?quality=31")
    assert len(digest("jpeg?quality=30") or "") == 64
