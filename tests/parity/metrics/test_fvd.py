"""rFVD beside the published implementations, recorded by golden_i3d.py with seeded weights: I3D, its resizes, the distance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from i3d_weights import i3d_weights
from torch import Tensor

from tokbench.metrics._exact import add_rows
from tokbench.metrics.frechet import distance
from tokbench.metrics.fvd import PRESETS, Rfvd
from tokbench.metrics.i3d import I3d, crop, in_torchscript, squeeze, tensors
from tokbench.spec import TokenizerSpec
from tokbench.types import Code, Sample, merge_states
from tokbench.weights import WeightsRefused

GOLDEN = np.load(Path(__file__).with_name("golden_i3d.npz"))
CLIP = torch.from_numpy(GOLDEN["clip"]).permute(3, 0, 1, 2)[None].float() / 255
SPEC = TokenizerSpec(name="test", modality="video", kind="none")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return i3d_weights()


@pytest.fixture(scope="module")
def weights(state: Mapping[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a weight file in pytorch-i3d's layout, as `i3d_pretrained_400.pt` has it."""
    path = tmp_path_factory.mktemp("i3d") / "i3d_pretrained_400.pt"
    torch.save(dict(state), path)
    return str(path)


def close(mine: Tensor, theirs: str) -> None:
    """Hold 1e-5 of the spread of the recorded logits, on every one of them."""
    expected = torch.from_numpy(GOLDEN[theirs])
    assert float(expected.std()) > 0.1  # the weights say something
    assert float((mine - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize(("name", "fit"), [("crop", crop), ("squeeze", squeeze)])
def test_resizes_are_those_of_videogpt_and_cd_fvd(name: str, fit: object) -> None:
    mine = 2 * fit(CLIP) - 1  # type: ignore[operator]
    assert mine.shape == (1, 3, 17, 224, 224)
    torch.testing.assert_close(mine[0, :, ::8, ::16, ::16], torch.from_numpy(GOLDEN[name]), rtol=0, atol=2e-6)


def test_a_tall_clip_is_cut_above_and_below() -> None:
    mine = 2 * crop(CLIP.transpose(3, 4)) - 1
    torch.testing.assert_close(mine[0, :, ::8, ::16, ::16], torch.from_numpy(GOLDEN["crop_tall"]), rtol=0, atol=2e-6)
    assert float((torch.from_numpy(GOLDEN["crop_tall"] - GOLDEN["squeeze"])).abs().max()) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("frames", [9, 17])
def test_logits_are_those_of_videogpt(frames: int, weights: str) -> None:
    close(I3d("crop", 1e-5, weights).of(CLIP[:, :, :frames]), f"videogpt_{frames}")


@pytest.mark.slow
@pytest.mark.parametrize("frames", [9, 12, 14, 16])
def test_logits_are_those_of_pytorch_i3d_with_tensorflows_epsilon(frames: int, weights: str) -> None:
    close(I3d("squeeze", 1e-3, weights).of(CLIP[:, :, :frames]), f"pytorch_i3d_{frames}")


@pytest.mark.slow
@pytest.mark.parametrize("frames", [9, 16])
def test_the_layout_of_styleganvs_archive_gives_its_logits(
    frames: int, state: Mapping[str, Tensor], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    save_file({in_torchscript(key): value for key, value in state.items()}, tmp_path / "converted.safetensors")
    found = I3d("squeeze", 1e-3, str(tmp_path / "converted.safetensors")).of(CLIP[:, :, :frames])
    close(found, f"torchscript_{frames}")


@pytest.mark.slow
def test_the_two_epsilons_are_two_networks(weights: str) -> None:
    theirs = torch.from_numpy(GOLDEN["pytorch_i3d_9"])
    mine = I3d("squeeze", 1e-5, weights).of(CLIP[:, :, :9])
    # Apart by a hundred times what separates this code from either.
    assert float((mine - theirs).abs().max()) > 1e-3 * float(theirs.abs().max())
    assert {preset.epsilon for preset in PRESETS.values()} == {1e-3, 1e-5}


def test_names_in_the_torchscript_archive() -> None:
    assert in_torchscript("Conv3d_1a_7x7.bn.running_mean") == "conv3d_1a_7x7.batch3d.running_mean"
    assert in_torchscript("Mixed_5b.b2a.conv3d.weight") == "mixed_5b.branch_2.0.conv3d.weight"
    assert in_torchscript("logits.conv3d.bias") == "conv3d_0c_1x1.conv3d.bias"
    assert len({in_torchscript(name) for name in tensors()}) == len(tensors()) == 57 * 5 + 2


def rows() -> dict[str, Tensor]:
    keys = [str(index) for index in range(len(GOLDEN["rows_a"]))]
    state = add_rows({}, "reference", keys, torch.from_numpy(GOLDEN["rows_a"]))
    return add_rows(state, "reconstruction", keys, torch.from_numpy(GOLDEN["rows_b"]))


@pytest.mark.parametrize(
    ("preset", "recorded"),
    [
        ("tokenbench", "tokenbench"),
        ("tokenbench", "common_styleganv"),
        ("styleganv", "larp"),  # StyleGAN-V's and LARP's FeatureStats are one
        ("larp", "larp"),
        ("videogpt", "videogpt"),
        ("omnitokenizer", "videogpt"),
        ("seed-voken", "videogpt"),
        ("cd-fvd", "cd_fvd"),
    ],
)
def test_the_distance_is_that_of_the_preset(preset: str, recorded: str) -> None:
    expected = float(GOLDEN[recorded])
    other = float(GOLDEN["larp" if recorded in ("tokenbench", "common_styleganv", "videogpt") else "videogpt"])
    metric = Rfvd(preset=preset)
    found = metric.compute(rows())[metric.column]
    assert found == pytest.approx(expected, rel=1e-5)
    assert found != pytest.approx(other, rel=1e-3)  # the divisor shows


def test_the_covariance_can_be_changed_and_has_a_column_of_its_own() -> None:
    assert Rfvd(preset="larp", covariance="n").column == "rfvd_larp"
    assert Rfvd(preset="larp", covariance="n-1").column == "rfvd_larp_unbiased"
    biased = Rfvd(covariance="n")
    assert biased.column == "rfvd_biased"
    assert biased.compute(rows())["rfvd_biased"] == distance(rows(), divide_by_n=True)
    assert len({Rfvd(preset=name).column for name in PRESETS}) == len(PRESETS)


def test_distances_of_subsets_are_those_of_the_subsets() -> None:
    subsets = np.array([[0, 3, 5, 8, 13, 21, 34, 55], [1, 2, 4, 6, 7, 9, 10, 11]])
    a, b = GOLDEN["rows_a"], GOLDEN["rows_b"]
    for metric in (Rfvd(), Rfvd(preset="larp")):
        found = metric.on_subsets(a, b, subsets)
        for subset, value in zip(subsets, found, strict=True):
            keys = [str(index) for index in subset]
            some = add_rows({}, "reference", keys, torch.from_numpy(a[subset]))
            some = add_rows(some, "reconstruction", keys, torch.from_numpy(b[subset]))
            assert value == pytest.approx(metric.compute(some)[metric.column], rel=1e-6)


@pytest.mark.slow
def test_a_run_of_clips_is_the_published_one_from_pixels_to_distance(weights: str) -> None:
    """SEED-Voken's preset: truncated frames, squeezed, VideoGPT's epsilon, torch's SVD in place of eigenvalues."""
    g = torch.Generator().manual_seed(3)
    x = (CLIP[:, :, :9] + 0.15 * torch.randn(2, 3, 9, 26, 34, generator=g)).clamp(0, 1)
    x = (x * 255).round() / 255
    raw = x + 0.1 * torch.randn(x.shape, generator=g)
    batch = Sample(("a", "b"), x, raw.clamp(0, 1), raw, Code(), SPEC, groups=("a", "b"))
    metric = Rfvd(preset="seed-voken", weights=weights)
    state = merge_states(metric.update({}, batch), metric.update_reference({}, batch))
    found = metric.compute(state)["rfvd_seed_voken"]

    extract = I3d("squeeze", 1e-5, weights)
    a = extract(batch, "reference", "truncate").double()  # what the metric saw, from the memo
    b = extract.of((raw.clamp(0, 1) * 255).byte().float() / 255).double()
    s, t = torch.cov(a.T), torch.cov(b.T)
    u, d, v = torch.linalg.svd(s)
    root = u @ torch.diag(d.sqrt()) @ v
    cross = torch.linalg.svdvals(root @ t @ root).sqrt().sum()
    expected = float(((a.mean(0) - b.mean(0)) ** 2).sum() + s.trace() + t.trace() - 2 * cross)
    assert expected > 0.1
    assert found == pytest.approx(expected, rel=1e-3)


def test_files_of_other_networks_are_refused(tmp_path: Path) -> None:
    torch.save({"Conv3d_1a_7x7.conv3d.weight": torch.zeros(64, 3, 7, 7, 7)}, tmp_path / "other.pt")
    with pytest.raises(WeightsRefused, match=r"not I3D's: no fitting Conv3d_1a_7x7.bn.weight"):
        I3d(weights=str(tmp_path / "other.pt")).of(CLIP[:, :, :9])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated", "ignore:'torch.load' received a zip file")
def test_torchscript_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "i3d_torchscript.pt"))
    with pytest.raises(WeightsRefused, match="tokbench convert"):
        I3d(weights=str(tmp_path / "i3d_torchscript.pt")).of(CLIP[:, :, :9])
