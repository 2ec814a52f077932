"""Neighbours, perturbed codes and robustness, against tokenizers whose answers can be said in advance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from tokbench.adapters.nn.fsq import FSQ
from tokbench.adapters.nn.neighbours import BitNeighbours, GridNeighbours, TableNeighbours
from tokbench.data import Item
from tokbench.errors import NotApplicable, UsageError
from tokbench.evaluate import evaluate
from tokbench.metrics.fidelity import Psnr
from tokbench.metrics.perturbation import GRID, Perturbation, ReleasedPerturbation, draw, perturbed
from tokbench.metrics.robustness import CORRUPTIONS, Corruption, Idempotence, ShiftStability, TokenDrop
from tokbench.reconstruct import Engine, reconstruct
from tokbench.registry import build_tokenizer, expand
from tokbench.rows import read_rows, write_rows
from tokbench.session import find_weights
from tokbench.spec import EvalProtocol, ImagePrepare, TokenizerSpec
from tokbench.summarise import cells
from tokbench.types import Code, Neighbouring, Neighbours, PerSample, Sample, Stream, take_row


@dataclass
class Vq:
    """Mean grey of each patch against a table of greys; every token is its own patch, so damage is local and known."""

    size: int = 64
    stride: int = 4
    books: int = 1
    spec: TokenizerSpec = field(init=False)

    def __post_init__(self) -> None:
        self.table = torch.linspace(-1, 1, self.size)[:, None]
        sizes = (self.size,) * self.books
        self.spec = TokenizerSpec(
            "vq", "image", "discrete", (-1.0, 1.0), (self.stride, self.stride), codebook_size=sizes,
            capabilities=("neighbours", "unquantized", "edit"),
        )  # fmt: skip

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        return torch.nn.functional.avg_pool2d(x.mean(1), self.stride)[..., None]

    def encode(self, x: Tensor) -> Code:
        rest, streams = self.unquantized(x, "0"), []
        for book in range(self.books):
            indices = (rest[..., None, :] - self.table).abs().sum(-1).argmin(-1)
            rest = rest - self.table[indices]
            streams.append(Stream(str(book), self.size, indices))
        return Code(tuple(streams))

    def decode(self, code: Code) -> Tensor:
        grey = sum((self.table[stream.indices][..., 0] for stream in code.streams), torch.zeros(()))
        return torch.as_tensor(grey)[:, None].repeat_interleave(self.stride, 2).repeat_interleave(
            self.stride, 3
        ).expand(-1, 3, -1, -1)  # fmt: skip

    def neighbours(self, codebook: str) -> Neighbours:
        return TableNeighbours(self.table)


class Fsq(Vq):
    """The same with a grid of one dimension for a codebook: neighbours are the levels beside."""

    def neighbours(self, codebook: str) -> Neighbours:
        return GridNeighbours((self.size,))


class Lfq(Vq):
    """The same with the bits of the index for a codebook."""

    def neighbours(self, codebook: str) -> Neighbours:
        return BitNeighbours(self.size.bit_length() - 1)


class Mute:
    """A tokenizer that says nothing about its codebook."""

    def __init__(self) -> None:
        self._inner = Vq()
        self.spec = replace(self._inner.spec, capabilities=())

    def encode(self, x: Tensor) -> Code:
        return self._inner.encode(x)

    def decode(self, code: Code) -> Tensor:
        return self._inner.decode(code)


class Sequence1d(Vq):
    """Patches written as a sequence; a token that is left out decodes to middle grey."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.spec = replace(self.spec, name="sequence")

    def encode(self, x: Tensor) -> Code:
        grid = super().encode(x).streams[0].indices
        side = torch.tensor(grid.shape[1:]).expand(len(grid), 2)
        return Code((Stream("0", self.size, grid.flatten(1)),), side={"grid": side})

    def drop(self, code: Code, keep: Tensor) -> Code:
        stream = code.streams[0]
        return replace(code, streams=(replace(stream, indices=torch.where(keep, stream.indices, -1)),))

    def decode(self, code: Code) -> Tensor:
        height, width = code.side["grid"][0].tolist()
        indices = code.streams[0].indices.reshape(-1, height, width)
        grey = torch.where(indices < 0, 0.0, self.table[indices.clamp(min=0)][..., 0])
        wide = grey[:, None].repeat_interleave(self.stride, 2).repeat_interleave(self.stride, 3)
        return wide.expand(-1, 3, -1, -1)


class Noise(Mute):
    """A decoder that adds noise."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(self.spec, deterministic=False)

    def decode(self, code: Code) -> Tensor:
        grey = super().decode(code)
        return grey + 0.1 * torch.randn(grey.shape)


class Identity:
    """Continuous latents that are the picture itself."""

    spec = TokenizerSpec("identity", "image", "continuous")

    def encode(self, x: Tensor) -> Code:
        return Code(latents=x)

    def decode(self, code: Code) -> Tensor:
        assert code.latents is not None
        return code.latents


def batch(tokenizer: object, *keys: str, size: tuple[int, int] = (32, 40), seed: int = 0) -> Sample:
    """Run pictures that depend on their keys only through a tokenizer, as the engine does."""
    items = [Item(key=key, group=key, signal=picture(key, size)) for key in keys or ("a", "b", "c")]
    protocol = EvalProtocol("image", ImagePrepare("native", None), seed=seed)
    done = reconstruct(tokenizer, items, protocol, Engine(seed=seed))  # type: ignore[arg-type]
    return done.samples[0]


def picture(key: str, size: Sequence[int]) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(sum(map(ord, key))))
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    wave = 128 + 70 * np.sin(x / 6 + rng.random() * 9) + 30 * np.cos(y / 5) + rng.normal(0, 4, (size[0], size[1]))
    return np.clip(np.stack([wave, wave[::-1], 255 - wave]), 0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------- neighbours

TABLE = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))


def members(neighbours: Neighbours, entry: int, delta: int, steps: int = 4000) -> dict[int, int]:
    """Sweep the uniform number over [0, 1) and count what is drawn."""
    uniform = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    found, counts = torch.unique(
        neighbours.choose(torch.full((steps,), entry), delta, uniform), return_counts=True
    )  # fmt: skip
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize("cosine", [False, True])
def test_neighbours_in_a_table_are_the_nearest_vectors(cosine: bool) -> None:
    rows = torch.nn.functional.normalize(TABLE, dim=-1) if cosine else TABLE
    for entry in (0, 7, 49):
        near = (rows - rows[entry]).norm(dim=1).argsort()[1:6]  # the nearest of all is the entry itself
        drawn = members(TableNeighbours(TABLE, cosine=cosine), entry, 5)
        assert drawn == dict.fromkeys(near.tolist(), 800)


def test_equal_vectors_are_neighbours_and_not_the_entry_itself() -> None:
    table = torch.tensor([[0.0], [0.0], [5.0], [0.0]])
    assert members(TableNeighbours(table), 1, 2) == {0: 2000, 3: 2000}
    assert members(TableNeighbours(table), 1, 99) == {0: 1333, 3: 1334, 2: 1333}
    with pytest.raises(UsageError, match="strength"):
        members(TableNeighbours(table), 1, 0)


@pytest.mark.parametrize("first_fastest", [True, False])
@pytest.mark.parametrize(("entry", "delta"), [(0, 1), (0, 4), (77, 6), (77, 10), (119, 30), (3, 500)])
def test_neighbours_on_a_grid_are_the_smallest_ball_that_is_large_enough(
    first_fastest: bool, entry: int, delta: int
) -> None:
    levels = (4, 5, 6)
    axes = levels if first_fastest else levels[::-1]

    def place(index: int) -> list[int]:
        out = []
        for count in axes:
            out.append(index % count)
            index //= count
        return out

    distance = [sum(abs(a - b) for a, b in zip(place(entry), place(k), strict=True)) for k in range(120)]
    radius = next(r for r in range(1, 20) if sum(0 < d <= r for d in distance) >= min(delta, 119))
    expected = {k for k in range(120) if 0 < distance[k] <= radius}
    drawn = members(GridNeighbours(levels, first_fastest=first_fastest), entry, delta)
    assert set(drawn) == expected
    assert max(drawn.values()) - min(drawn.values()) <= 1


@pytest.mark.parametrize(("entry", "delta"), [(0, 1), (0, 7), (93, 8), (127, 29), (64, 10_000)])
def test_neighbours_among_words_are_the_smallest_hamming_ball(entry: int, delta: int) -> None:
    distance = [(entry ^ k).bit_count() for k in range(128)]
    radius = next(r for r in range(1, 8) if sum(0 < d <= r for d in distance) >= min(delta, 127))
    drawn = members(BitNeighbours(7), entry, delta)
    assert set(drawn) == {k for k in range(128) if 0 < distance[k] <= radius}
    assert max(drawn.values()) - min(drawn.values()) <= 1


def test_words_of_62_bits_have_neighbours() -> None:
    entry, uniform = torch.full((1000,), 2**61 + 12345), torch.rand(1000, dtype=torch.float64)
    near = BitNeighbours(62).choose(entry, 100, uniform)
    assert {(a ^ b).bit_count() for a, b in zip(near.tolist(), entry.tolist(), strict=True)} == {1, 2}
    far = BitNeighbours(62).choose(entry, 2**62 // 100, uniform)
    assert (far != entry).all()
    assert (far >= 0).all()
    assert (far < 2**62).all()
    with pytest.raises(UsageError, match="62"):
        BitNeighbours(63)


def test_entries_near_a_latent_include_the_nearest() -> None:
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    order = torch.cdist(points, TABLE).argsort(1)
    neighbours = TableNeighbours(TABLE)
    assert torch.equal(neighbours.choose_near(points, 4, torch.zeros(20)), order[:, 0])
    assert torch.equal(neighbours.choose_near(points, 4, torch.full((20,), 0.999)), order[:, 3])


# -------------------------------------------------------------------------------------------------- perturbation


def test_every_cell_replaces_its_share_by_near_tokens_and_decodes_them() -> None:
    sample = batch(Vq(), size=(64, 64))
    images, truth = perturbed(sample), sample.code.streams[0].indices
    assert list(images) == list(GRID)
    assert len(images) == 12
    spacing = 2 / 63  # between greys of the table
    for cell, image in images.items():
        grey = image[:, 0, ::4, ::4] * 2 - 1
        found = ((grey + 1) / spacing).round().long()
        changed = (found != truth).double().mean().item()
        assert changed == pytest.approx(cell.alpha, abs=0.06)
        reach = {10: 10, 100: 63, "1%": 1}[cell.delta]  # 10 nearest: 5 either side, more at an end of the table
        assert (found - truth).abs().max() <= reach
        if cell.alpha == 1.0:
            assert (found != truth).all()


def test_replaced_tokens_of_a_smaller_alpha_are_among_those_of_a_larger() -> None:
    images = perturbed(batch(Vq()))
    by = {(cell.alpha, cell.delta): image for cell, image in images.items()}
    base = batch(Vq()).reconstruction
    few, many = (by[alpha, 10] for alpha in (0.1, 0.5))
    touched = few != base
    assert touched.any()
    assert torch.equal(few[touched], many[touched])


@pytest.mark.parametrize("tokenizer", [Vq(), Fsq(), Lfq(), Vq(books=3)], ids=["vq", "fsq", "lfq", "residual"])
def test_perturbation_says_what_each_cell_cost(tokenizer: Vq) -> None:
    sample = batch(tokenizer, size=(64, 64))
    out = Perturbation()(sample)
    psnr = {name: values for name, values in out.items() if name.startswith("perturbed_psnr/")}
    assert len(psnr) == 12
    torch.testing.assert_close(out["perturbed_psnr"], torch.stack(list(psnr.values())).mean(0))
    for cell in GRID:
        image = perturbed(sample)[cell]
        mse = (image.double() - sample.reference.double()).square().mean((1, 2, 3))
        torch.testing.assert_close(out[f"perturbed_mse/{cell.name}"], mse)
        torch.testing.assert_close(psnr[f"perturbed_psnr/{cell.name}"], -10 * mse.log10())
    for delta in ("10", "100"):  # one entry away, where most of the error is colour, costs next to nothing
        curve = [psnr[f"perturbed_psnr/a{alpha}-d{delta}"].mean() for alpha in ("0.1", "0.25", "0.5", "1")]
        assert curve == sorted(curve, reverse=True)
        assert curve[0] < Psnr()(sample)["psnr"].mean()


def test_perturbation_is_seeded_by_seed_and_key() -> None:
    rows = {key: Perturbation()(batch(Vq(), key))["perturbed_mse"] for key in "abc"}
    together, turned = Perturbation()(batch(Vq(), "a", "b", "c")), Perturbation()(batch(Vq(), "c", "a", "b"))
    assert torch.equal(together["perturbed_mse"], torch.cat([rows[key] for key in "abc"]))
    assert torch.equal(turned["perturbed_mse"], torch.cat([rows[key] for key in "cab"]))
    other = Perturbation()(batch(Vq(), "a", seed=1))["perturbed_mse"]
    assert not torch.equal(other, rows["a"])


def test_tokens_beyond_their_rows_length_are_left_alone_and_change_no_draw() -> None:
    sample = batch(Sequence1d(), "a", "b")
    stream = sample.code.streams[0]
    short = replace(stream, indices=stream.indices[:, :50], lengths=torch.tensor([50, 30]))
    select, which = draw(short, 0, sample, 0)
    assert (select[1, 30:] == 2).all()
    alone, _ = draw(replace(short, indices=short.indices[1:, :30], lengths=None), 0, take_row(sample, 1), 0)
    assert torch.equal(alone[0], select[1, :30])
    assert which.shape == (2, 50)


def test_the_released_perturbation_draws_among_codes_near_the_latent_and_may_keep_the_token() -> None:
    sample = batch(Vq(), "a", "b", size=(64, 64))
    near = Vq().unquantized(sample.reference * 2 - 1, "0")
    order = (near - Vq().table[:, 0]).abs().argsort(-1)
    kept = []
    for delta in (1, 2, 4):
        out = ReleasedPerturbation(delta=delta)(sample)
        kept.append(out["perturbed_released_tokens"].mean().item())
        assert kept[-1] == pytest.approx(1 / delta, abs=0.08)
    assert (order[..., 0] == sample.code.streams[0].indices).all()
    none = ReleasedPerturbation(alpha=0.0)(sample)
    torch.testing.assert_close(none["perturbed_released_psnr"], Psnr()(sample)["psnr"])
    assert ReleasedPerturbation().spec.protocol["delta"] == 100
    assert ReleasedPerturbation().spec.protocol["alpha"] == 1.0
    for wrong in ({"alpha": 1.5}, {"delta": 0}):
        with pytest.raises(UsageError, match="perturbation_released"):
            ReleasedPerturbation(**wrong)


def test_what_a_tokenizer_does_not_offer_is_not_applicable() -> None:
    for metric in (Perturbation(), ReleasedPerturbation()):
        with pytest.raises(NotApplicable, match="near"):
            metric(batch(Mute()))
    with pytest.raises(NotApplicable, match="table"):
        ReleasedPerturbation()(batch(Fsq()))
    with pytest.raises(NotApplicable, match="all tokens"):
        TokenDrop()(batch(Vq()))
    for metric in (Perturbation(), ShiftStability(), Idempotence(), Corruption(), TokenDrop()):
        with pytest.raises(NotApplicable, match="tokbench-pad"):
            metric(replace(batch(Vq()), codec=None))


@pytest.mark.parametrize("name", ["tokbench-tiny-image", "tokbench-tiny-audio"])
def test_the_tokenizers_of_the_house_know_their_neighbours(name: str) -> None:
    (card,) = expand([name])
    weights, _, _ = find_weights(card, offline=True)
    tokenizer = build_tokenizer(card, {role: Path(path) for role, path in weights.items()})
    assert isinstance(tokenizer, Neighbouring)
    fsq = FSQ(card.architecture["levels"])
    near = members(tokenizer.neighbours("fsq1"), 523, 5)
    steps = (fsq.indices_to_codes(torch.tensor([523, *near])) * fsq.width).round()
    assert ((steps[1:] - steps[0]).abs().sum(1) == 1).all()
    assert len(near) >= 5
    if card.spec.modality == "audio":
        assert set(members(tokenizer.neighbours("gain"), 30, 2)) == {29, 31}
    else:
        out = Perturbation()(batch(tokenizer, "a", "b"))
        assert out["perturbed_psnr/a1-d10"].max() < Psnr()(batch(tokenizer, "a", "b"))["psnr"].max()
        assert torch.equal(out["perturbed_psnr/a1-d10"], out["perturbed_psnr/a1-d1%"])  # 1 % of 1000


# ---------------------------------------------------------------------------------------------------- robustness


def test_a_shift_of_the_stride_moves_the_code_of_a_patchwise_tokenizer_and_nothing_else() -> None:
    sample = batch(Vq(), size=(32, 40))
    out = ShiftStability(pixels=4)(sample)
    assert out["shift_psnr"].min() == 100.0
    still = ShiftStability(pixels=1)(sample)
    assert still["shift_psnr"].max() < 60
    assert 0 < still["shift_tokens"].min() < still["shift_tokens"].max() < 1
    torch.testing.assert_close(still["shift_tokens"], (still["shift_tokens/right"] + still["shift_tokens/down"]) / 2)
    moved = torch.cat([sample.reference[..., :1], sample.reference[..., :-1]], -1) * 2 - 1
    same = Vq().encode(moved).streams[0].indices == sample.code.streams[0].indices
    assert torch.equal(still["shift_tokens/right"], same.double().mean((1, 2)))


def test_a_tokenizer_that_copies_is_perfectly_robust_and_has_no_tokens() -> None:
    sample = batch(Identity())
    for metric, quality, tokens in (
        (ShiftStability(), "shift_psnr", "shift_tokens"),
        (Idempotence(), "retokenised_drift", "retokenised_tokens"),
        (Corruption(), "corrupted_psnr", "corrupted_tokens"),
    ):
        out = metric(sample)
        assert (out[quality] == 100).all()
        assert out[tokens].isnan().all()
        assert all(name in metric.undefined for name in out if name.startswith(tokens))


def test_idempotence_follows_the_chain_of_reconstructions() -> None:
    sample = batch(Vq(size=16))
    out = Idempotence(rounds=2)(sample)
    assert (out["retokenised_tokens"] == 1).all()  # a patch of one grey is its own nearest entry
    assert (out["retokenised_drift"] == 100).all()
    torch.testing.assert_close(out["retokenised_psnr"], Psnr()(sample)["psnr"])
    lossy = Idempotence(rounds=3)(batch(Noise(), "a"))
    drift = [lossy[f"retokenised_drift/{n}"].item() for n in (1, 2, 3)]
    assert lossy["retokenised_drift"].item() == drift[-1] < 40
    with pytest.raises(UsageError, match="rounds"):
        Idempotence(rounds=0)


def test_corruptions_are_what_they_say() -> None:
    x = batch(Vq()).reference
    assert torch.equal((CORRUPTIONS["brightness"](x) * 255).round(), (x.double() * 0.7 * 255 + 0.5).floor().float())
    sigma = gaussian_filter(x[0, 0].double().numpy(), 1.0, mode="nearest", radius=4)
    np.testing.assert_allclose(CORRUPTIONS["blur"](x)[0, 0].numpy(), sigma, atol=0.5 / 255 + 1e-6)
    buffer = BytesIO()
    Image.fromarray((x[1] * 255).round().byte().permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=50)
    theirs = np.asarray(Image.open(buffer))
    np.testing.assert_array_equal((CORRUPTIONS["jpeg"](x)[1] * 255).round().byte().permute(1, 2, 0).numpy(), theirs)
    clip = x[:, :, None].expand(-1, -1, 2, -1, -1)
    for corrupt in CORRUPTIONS.values():
        assert torch.equal(corrupt(clip)[:, :, 1], corrupt(x))


def test_corruption_compares_with_the_corrupted_input() -> None:
    sample = batch(Vq())
    out = Corruption()(sample)
    for name, corrupt in CORRUPTIONS.items():
        worse = corrupt(sample.reference)
        code = Vq().encode(worse * 2 - 1)
        again = ((Vq().decode(code) + 1) / 2 * 255 + 0.5).floor() / 255
        mse = (again.double() - worse.double()).square().mean((1, 2, 3))
        torch.testing.assert_close(out[f"corrupted_psnr/{name}"], -10 * mse.log10(), atol=1e-5, rtol=0)
        same = (code.streams[0].indices == sample.code.streams[0].indices).double().mean((1, 2))
        assert torch.equal(out[f"corrupted_tokens/{name}"], same)


def test_dropped_tokens_are_counted_exactly_and_the_tail_goes_first() -> None:
    sample = batch(Sequence1d(), "a", "b", size=(32, 32))
    kept: list[Tensor] = []
    tokenizer = sample.codec.tokenizer  # type: ignore[union-attr]
    original = tokenizer.drop  # type: ignore[attr-defined]
    tokenizer.drop = lambda code, keep: kept.append(keep) or original(code, keep)  # type: ignore[attr-defined]
    out = TokenDrop()(sample)
    assert [int((~keep[0]).sum()) for keep in kept] == [6, 16, 32, 48, 6, 16, 32, 48]
    assert (kept[0] | ~kept[1]).all()  # nested: what 10 % leaves out 25 % leaves out as well
    assert not torch.equal(kept[2][0], kept[2][1])
    assert kept[4][0].tolist() == [True] * 58 + [False] * 6
    for name in ("dropped_psnr", "truncated_psnr"):
        curve = [out[f"{name}/{share}"].mean() for share in ("0.1", "0.25", "0.5", "0.75")]
        assert curve == sorted(curve, reverse=True)
        torch.testing.assert_close(out[name].mean(), sum(curve) / 4)


@pytest.mark.parametrize(
    "metric",
    [Perturbation(), ReleasedPerturbation(delta=3), ShiftStability(), Idempotence(rounds=2), Corruption()],
    ids=lambda metric: metric.spec.name,
)
def test_rows_do_not_depend_on_the_batch(metric: PerSample) -> None:
    whole = metric(batch(Vq(books=2) if metric.spec.name != "perturbation_released" else Vq()))
    sample = batch(Vq(books=2) if metric.spec.name != "perturbation_released" else Vq())
    for row in range(3):
        for column, values in metric(take_row(sample, row)).items():
            assert values.shape == (1,)
            assert torch.equal(values, whole[column][row : row + 1]), column


def test_a_one_dimensional_tokenizers_rows_do_not_depend_on_the_batch() -> None:
    whole = TokenDrop()(batch(Sequence1d()))
    for row, key in enumerate("abc"):
        for column, values in TokenDrop()(batch(Sequence1d(), key)).items():
            assert torch.equal(values, whole[column][row : row + 1])


# -------------------------------------------------------------------------------------------------------- engine


def test_the_codec_does_what_the_engine_did() -> None:
    for tokenizer in (Vq(), Noise()):
        sample = batch(tokenizer, "a", size=(30, 37))  # sides that no stride divides
        codec = sample.codec
        assert codec is not None
        again = codec.decode(codec.encode(sample.reference, sample.keys), sample.keys)
        assert torch.equal(again, sample.raw)
        assert torch.equal(codec.finish(again), sample.reconstruction)


def test_a_cell_says_not_applicable_with_the_reason(tmp_path: Path) -> None:
    metrics = {"perturbation": Perturbation(), "shift": ShiftStability(), "psnr": Psnr()}
    items = [Item(key=key, group=key, signal=picture(key, (32, 32))) for key in "abcde"]
    protocol = EvalProtocol("image", ImagePrepare("native", None))
    for tokenizer, status in ((Mute(), "not applicable"), (Vq(), "ok")):
        result = evaluate(tokenizer, items, metrics, protocol, engine=Engine(), batch_size=2)
        path = tmp_path / f"{status}.parquet"
        write_rows(path, result.rows)
        found = cells(tokenizer.spec, metrics, read_rows(path), result.states.__getitem__)
        assert found["perturbed_psnr"]["status"] == status
        assert found["psnr"]["status"] == found["shift_psnr"]["status"] == "ok"
    assert found["perturbed_psnr"]["n"] == 5
    assert found["perturbed_psnr/a1-d10"]["level"] is False
    mute = evaluate(Mute(), items, metrics, protocol, engine=Engine())
    reason = cells(Mute().spec, metrics, list(mute.rows), mute.states.__getitem__)["perturbed_psnr"]["reason"]
    assert reason == "perturbation needs 'neighbours', which is not among the capabilities of vq"
