"""Folders and tar shards list their files in a stable order under unique keys."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokbench.data import Failure, Item, manifest, open_source, stream
from tokbench.errors import UsageError
from tokbench.spec import ImagePrepare

NATIVE = ImagePrepare(preset="native", size=None)


def shard(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def png(value: int, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.Generator(np.random.PCG64(value)).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------ folders


def test_keys_are_sorted_relative_paths_of_known_extensions(tmp_path: Path) -> None:
    for name in (
        "b.PNG",
        "a/z.jpg",
        "a/b/c.webp",
        "10.png",
        "9.png",
        "notes.md",
        ".hidden.png",
        ".cache/x.png",
        "c.wav",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    source = open_source(f"folder:{tmp_path}", "image")
    assert source.keys() == ("10.png", "9.png", "a/b/c.webp", "a/z.jpg", "b.PNG")
    assert source.ignored == 2
    assert open_source(str(tmp_path), "image").keys() == source.keys()
    assert open_source(str(tmp_path), "audio").keys() == ("c.wav",)


def test_a_folder_without_the_modality_says_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"holds no image files; 1 other file ignored\. Read are: .*\.png"):
        open_source(str(tmp_path), "image").keys()


def test_links_are_followed_and_loops_are_harmless(tmp_path: Path) -> None:
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "sub" / "a.png").write_bytes(b"x")
    (tmp_path / "data" / "sub" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "self.png").symlink_to(tmp_path / "data" / "self.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.png").write_bytes(b"x")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    assert open_source(str(tmp_path / "data"), "image").keys() == ("linked/b.png", "self.png", "sub/a.png")


def test_side_files_annotate_their_neighbour(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "a.txt").write_text("a cat\n")
    (tmp_path / "a.json").write_text(json.dumps({"boxes": [[1, 2, 3, 4]]}))
    (tmp_path / "b.png").write_bytes(png(2))
    (tmp_path / "b.json").write_text("{broken")
    (tmp_path / "other.txt").write_text("nobody's")
    source = open_source(str(tmp_path), "image")
    a, b = stream(source, ("a.png", "b.png"), NATIVE)
    assert isinstance(a, Item)
    assert isinstance(b, Item)
    assert a.annotations == {"text": "a cat", "boxes": [[1, 2, 3, 4]]}
    assert str(b.annotations["error"]).startswith("b.json: ")
    assert source.ignored == 1


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("folder:/nowhere/at/all", "is not there"),
        ("nowhere", "is not there"),
        ("s3:bucket", "is not a dataset; addresses are folder:"),
        ("sample:image", "holds image samples, not audio"),
        ("sample:nothing", "unknown sample set 'nothing'"),
        ("wds:/nowhere/{0..2}.tar", "no shard at /nowhere/0.tar"),
        ("wds:/nowhere/*.tar", r"no shard at /nowhere/\*.tar"),
    ],
)
def test_wrong_addresses_say_what_is_wrong(uri: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_source(uri, "audio").keys()


# ------------------------------------------------------------------------------------------------- shards


def test_shards_hold_what_the_folder_held(tmp_path: Path) -> None:
    files = {f"{n:03d}.png": png(n) for n in range(5)} | {"003.txt": b"third\n"}
    (tmp_path / "folder").mkdir()
    for name, data in files.items():
        (tmp_path / "folder" / name).write_bytes(data)
    shard(tmp_path / "s-000.tar", {name: data for name, data in files.items() if name < "002"})
    shard(tmp_path / "s-001.tar", {name: data for name, data in files.items() if name >= "002"})
    folder = open_source(str(tmp_path / "folder"), "image")
    shards = open_source(f"wds:{tmp_path}/s-{{000..001}}.tar", "image")
    assert shards.keys() == ("s-000/000.png", "s-000/001.png", "s-001/002.png", "s-001/003.png", "s-001/004.png")
    pairs = zip(stream(folder, folder.keys(), NATIVE), stream(shards, shards.keys(), NATIVE, 1), strict=True)
    for left, right in pairs:
        assert isinstance(left, Item)
        assert isinstance(right, Item)
        assert right.key.endswith("/" + left.key)
        np.testing.assert_array_equal(left.signal, right.signal)
        assert left.annotations == right.annotations
    assert shards.annotations("s-001/003.png") == {"text": "third"}
    cache = tmp_path / "cache"
    assert [sha for _, sha in manifest(folder, cache).entries] == [sha for _, sha in manifest(shards, cache).entries]


def test_wildcards_braces_and_a_bare_tar(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        shard(tmp_path / f"{name}.tar", {"x.png": png(1)})
    assert open_source(f"wds:{tmp_path}/*.tar", "image").keys() == ("a/x.png", "b/x.png", "c/x.png")
    assert open_source(f"wds:{tmp_path}/{{a,c}}.tar", "image").keys() == ("a/x.png", "c/x.png")
    assert open_source(f"{tmp_path}/b.tar", "image").keys() == ("b/x.png",)


def test_shards_of_one_name_in_two_folders_keep_unique_keys(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        shard(tmp_path / folder / "s.tar", {"x.png": png(1)})
    assert open_source(f"wds:{tmp_path}/*/s.tar", "image").keys() == ("one/s/x.png", "two/s/x.png")


def test_a_name_twice_in_a_shard_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for value in (1, 2):
            data = png(value)
            info = tarfile.TarInfo("x.png")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(UsageError, match=r"two members named 'x\.png'"):
        open_source(str(tmp_path / "s.tar"), "image").keys()


def test_the_type_is_all_behind_the_first_dot(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", {"1.png": png(1), "1.seg.png": png(2), "1.cls": b"3"})
    source = open_source(str(path), "image")
    assert source.keys() == ("s/1.png",)
    assert source.ignored == 2


def test_nothing_is_unpacked_whatever_members_are_called(tmp_path: Path) -> None:
    path = shard(tmp_path / "in" / "s.tar", {"../../evil.png": png(1), "/abs.png": png(2)})
    before = sorted(tmp_path.rglob("*"))
    source = open_source(str(path), "image")
    assert source.keys() == ("s/abs.png", "s/evil.png")
    assert all(isinstance(item, Item) for item in stream(source, source.keys(), NATIVE))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_shard_cut_in_a_member_fails_that_member_alone(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", {f"{n}.png": png(n, 40) for n in range(3)})
    source = open_source(str(path), "image")
    last = source.open("s/2.png")
    assert last.offset is not None  # type: ignore[union-attr]
    path.write_bytes(path.read_bytes()[: last.offset + 100])  # type: ignore[union-attr]
    source = open_source(str(path), "image")
    found = list(stream(source, source.keys(), NATIVE))
    assert [type(entry) for entry in found] == [Item, Item, Failure]
    assert "cut short" in found[2].reason  # type: ignore[union-attr]


def test_a_shard_with_a_damaged_header_says_that_members_are_missing(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", {f"{n}.png": png(n) for n in range(3)})
    offset = open_source(str(path), "image").open("s/1.png").offset  # type: ignore[union-attr]
    data = bytearray(path.read_bytes())
    data[offset - 512 : offset] = b"\xaa" * 512
    path.write_bytes(data)
    source = open_source(str(path), "image")
    assert source.keys() == ("s/0.png", f"s/damaged-at-{offset - 512}")
    good, bad = stream(source, source.keys(), NATIVE)
    assert isinstance(good, Item)
    assert isinstance(bad, Failure)
    assert "members behind it cannot be listed" in bad.reason
    assert manifest(source, tmp_path / "cache").entries[1][1] == "unreadable"


def test_compressed_shards_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w:gz") as archive:
        archive.add(__file__, "x.png")
    with pytest.raises(UsageError, match="decompress it"):
        open_source(f"wds:{tmp_path}/s.tar", "image").keys()
    (tmp_path / "t.tar").write_text("text" * 300)
    with pytest.raises(UsageError, match="is not a tar file"):
        open_source(f"wds:{tmp_path}/t.tar", "image").keys()


@pytest.mark.parametrize("kind", ["folder", "wds", "sample"])
def test_sources_are_picklable(tmp_path: Path, pictures_of: Callable[..., Path], kind: str) -> None:
    path = shard(tmp_path / "s.tar", {"x.png": png(1)})
    uri = {"folder": f"folder:{pictures_of(2)}", "wds": f"wds:{path}", "sample": "sample:image"}[kind]
    source = open_source(uri, "image")
    before = len(pickle.dumps(source))
    keys = source.keys()
    again = pickle.loads(pickle.dumps(source))
    assert again.keys() == keys
    assert (again.uri, again.modality) == (uri, "image")
    assert len(pickle.dumps(source)) == before  # the listing does not travel
