"""What breaks is counted where it broke, and the rest of the run stands."""

from __future__ import annotations

import pytest

from tokbench import contract
from tokbench.errors import TokbenchError
from tokbench.reconstruct import Engine
from tokbench.registry import build_tokenizer, expand
from tokbench.session import Request, run


@pytest.fixture
def score(tmp_path, pictures, suite_file, hostile):
    def go(name: str, **more):
        return run(
            Request(
                suites=(str(suite_file),), tokenizers=(f"{hostile}:{name}",), datasets=(str(pictures),),
                output=tmp_path / "store", device="cpu", batch_size=4, **more,
            )
        )  # fmt: skip

    return go


def test_one_row_of_a_batch_fails_alone(score) -> None:
    (result,) = score("FailsOnDark").results
    assert result["samples"]["failed"] == 1
    assert result["samples"]["failures"] == [{"key": "03.png", "reason": "RuntimeError: too dark"}]
    assert result["metrics"]["psnr"]["n"] == 10
    assert result["metrics"]["psnr"]["n_failed"] == 1


def test_fail_fast_stops(score) -> None:
    with pytest.raises(TokbenchError, match=r"03\.png: RuntimeError: too dark"):
        score("FailsOnDark", fail_fast=True)


def test_out_of_memory_halves_the_batch_and_loses_nothing(score) -> None:
    (result,) = score("Hungry").results
    assert result["samples"]["failed"] == 0
    assert result["timing"]["batch_size"] == 2


def test_a_stochastic_tokenizer_repeats_to_the_bit_and_depends_on_the_seed(score, tmp_path) -> None:
    (first,) = score("Noisy").results
    (again,) = score("Noisy", rerun="all").results
    (other,) = score("Noisy", seed=1).results
    assert first["metrics"] == again["metrics"]
    assert first["metrics"]["psnr"]["value"] != other["metrics"]["psnr"]["value"]
    assert first["protocol"]["hash"] != other["protocol"]["hash"]


@pytest.mark.parametrize(("name", "reason"), [("NotANumber", "not finite"), ("WrongShape", "returned (1, 3, 32, 31)")])
def test_a_tokenizer_that_fails_everywhere_is_a_failed_result_with_the_reason(score, name: str, reason: str) -> None:
    report = score(name)
    (result,) = report.results
    assert result["status"] == "failed"
    assert reason in result["reason"]
    assert report.failed == 1
    assert all(cell["value"] is None for cell in result["metrics"].values() if cell["where"] == "row")


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("NotANumber", "runs"),
        ("WrongShape", "runs"),
        ("BatchDependent", "batch = single"),
        ("WrongRange", "range"),
        ("LyingRate", "code"),
    ],
)
def test_the_contract_catches_it(hostile: str, name: str, check: str) -> None:
    tokenizer = build_tokenizer(expand([f"{hostile}:{name}"])[0], {})
    found = contract.check(tokenizer, Engine())
    assert not contract.passed(found)
    assert check in [item.name for item in found if item.verdict == "fail"]


def test_the_contract_passes_an_honest_one(mine: str) -> None:
    found = contract.check(build_tokenizer(expand([mine])[0], {}), Engine())
    assert contract.passed(found), found
    assert {item.name for item in found} >= {
        "spec",
        "code",
        "range",
        "deterministic",
        "batch = single",
        "odd sizes",
        "rate",
    }


def test_a_folder_with_broken_files_is_scored_and_the_broken_ones_are_counted(tmp_path, pictures, suite_file) -> None:
    """Every kind of broken file is tried on the decoders in tests/unit/data; here they meet a whole run."""
    good = sorted(pictures.glob("0*.png"))[:3]
    folder = tmp_path / "mixed"
    folder.mkdir()
    for path in good:
        (folder / path.name).write_bytes(path.read_bytes())
    whole = good[0].read_bytes()
    (folder / "bomb.png").write_bytes(whole[:16] + (60_000).to_bytes(4, "big") * 2 + whole[24:])
    (folder / "empty.png").write_bytes(b"")
    (folder / "header.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "text.webp").write_text("not a picture")
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "nowhere.png").symlink_to(folder / "nothing.png")
    (folder / "notes.txt").write_text("ignored, and counted")
    report = run(
        Request(
            (str(suite_file),), ("resize",), (str(folder),), output=tmp_path / "store", device="cpu", decode_workers=1
        )
    )
    (result,) = report.results
    assert result["status"] == "complete"
    assert result["samples"] | {"failures": []} == {
        "total": 9, "files": 9, "rows": 9, "ok": 3, "failed": 6, "failures": [],
    }  # fmt: skip
    failures = {item["key"]: item["reason"] for item in result["samples"]["failures"]}
    assert set(failures) == {"bomb.png", "empty.png", "header.jpg", "text.webp", "truncated.png", "nowhere.png"}
    assert all(len(reason) > 5 for reason in failures.values()), failures
    assert result["metrics"]["mae"]["n"] == 3
    assert result["metrics"]["mae"]["n_failed"] == 6
    assert any("1 file(s) of other types ignored" in notice for notice in report.notices)


def test_a_metric_without_its_weights_is_named_on_the_board_and_the_others_stand(
    tmp_path, pictures, suite_file, monkeypatch
):
    from tokbench.leaderboard import boards

    monkeypatch.delenv("TOKBENCH_WEIGHTS", raising=False)
    for name in ("TORCH_HOME", "XDG_CACHE_HOME", "TOKBENCH_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    request = Request(
        (str(suite_file),),
        ("resize",),
        (str(pictures),),
        ("mae", "rfid"),
        tmp_path / "store",
        device="cpu",
        offline=True,
    )
    report = run(request)
    (board,) = boards(report.results)
    assert board.columns == ("mae",)
    assert report.results[0]["metrics"]["rfid"]["status"] == "weights absent"
    assert any(note.startswith("rfid: weights absent: inception needs weights-inception") for note in board.notes)


def test_an_image_board_has_no_column_of_video(tmp_path, pictures, suite_file) -> None:
    request = Request((str(suite_file),), ("resize",), (str(pictures),), ("psnr",), tmp_path / "store", device="cpu")
    (result,) = run(request).results
    assert {"psnr", "psnr_pooled"} <= set(result["metrics"])
    assert not {"psnr_video", "psnr_frame"} & set(result["metrics"])
