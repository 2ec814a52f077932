"""FD on DINOv2 and CMMD beside the formulae of their authors, on tiny seeded networks of the same architecture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg
from torch import Tensor

from tokbench.errors import NotApplicable, UsageError, WeightsAbsent
from tokbench.metrics import vit
from tokbench.metrics.representations import Cmmd, FdDinov2, discrepancy
from tokbench.spec import Modality, TokenizerSpec
from tokbench.types import Code, Sample, State, Subsets, merge_states
from tokbench.weights import WeightsRefused


def sample(x: Tensor, raw: Tensor, keys: tuple[str, ...], modality: Modality = "image") -> Sample:
    spec = TokenizerSpec(name="test", modality=modality, kind="none")
    return Sample(keys, x, raw.clamp(0, 1), raw, Code(), spec, groups=keys)


def images(count: int, height: int = 40, width: int = 56) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    g = torch.Generator().manual_seed(0)
    rough = torch.rand(count, 3, 7, 7, generator=g)
    smooth = torch.nn.functional.interpolate(rough, size=(height, width), mode="bicubic").clamp(0, 1)
    x = (smooth * 255).round() / 255
    raw = x + 0.1 * torch.randn(x.shape, generator=g)
    return x, raw, tuple(f"{index:02d}" for index in range(count))


def seed(model: torch.nn.Module, number: int) -> None:
    g = torch.Generator().manual_seed(number)
    for name, tensor in model.named_parameters():
        spread = 1.0 if "position" in name or "cls_token" in name else 0.3
        tensor.data = (1.0 if "norm" in name and "weight" in name else 0.0) + spread * torch.randn(
            tensor.shape, generator=g
        )


@pytest.fixture(scope="session")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a tiny DINOv2 whose table is 37 x 37, as the published one's."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=518)
    model = Dinov2Model(config)
    seed(model, 0)
    folder = tmp_path_factory.mktemp("dinov2")
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a tiny CLIP vision tower at 336."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, projection_dim=16, num_hidden_layers=2, num_attention_heads=2,
        image_size=336, patch_size=56,
    )  # fmt: skip
    model = CLIPVisionModelWithProjection(config)
    seed(model, 1)
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    return str(folder)


def pictures(x: Tensor) -> list[Image.Image]:
    levels = (x.clamp(0, 1) * 255 + 0.5).floor().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(level) for level in levels]


def dgm_eval_features(folder: str, x: Tensor) -> Tensor:
    """dgm-eval's transform, and the position table as facebookresearch/dinov2 scales it."""
    import torchvision.transforms as tf
    from transformers import Dinov2Model

    transform = tf.Compose(
        [
            tf.Resize((224, 224), tf.InterpolationMode.BICUBIC),
            tf.ToTensor(),
            tf.Normalize(np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])),
        ]
    )
    model = Dinov2Model.from_pretrained(folder).eval()
    table = model.embeddings.position_embeddings.data
    grid, side = 224 // 14, 37
    assert table.shape[1] == 1 + side**2
    patches = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    patches = torch.nn.functional.interpolate(
        patches, mode="bicubic", antialias=False, scale_factor=(float(grid + 0.1) / side, float(grid + 0.1) / side)
    )
    assert patches.shape[-2:] == (grid, grid)
    fitted = torch.cat((table[:, :1], patches.permute(0, 2, 3, 1).reshape(1, grid**2, -1)), dim=1)
    model.embeddings.interpolate_pos_encoding = lambda *_: fitted
    with torch.inference_mode():
        found: Tensor = model(torch.stack([transform(p) for p in pictures(x)])).last_hidden_state[:, 0]
    return found


def cmmd_embeddings(folder: str, x: Tensor) -> Tensor:
    """The images and embeddings of sayakpaul/cmmd-pytorch: middle square, PIL bicubic, CLIP's processor, length 1."""
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    arrays = []
    for picture in pictures(x):
        width, height = picture.size
        side = min(width, height)
        box = ((width - side) // 2, (height - side) // 2, (width - side) // 2 + side, (height - side) // 2 + side)
        arrays.append(np.asarray(picture.crop(box).resize((336, 336), Image.BICUBIC)).astype(np.float32) / 255.0)
    inputs = CLIPImageProcessor()(
        images=np.stack(arrays), do_normalize=True, do_center_crop=False, do_resize=False, do_rescale=False,
        return_tensors="pt",
    )  # fmt: skip
    with torch.inference_mode():
        found: Tensor = CLIPVisionModelWithProjection.from_pretrained(folder).eval()(**inputs).image_embeds
    return found / torch.linalg.norm(found, dim=-1, keepdim=True)


def gather(
    metric: FdDinov2 | Cmmd, x: Tensor, raw: Tensor, keys: tuple[str, ...], order: list[int], batch: int
) -> State:
    """Return the state over two shards that split `order`, in batches."""
    whole: State = {}
    for shard in (order[::2], order[1::2]):
        state = metric.init()
        for start in range(0, len(shard), batch):
            some = shard[start : start + batch]
            rows = sample(x[some], raw[some], tuple(keys[i] for i in some))
            state = metric.update(metric.update_reference(state, rows), rows)
        whole = metric.bound(merge_states(whole, state))
    return whole


def test_dinov2_features_and_distance_are_those_of_dgm_eval(dinov2: str) -> None:
    x, raw, keys = images(9)
    metric = FdDinov2(weights=dinov2)
    mine = vit.dinov2(weights=dinov2).of(x)
    theirs, other = dgm_eval_features(dinov2, x), dgm_eval_features(dinov2, raw)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert float(theirs.std(0).max()) > 0.05  # the weights tell pictures apart
    mu, nu = theirs.double().numpy().mean(0), other.double().numpy().mean(0)
    s, t = (np.cov(side.double().numpy(), rowvar=False) for side in (theirs, other))
    expected = ((mu - nu) ** 2).sum() + s.trace() + t.trace() - 2 * np.real(linalg.eigvals(s @ t) ** 0.5).sum()
    found = metric.compute(gather(metric, x, raw, keys, list(range(9)), 4))["fd_dinov2"]
    assert expected > 0.01
    assert found == pytest.approx(expected, rel=1e-3)


def test_positions_are_scaled_as_the_authors_scale_them(dinov2: str) -> None:
    from transformers import Dinov2Model

    x, _, _ = images(2)
    model = Dinov2Model.from_pretrained(dinov2).eval()
    encoder = vit.dinov2(weights=dinov2)
    with torch.inference_mode():
        plain = model(encoder.pixels(x)).last_hidden_state[:, 0]
    assert float((encoder.of(x) - plain).abs().max()) > 1e-3
    table = model.embeddings.position_embeddings.data
    assert torch.equal(vit.fit_positions(table, 37), table)


def test_cmmd_is_that_of_its_authors(clip: str) -> None:
    x, raw, keys = images(7, 48, 40)
    metric = Cmmd(weights=clip)
    a, b = cmmd_embeddings(clip, x), cmmd_embeddings(clip, raw)
    torch.testing.assert_close(vit.clip(weights=clip).of(x), a, rtol=1e-5, atol=1e-5)
    p, q = a.double().numpy(), b.double().numpy()

    def kernel(u: np.ndarray, v: np.ndarray) -> float:
        squares = -2 * u @ v.T + np.diag(u @ u.T)[:, None] + np.diag(v @ v.T)[None]
        return float(np.exp(-squares / (2 * 10**2)).mean())

    expected = 1000 * (kernel(p, p) + kernel(q, q) - 2 * kernel(p, q))
    found = metric.compute(gather(metric, x, raw, keys, list(range(7)), 3))["cmmd"]
    assert expected > 1e-3
    assert found == pytest.approx(expected, rel=1e-4)


def test_large_sets_are_summed_in_blocks() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = (torch.nn.functional.normalize(torch.randn(n, 4, generator=g), dim=1) for n in (1500, 1100))
    tables = [torch.exp(-(torch.cdist(a.double(), b.double()) ** 2) / 200).mean() for a, b in ((x, x), (y, y), (x, y))]
    expected = 1000 * float(tables[0] + tables[1] - 2 * tables[2])
    assert discrepancy(x, y) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", ["fd_dinov2", "cmmd"])
def test_any_order_batch_or_split_gives_the_same_bits(name: str, dinov2: str, clip: str) -> None:
    metric: FdDinov2 | Cmmd = FdDinov2(weights=dinov2) if name == "fd_dinov2" else Cmmd(weights=clip, pool=5)
    x, raw, keys = images(8)
    whole = metric.compute(gather(metric, x, raw, keys, list(range(8)), 8))
    assert whole == metric.compute(gather(metric, x, raw, keys, list(range(8))[::-1], 3))
    assert whole == metric.compute(gather(metric, x, raw, keys, [3, 1, 4, 0, 5, 2, 7, 6], 1))


@pytest.mark.parametrize("name", ["fd_dinov2", "cmmd"])
def test_the_whole_as_a_subset_is_the_whole(name: str, dinov2: str, clip: str) -> None:
    metric: FdDinov2 | Cmmd = FdDinov2(weights=dinov2) if name == "fd_dinov2" else Cmmd(weights=clip)
    assert isinstance(metric, Subsets)
    x, raw, keys = images(6)
    state = gather(metric, x, raw, keys, list(range(6)), 6)
    sides = [
        torch.stack([state[key] for key in sorted(state) if key.startswith(f"{side}/row/")]).numpy()
        for side in ("reference", "reconstruction")
    ]
    found = metric.on_subsets(sides[0], sides[1], np.array([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 4]]))
    assert found[0] == pytest.approx(metric.compute(state)[name], rel=1e-5, abs=1e-7)
    assert found[0] != found[1]


def test_references_alone_make_no_number(clip: str, dinov2: str) -> None:
    x, raw, keys = images(1)
    batch = sample(x, raw, keys)
    for metric in (Cmmd(weights=clip), FdDinov2(weights=dinov2)):
        assert metric.compute(metric.update_reference(metric.init(), batch)) == {metric.column: None}
        assert metric.column in metric.undefined


def test_what_is_wrong_is_said(clip: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("TOKBENCH_WEIGHTS", raising=False)
    x, raw, keys = images(1)
    for metric in (FdDinov2(), Cmmd()):
        assert metric.spec.protocol["weights"] == "absent"
        with pytest.raises(WeightsAbsent) as caught:
            metric.update({}, sample(x, raw, keys))
        assert "hf download" in caught.value.fix
    assert len(str(Cmmd(weights=clip).spec.protocol["weights"])) == 64
    with pytest.raises(WeightsRefused):
        FdDinov2(weights=clip).update({}, sample(x, raw, keys))
    with pytest.raises(UsageError, match="pool"):
        Cmmd(pool=0)
    with pytest.raises(NotApplicable):
        Cmmd(weights=clip).update({}, sample(torch.zeros(1, 1, 99), torch.zeros(1, 1, 99), keys, "audio"))
