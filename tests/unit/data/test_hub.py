"""Hub datasets: rows of stored bytes behind an address that pins them."""

from __future__ import annotations

import builtins
import io
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokbench.data import Item, manifest, open_source, stream
from tokbench.data.hub import HubSource
from tokbench.errors import DataAbsent, MissingExtra, UsageError, install_command
from tokbench.spec import ImagePrepare

NATIVE = ImagePrepare(preset="native", size=None)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Return a dataset of three images with a label and a mask, read back from Parquet."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("parquet")
    images = []
    for value in (10, 20, 30):
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": f"{value}.png"})
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "label": datasets.Value("int64"),
            "boxes": datasets.Sequence(datasets.Value("int64")),
        }
    )
    table = {"picture": images, "label": [1, 2, 3], "boxes": [[1], [2], [3]]}
    datasets.Dataset.from_dict(table, features=features).to_parquet(folder / "t.parquet")
    return datasets.Dataset.from_parquet(str(folder / "t.parquet"), cache_dir=str(folder / "cache"))


def test_rows_are_keys_and_bytes_are_as_stored(rows, tmp_path: Path) -> None:
    asked: list[object] = []

    def loader(*what: object) -> object:
        asked.append(what)
        return rows

    source = HubSource("hf:org/name@abc123:test?config=plain", "image", loader)
    assert source.keys() == ("test/00000000", "test/00000001", "test/00000002")
    assert asked == [("org/name", "plain", "abc123", "test")]
    found = list(stream(source, source.keys(), NATIVE, 0))
    assert all(isinstance(item, Item) for item in found)
    assert [int(item.signal[0, 0, 0]) for item in found if isinstance(item, Item)] == [10, 20, 30]
    assert [item.annotations for item in found if isinstance(item, Item)] == [{"label": 1}, {"label": 2}, {"label": 3}]
    assert len(manifest(source, tmp_path)) == 3


def test_the_column_can_be_named(rows) -> None:
    assert len(HubSource("hf:org/name@abc:test?column=picture", "image", lambda *_: rows).keys()) == 3
    with pytest.raises(UsageError, match="has no column 'image'; it has boxes, label, picture"):
        HubSource("hf:org/name@abc:test?column=image", "image", lambda *_: rows).keys()
    with pytest.raises(UsageError, match="has no audio columns; name one"):
        HubSource("hf:org/name@abc:test", "audio", lambda *_: rows).keys()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("hf:org/name:test", "names no revision"),
        ("hf:org/name@abc", "names no split"),
        ("hf:name@abc:test", "does not read as hf:org/name@revision:split"),
        ("hf:org/name@abc:test?colum=x", "unknown option 'colum'"),
    ],
)
def test_addresses_that_do_not_pin_the_data_are_refused(uri: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_source(uri, "image")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> types.ModuleType:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=re.escape(install_command("hf"))):
        open_source("hf:org/name@abc:test", "image").keys()


def test_offline_says_how_to_get_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(DataAbsent, match="hf download org/name --repo-type dataset --revision abc"):
        open_source("hf:org/name@abc:test", "image").keys()


def test_only_parquet_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    builder = type("Json", (), {"__module__": "datasets.packaged_modules.json.json"})()
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *args, **kwargs: builder)
    with pytest.raises(UsageError, match="not stored as Parquet"):
        open_source("hf:org/name@abc:test", "image").keys()
    assert "datasets" in sys.modules
