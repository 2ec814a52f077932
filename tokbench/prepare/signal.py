"""Maps tensors between files, the engine and a tokenizer: ranges, stride padding, 8-bit rounding, lengths; all undone exactly.

The 8-bit levels survive: in float32, `v / 255 * 255 == v` for each of the 256, and `round_8bit(..., "round")` finds the
level again after any of the usual range maps. Truncation does not: after [-1, 1] some levels come out one too low.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokbench.errors import ContractError, UsageError
from tokbench.spec import SIGNAL_RANGE, FrameRule, Modality, Rounding

_AXES = {3: ("T",), 4: ("H", "W"), 5: ("T", "H", "W")}
_ANY = FrameRule()


@dataclass(frozen=True)
class Unpad:
    """What `unpad` needs: sizes of the axes behind the channel, before and after padding."""

    original: tuple[int, ...]
    padded: tuple[int, ...]


def to_canonical(x: np.ndarray | Tensor, modality: Modality, device: str | torch.device) -> Tensor:
    """Move a decoded signal to the device as float32 in the canonical range: [0, 1], sound [-1, 1].

    Args:
        x: uint8 images or video (divided by 255 on the device, the same bits on every device), or floats of any modality
            that are in the canonical range already.
        modality: Of the signal.
        device: Where to.

    Raises:
        UsageError: Another dtype, whose range is not known.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(x)) if isinstance(x, np.ndarray) else x
    if tensor.dtype == torch.uint8 and modality != "audio":
        return _divide(tensor.to(device).to(torch.float32), 255.0)
    if not tensor.is_floating_point():
        low, high = SIGNAL_RANGE[modality]
        raise UsageError(
            f"{modality} of dtype {tensor.dtype} has no known range; convert it to float in [{low}, {high}]"
        )
    return tensor.to(device=device, dtype=torch.float32)


def to_range(x: Tensor, target: tuple[float, float], modality: Modality) -> Tensor:
    """Map from the canonical range to `target` (a tokenizer's input range), in float32. Equal ranges return `x` itself.

    Raises:
        UsageError: `target` is empty or reversed.
    """
    low, scale = _affine(target, modality)
    if target == SIGNAL_RANGE[modality]:
        return x
    return (x.to(torch.float32) - SIGNAL_RANGE[modality][0]) * scale + low


def from_range(y: Tensor, source: tuple[float, float], modality: Modality) -> Tensor:
    """Map from `source` (a tokenizer's own range) to the canonical one, in float32, unclamped; undoes `to_range`.

    Equal ranges return `y` itself.

    Raises:
        UsageError: `source` is empty or reversed.
    """
    low, scale = _affine(source, modality)
    if source == SIGNAL_RANGE[modality]:
        return y
    return _divide(y.to(torch.float32) - low, scale) + SIGNAL_RANGE[modality][0]


def pad_to_stride(x: Tensor, strides: tuple[int, ...], frame_rule: FrameRule = _ANY) -> tuple[Tensor, Unpad]:
    """Pad a batch at the end of each axis so that a tokenizer takes it.

    Space repeats its right and bottom edge, time its last frame, sound gets zeros. The number of frames is the next one
    `frame_rule` allows; only where the rule takes any number does the time stride decide: a causal tokenizer of
    `downsample=(4, 8, 8)` and 1 + 4k frames is fed 17 frames, not 20.

    Args:
        x: (B, 3, H, W), (B, 3, T, H, W) or (B, C, T).
        strides: (H, W), (T, H, W) or (T,); () pads nothing in space or sound.
        frame_rule: Lengths a video tokenizer takes; ignored for the others.

    Returns:
        The padded batch, or `x` itself when it fits; and what `unpad` needs.

    Raises:
        UsageError: The strides do not fit the axes of `x`.
    """
    axes = _AXES.get(x.ndim)
    if axes is None or min(x.shape[2:]) < 1:
        raise UsageError(
            f"cannot pad a batch of shape {tuple(x.shape)}; give (B,3,H,W), (B,3,T,H,W) or (B,C,T), none empty"
        )
    strides = strides or (1,) * len(axes)
    if len(strides) != len(axes) or min(strides) < 1:
        raise UsageError(f"downsample {strides} does not fit axes {axes}: one stride of at least 1 for each")
    sizes = tuple(x.shape[2:])
    padded = [-(-size // stride) * stride for size, stride in zip(sizes, strides, strict=True)]
    if x.ndim == 5 and frame_rule != _ANY:
        padded[0] = frame_rule.next_valid(sizes[0])
    record = Unpad(sizes, tuple(padded))
    if record.original == record.padded:
        return x, record
    amounts = [n for p, s in zip(reversed(record.padded), reversed(sizes), strict=True) for n in (0, p - s)]
    return F.pad(x, amounts, mode="constant" if x.ndim == 3 else "replicate"), record


def unpad(x: Tensor, record: Unpad) -> Tensor:
    """Cut away what `pad_to_stride` added.

    Raises:
        ContractError: `x` is not of the padded size. Sound may come back a few samples off: `fit_length` it first.
    """
    if tuple(x.shape[2:]) != record.padded:
        raise ContractError(
            f"decode returned {tuple(x.shape[2:])} behind the channel axis; it was given {record.padded}"
        )
    for axis, size in enumerate(record.original, start=2):
        x = x.narrow(axis, 0, size)
    return x


def round_8bit(x: Tensor, mode: Rounding) -> Tensor:
    """Clamp to [0, 1] and round to the 256 levels of 8-bit images.

    | mode | rule | used by |
    |---|---|---|
    | `round` | `floor(255 x + 0.5)`: half up | ADM, LlamaGen, DC-AE (`127.5 x + 128` on [-1, 1]), TiTok, torch-fidelity |
    | `truncate` | `floor(255 x)`: about half a level darker | SEED-Voken and WeTok PSNR, OmniTokenizer, VTBench |
    | `none` | no rounding, clamp only | SEED-Voken rFID, VidTok |

    Args:
        x: Any shape, canonical range or beyond.
        mode: One of the above.

    Returns:
        float32 in {0, ..., 255} / 255, or [0, 1] with `none`.

    Raises:
        UsageError: Unknown mode.
    """
    x = x.to(torch.float32).clamp(0.0, 1.0)
    match mode:
        case "none":
            return x
        case "round":
            return _divide((x * 255.0 + 0.5).floor(), 255.0)
        case "truncate":
            return _divide((x * 255.0).floor(), 255.0)
    raise UsageError(f"unknown rounding {mode!r}; known: round, truncate, none")


def fit_length(x: Tensor, length: int) -> tuple[Tensor, int]:
    """Cut or zero-pad the end of sound to `length` samples.

    Args:
        x: (..., T).
        length: Samples wanted.

    Returns:
        (..., length), `x` itself when it fits; and how many samples `x` had too many (+) or too few (-).
    """
    difference = x.shape[-1] - length
    if difference > 0:
        return x[..., :length], difference
    return (F.pad(x, (0, -difference)) if difference else x), difference


def _affine(other: tuple[float, float], modality: Modality) -> tuple[float, float]:
    low, high = SIGNAL_RANGE[modality]
    if not other[0] < other[1]:
        raise UsageError(f"range {other} is empty or reversed; write it as (low, high)")
    return other[0], (other[1] - other[0]) / (high - low)


def _divide(x: Tensor, by: float) -> Tensor:
    # On CUDA, division by a Python number multiplies by its rounded reciprocal; by a tensor it divides, as the CPU does.
    return x / torch.tensor(by, dtype=x.dtype, device=x.device)
