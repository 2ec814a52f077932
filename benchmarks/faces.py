"""Face scoring beside a loop in the way of TokBench's `eval_face.py`: CPU time a face and ratios, same network, same pictures.

    python benchmarks/faces.py [--copies 8]      # python benchmarks/ocr_faces.py prints it beside the words

Times are CPU seconds of this process on one thread, so that a busy machine does not change the ratios much.

The loop reads both files of a picture and embeds each face of the original and of the reconstruction, one at a time, through
insightface. tokbench has both pictures in memory from its one pass; for the first tokenizer it embeds both sides, for the
second it takes the originals' embeddings from its cache. The network is the one the tests use (tests/helpers/face_model.py).

That network stores many subnormal weights, which make a processor several times slower; tokbench flushes them to zero, a plain
loop does not. So the loop is timed a second time with them flushed: that ratio is what caching alone gives, and what to expect
of a network without subnormal weights.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tokbench.data import open_source
from tokbench.metrics.faces import Faces
from tokbench.spec import TokenizerSpec
from tokbench.types import Code, Sample

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))


@dataclass(frozen=True)
class Pair:
    """One picture before and after, in memory and as files, and its faces."""

    key: str
    before: Image.Image
    after: Image.Image
    files: tuple[Path, Path]
    annotation: dict[str, Any]


def pairs(folder: Path, copies: int) -> list[Pair]:
    """Return the built-in faces, each picture `copies` times at sizes from full to half, with JPEG as the tokenizer."""
    source = open_source("sample:faces", "image")
    out = []
    for key in source.keys():  # noqa: SIM118 - a source is no mapping
        origin = source.open(key)
        whole = Image.open(str(origin.path)).convert("RGB")  # type: ignore[union-attr]
        for n in range(copies):
            scale = 1 - n / (2 * copies)
            before = whole.resize((round(whole.width * scale), round(whole.height * scale)), Image.Resampling.LANCZOS)
            name = f"{key.replace('/', '-')}-{n}.png"
            after = Image.open(io.BytesIO(_jpeg(before))).convert("RGB")
            files = (folder / f"original-{name}", folder / f"reconstruction-{name}")
            before.save(files[0])
            after.save(files[1])
            out.append(Pair(name, before, after, files, dict(source.annotations(key))))
    return out


def loop(network: Any, found: list[Pair]) -> list[float]:
    """Score as the released script does: one face at a time, originals embedded again for every tokenizer."""
    import cv2
    from insightface.app.common import Face

    out = []
    for pair in found:
        images = [cv2.imread(str(file)) for file in pair.files]
        height, width = pair.annotation["size"]
        scale = np.array([pair.before.width / width, pair.before.height / height])
        for known in pair.annotation["faces"]:
            face = Face(kps=(np.array(known["kps"]) + 0.5) * scale - 0.5)
            a, b = (network.get(image, face) for image in images)
            out.append(float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))))
    return out


def samples(found: list[Pair]) -> list[Sample]:
    """Return what the engine hands to a metric: one batch a picture, since sizes differ."""
    spec = TokenizerSpec(name="jpeg", modality="image", kind="none")

    def tensor(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255

    return [
        Sample((p.key,), tensor(p.before), tensor(p.after), tensor(p.after), Code(), spec, annotations=(p.annotation,))
        for p in found
    ]


def ours(metric: Faces, batches: list[Sample], readings: dict[str, dict[str, object]]) -> list[float]:
    """Score with tokbench; `readings` is what earlier tokenizers left."""
    out = []
    for batch in batches:
        sample = replace(batch, memo={}, readings={name: dict(known) for name, known in readings.items()})
        metric(sample)
        readings.setdefault(metric.spec.name, {}).update(sample.readings[metric.spec.name])
        out += [float(str(record["similarity"])) for record in metric.details(sample)[0]]
    return out


def best(call: Callable[[], list[float]], rounds: int) -> tuple[float, list[float]]:
    """Return the shortest of a few timings, in seconds, and what the call gave."""
    times, values = [], []
    for _ in range(rounds):
        start = time.process_time()
        values = call()
        times.append(time.process_time() - start)
    return min(times), values


def faces(copies: int = 4, rounds: int = 3) -> None:
    """Print the table: each of the two pictures `copies` times, the best of `rounds` timings."""
    from face_model import locate  # tests/helpers

    warnings.simplefilter("ignore")  # scikit-image's about a call of insightface
    torch.set_num_threads(1)
    path = locate()["TOKBENCH_FACE_ONNX"]
    import onnxruntime
    from insightface.model_zoo import get_model
    from insightface.model_zoo.arcface_onnx import ArcFaceONNX

    onnxruntime.set_default_logger_severity(3)
    alone = onnxruntime.SessionOptions()
    alone.intra_op_num_threads = 1
    plain = get_model(str(path), providers=["CPUExecutionProvider"], sess_options=alone)
    flushing = ArcFaceONNX(
        str(path), onnxruntime.InferenceSession(str(path), alone, providers=["CPUExecutionProvider"])
    )
    metric = Faces(model="onnx", weights=str(path), size=512)

    def flushed(found: list[Pair]) -> list[float]:
        torch.set_flush_denormal(True)
        try:
            return loop(flushing, found)
        finally:
            torch.set_flush_denormal(False)

    with tempfile.TemporaryDirectory() as folder:
        found = pairs(Path(folder), copies)
        batches = samples(found)
        readings: dict[str, dict[str, object]] = {}
        ours(metric, batches, readings)
        rows = {
            "loop, as released": best(lambda: loop(plain, found), rounds),
            "loop, subnormals flushed": best(lambda: flushed(found), rounds),
            "tokbench, first tokenizer": best(lambda: ours(metric, batches, {}), rounds),
            "tokbench, second tokenizer": best(lambda: ours(metric, batches, readings), rounds),
        }
    count = len(rows["loop, as released"][1])
    print(f"{count} faces on {len(found)} pictures, CPU time\n")
    print("| way | ms a face | faster than the loop | than the loop, flushed | largest difference of F-Sim |")
    print("|---|---|---|---|---|")
    first, second = rows["loop, as released"], rows["loop, subnormals flushed"]
    for name, (seconds, values) in rows.items():
        gap = max(abs(a - b) for a, b in zip(values, first[1], strict=True))
        print(
            f"| {name} | {1000 * seconds / count:.1f} | {first[0] / seconds:.1f}x | {second[0] / seconds:.1f}x | {gap:.1e} |"
        )


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=30)
    return buffer.getvalue()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=4, help="how often each of the two pictures is scored")
    parser.add_argument("--rounds", type=int, default=3, help="timings of which the best counts")
    faces(**vars(parser.parse_args()))
