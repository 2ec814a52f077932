"""What may be contributed: a whole run of a known protocol that names no machine; anything else is refused with its reason."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from tokbench.entries import entries
from tokbench.errors import StoreError
from tokbench.gallery import FOLDER, Keeper, Wanted, kept_samples, settle
from tokbench.rows import read_rows
from tokbench.session import Request, run
from tokbench.spec import TokenizerSpec
from tokbench.submit import pack, problems
from tokbench.types import Code, Sample


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a real result of the image samples."""
    store = tmp_path_factory.mktemp("store")
    run(
        Request(
            ("image-sample",),
            ("jpeg?quality=10",),
            metrics=("psnr", "rate"),
            output=store,
            device="cpu",
            decode_workers=0,
        )
    )
    (found,) = entries(store)
    return found


def test_a_whole_run_is_packed_and_read_back(whole, tmp_path: Path) -> None:
    assert problems(whole) == []
    place = pack(whole, tmp_path / "results")
    assert sorted(path.name for path in place.iterdir()) == ["result.json", "rows.parquet"]
    (back,) = entries(tmp_path / "results")
    assert back.result == whole.result


def test_kept_samples_go_with_a_result_as_far_as_they_fit(whole, tmp_path: Path, monkeypatch) -> None:
    copied = tmp_path / "whole"
    shutil.copytree(whole.place, copied)
    keys = {row.key: "ok" for row in read_rows(copied / "rows.parquet")}
    x = torch.rand(1, 3, 64, 64)
    for key in keys:
        Keeper(copied / FOLDER, Wanted(None))(Sample((key,), x, x, x, Code(), TokenizerSpec("t", "image", "none")))
    settle(copied / FOLDER, keys, Wanted(None))  # type: ignore[arg-type]
    place = pack(dataclasses.replace(whole, place=copied), tmp_path / "results")
    assert kept_samples(place) == kept_samples(copied)
    assert len(kept_samples(place)) == 12
    monkeypatch.setattr("tokbench.submit.SAMPLES_CAP", 70_000)
    place = pack(dataclasses.replace(whole, place=copied), tmp_path / "results")
    assert kept_samples(place) == kept_samples(copied)[:2]
    assert len(list((place / FOLDER).iterdir())) == 5
    place = pack(whole, tmp_path / "results")
    assert kept_samples(place) == []
    assert not (place / FOLDER).exists()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("protocol", "limit"), 3, "limited to the first 3 files"),
        (("samples", "failed"), 1, "1 row(s) failed"),
        (("samples", "rows"), 99, "result.json says 99"),
        (("protocol", "rounding"), "truncate", "not the protocol of image-sample: rounding is 'truncate'"),
        (("suite",), "my-suite", "my-suite is no suite of tokbench"),
        (("metrics", "psnr", "value"), 50.0, "psnr: result.json says 50.0, the rows give"),
        (
            ("tokenizer", "summary"),
            "from /home/someone/weights/x.pt",
            "holds a folder of a machine: '/home/someone/weights/x.pt'",
        ),
        (("tokenizer", "licence"), "C:\\Users\\me\\x", "holds a folder of a machine"),
        (("tokenizer", "licence"), "in ~/secret/x", "holds a folder of a machine: '~/secret/x'"),
        (("provenance", "contract", "passed"), False, "the contract was not passed"),
        (("status",), "done", "schema: $.status"),
    ],
)
def test_what_may_not_be_published_is_refused_with_its_reason(whole, tmp_path: Path, path, value, message: str) -> None:
    result = copy.deepcopy(dict(whole.result))
    at = result
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    changed = dataclasses.replace(whole, result=result)
    assert any(message in problem for problem in problems(changed))
    with pytest.raises(StoreError, match="cannot be contributed"):
        pack(changed, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_every_committed_result_may_be_published() -> None:
    root = Path(__file__).parents[3] / "leaderboards" / "results"
    found = entries(root)
    assert {entry.result["suite"] for entry in found} >= {"image-sample", "video-sample", "audio-sample"}
    assert {entry.name: wrong for entry in found if (wrong := problems(entry))} == {}


def test_where_weights_go_for_everyone_is_no_folder_of_a_machine(whole) -> None:
    result = copy.deepcopy(dict(whole.result))
    result["tokenizer"]["summary"] = "unpack it to ~/.insightface/models/antelopev2"
    assert problems(dataclasses.replace(whole, result=result)) == []
