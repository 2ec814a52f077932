"""rFID and its front ends beside torch-fidelity, torchmetrics, pytorch-fid and clean-fid, on the same tensors and weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tokbench.errors import NotApplicable, UsageError
from tokbench.metrics import features
from tokbench.metrics._exact import add_rows, kept_rows
from tokbench.metrics.features import Inception, picture
from tokbench.metrics.frechet import PRESETS, Rfid, distance, truncated
from tokbench.prepare.signal import round_8bit
from tokbench.spec import Modality, TokenizerSpec
from tokbench.types import Code, Sample, State, merge_states, take_row

GOLDEN = np.load(Path(__file__).with_name("golden_fid.npz"))
KEYS = tuple(f"{index:03d}" for index in range(24))


def sample(x: Tensor, raw: Tensor, modality: Modality = "image", keys: tuple[str, ...] = KEYS) -> Sample:
    keys = keys[: x.shape[0]]
    spec = TokenizerSpec(name="test", modality=modality, kind="none")
    done = round_8bit(raw, "round")
    empty = tuple({} for _ in keys)
    return Sample(keys, x, done, raw, Code(), spec, groups=keys, annotations=empty)


def images(count: int, height: int = 40, width: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return 8-bit pictures and what a decoder makes of them: blurred, noisy, out of range, between the levels."""
    g = torch.Generator().manual_seed(seed)
    rough = torch.rand(count, 3, 6, 6, generator=g)
    smooth = torch.nn.functional.interpolate(rough, size=(height, width), mode="bicubic")
    x = ((smooth + 0.05 * torch.randn(smooth.shape, generator=g)).clamp(0, 1) * 255).round() / 255
    raw = torch.nn.functional.avg_pool2d(x, 3, 1, 1) * 1.15 - 0.05 + 0.02 * torch.randn(x.shape, generator=g)
    return x, raw


def levels(x: Tensor) -> Tensor:
    return (x * 255).round().to(torch.uint8)


def reference_network(weights: str, antialias: bool | None = None) -> torch.nn.Module:
    if antialias is None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        return FeatureExtractorInceptionV3("i", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights)
    from torchmetrics.image.fid import NoTrainInceptionV3

    return NoTrainInceptionV3("i", ["2048"], feature_extractor_weights_path=weights, antialias=antialias)


@pytest.mark.slow
def test_torch_fidelity_says_the_same_on_the_same_tensors(inception_weights: str) -> None:
    import torch_fidelity

    from tokbench.metrics.distribution import InceptionScore, Kid, PrecisionRecall

    class Levels(torch.utils.data.Dataset):
        def __init__(self, x: Tensor) -> None:
            self.x = levels(x)

        def __len__(self) -> int:
            return len(self.x)

        def __getitem__(self, index: int) -> Tensor:
            return self.x[index]

    x, raw = images(14)
    theirs = torch_fidelity.calculate_metrics(
        input1=Levels(round_8bit(raw, "round")), input2=Levels(x), fid=True, isc=True, isc_splits=1, kid=True, prc=True,
        kid_subset_size=14, kid_subsets=2, cuda=False, cache=False, verbose=False, batch_size=7, save_cpu_ram=True,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=inception_weights,
    )  # fmt: skip
    batch = sample(x, raw)
    found: dict[str, float | None] = {}
    for metric in (
        Rfid(weights=inception_weights),
        InceptionScore(weights=inception_weights),
        Kid(weights=inception_weights, subset_size=14, subsets=2, pool=100),
        PrecisionRecall(weights=inception_weights),
    ):
        state = merge_states(metric.update({}, batch), metric.update_reference({}, batch))
        found |= metric.compute(state)
    assert theirs["frechet_inception_distance"] > 0.5
    assert found["rfid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert found["isc"] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert found["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3, abs=1e-6)
    assert found["precision"] == theirs["precision"]
    assert found["recall"] == theirs["recall"]


def test_features_are_those_of_torch_fidelity(inception_weights: str) -> None:
    x, _ = images(3)
    with torch.inference_mode():
        pool, logits = reference_network(inception_weights)(levels(x))
    mine = Inception("tf1", inception_weights).of(x)
    assert float(pool.std()) > 0.1  # the weights tell pictures apart
    torch.testing.assert_close(mine.pool, pool, rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(mine.logits, logits, rtol=1e-4, atol=1e-3)


def test_antialiased_features_are_those_of_torchmetrics(inception_weights: str) -> None:
    x, _ = images(2, 340, 320)
    with torch.inference_mode():
        theirs = reference_network(inception_weights, antialias=True)(levels(x))
        plain = reference_network(inception_weights, antialias=False)(levels(x))
    theirs, plain = (t[0] if isinstance(t, tuple) else t for t in (theirs, plain))
    mine = Inception("antialias", inception_weights).of(x).pool
    torch.testing.assert_close(mine, theirs.reshape(2, -1), rtol=1e-4, atol=2e-4)
    assert not torch.allclose(mine, plain.reshape(2, -1), rtol=1e-3, atol=1e-3)


def test_bilinear_features_are_those_of_pytorch_fid(inception_weights: str) -> None:
    x = torch.from_numpy(GOLDEN["images"]).permute(0, 3, 1, 2).float() / 255
    mine = Inception("bilinear", inception_weights)
    theirs = torch.from_numpy(GOLDEN["pytorch_fid"])
    torch.testing.assert_close(mine.of(x).pool[:, ::8], theirs, rtol=1e-4, atol=2e-4)
    wild = torch.from_numpy(GOLDEN["pytorch_fid_unclamped"])
    torch.testing.assert_close(mine.of(x * 1.6 - 0.3).pool[:, ::8], wild, rtol=1e-4, atol=2e-4)
    assert float((theirs - wild).abs().max()) > 0.1


def test_clean_resize_is_that_of_clean_fid() -> None:
    x = torch.from_numpy(GOLDEN["images"]).permute(0, 3, 1, 2).float() / 255
    mine = features.clean(x) * 128 + 128
    theirs = torch.from_numpy(GOLDEN["clean_resized"]).permute(0, 3, 1, 2)
    torch.testing.assert_close(mine[:, :, ::11, ::11], theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["pytorch_fid_distance", "clean_fid_distance"])
def test_the_distance_is_that_of_scipys_root(name: str) -> None:
    a, b = torch.from_numpy(GOLDEN["rows_a"]), torch.from_numpy(GOLDEN["rows_b"])
    state = add_rows({}, "reference", [str(i) for i in range(len(a))], a)
    state = add_rows(state, "reconstruction", [str(i) for i in range(len(b))], b)
    assert distance(state) == pytest.approx(float(GOLDEN[name]), rel=1e-5)
    unbiased, biased = distance(state), distance(state, divide_by_n=True)
    assert biased is not None
    assert unbiased is not None
    assert biased != unbiased


def test_rows_are_the_same_bits_in_any_batch(inception_weights: str) -> None:
    x, _ = images(8)
    extract = Inception("tf1", inception_weights)
    whole = extract.of(x)
    for size in (1, 3):
        parts = [extract.of(part) for part in torch.split(x[:6], size)]
        assert torch.equal(torch.cat([part.pool for part in parts]), whole.pool[:6])
        assert torch.equal(torch.cat([part.logits for part in parts]), whole.logits[:6])


@pytest.mark.parametrize("mode", ["round", "truncate"])
def test_pictures_are_rounded_as_the_engine_rounds(mode: str) -> None:
    halves = (torch.arange(-300, 60000) / 2 + 0.25).div(255 * 100).reshape(1, 3, -1, 10)
    raw = torch.cat([halves.flatten(), (torch.arange(0, 511) / 2).div(255).repeat(3)])[: 3 * 20000].reshape(
        1, 3, -1, 10
    )
    batch = sample(raw.clamp(0, 1), raw)
    assert torch.equal(picture(batch, "reconstruction", mode), round_8bit(raw, mode))  # type: ignore[arg-type]
    assert torch.equal(picture(batch, "reconstruction", "clamp"), round_8bit(raw, "none"))
    assert torch.equal(picture(batch, "reconstruction", "raw"), raw)
    assert torch.equal(picture(batch, "reference", mode), batch.reference)  # type: ignore[arg-type]


def test_vtbenchs_originals_lose_a_level_in_95_of_256() -> None:
    levels_ = np.arange(256, dtype=np.uint8)
    there = torch.from_numpy(levels_ / 255.0 * 2 - 1).float()
    back = there.clamp(-1, 1).add(1).div(2).mul(255).to(torch.uint8)
    x = (torch.arange(256) / 255).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    mine = (truncated(x) * 255).round()
    assert torch.equal(mine[0, 0].flatten().to(torch.uint8), back)
    assert int((mine[0, 0].flatten() != torch.arange(256)).sum()) == 95


def test_one_preset_alone_truncates_its_references(counted: tuple[Counting, str]) -> None:
    _, weights = counted
    x, _ = images(6)
    batch = sample(x, x)
    for name in PRESETS:
        metric = Rfid(preset=name, weights=weights)
        state = merge_states(metric.update({}, batch), metric.update_reference({}, batch))
        a, b = (kept_rows(state, side) for side in ("reference", "reconstruction"))
        assert a is not None
        assert b is not None
        assert np.array_equal(a, b) == (name != "torchmetrics")
    assert Rfid(preset="torchmetrics", weights=weights).spec.protocol["reference"] == "truncated"
    assert "reference" not in Rfid(weights=weights).spec.protocol


class Counting:
    """Stands in for the network: colour means of the resized picture, and a count of the pictures it saw."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, x: Tensor) -> features.Features:
        self.seen += len(x)
        pool = torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1).double().float()
        return features.Features(pool, pool @ torch.ones(12, 5))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Counting, str]:
    """Replace the network; its weights are an empty file."""
    stand_in = Counting()
    monkeypatch.setattr(features, "load", lambda *_: stand_in)
    (tmp_path / "w.pth").write_bytes(b"")
    return stand_in, str(tmp_path / "w.pth")


def test_presets_of_one_batch_share_their_forward_passes(counted: tuple[Counting, str]) -> None:
    network, weights = counted
    x, raw = images(5)
    batch = sample(x, raw)
    states: dict[str, State] = {}
    for name in PRESETS:
        metric = Rfid(preset=name, weights=weights)
        states[metric.column] = merge_states(metric.update({}, batch), metric.update_reference({}, batch))
    assert len(states) == len(PRESETS) == 9  # a column each
    # References: a pass a front end (4). Reconstructions: tf1; bilinear rounded, clamped, raw; clean; antialias (6).
    assert network.seen == 5 * (4 + 6)
    values = {column: distance(state) for column, state in states.items()}
    assert values["rfid"] == values["rfid_adm"] == values["rfid_titok"]
    assert values["rfid_pytorch_fid"] == values["rfid_dc_ae"]
    different = [
        values[f"rfid{name}"] for name in ("", "_seed_voken", "_bsq", "_pytorch_fid", "_clean", "_torchmetrics")
    ]
    assert len(set(different)) == 6


def test_metrics_of_one_front_end_share_one_forward_pass_a_side(counted: tuple[Counting, str]) -> None:
    from tokbench.metrics.distribution import InceptionScore, Kid, PrecisionRecall

    network, weights = counted
    batch = sample(*images(5))
    for metric in (
        Rfid(weights=weights), Rfid(preset="adm", weights=weights), InceptionScore(weights=weights),
        Kid(weights=weights), PrecisionRecall(weights=weights),
    ):  # fmt: skip
        metric.update_reference(metric.update({}, batch), batch)
    assert network.seen == 5 * 2


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_rfid_does_not_depend_on_batches_or_shards(counted: tuple[Counting, str], batch: int) -> None:
    metric = Rfid(weights=counted[1])
    x, raw = images(16)
    keys = KEYS[:16]

    def gather(order: list[int], size: int, shards: int) -> dict[str, float | None]:
        whole: State = {}
        for shard in range(shards):
            part = order[shard::shards]
            state: State = {}
            for start in range(0, len(part), size):
                some = part[start : start + size]
                rows = sample(x[some], raw[some], keys=tuple(keys[i] for i in some))
                state = metric.update(metric.update_reference(state, rows), rows)
            whole = metric.bound(merge_states(whole, state))
        return metric.compute(whole)

    assert gather(list(range(16))[::-1], batch, 3) == gather(list(range(16)), 16, 1)


def test_update_leaves_the_old_state_alone(counted: tuple[Counting, str]) -> None:
    metric = Rfid(weights=counted[1])
    x, raw = images(2)
    old = metric.update(metric.init(), sample(x[:1], raw[:1]))
    before = dict(old)
    metric.update(old, take_row(sample(x, raw), 1))
    assert old == before


def test_wrong_options_say_so() -> None:
    with pytest.raises(UsageError, match="unknown preset 'admm'"):
        Rfid(preset="admm")
    with pytest.raises(UsageError, match="covariance"):
        Rfid(covariance="n+1")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no such file"):
        Rfid(weights="/nowhere/inception.pth").spec  # noqa: B018


def test_rfid_is_of_images() -> None:
    x = torch.zeros(1, 3, 2, 32, 32)
    with pytest.raises(NotApplicable, match="images"):
        Rfid().update({}, sample(x, x, "video"))
