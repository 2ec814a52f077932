"""Every registered metric gives the same bits for any batch size, any order and any split into shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from seeded import seeded_audio, seeded_image
from torch import Tensor

from tokbench.data import Item
from tokbench.evaluate import applies, evaluate, is_corpus
from tokbench.metrics import _backbones, features, i3d, seeded, vit
from tokbench.reconstruct import Engine
from tokbench.registry import build_metric, build_tokenizer, expand, metric_names
from tokbench.session import find_weights
from tokbench.spec import AudioPrepare, EvalProtocol, ImagePrepare, Modality, VideoPrepare
from tokbench.types import Bounding, Metric, RowWise, State, Tokenizer, merge_states

SECONDS_A_ROW = (
    "distillmos", "dnsmos", "f0_crepe", "face", "fad_", "plcmos", "speaker_", "text_", "utmos", "visqol_", "wer_",
)  # fmt: skip
"""How the names begin of metrics that look through networks of their own, too slow to run here three times: their own
tests hold that a row does not depend on its batch."""

BY_DEFINITION = ("latency", "psnr_batch")
"""A measured time; and a published number that depends on the batch, and says so."""

NAMES = [name for name in metric_names() if not name.startswith(SECONDS_A_ROW) and name not in BY_DEFINITION]
TOKENIZERS: Mapping[Modality, str] = {
    "image": "tokbench-tiny-image", "audio": "tokbench-tiny-audio", "video": "h264?crf=40",
}  # fmt: skip
COUNT = 5


class Colours:
    """Stands in for Inception: what is tested here is what is done with features."""

    def __call__(self, x: Tensor) -> features.Features:
        pool = torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)
        return features.Features(pool, pool @ torch.linspace(-1, 1, 48 * 9).reshape(48, 9))


class Colour:
    """Stands in for I3D."""

    def __call__(self, clips: Tensor, fit: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([torch.nn.functional.adaptive_avg_pool3d(fit(clip[None]), 2).flatten(1) for clip in clips])


@dataclass(frozen=True)
class Pass:
    """What evaluating all metrics gave: rows by key, and corpus columns by metric; and which metrics could not run."""

    rows: Mapping[str, Mapping[str, float | None]]
    corpus: Mapping[str, Mapping[str, float | None]]
    absent: Mapping[str, str]


@pytest.fixture(scope="module")
def passes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[Modality, tuple[Pass, ...]]]:
    """Return, by modality: one batch; single rows backwards in two shards; mixed order, batches of two, three shards."""
    folder = tmp_path_factory.mktemp("merge")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "load", lambda *_: Colours())
        patch.setattr(i3d, "load", lambda *_: Colour())
        patch.setattr(vit.Encoder, "of", lambda _, images: Colours()(images).pool)
        patch.setattr(_backbones, "_hub_cache", lambda: folder)
        for name, backbone in (("alex", "alexnet-owt-7be5be79.pth"), ("vgg", "vgg16-397923af.pth")):
            seeded.write(name, folder / backbone)
        for backbone in (features.INCEPTION, i3d.WEIGHTS):
            (folder / backbone.files[0]).write_bytes(b"")
        patch.setattr(_backbones, "_checked", lambda _, path: path)
        yield {modality: run(modality) for modality in TOKENIZERS}


def run(modality: Modality) -> tuple[Pass, ...]:
    torch.manual_seed(0)
    (card,) = expand([TOKENIZERS[modality]])
    tokenizer = build_tokenizer(card, {role: Path(path) for role, path in find_weights(card, True)[0].items()})
    if hasattr(tokenizer, "to"):
        tokenizer.to("cpu", "float32")
    metrics = {name: build_metric(name) for name in NAMES}
    metrics = {name: metric for name, metric in metrics.items() if applies(metric, tokenizer)}
    if modality == "video":  # to these a frame is an image, and images hold them
        metrics = {name: metric for name, metric in metrics.items() if not name.startswith(("dists", "lpips"))}
    items = {"image": image_items, "audio": audio_items, "video": video_items}[modality]()
    splits = (([0, 1, 2, 3, 4],), 5), (([4, 2, 0], [3, 1]), 1), (([1, 3], [4], [0, 2]), 2)
    return tuple(gather(tokenizer, metrics, items, shards, batch, modality) for shards, batch in splits)


def gather(
    tokenizer: Tokenizer,
    metrics: Mapping[str, Metric],
    items: list[Item],
    shards: tuple[list[int], ...],
    batch: int,
    modality: Modality,
) -> Pass:
    prepare = {"image": ImagePrepare, "audio": AudioPrepare, "video": VideoPrepare}[modality]()
    protocol = EvalProtocol(modality=modality, prepare=prepare, dataset="test")
    rows: dict[str, Mapping[str, float | None]] = {}
    states: dict[str, State] = {name: {} for name, metric in metrics.items() if is_corpus(metric)}
    absent: dict[str, str] = {}
    for shard in shards:
        done = evaluate(
            tokenizer, [items[index] for index in shard], metrics, protocol, engine=Engine(), batch_size=batch
        )
        rows |= {row.key: row.values for row in done.rows}
        assert all(row.status == "ok" for row in done.rows), done.rows
        absent |= {name: str(error) for name, error in done.absent.items()}
        for name, state in done.states.items():
            metric = metrics[name]
            merged = merge_states(states[name], state)
            states[name] = metric.bound(merged) if isinstance(metric, Bounding) else merged
    corpus = {name: metrics[name].compute(state) for name, state in states.items() if name not in absent}  # type: ignore[union-attr]
    return Pass(rows, corpus, absent)


def image_items() -> list[Item]:
    images = (seeded_image("merge", COUNT, 64, 64) * 255).round().to(torch.uint8).numpy()
    return [Item(f"{index}.png", f"{index}.png", image) for index, image in enumerate(images)]


def audio_items() -> list[Item]:
    waves = seeded_audio("merge", COUNT, 24000, 24000).numpy().astype(np.float32)
    return [Item(f"{index}.wav", f"{index}.wav", wave, sample_rate=24000) for index, wave in enumerate(waves)]


def video_items() -> list[Item]:
    frames = (seeded_image("merge", COUNT, 48, 56) * 255).round().to(torch.uint8)
    pans = [torch.stack([frame[:, t : t + 36, t : t + 40] for t in range(9)], dim=1).numpy() for frame in frames]
    return [Item(f"{index}.mp4#000000", f"{index}.mp4", pan, fps=25.0) for index, pan in enumerate(pans)]


def test_what_is_not_run_here_is_registered() -> None:
    assert set(BY_DEFINITION) <= set(metric_names())
    assert all(any(name.startswith(begin) for name in metric_names()) for begin in SECONDS_A_ROW)
    assert {"psnr", "ssim", "lpips", "dists", "rfid", "rfvd", "isc", "kid", "prc", "fd_dinov2", "cmmd", "pfid"} <= set(
        NAMES
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_any_batch_order_and_split_gives_the_same_bits(name: str, passes: Mapping[Modality, tuple[Pass, ...]]) -> None:
    metric = build_metric(name)
    if isinstance(metric, RowWise):
        assert not is_corpus(metric)  # one row at a time by its form
    ran = False
    for modality in TOKENIZERS:
        if modality not in metric.spec.modalities:
            continue
        first, *others = passes[modality]
        if name in first.absent:
            assert all(name in other.absent for other in others)
            continue
        if is_corpus(metric):
            if name not in first.corpus:  # it does not apply to the tokenizer of the house
                continue
            assert all(same(first.corpus[name], other.corpus[name]) for other in others), [
                one.corpus[name] for one in (first, *others)
            ]
            ran = ran or any(value is not None for value in first.corpus[name].values())
        else:
            columns = [column.name for column in metric.spec.columns if column.where == "row"]
            for key, values in first.rows.items():
                mine = {column: values.get(column) for column in columns}
                for other in others:
                    assert same(mine, {column: other.rows[key].get(column) for column in columns}), (key, modality)
                ran = ran or any(value is not None for value in mine.values())
    if not ran:
        pytest.skip("no weights, no library or no tokenizer for it here; its own tests hold it")


def same(a: Mapping[str, float | None], b: Mapping[str, float | None]) -> bool:
    return a.keys() == b.keys() and all(
        a[key] == b[key] or (a[key] is not None and b[key] is not None and math.isnan(a[key]) and math.isnan(b[key]))
        for key in a
    )
