"""How a decoder bears tokens that are near misses: codes perturbed by a published, seeded grid, decoded and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from tokbench.errors import NotApplicable, UsageError
from tokbench.spec import Column, MetricSpec
from tokbench.types import Code, LatentNeighbours, Neighbouring, Neighbours, Sample, Stream

from ._probe import codec_of, decibels, generator, mean, mse, unchanged, valid
from ._rows import checked_pair


@dataclass(frozen=True)
class Cell:
    """One cell of the grid: the share of tokens that are replaced, and how far from the true token the new one may be.

    Attributes:
        alpha: Probability with which a token is replaced, each token on its own.
        delta: Entries of the neighbourhood; `1%` is a hundredth of the codebook, at least one entry.
    """

    alpha: float
    delta: int | Literal["1%"]

    @property
    def name(self) -> str:
        """Return the cell as columns spell it: `a0.25-d100`."""
        return f"a{self.alpha:g}-d{self.delta}"

    def strength(self, codebook_size: int) -> int:
        """Return delta as a number of entries."""
        return max(1, codebook_size // 100) if self.delta == "1%" else self.delta


_DELTAS: tuple[int | Literal["1%"], ...] = (10, 100, "1%")

GRID = tuple(Cell(alpha, delta) for delta in _DELTAS for alpha in (0.1, 0.25, 0.5, 1.0))
"""`tokbench-v1`: beta is 1 (every image is perturbed)."""

_NAME = "perturbation@tokbench-v1"


def perturbed(sample: Sample) -> Mapping[Cell, Tensor]:
    """Return the reconstruction of every cell of `tokbench-v1`, shaped like `sample.reconstruction` and rounded like it.

    Every token has two random numbers, drawn from a generator seeded by (protocol seed, key): it is replaced in cell
    (alpha, delta) where the first is below alpha, and the second says by which neighbour. So the replaced tokens of a
    smaller alpha are among those of a larger one. Work is shared through `sample.memo`.

    Raises:
        NotApplicable: The tokenizer emits no tokens, or does not say what lies near them.
    """
    done = sample.memo.get(_NAME)
    if done is None:
        done = sample.memo[_NAME] = _decoded(sample)
    return cast("Mapping[Cell, Tensor]", done)


def neighbours_of(metric: str, sample: Sample) -> Neighbouring:
    """Return the batch's tokenizer, which knows what lies near an entry.

    Raises:
        NotApplicable: It does not, or the batch has no codec.
    """
    tokenizer = codec_of(metric, sample).tokenizer
    if not sample.code.streams or not isinstance(tokenizer, Neighbouring):
        raise NotApplicable(f"{sample.spec.name} does not say what lies near an entry of its codebooks")
    return tokenizer


def _decoded(sample: Sample) -> dict[Cell, Tensor]:
    codec, tokenizer = codec_of("perturbation", sample), neighbours_of("perturbation", sample)
    streams = sample.code.streams
    draws = [draw(stream, position, sample, codec.seed) for position, stream in enumerate(streams)]
    near: dict[tuple[int, int], Tensor] = {}
    done: dict[tuple[float, tuple[int, ...]], Tensor] = {}
    out: dict[Cell, Tensor] = {}
    for cell in GRID:
        strengths = tuple(cell.strength(stream.codebook_size) for stream in streams)
        if (cell.alpha, strengths) not in done:  # 1 % of a codebook of 1000 is 10: one image serves both cells
            edited = []
            for k, (stream, strength) in enumerate(zip(streams, strengths, strict=True)):
                select, which = draws[k]
                if (k, strength) not in near:
                    near[k, strength] = _near(tokenizer.neighbours(stream.codebook), stream, strength, which)
                edited.append(
                    replace(stream, indices=torch.where(select < cell.alpha, near[k, strength], stream.indices))
                )
            raw = codec.decode(replace(sample.code, streams=tuple(edited)), sample.keys)
            done[cell.alpha, strengths] = codec.finish(raw)
        out[cell] = done[cell.alpha, strengths]
    return out


def _near(neighbours: Neighbours, stream: Stream, strength: int, which: Tensor) -> Tensor:
    """Return a neighbour for every token, row by row, so that a row cannot depend on its batch."""
    rows = zip(stream.indices, which, strict=True)
    return torch.stack([neighbours.choose(row.flatten(), strength, u.flatten()).view_as(row) for row, u in rows])


def draw(stream: Stream, position: int, sample: Sample, seed: int) -> tuple[Tensor, Tensor]:
    """Return two uniform numbers a token, each shaped like the indices; the first is 2 where no token counts.

    A row's numbers depend on its key, its stream and its own number of tokens, never on the batch.
    """
    select = torch.full(stream.indices.shape, 2.0, dtype=torch.float64)
    which = torch.zeros(stream.indices.shape, dtype=torch.float64)
    counts = valid(stream).flatten(1, -2).any(1).sum(1) if stream.indices.ndim > 2 else valid(stream).sum(1)
    for row, (key, count) in enumerate(zip(sample.keys, counts.tolist(), strict=True)):
        shape = (*stream.indices.shape[1:-1], count)
        numbers = torch.rand(
            (2, *shape), generator=generator(f"{_NAME}:{position}", seed, key), dtype=torch.float64
        )  # fmt: skip
        select[row, ..., :count], which[row, ..., :count] = numbers
    device = stream.indices.device
    return select.to(device), which.to(device)


class Perturbation:
    """PSNR after tokens are replaced by near ones: the grid `tokbench-v1`, alpha 0.1, 0.25, 0.5, 1 by delta 10, 100, 1 %.

    alpha is the probability with which a token is replaced, delta the size of the neighbourhood it is replaced from,
    uniformly; every image is perturbed (beta = 1). Neighbours: the nearest vectors of a table (VQ, residual and
    multi-codebook VQ, every codebook on its own), the L1 ball on FSQ's levels, the Hamming ball on the bits of LFQ and
    BSQ; never the token itself. A delta beyond the codebook takes all of it.

    `perturbed_psnr` and `perturbed_mse` are means over the twelve cells; each cell is a column `perturbed_psnr/a0.1-d10`.
    After "RobustTok" (arXiv 2503.08354), whose own grid and averaging were never published: not the numbers of that paper.
    """

    undefined: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.spec = MetricSpec(
            name="perturbation",
            needs=("neighbours", "edit"),
            modalities=("image", "video"),
            kinds=("discrete",),
            columns=(
                Column("perturbed_psnr", "dB", True, "after near tokens replaced true ones; mean of 12 cells", 1e-6, 2),
                Column("perturbed_mse", "", False, "mean of 12 cells", 1e-9, 6, level=False),
            ),
            summary="PSNR with tokens replaced by near ones, grid tokbench-v1",
            reference="after arXiv 2503.08354; the grid is tokbench's own",
            protocol={"grid": [cell.name for cell in GRID], "beta": 1.0, "itself": "excluded"},
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch: means over the grid and every cell, each (B,) float64.

        Raises:
            NotApplicable: The tokenizer has no neighbours, or the signal is sound.
        """
        reference, _ = checked_pair("perturbation", sample)
        errors = {cell: mse(reference, image.to(reference.device)) for cell, image in perturbed(sample).items()}
        out = {
            "perturbed_psnr": mean([decibels(error) for error in errors.values()]),
            "perturbed_mse": mean(list(errors.values())),
        }
        for cell, error in errors.items():
            out[f"perturbed_psnr/{cell.name}"] = decibels(error)
            out[f"perturbed_mse/{cell.name}"] = error
        return out


class ReleasedPerturbation:
    """PSNR under the perturbation that RobustTok's released training code applies: not the one its paper defines.

    As `latent_perturbation.py` of ImageFolder and RobusTok does it, with the three differences from the paper: candidates
    are the delta entries nearest to the latent before quantization, not to the token; the nearest one is among them, so a
    selected token stays as it was with probability 1 / delta; and where the code touches the first int(B * beta) images of
    a training batch, here every image is one of those (beta = 1), because a result may not depend on batches.
    Tokens that are not selected become the nearest entry. Needs a table of vectors and a tokenizer that shows its latents.

    Args:
        alpha: Probability with which a token is perturbed; 1 in the released configuration.
        delta: Candidates; 100 in the released configuration.

    Raises:
        UsageError: `alpha` is not in [0, 1] or `delta` is below 1.
    """

    undefined: Mapping[str, str] = {}

    def __init__(self, *, alpha: float = 1.0, delta: int = 100) -> None:
        check_released("perturbation_released", alpha, delta)
        self._alpha, self._delta = alpha, delta
        self.spec = MetricSpec(
            name="perturbation_released",
            needs=("neighbours", "edit"),
            modalities=("image",),
            kinds=("discrete",),
            columns=(
                Column("perturbed_released_psnr", "dB", True, f"alpha {alpha:g}, delta {delta}", 1e-6, 2),
                Column("perturbed_released_tokens", "", None, "share of tokens left unchanged", 1e-9, level=False),
            ),
            summary="PSNR under RobustTok's released training perturbation",
            reference="lxa9867/ImageFolder tokenizer/tokenizer_image/latent_perturbation.py",
            protocol={
                "alpha": alpha,
                "beta": 1.0,
                "delta": delta,
                "candidates": "nearest to the latent, itself included",
            },
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch: both columns, (B,) float64.

        Raises:
            NotApplicable: The tokenizer has no table of vectors, or does not show its latents.
        """
        reference, _ = checked_pair("perturbation_released", sample)
        code, image = released(sample, self._alpha, self._delta)
        return {
            "perturbed_released_psnr": decibels(mse(reference, image.to(reference.device))),
            "perturbed_released_tokens": unchanged(sample.code, code, len(sample.keys)),
        }


def check_released(metric: str, alpha: float, delta: int) -> None:
    """Raise UsageError unless `alpha` is in [0, 1] and `delta` at least 1."""
    if not 0 <= alpha <= 1 or delta < 1:
        raise UsageError(f"{metric}: alpha in [0, 1] and delta of at least 1, got {alpha} and {delta}")


def released(sample: Sample, alpha: float, delta: int) -> tuple[Code, Tensor]:
    """Return the code under the perturbation of `ReleasedPerturbation`, and its reconstruction, rounded like the batch's.

    Raises:
        NotApplicable: The tokenizer has no table of vectors, or does not show its latents.
    """
    place = f"perturbation_released:{alpha}:{delta}"
    done = sample.memo.get(place)
    if done is None:
        done = sample.memo[place] = _released(sample, alpha, delta)
    return cast("tuple[Code, Tensor]", done)


def _released(sample: Sample, alpha: float, delta: int) -> tuple[Code, Tensor]:
    codec = codec_of("perturbation_released", sample)
    tokenizer = neighbours_of("perturbation_released", sample)
    streams = []
    for position, stream in enumerate(sample.code.streams):
        near = tokenizer.neighbours(stream.codebook)
        if not isinstance(near, LatentNeighbours):
            raise NotApplicable(f"codebook {stream.codebook!r} of {sample.spec.name} is no table of vectors")
        latents = codec.unquantized(sample.reference, stream.codebook)
        if latents.shape[:-1] != stream.indices.shape:
            raise NotApplicable(
                f"codebook {stream.codebook!r} of {sample.spec.name} has tokens {tuple(stream.indices.shape)} and "
                f"latents {tuple(latents.shape)}: not one latent a token"
            )
        select, which = draw(stream, position, sample, codec.seed)
        chosen = torch.where(select <= alpha, which, 0.0)
        indices = [
            near.choose_near(z.flatten(0, -2), delta, u.flatten()).view_as(u)
            for z, u in zip(latents, chosen, strict=True)
        ]
        streams.append(replace(stream, indices=torch.stack(indices)))
    code: Code = replace(sample.code, streams=tuple(streams))
    return code, codec.finish(codec.decode(code, sample.keys))
