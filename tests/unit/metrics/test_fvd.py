"""rFVD as the engine drives it: the same bits for any split, shared passes, and a reason where there is no number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tokbench.errors import NotApplicable, UsageError, WeightsAbsent
from tokbench.metrics import _backbones, i3d
from tokbench.metrics._backbones import ABSENT
from tokbench.metrics.fvd import PRESETS, Rfvd
from tokbench.metrics.i3d import I3d
from tokbench.spec import Modality, TokenizerSpec
from tokbench.types import Bounding, Code, Referencing, Sample, State, Subsets, merge_states

N = 14


def sample(x: Tensor, raw: Tensor, keys: tuple[str, ...], modality: Modality = "video") -> Sample:
    spec = TokenizerSpec(name="test", modality=modality, kind="none")
    return Sample(keys, x, raw.clamp(0, 1), raw, Code(), spec, groups=keys)


def clips(count: int = N, frames: int = 9, height: int = 20, width: int = 20) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    g = torch.Generator().manual_seed(0)
    x = (torch.rand(count, 3, frames, height, width, generator=g) * 255).round() / 255
    raw = x + 0.2 * torch.randn(x.shape, generator=g)
    return x, raw, tuple(f"clip-{index:02d}" for index in range(count))


class Colours:
    """Stands in for I3D: mean colours of parts of the resized clip, and a count of the clips it saw."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, clips: Tensor, fit: Callable[[Tensor], Tensor]) -> Tensor:
        self.seen += len(clips)
        rows = [torch.nn.functional.adaptive_avg_pool3d(fit(clip[None]), 2).flatten(1) for clip in clips]
        return 20 * torch.cat(rows)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Colours, str]:
    """Replace the network; its weights are an empty file."""
    stand_in = Colours()
    monkeypatch.setattr(i3d, "load", lambda *_: stand_in)
    (tmp_path / "w.pt").write_bytes(b"")
    return stand_in, str(tmp_path / "w.pt")


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No weights in any usual place of this machine."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("TOKBENCH_WEIGHTS", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _backbones._download.cache_clear()
    return tmp_path


def gathered(metric: Rfvd, order: list[int], cuts: list[int], batch: int) -> State:
    x, raw, keys = clips()
    whole: State = {}
    for first, last in zip([0, *cuts], cuts, strict=False):
        state = metric.init()
        part = order[first:last]
        for start in range(0, len(part), batch):
            some = part[start : start + batch]
            rows = sample(x[some], raw[some], tuple(keys[i] for i in some))
            state = metric.update_reference(metric.update(state, rows), rows)
        whole = metric.bound(merge_states(whole, state))
    return whole


@pytest.mark.parametrize("batch", [1, 3, N])
@pytest.mark.parametrize("cuts", [[N], [3, N], [5, 9, 13, N]])
def test_any_batch_order_and_split_gives_the_same_bits(
    cuts: list[int], batch: int, counted: tuple[Colours, str]
) -> None:
    metric = Rfvd(weights=counted[1])
    expected = metric.compute(gathered(metric, list(range(N)), [N], N))
    shuffled = np.random.Generator(np.random.PCG64(1)).permutation(N).tolist()
    assert expected["rfvd"] is not None
    assert expected["rfvd"] > 0.1
    assert metric.compute(gathered(metric, shuffled, cuts, batch)) == expected


def test_it_is_what_the_engine_knows(counted: tuple[Colours, str]) -> None:
    metric = Rfvd(weights=counted[1])
    assert isinstance(metric, Referencing)
    assert isinstance(metric, Bounding)
    assert isinstance(metric, Subsets)
    x, raw, keys = clips(3)
    batch = sample(x, raw, keys)
    state: State = {}
    new = metric.update(state, batch)
    assert state == {}  # an update leaves the old state as it was
    assert not new.keys() & metric.update_reference({}, batch).keys()
    assert (
        metric.compute(merge_states(new, metric.update_reference({}, sample(raw.clamp(0, 1), raw, keys))))["rfvd"]
        is not None
    )


def test_an_identity_has_no_distance(counted: tuple[Colours, str]) -> None:
    metric = Rfvd(weights=counted[1])
    x, _, keys = clips(6)
    batch = sample(x, x, keys)
    found = metric.compute(metric.update_reference(metric.update({}, batch), batch))["rfvd"]
    assert found == pytest.approx(0.0, abs=1e-6)


# Of square clips both resizes are one (of 100 pixels they just miss it): references need a pass an epsilon, reconstructions
# one more for LARP's float frames.
@pytest.mark.parametrize(("width", "references", "reconstructions"), [(20, 2, 3), (26, 4, 5), (100, 4, 5)])
def test_presets_of_one_batch_share_their_passes(
    width: int, references: int, reconstructions: int, counted: tuple[Colours, str]
) -> None:
    network, weights = counted
    x, raw, keys = clips(2, height=100 if width == 100 else 20, width=width)
    batch = sample(x, raw, keys)
    metrics = [Rfvd(preset=name, weights=weights) for name in PRESETS]
    for metric in metrics:
        metric.update_reference({}, batch)
    assert network.seen == 2 * references
    for metric in metrics:
        metric.update({}, batch)
    assert network.seen == 2 * (references + reconstructions)


def test_a_square_of_100_pixels_has_a_row_too_many_as_published() -> None:
    clip = clips(1, frames=1, height=100, width=100)[0]
    stretched = torch.nn.functional.interpolate(clip[:, :, 0], size=(225, 224), mode="bilinear", align_corners=False)
    assert torch.equal(i3d.crop(clip)[:, :, 0], stretched[..., :224, :])
    assert not torch.equal(i3d.crop(clip), i3d.squeeze(clip))
    even = clips(1, frames=1, height=128, width=128)[0]
    assert torch.equal(i3d.crop(even), i3d.squeeze(even))


def test_presets_take_the_decoders_output_as_they_say(counted: tuple[Colours, str]) -> None:
    x = torch.full((2, 3, 9, 4, 4), 100 / 255)
    raw = torch.full((2, 3, 9, 4, 4), 100.7 / 255)
    values = {}
    for name in ("tokenbench", "larp", "seed-voken"):
        metric = Rfvd(preset=name, weights=counted[1])
        (row, _) = metric.update({}, sample(x, raw, ("a", "b"))).values()
        values[name] = float(row[0] / 20 * 255)
    assert values == pytest.approx({"tokenbench": 101, "larp": 100.7, "seed-voken": 100}, abs=0.15)


def test_fewer_than_two_clips_have_no_number(counted: tuple[Colours, str]) -> None:
    metric = Rfvd(preset="larp", weights=counted[1])
    x, raw, keys = clips(1)
    batch = sample(x, raw, keys)
    assert metric.compute(metric.update_reference(metric.update({}, batch), batch)) == {"rfvd_larp": None}
    assert metric.undefined == {"rfvd_larp": "needs at least two clips"}


def test_clips_that_are_too_short_and_images_are_not_applicable(counted: tuple[Colours, str]) -> None:
    metric = Rfvd(weights=counted[1])
    x, raw, keys = clips(2, frames=8)
    with pytest.raises(NotApplicable, match=r"at least 9 frames, these have 8.*\[prepare\]"):
        metric.update({}, sample(x, raw, keys))
    with pytest.raises(NotApplicable, match="I3D looks at video; test is for image"):
        metric.update({}, sample(x[:, :, 0], raw[:, :, 0], keys, "image"))
    image = TokenizerSpec(name="pictures", modality="image", kind="discrete")
    assert "not defined for discrete image tokenizers" in metric.spec.mismatch(image)
    assert counted[0].seen == 0


@pytest.mark.usefixtures("nowhere")
def test_absent_weights_say_where_to_put_them() -> None:
    metric = Rfvd()
    metric.fetch(offline=True)
    metric.fetch(offline=False)  # HF_HUB_OFFLINE forbids it
    assert metric.spec.protocol["weights"] == ABSENT
    with pytest.raises(WeightsAbsent) as caught:
        metric.update({}, sample(*clips(2)))
    assert i3d.WEIGHTS.url in caught.value.fix
    assert "weights=/path/to/i3d_pretrained_400.pt" in caught.value.fix


def test_the_converted_archive_is_found_by_its_name(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKBENCH_WEIGHTS", str(nowhere))
    (nowhere / "i3d_torchscript.safetensors").write_bytes(b"any")
    assert Rfvd().spec.protocol["weights"] != ABSENT


def test_the_protocol_tells_presets_apart() -> None:
    protocols = [str(Rfvd(preset=name).spec.protocol) for name in PRESETS]
    assert len(set(protocols)) == len(PRESETS)
    assert Rfvd().spec.protocol["epsilon"] == 1e-3


@pytest.mark.parametrize("words", [{"preset": "fvd"}, {"covariance": "n+1"}])
def test_unknown_options_are_named(words: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="rfvd: "):
        Rfvd(**words)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown fit 'pad'; one of crop, squeeze"):
        I3d("pad")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "stride", "expected"), [(9, 2, (3, 3)), (16, 2, (2, 3)), (17, 2, (3, 3)), (8, 1, (3, 3))]
)
def test_padding_is_tensorflows(size: int, stride: int, expected: tuple[int, int]) -> None:
    x = torch.ones(1, 1, size, 2, 2)
    padded = i3d.same(x, (7, 1, 1), (stride, 1, 1))[0, 0, :, 0, 0]
    assert len(padded) == size + sum(expected)
    assert int((padded == 0).int().cumprod(0).sum()) == expected[0]
    # As many outputs as TensorFlow gives: the size over the stride, rounded up.
    assert (len(padded) - 7) // stride + 1 == -(-size // stride)
