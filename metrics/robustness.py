"""How codes and reconstructions bear a shift by a pixel, another round trip, a worse input, or fewer tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokbench.errors import NotApplicable, UsageError
from tokbench.spec import Column, MetricSpec
from tokbench.types import Droppable, Sample

from ._options import require_positive_integer
from ._probe import codec_of, generator, no_tokens, psnr, unchanged, with_mean
from ._rows import checked_pair
from .ssim import gaussian


class ShiftStability:
    """What a shift by one pixel changes: the share of tokens that stay, and how well the reconstruction follows.

    The input is moved right, and down, by `pixels`; what becomes free repeats the edge. `shift_tokens` is the share of
    tokens that are the same at the same place (a tokenizer of stride 16 should hardly notice a pixel). `shift_psnr` is
    translation equivariance: PSNR between the moved reconstruction and the reconstruction of the moved input, without the
    pixels that became free. Both are the mean of the two directions, which `/right` and `/down` give apart. The stride
    itself as `pixels` asks the other question: does the code move as a whole.

    Args:
        pixels: Shift.

    Raises:
        UsageError: `pixels` is not a positive integer.
    """

    def __init__(self, *, pixels: int = 1) -> None:
        require_positive_integer("shift", "pixels", pixels)
        self._pixels = pixels
        self.undefined: Mapping[str, str] = no_tokens("shift_tokens", ("right", "down"))
        self.spec = MetricSpec(
            name="shift",
            modalities=("image", "video"),
            columns=(
                Column("shift_tokens", "", True, f"tokens unchanged by a shift of {pixels} px", atol=1e-9),
                Column("shift_psnr", "dB", True, f"translation equivariance, {pixels} px", atol=1e-6, decimals=2),
            ),
            summary="Code stability and equivariance under a small shift",
            reference="tokbench",
            protocol={"pixels": pixels, "free": "edge repeated", "directions": ["right", "down"]},
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch: both columns and their directions, (B,) float64; NaN tokens where the code has none.

        Raises:
            NotApplicable: Sound.
            UsageError: The picture is no larger than the shift.
        """
        x, y = checked_pair("shift", sample)
        codec, by = codec_of("shift", sample), self._pixels
        if min(x.shape[-2:]) <= by:
            raise UsageError(f"shift: a picture of {tuple(x.shape[-2:])} cannot move by {by} pixels")
        tokens, quality = {}, {}
        for name, axis in (("right", -1), ("down", -2)):
            moved = _shifted(x, axis, by)
            code = codec.encode(moved.to(sample.reference.device), sample.keys)
            again = codec.finish(codec.decode(code, sample.keys)).to(y.device)
            inside = x.shape[axis] - by
            tokens[name] = unchanged(sample.code, code, len(sample.keys))
            quality[name] = psnr(y.narrow(axis, 0, inside), again.narrow(axis, by, inside))
        return {**with_mean("shift_tokens", tokens), **with_mean("shift_psnr", quality)}


class Idempotence:
    """What further round trips lose: the reconstruction is tokenized again, `rounds` times.

    `retokenised_psnr` compares the last reconstruction with the reference, `retokenised_drift` with the first
    reconstruction; `retokenised_tokens` is the share of tokens that are the same when the first reconstruction is encoded.
    `/1`, `/2`, ... give every round, tokens against those of the round before. An idempotent tokenizer has a drift of
    100 dB and keeps every token.
    Between rounds a reconstruction is rounded as the protocol says.

    Args:
        rounds: Round trips after the first one.

    Raises:
        UsageError: `rounds` is not a positive integer.
    """

    def __init__(self, *, rounds: int = 3) -> None:
        require_positive_integer("idempotence", "rounds", rounds)
        self._rounds = rounds
        each = tuple(str(n) for n in range(1, rounds + 1))
        self.undefined: Mapping[str, str] = no_tokens("retokenised_tokens", each)
        self.spec = MetricSpec(
            name="idempotence",
            modalities=("image", "video"),
            columns=(
                Column("retokenised_psnr", "dB", True, f"after {rounds} more round trips", atol=1e-6, decimals=2),
                Column("retokenised_drift", "dB", True, "PSNR between first and last reconstruction", 1e-6, 2),
                Column("retokenised_tokens", "", True, "tokens kept by the first of them", atol=1e-9),
            ),
            summary="Loss over repeated tokenization",
            reference="tokbench",
            protocol={"rounds": rounds},
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch: three columns and every round, (B,) float64; NaN tokens where the code has none."""
        reference, first = checked_pair("idempotence", sample)
        codec, out, last, code = codec_of("idempotence", sample), {}, sample.reconstruction, sample.code
        for n in range(1, self._rounds + 1):
            before, code = code, codec.encode(last, sample.keys)
            last = codec.finish(codec.decode(code, sample.keys))
            out[f"retokenised_psnr/{n}"] = psnr(reference, last.to(reference.device))
            out[f"retokenised_drift/{n}"] = psnr(first, last.to(first.device))
            out[f"retokenised_tokens/{n}"] = unchanged(before, code, len(sample.keys))
        out["retokenised_psnr"] = out[f"retokenised_psnr/{self._rounds}"]
        out["retokenised_drift"] = out[f"retokenised_drift/{self._rounds}"]
        out["retokenised_tokens"] = out["retokenised_tokens/1"]
        return out


class Corruption:
    """What a worse input does: the input is darkened, blurred or compressed before it is encoded.

    Three fixed corruptions, 8-bit like the input: `brightness` (times 0.7), `blur` (Gaussian, sigma 1 px, edges repeated)
    and `jpeg` (Pillow, quality 50, 4:2:0, each frame). `corrupted_psnr` is the PSNR of the reconstruction against the
    corrupted input, `corrupted_tokens` the share of tokens that are those of the clean input; means over the three, which
    `/brightness`, `/blur` and `/jpeg` give apart.
    """

    def __init__(self) -> None:
        self.undefined: Mapping[str, str] = no_tokens("corrupted_tokens", tuple(CORRUPTIONS))
        self.spec = MetricSpec(
            name="corruption",
            modalities=("image", "video"),
            columns=(
                Column("corrupted_psnr", "dB", True, "against the corrupted input", atol=1e-6, decimals=2),
                Column("corrupted_tokens", "", True, "tokens of the clean input that stay", atol=1e-9),
            ),
            summary="Reconstruction and tokens of darkened, blurred and JPEG-compressed input",
            reference="tokbench",
            protocol={"brightness": 0.7, "blur": "sigma 1, 9 taps", "jpeg": "quality 50, 4:2:0"},
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch: both columns and each corruption, (B,) float64; NaN tokens where the code has none."""
        x, _ = checked_pair("corruption", sample)
        codec, quality, tokens = codec_of("corruption", sample), {}, {}
        for name, corrupt in CORRUPTIONS.items():
            worse = corrupt(sample.reference)
            code = codec.encode(worse, sample.keys)
            again = codec.finish(codec.decode(code, sample.keys))
            quality[name] = psnr(worse.to(x.device), again.to(x.device))
            tokens[name] = unchanged(sample.code, code, len(sample.keys))
        return {**with_mean("corrupted_psnr", quality), **with_mean("corrupted_tokens", tokens)}


class TokenDrop:
    """How a 1-D tokenizer bears fewer tokens: some left out anywhere, or the tail cut off.

    `dropped_psnr` leaves out a seeded random choice of the tokens, `truncated_psnr` the last ones; the decoder is told
    which (mask token, zeros, a shorter sequence: `tokbench.types.Droppable`). Both are means over the curve, whose points
    are `/0.1` (a tenth of the tokens left out, rounded down) to `/0.75`; a larger choice holds the smaller ones.
    """

    SHARES = (0.1, 0.25, 0.5, 0.75)

    undefined: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.spec = MetricSpec(
            name="token_drop",
            needs=("drop",),
            modalities=("image", "video"),
            kinds=("discrete", "continuous"),
            columns=(
                Column("dropped_psnr", "dB", True, "random tokens left out, mean over the curve", 1e-6, 2),
                Column("truncated_psnr", "dB", True, "last tokens left out, mean over the curve", 1e-6, 2),
            ),
            summary="PSNR of 1-D tokenizers with tokens left out",
            reference="tokbench; truncation after One-D-Piece (arXiv 2501.10064)",
            protocol={"left_out": self.SHARES},
        )

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Score a batch: both columns and every point of the curves, (B,) float64.

        Raises:
            NotApplicable: The tokenizer's decoder does not take fewer tokens, or the code is no sequence.
        """
        reference, _ = checked_pair("token_drop", sample)
        codec = codec_of("token_drop", sample)
        tokenizer, streams, latents = codec.tokenizer, sample.code.streams, sample.code.latents
        if not isinstance(tokenizer, Droppable):
            raise NotApplicable(f"the decoder of {sample.spec.name} takes all tokens or none")
        shape = streams[0].indices.shape[1:] if streams else () if latents is None else latents.shape[2:]
        if len(shape) != 1:
            raise NotApplicable(f"the code of {sample.spec.name} is no sequence: its grid is {tuple(shape)}")
        count = shape[0]
        seeds = [generator("token_drop", codec.seed, key) for key in sample.keys]
        ranks = torch.stack([torch.randperm(count, generator=one) for one in seeds]).argsort(1)
        order = {"dropped_psnr": ranks, "truncated_psnr": torch.arange(count - 1, -1, -1).expand(len(seeds), -1)}
        out: dict[str, Tensor] = {}
        for name, rank in order.items():
            curve = {}
            for share in self.SHARES:
                keep = (rank >= int(share * count)).to(sample.reference.device)
                image = codec.finish(codec.decode(tokenizer.drop(sample.code, keep), sample.keys))
                curve[f"{share:g}"] = psnr(reference, image.to(reference.device))
            out |= with_mean(name, curve)
        return out


def _shifted(x: Tensor, axis: int, by: int) -> Tensor:
    """Move (..., H, W) towards larger indices of `axis`; the first line fills what becomes free."""
    first = x.narrow(axis, 0, 1)
    return torch.cat([*[first] * by, x.narrow(axis, 0, x.shape[axis] - by)], dim=axis)


def _darker(x: Tensor) -> Tensor:
    return _eight_bit(x * 0.7)


def _blurred(x: Tensor) -> Tensor:
    taps = gaussian("corruption", 9, 1.0)
    flat = x.reshape(-1, 1, *x.shape[-2:]).double()
    for axis, pad in ((-1, (4, 4, 0, 0)), (-2, (0, 0, 4, 4))):
        wide, size = F.pad(flat, pad, mode="replicate"), flat.shape[axis]
        flat = wide.narrow(axis, 0, size) * taps[0]
        for k, tap in enumerate(taps[1:], start=1):
            flat = flat + wide.narrow(axis, k, size) * tap
    return _eight_bit(flat.reshape(x.shape).float())


def _compressed(x: Tensor) -> Tensor:
    from PIL import Image

    frames = x[:, :, None] if x.ndim == 4 else x
    levels = (frames * 255.0 + 0.5).floor().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).cpu().numpy()
    out = np.empty_like(levels)
    for row, clip in enumerate(levels):
        for t, frame in enumerate(clip):
            buffer = BytesIO()
            Image.fromarray(frame).save(buffer, format="JPEG", quality=50, subsampling="4:2:0")
            out[row, t] = np.asarray(Image.open(buffer).convert("RGB"))
    back = torch.from_numpy(out).permute(0, 4, 1, 2, 3).to(x.device).float() / 255.0
    return back[:, :, 0].contiguous() if x.ndim == 4 else back.contiguous()


def _eight_bit(x: Tensor) -> Tensor:
    return (x * 255.0 + 0.5).floor().clamp(0, 255) / 255.0


CORRUPTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "brightness": _darker,
    "blur": _blurred,
    "jpeg": _compressed,
}
"""Name -> function of canonical signals (B, 3, [T,] H, W) to the same, at levels k / 255."""
