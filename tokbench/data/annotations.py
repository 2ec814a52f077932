"""Reads the json and txt files that stand beside a media file."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tokbench.data.types import Blob
from tokbench.errors import DecodeError


def read_side_files(sides: Mapping[str, Blob]) -> Mapping[str, object]:
    """Merge side files into one mapping: keys of a JSON object, `json` for other JSON values, `text` for a text file.

    A side file that cannot be read gives `error` with the reason, so that it is seen and the sample is not lost.
    """
    found: dict[str, object] = {}
    for extension, blob in sorted(sides.items()):
        try:
            with blob.open() as handle:
                text = handle.read().decode("utf-8")
            if extension == ".json":
                value = json.loads(text)
                found.update(value if isinstance(value, dict) else {"json": value})
            else:
                found["text"] = text.strip()
        except (DecodeError, ValueError, RecursionError) as error:
            found["error"] = f"{blob.name}: {error}"
    return found
