"""Text and faces beside a straightforward loop in the way of the published scripts: same models, same images, one thread.

    python benchmarks/ocr_faces.py           # words, then faces; about two minutes on one core
    python benchmarks/ocr_faces.py --pages 2

Times are CPU seconds of this process, so that a busy machine does not change the ratio much. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import io
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from faces import faces
from PIL import Image

from tokbench.data import Item, load, open_source
from tokbench.prepare.image import restore_image
from tokbench.spec import ImagePrepare, TokenizerSpec
from tokbench.types import Code, Sample

QUALITIES = (30, 50)


def text(pages: int) -> None:
    """Print seconds of two tokenizers over `pages` pages of words: the loop's, the metric's, and their ratios.

    The loop cuts out one word after the other and gives it to `easyocr.Reader.recognize`, on the original and on the
    reconstruction, for every tokenizer; then it scores. The metric reads originals once, words in batches, and only the
    words that a scale bin holds. Both must come to the same T-ACC.
    """
    import cv2
    import easyocr
    import easyocr_en_models

    from tokbench.metrics.text import text_easyocr

    reader = easyocr.Reader(
        ["en"], gpu=False, model_storage_directory=easyocr_en_models.model_dir(), download_enabled=False, verbose=False,
        quantize=False, detector=False,
    )  # fmt: skip
    metric = text_easyocr()
    items = _items("sample:words", pages)
    samples = {quality: [_sample(item, quality) for item in items] for quality in QUALITIES}

    def read(image: torch.Tensor, box: list[int]) -> str:
        left, top, right, bottom = box
        eight = (image[:, top:bottom, left:right] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        grey = cv2.cvtColor(np.ascontiguousarray(eight), cv2.COLOR_RGB2GRAY)
        whole = [[0, right - left, 0, bottom - top]]
        return str(reader.recognize(grey, horizontal_list=whole, free_list=[], reformat=False)[0][1])

    def loop(quality: int, originals: bool) -> float:
        rows = []
        for sample in samples[quality]:
            words: Any = sample.annotations[0]["words"]
            for word in words:
                if originals:
                    read(sample.reference[0], word["box"])
                got = read(sample.reconstruction[0], word["box"])
                rows.append(((word["box"][2] - word["box"][0]) / len(word["text"]) / 512, got == word["text"]))
        edges = ((0.02, 0.03), (0.03, 0.04), (0.04, 1))
        return float(np.mean([np.mean([right for ratio, right in rows if low <= ratio < high]) for low, high in edges]))

    kept: dict[str, dict[str, object]] = {}

    def ours(quality: int) -> float:
        sums: dict[str, float] = {}
        for sample in samples[quality]:
            sample.readings.update(kept)
            for name, value in metric(sample).items():
                sums[name] = sums.get(name, 0.0) + float(value.sum())
            for name, known in sample.readings.items():
                kept.setdefault(name, {}).update(known)
        parts = ("small", "medium", "large")
        return float(np.mean([sums[f"text_right_{p}_easyocr"] / sums[f"text_words_{p}_easyocr"] for p in parts]))

    warm = _sample(items[0], 90)
    metric(warm)
    read(warm.reference[0], [0, 0, 60, 20])
    print(f"words of {len(items)} pages, tokenizers jpeg?quality={QUALITIES[0]} and {QUALITIES[1]}, CPU seconds")
    for turn, quality in zip(("first", "second"), QUALITIES, strict=True):
        theirs, theirs_score = _timed(lambda q=quality: loop(q, originals=True))
        bare, _ = _timed(lambda q=quality: loop(q, originals=False))
        mine, score = _timed(lambda q=quality: ours(q))
        assert abs(score - theirs_score) < 1e-9, (score, theirs_score)
        print(
            f"{turn:>6} tokenizer: loop {theirs:6.2f} s, tokbench {mine:6.2f} s: {theirs / mine:4.1f}x "
            f"(loop without originals {bare:6.2f} s: {bare / mine:4.1f}x); T-ACC {score:.4f} in both"
        )


def _items(uri: str, count: int) -> list[Item]:
    source = open_source(uri, "image")
    rows = [row for key in source.keys()[:count] for row in load(source, key, ImagePrepare("tokbench-pad", 256))]
    return [row for row in rows if isinstance(row, Item)]


def _sample(item: Item, quality: int) -> Sample:
    """Return the batch of one that the engine makes of JPEG at a quality under the preset `tokbench-pad`."""
    assert item.original is not None
    assert item.padding is not None
    buffer = io.BytesIO()
    Image.fromarray(item.signal.transpose(1, 2, 0)).save(buffer, "JPEG", quality=quality)
    decoded = np.asarray(Image.open(buffer)).transpose(2, 0, 1)
    back = restore_image(np.ascontiguousarray(decoded), item.padding, (item.original.shape[1], item.original.shape[2]))
    reference, reconstruction = (torch.from_numpy(x.copy())[None].float() / 255 for x in (item.original, back))
    spec = TokenizerSpec(name=f"jpeg?quality={quality}", modality="image", kind="payload")
    return Sample(
        (item.key,), reference, reconstruction, reconstruction, Code(), spec, groups=(item.key,),
        annotations=(item.annotations,),
    )  # fmt: skip


def _timed(call: Callable[[], float]) -> tuple[float, float]:
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=4, help="pages of words, of 12")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    text(arguments.pages)
    print()
    faces()
