"""What users get wrong: nothing is dropped without a word, no message is a traceback, and the exit code says what it was."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tokbench import cli
from tokbench.device import choose_device
from tokbench.errors import ContractError, TokbenchError, UsageError
from tokbench.registry import expand_each
from tokbench.session import Request, left_out, plan_runs, run


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs the program in this process and returns exit code, stdout and stderr."""

    def call(*words: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["tokbench", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out = capsys.readouterr()
        return end.value.code, out.out, out.err

    return call


def _request(suite_file: Path, pictures: Path, store: Path, **more) -> Request:
    more = {"tokenizers": ("resize",), **more}
    return Request((str(suite_file),), datasets=(str(pictures),), output=store, device="cpu", **more)


def test_what_no_suite_can_take_is_said(suite_file: Path, pictures: Path, tmp_path: Path) -> None:
    request = _request(
        suite_file, pictures, tmp_path, tokenizers=("resize", "opus", "h26*"), metrics=("psnr", "si_sdr")
    )
    said = left_out(request, expand_each(request.tokenizers))
    assert said == [
        "opus is left out: it is for audio, the suites of this run are for image",
        "h26* is left out: it is for video, the suites of this run are for image",
        "metric si_sdr is left out: it is for audio, the suites of this run are for image",
    ]
    report = run(request)
    assert [result["tokenizer"]["name"] for result in report.results] == ["resize"]
    assert report.notices[:3] == tuple(said)
    assert left_out(Request(("quick",), metrics=("psnr", "si_sdr")), expand_each(["*"])) == []


def test_nothing_to_run_says_which_word_is_wrong(suite_file: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to run: metric si_sdr is left out: it is for audio"):
        plan_runs(_request(suite_file, pictures, tmp_path, metrics=("si_sdr",)))


def test_a_run_that_was_finished_before_says_so(suite_file: Path, pictures: Path, tmp_path: Path) -> None:
    request = _request(suite_file, pictures, tmp_path)
    first, again = run(request), run(request)
    assert not any("finished before" in line for line in first.notices)
    assert "1 of 1 run(s) were finished before and stand as they are; --rerun all does them again" in again.notices
    assert not any("where the suite's set has" in line for line in again.notices)


def test_a_request_takes_what_a_notebook_writes(tmp_path: Path) -> None:
    request = Request("image-sample", tokenizers=["jpeg"], metrics="psnr", datasets=tmp_path, output=str(tmp_path))
    assert request == Request(("image-sample",), ("jpeg",), (str(tmp_path),), ("psnr",), tmp_path)
    with pytest.raises(
        UsageError, match=r"tokenizers: .* is no name; an object is scored by tokbench\.evaluate_tokenizer"
    ):
        Request("image-sample", tokenizers=[object()])


def test_an_object_is_scored_only_as_what_it_is(mine: str, pictures: Path, suite_file: Path) -> None:
    from tokbench.api import evaluate_tokenizer
    from tokbench.registry import build_tokenizer, expand

    tokenizer = build_tokenizer(expand([mine])[0], {})
    cells, rows = evaluate_tokenizer(tokenizer, str(suite_file), dataset=pictures, metrics="psnr", limit=2)
    assert cells["psnr"]["n"] == len(rows) == 2
    for wrong, message in (
        ({"dataset": [1]}, "dataset is a folder or an address, not a list"),
        ({"dtype": "fp16"}, "--dtype fp16: choose float32, bfloat16, float16"),
        ({"batch_size": 0}, "batch_size 0: give a positive number"),
        ({"device": "gpu"}, "--device gpu: use auto, cpu or cuda:i"),
    ):
        with pytest.raises(UsageError, match=message):
            evaluate_tokenizer(tokenizer, str(suite_file), **{"dataset": str(pictures), **wrong})


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "mps"])
def test_a_device_that_does_not_exist_is_wrong_use(name: str) -> None:
    with pytest.raises(UsageError, match=f"--device {name}: use auto, cpu or cuda:i"):
        choose_device(name)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PermissionError(13, "Permission denied", "/a/store.json"), 2, "tokbench: /a/store.json: permission denied\n"),
        (OSError(28, "No space left on device", "/a/b"), 2, "tokbench: /a/b: no space left on device\n"),
        (TokbenchError("03.png: too dark"), 1, "tokbench: 03.png: too dark\n"),
        (ContractError("it has no spec"), 2, "tokbench: it has no spec\n"),
        (UsageError("no such thing"), 2, "tokbench: no such thing\n"),
    ],
)
def test_what_ends_a_run_is_one_line_and_an_exit_code(
    go, monkeypatch, error: Exception, code: int, message: str
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fails)
    assert go() == (code, "", message)


def test_a_bug_keeps_its_traceback(go, monkeypatch) -> None:
    def fails() -> None:
        raise FileNotFoundError(2, "No such file or directory", "/a/b")

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(FileNotFoundError):
        cli.main()


def test_convert_looks_before_it_asks(go, tmp_path: Path) -> None:
    code, out, err = go("convert", str(tmp_path / "none.ckpt"))
    assert (code, out) == (2, "")
    assert "none.ckpt: no such file" in err
    (tmp_path / "a.ckpt").touch()
    (tmp_path / "a.safetensors").touch()
    code, out, err = go("convert", str(tmp_path / "a.ckpt"))
    assert (code, out) == (2, "")
    assert "is there already" in err


def test_a_board_of_nothing_is_not_written(go, suite_file: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, out, err = go("leaderboard", "-o", str(tmp_path / "empty"))
    assert (code, out) == (2, "")
    assert "empty: no result" in err
    run(_request(suite_file, pictures, tmp_path / "store"))
    code, out, err = go("leaderboard", "-o", str(tmp_path / "store"), "-s", "smal")
    assert (code, out) == (2, "")
    assert f"no result of suite smal; it holds small+{pictures.name}" in err
    assert list(tmp_path.rglob("leaderboard.*")) == []


def test_one_config_serves_run_and_plan(go, suite_file: Path, pictures: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    lines = [
        f'suite = "{suite_file}"',
        f'dataset = "{pictures}"',
        'tokenizer = "resize"',
        'batch-size = "2"',
        f'output = "{tmp_path}"',
    ]
    config.write_text("\n".join(lines))
    code, out, err = go("plan", "--config", str(config))
    assert (code, err) == (0, "")
    (row,) = [line.split("\t") for line in out.splitlines()]
    assert row[0] == "resize"
    assert row[-1] == "ready"
    config.write_text("batchsize = 2\n")
    code, out, err = go("run", "--config", str(config))
    assert (code, out) == (2, "")
    assert "unknown key 'batchsize'; did you mean batch-size?" in err
