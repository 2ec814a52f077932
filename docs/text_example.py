"""Draws docs/text_example.png, words of the built-in pages before and after with what EasyOCR read there.

python docs/text_example.py
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from tokbench.data import Item, load, open_source
from tokbench.metrics.text import text_easyocr
from tokbench.prepare.image import restore_image
from tokbench.spec import ImagePrepare, TokenizerSpec
from tokbench.types import Code, Sample

OUT = Path(__file__).parent / "text_example.png"
COLUMNS = ("reference", "resize", "jpeg?quality=30", "jpeg?quality=10")
PAGES = ("words/coffee", "words/plain-1", "words/plain-6")
PER_BIN = 2
CELL, ROW, LEFT, TOP = 190, 62, 92, 30


def reconstructed(item: Item, name: str) -> torch.Tensor:
    """Return (1, 3, H, W) at the file's size: the 256-pixel image as it is, or through JPEG."""
    assert item.original is not None
    assert item.padding is not None
    signal = item.signal
    if name == "reference":
        return torch.from_numpy(item.original.copy())[None].float() / 255
    if name != "resize":
        buffer = io.BytesIO()
        Image.fromarray(signal.transpose(1, 2, 0)).save(buffer, "JPEG", quality=int(name.rpartition("=")[2]))
        signal = np.ascontiguousarray(np.asarray(Image.open(buffer)).transpose(2, 0, 1))
    back = restore_image(signal, item.padding, (item.original.shape[1], item.original.shape[2]))
    return torch.from_numpy(back.copy())[None].float() / 255


def records(item: Item, image: torch.Tensor) -> list[dict[str, Any]]:
    """Return what the metric keeps of each word."""
    metric = text_easyocr()
    spec = TokenizerSpec(name="t", modality="image", kind="none")
    reference = reconstructed(item, "reference")
    sample = Sample((item.key,), reference, image, image, Code(), spec, annotations=(item.annotations,))
    metric(sample)
    return [dict(record) for record in metric.details(sample)[0]]


def main() -> None:
    """Write the picture."""
    source = open_source("sample:words", "image")
    rows: list[tuple[str, list[tuple[Image.Image, str, bool]]]] = []
    for size in ("small", "medium", "large"):
        for page in PAGES[:PER_BIN] if size != "medium" else PAGES[-PER_BIN:]:
            (item,) = load(source, page, ImagePrepare("tokbench-pad", 256))
            assert isinstance(item, Item)
            images = {name: reconstructed(item, name) for name in COLUMNS}
            read = {name: records(item, image) for name, image in images.items()}
            # The first word of the bin that is read right on the reference.
            index = next(
                i for i, word in enumerate(read["reference"]) if word["bin"] == size and word["read"] == word["text"]
            )
            words: Any = item.annotations["words"]
            left, top, right, bottom = words[index]["box"]
            cells = []
            for name in COLUMNS:
                crop = (images[name][0, :, top:bottom, left:right] * 255).round().to(torch.uint8)
                word = read[name][index]
                cells.append(
                    (Image.fromarray(crop.permute(1, 2, 0).numpy()), word["read"], word["read"] == word["text"])
                )
            rows.append((f"{size}\n{read['reference'][index]['ratio']:.3f}", cells))
    canvas = Image.new("RGB", (LEFT + CELL * len(COLUMNS), TOP + ROW * len(rows) + 6), (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    for column, name in enumerate(COLUMNS):
        draw.text((LEFT + column * CELL, 8), name, fill=(0, 0, 0), font=ImageFont.load_default(14))
    for row, (label, cells) in enumerate(rows):
        y = TOP + row * ROW
        draw.line((0, y - 3, canvas.width, y - 3), fill=(220, 220, 220))
        draw.text((6, y + 4), label, fill=(90, 90, 90), font=ImageFont.load_default(13))
        for column, (crop, text, right_text) in enumerate(cells):
            scale = min((CELL - 14) / crop.width, 34 / crop.height)
            shown = crop.resize((round(crop.width * scale), round(crop.height * scale)), Image.Resampling.LANCZOS)
            x = LEFT + column * CELL
            canvas.paste(shown, (x, y))
            colour = (0, 120, 50) if right_text else (190, 0, 20)
            draw.text((x, y + 38), text or "(nothing)", fill=colour, font=ImageFont.load_default(15))
    canvas.quantize(128, dither=Image.Dither.NONE).save(OUT, optimize=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
