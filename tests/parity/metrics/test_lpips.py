"""LPIPS beside the `lpips` package on the same tensors and seeded trunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pictures import picture_sample
from torch import Tensor

from tokbench.errors import NotApplicable, UsageError, WeightsAbsent
from tokbench.metrics.perceptual import Lpips
from tokbench.metrics.perceptual_variants import lpips_unclamped, lpips_unmapped
from tokbench.types import take_row
from tokbench.weights import WeightsRefused

NETS = ["alex", "vgg", "squeeze"]
Trunks = Callable[[str], str]


def pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=g)
    x = torch.nn.functional.avg_pool2d(x.flatten(0, -4), 5, 1, 2).reshape(shape)
    y = (x + 0.1 * torch.randn(shape, generator=g)).clamp(0, 1)
    return x, y


def package(net: str, trunk: str) -> torch.nn.Module:
    """The package's own module, its trunk filled from the same file by position rather than by name."""
    import lpips

    model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    state = [value for key, value in torch.load(trunk, weights_only=True).items() if key.startswith("features.")]
    own = model.net.state_dict()
    assert len(state) == len(own)
    model.net.load_state_dict(dict(zip(own, state, strict=True)))
    return model.eval()


@pytest.mark.parametrize("net", NETS)
def test_values_are_those_of_the_package(net: str, trunk_weights: Trunks) -> None:
    x, y = pair(3, 3, 64, 72)
    y[2] = x[2]
    with torch.inference_mode():
        theirs = package(net, trunk_weights(net))(x, y, normalize=True).flatten().double()
        wrong = package(net, trunk_weights(net))(x, y).flatten().double()
    mine = Lpips(net=net, weights=trunk_weights(net))(picture_sample(x, y))[f"lpips_{net}"]
    assert mine.dtype == torch.float64
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert float(mine[2]) == 0.0
    assert float(mine[0]) > 1e-3
    assert float((mine[:2] - wrong[:2]).abs().min()) > 1e-4  # what feeding [0, 1] would give


def test_variants_are_the_package_fed_as_their_projects_feed_it(trunk_weights: Trunks) -> None:
    x, raw = pair(3, 3, 64, 72)
    raw = raw * 1.6 - 0.3  # beyond [0, 1]
    sample = replace(picture_sample(x, raw.clamp(0, 1)), raw=raw)
    alex = trunk_weights("alex")
    with torch.inference_mode():
        unmapped = package("alex", alex)(x, raw.clamp(0, 1)).flatten().double()
        unclamped = package("alex", alex)(x * 2 - 1, raw * 2 - 1).flatten().double()
    plain = Lpips(weights=alex)(sample)["lpips_alex"]
    for metric, theirs in (
        (lpips_unmapped(weights=alex), unmapped),
        (lpips_unclamped(net="alex", weights=alex), unclamped),
    ):
        mine = metric(sample)[metric.column]
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
        assert float((mine - plain).abs().min()) > 1e-4
        assert metric.spec.columns[0].name == metric.column
        assert metric.spec.protocol["weights"] == Lpips(weights=alex).spec.protocol["weights"]
        for row in range(3):
            assert torch.equal(metric(take_row(sample, row))[metric.column], mine[row : row + 1])
    assert lpips_unmapped().column == "lpips_unmapped_alex"
    assert lpips_unclamped().column == "lpips_unclamped_vgg"


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_rows_are_the_same_bits_in_any_batch(net: str, trunk_weights: Trunks) -> None:
    x, y = pair(8, 3, 48, 64)
    metric = Lpips(net=net, weights=trunk_weights(net))
    whole = metric(picture_sample(x, y))[metric.column]
    for size in (1, 3):
        parts = [metric(picture_sample(x[i : i + size], y[i : i + size]))[metric.column] for i in range(0, 8, size)]
        assert torch.equal(torch.cat(parts), whole)


def test_a_clip_is_the_mean_of_its_frames(trunk_weights: Trunks) -> None:
    x, y = pair(2, 3, 3, 48, 48)
    metric = Lpips(weights=trunk_weights("alex"))
    clips = metric(picture_sample(x, y))["lpips_alex"]
    for row in range(2):
        frames = metric(picture_sample(x[row].movedim(1, 0), y[row].movedim(1, 0)))["lpips_alex"]
        torch.testing.assert_close(clips[row], frames.mean(), rtol=1e-12, atol=0)


def test_columns_of_trunks_do_not_collide_and_weights_are_part_of_the_protocol(trunk_weights: Trunks) -> None:
    specs = [Lpips(net=net, weights=trunk_weights(net)).spec for net in NETS]
    assert {spec.columns[0].name for spec in specs} == {"lpips_alex", "lpips_vgg", "lpips_squeeze"}
    assert len({spec.protocol["weights"] for spec in specs}) == 3
    assert all(len(spec.protocol["weights"]) == 64 for spec in specs)


def test_absent_weights_are_a_state_that_says_where_to_put_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("TOKBENCH_WEIGHTS", raising=False)
    metric = Lpips()
    assert metric.spec.protocol["weights"] == "absent"
    with pytest.raises(WeightsAbsent) as caught:
        metric(picture_sample(*pair(1, 3, 48, 48)))
    assert "alexnet-owt-7be5be79.pth" in str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints") in caught.value.fix
    assert "https://download.pytorch.org" in caught.value.fix


def test_wrong_input_says_so(trunk_weights: Trunks) -> None:
    with pytest.raises(UsageError, match="unknown net 'resnet'"):
        Lpips(net="resnet")
    metric = Lpips(weights=trunk_weights("alex"))
    with pytest.raises(UsageError, match="at least 31 pixels"):
        metric(picture_sample(*pair(1, 3, 24, 48)))
    with pytest.raises(NotApplicable):
        metric(picture_sample(torch.zeros(1, 1, 800), torch.zeros(1, 1, 800)))
    with pytest.raises(WeightsRefused, match="not torchvision's trunk for lpips alex"):
        Lpips(weights=trunk_weights("squeeze"))(picture_sample(*pair(1, 3, 48, 48)))
