"""Kept samples: the pixels that were scored, the same rows for all, made later where missing, never outside their folder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tokbench.entries import entries
from tokbench.errors import StoreError, UsageError
from tokbench.gallery import FOLDER, INDEX, Keeper, Kept, Wanted, kept_samples, missing, order, parse_wanted, settle
from tokbench.rows import read_rows
from tokbench.session import Request, run
from tokbench.spec import TokenizerSpec
from tokbench.types import Code, Sample

SPEC = TokenizerSpec("t", "image", "none")


def _go(suite: Path, pictures: Path, output: Path, *names: str, **more: object) -> tuple[str, ...]:
    request = Request(
        (str(suite),), names, (f"folder:{pictures}",), ("psnr", "rate"), output, device="cpu", decode_workers=0, **more
    )  # type: ignore[arg-type]
    return run(request).notices


def _files(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes() for path in store.rglob(f"{FOLDER}/*") if path.name != INDEX
    }


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), np.float64)


def _sample(*keys: str, spec: TokenizerSpec = SPEC, **more: object) -> Sample:
    x = torch.rand(len(keys), 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return Sample(keys, x, x, x, Code(), spec, **more)  # type: ignore[arg-type]


def test_what_is_kept_are_the_pixels_that_were_scored_and_the_same_rows_for_all(
    suite_file: Path, pictures: Path, tmp_path: Path
) -> None:
    _go(suite_file, pictures, tmp_path, "jpeg?quality=10", "resize", keep_samples=Wanted(4), shard_size=3)
    keys = set()
    for entry in entries(tmp_path):
        psnr = {row.key: row.values["psnr"] for row in read_rows(entry.place / "rows.parquet")}
        kept = kept_samples(entry.place)
        keys.add(tuple(sample.key for sample in kept))
        for sample in kept:
            a, b = (_pixels(entry.place / FOLDER / name) for name in (sample.original, sample.reconstruction))
            if entry.name.startswith("jpeg"):
                assert 10 * math.log10(255**2 / ((a - b) ** 2).mean()) == pytest.approx(psnr[sample.key], abs=1e-5)
        assert len(list((entry.place / FOLDER).iterdir())) == 9  # four pairs and the index: the others are gone again
    everything = [f"{i:02d}.png" if i < 8 else f"sub/{i:02d}.png" for i in range(11)]
    assert keys == {tuple(sorted(everything, key=order)[:4])}


def test_a_finished_run_gets_what_is_missing_and_nothing_else_changes(
    suite_file: Path, pictures: Path, tmp_path: Path
) -> None:
    _go(suite_file, pictures, tmp_path / "a", "jpeg?quality=10", keep_samples=Wanted(5))
    _go(suite_file, pictures, tmp_path / "b", "jpeg?quality=10", shard_size=4)
    assert _files(tmp_path / "b") == {}
    (before,) = entries(tmp_path / "b")
    notices = _go(suite_file, pictures, tmp_path / "b", "jpeg?quality=10", shard_size=4, keep_samples=Wanted(5))
    (after,) = entries(tmp_path / "b")
    assert after == before
    assert not any("sample" in line for line in notices)
    assert _files(tmp_path / "b") == _files(tmp_path / "a") != {}
    _go(suite_file, pictures, tmp_path / "b", "jpeg?quality=10", shard_size=4, keep_samples=Wanted(0, ("03.png", "x")))
    assert "03.png" in {kept.key for kept in kept_samples(after.place)}
    assert {kept.key for kept in kept_samples(after.place)} >= {kept.key for kept in kept_samples(before.place)}
    notices = _go(suite_file, pictures, tmp_path / "b", "jpeg?quality=10", shard_size=4, keep_samples=Wanted(0, ("x",)))
    assert "--keep-samples key=x: no run has a row of that key" in notices


def test_rows_that_fail_are_said_and_do_not_change_which_rows_are_kept(
    suite_file: Path, pictures: Path, tmp_path: Path, hostile: str
) -> None:
    notices = _go(suite_file, pictures, tmp_path, f"{hostile}:FailsOnDark", "resize", keep_samples=Wanted(None))
    failing, whole = sorted(entries(tmp_path), key=lambda entry: entry.name)
    assert len(kept_samples(whole.place)) == 11
    assert len(kept_samples(failing.place)) == 10
    assert any("1 of the samples to keep failed" in line for line in notices)


@pytest.mark.parametrize(
    "key", ["../../etc/passwd", "/abs", "..", "a\\b:c", "<script>alert(1)</script>", "ü" * 400, "."]
)
def test_any_key_stays_in_the_folder_under_a_plain_name(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "deep" / FOLDER
    Keeper(folder, Wanted(None))(_sample(key))
    settle(folder, {key: "ok"}, Wanted(None))
    inside = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [path.parent for path in inside] == [folder] * 3
    assert all(len(path.name) < 100 for path in inside)
    (kept,) = kept_samples(folder.parent)
    assert kept.key == key


def test_the_size_cap_keeps_a_run_of_hashes_and_is_remembered(tmp_path: Path) -> None:
    keys = [f"{i}" for i in range(20)]
    folder = tmp_path / FOLDER
    keeper = Keeper(folder, Wanted(None), cap=2500)
    for key in keys:
        keeper(_sample(key))
    rows = dict.fromkeys(keys, "ok")
    left_out = settle(folder, rows, Wanted(None), cap=2500)  # type: ignore[arg-type]
    kept = [sample.key for sample in kept_samples(tmp_path)]
    assert 0 < len(kept) < 20
    assert kept == sorted(keys, key=order)[: len(kept)]
    assert left_out == 20 - len(kept)
    assert sum(path.stat().st_size for path in folder.glob("*.png")) <= 2500
    assert missing(folder, rows, Wanted(None)) == []  # type: ignore[arg-type]
    assert missing(folder, rows, Wanted(0, ("19", "18"))) != []  # type: ignore[arg-type]


def test_clips_are_strips_of_frames_and_sound_is_flac(tmp_path: Path) -> None:
    import soundfile

    x = torch.rand(1, 3, 9, 6, 5)
    video = TokenizerSpec("v", "video", "none")
    Keeper(tmp_path / FOLDER, Wanted(None))(Sample(("clip#0",), x, x, x, Code(), video, fps=8.0))
    sound = torch.rand(1, 2, 500) * 2 - 1
    audio = TokenizerSpec("a", "audio", "none")
    Keeper(tmp_path / FOLDER, Wanted(None))(Sample(("s",), sound, sound, sound, Code(), audio, sample_rate=16000))
    settle(tmp_path / FOLDER, {"clip#0": "ok", "s": "ok"}, Wanted(None))
    by_key = {kept.key: kept for kept in kept_samples(tmp_path)}
    assert by_key["clip#0"].frames == (0, 3, 5, 8)
    strip = _pixels(tmp_path / FOLDER / by_key["clip#0"].original)
    wanted = torch.cat([x[0][:, t] for t in (0, 3, 5, 8)], -1).permute(1, 2, 0).numpy() * 255
    np.testing.assert_allclose(strip, wanted, atol=0.5001)
    heard, rate = soundfile.read(tmp_path / FOLDER / by_key["s"].reconstruction, always_2d=True)
    assert rate == by_key["s"].sample_rate == 16000
    np.testing.assert_allclose(heard.T, sound[0].numpy(), atol=2**-23)


def test_a_strangers_index_cannot_reach_outside(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "result" / FOLDER
    folder.mkdir(parents=True)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "fine.png").write_bytes(b"x")
    names = ["../../secret.png", str(tmp_path / "secret.png"), "link.png", "gone.png", "fine.png/../fine.png"]
    items = [vars(Kept(name, "image", name, "fine.png")) for name in [*names, "fine.png"]]
    (folder / INDEX).write_text(json.dumps({"samples": items}))
    assert [kept.key for kept in kept_samples(folder.parent)] == ["fine.png"]
    (folder / INDEX).write_text(json.dumps({"samples": [{"key": 1}]}))
    with pytest.raises(StoreError, match="damaged"):
        kept_samples(folder.parent)


def test_what_to_keep_is_read_strictly() -> None:
    assert parse_wanted(["3", "key=a=b", "5"]) == Wanted(5, ("a=b",))
    assert parse_wanted(["3", "all"]).first is None
    assert not parse_wanted([])
    for text in ("-1", "some", "1.5", ""):
        with pytest.raises(UsageError, match="give a number, all, or key=KEY"):
            parse_wanted([text])
