"""SSIM, MS-SSIM, LPIPS and DISTS beside piq and the packages of their authors, on the same tensors and seeded trunks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from pictures import picture_sample
from torch import Tensor

from tokbench.errors import NotApplicable, UsageError, WeightsAbsent
from tokbench.metrics.dists import SHARES, Dists
from tokbench.metrics.perceptual import Lpips
from tokbench.metrics.ssim import MsSsim, Ssim
from tokbench.weights import WeightsRefused, file_digest

Trunks = Callable[[str], str]


def pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return blurred noise and the same with errors of several strengths, a strength a row; the last row is equal."""
    g = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.avg_pool2d(torch.rand(shape, generator=g).flatten(0, -4), 5, 1, 2).reshape(shape)
    strength = torch.linspace(0.2, 0.0, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return x, (x + strength * torch.randn(shape, generator=g)).clamp(0, 1)


@pytest.fixture
def vgg(trunk_weights: Trunks, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the seeded file of VGG16 that torchvision's constructor gives to whoever asks for pretrained weights."""
    path = trunk_weights("vgg")
    state = {
        key.removeprefix("features."): value
        for key, value in torch.load(path, weights_only=True).items()
        if key.startswith("features.")
    }

    def pretrained(**_: object) -> SimpleNamespace:
        features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
        features.load_state_dict(state)
        return SimpleNamespace(features=features.eval())

    for place in ("piq.perceptual.vgg16", "torchvision.models.vgg16"):
        monkeypatch.setattr(place, pretrained)
    return path


def shares() -> Path:
    found = importlib.util.find_spec("DISTS_pytorch")
    assert found is not None
    return Path(str(found.origin)).with_name("weights.pt")


def test_the_package_carries_the_authors_weights() -> None:
    assert file_digest(shares()) == SHARES.sha256
    assert Dists().spec.protocol["shares"] == SHARES.sha256


def test_dists_is_the_authors(vgg: str) -> None:
    from DISTS_pytorch.DISTS_pt import DISTS

    theirs = DISTS(load_weights=False)
    table = torch.load(shares(), weights_only=True)
    theirs.alpha.data, theirs.beta.data = table["alpha"], table["beta"]
    x, y = pair(3, 3, 67, 80)
    with torch.inference_mode():
        expected = theirs(x, y).double()
    mine = Dists(weights=vgg)(picture_sample(x, y))["dists"]
    assert mine.dtype == torch.float64
    assert float(expected[0]) > float(expected[1]) > 1e-3
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)
    assert abs(float(mine[2])) < 1e-9  # the same image twice; the authors' code leaves up to 1e-6


def test_dists_is_piqs(vgg: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import piq

    table = torch.load(shares(), weights_only=True)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: table)
    x, y = pair(2, 3, 64, 72, seed=1)
    with torch.inference_mode():
        expected = piq.DISTS(reduction="none")(x, y).double()
    torch.testing.assert_close(Dists(weights=vgg)(picture_sample(x, y))["dists"], expected, rtol=0, atol=1e-5)


def test_lpips_vgg_is_piqs(vgg: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import lpips
    import piq

    heads = torch.load(
        Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth", map_location="cpu", weights_only=True
    )
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: list(heads.values()))
    x, y = pair(2, 3, 64, 72, seed=2)
    with torch.inference_mode():
        expected = piq.LPIPS(reduction="none")(x, y).double()
    mine = Lpips(net="vgg", weights=vgg)(picture_sample(x, y))["lpips_vgg"]
    assert float(expected[0]) > 1e-3
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 176, 192), (1, 3, 161, 183)])
def test_ssim_and_ms_ssim_are_piqs(shape: tuple[int, ...]) -> None:
    import piq

    x, y = pair(*shape, seed=3)
    theirs = piq.ssim(x.double(), y.double(), data_range=1.0, downsample=False, reduction="none")
    torch.testing.assert_close(Ssim()(picture_sample(x, y))["ssim"], theirs, rtol=0, atol=1e-5)
    if shape[-1] % 2 == 0:  # piq pads odd sides on another end than pytorch_msssim, which ms_ssim follows
        theirs = piq.multi_scale_ssim(x.double(), y.double(), data_range=1.0, reduction="none")
        torch.testing.assert_close(MsSsim()(picture_sample(x, y))["ms_ssim"], theirs, rtol=0, atol=1e-4)


def test_dists_rows_are_the_same_bits_in_any_batch(vgg: str) -> None:
    x, y = pair(4, 3, 32, 40)
    metric = Dists(weights=vgg)
    whole = metric(picture_sample(x, y))["dists"]
    for size in (1, 3):
        parts = [metric(picture_sample(x[i : i + size], y[i : i + size]))["dists"] for i in range(0, 4, size)]
        assert torch.equal(torch.cat(parts), whole)


def test_dists_of_a_clip_is_the_mean_of_its_frames(vgg: str) -> None:
    x, y = pair(1, 3, 2, 32, 32)
    y = (y + 0.1 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    metric = Dists(weights=vgg)
    frames = metric(picture_sample(x[0].movedim(1, 0), y[0].movedim(1, 0)))["dists"]
    torch.testing.assert_close(metric(picture_sample(x, y))["dists"], frames.mean()[None], rtol=1e-12, atol=0)


def test_dists_says_what_is_wrong(
    vgg: str, trunk_weights: Trunks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="at least 16 pixels"):
        Dists(weights=vgg)(picture_sample(*pair(1, 3, 12, 48)))
    with pytest.raises(NotApplicable):
        Dists(weights=vgg)(picture_sample(torch.zeros(1, 1, 800), torch.zeros(1, 1, 800)))
    with pytest.raises(WeightsRefused, match="not torchvision's VGG16"):
        Dists(weights=trunk_weights("alex"))(picture_sample(*pair(1, 3, 32, 32)))
    torch.save({"alpha": torch.zeros(3), "beta": torch.zeros(3)}, tmp_path / "weights.pt")
    with pytest.raises(WeightsRefused, match="not alpha and beta of DISTS"):
        Dists(weights=vgg, shares=str(tmp_path / "weights.pt"))(picture_sample(*pair(1, 3, 32, 32)))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("TOKBENCH_WEIGHTS", raising=False)
    assert Dists().spec.protocol["weights"] == "absent"
    with pytest.raises(WeightsAbsent, match=r"vgg16-397923af\.pth"):
        Dists()(picture_sample(*pair(1, 3, 32, 32)))
