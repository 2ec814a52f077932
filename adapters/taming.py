"""Tokenizers on the taming-transformers autoencoder: VQGAN, LDM, LlamaGen, VAR, IBQ, RQ-VAE, MAR, VA-VAE, Infinity, MoVQGAN."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from tokbench.errors import CardError
from tokbench.spec import Card
from tokbench.types import Weights
from tokbench.weights import load_into, load_state

from .nn.checkpoint import skeleton
from .nn.latent import LatentTokenizer
from .nn.quantize import (
    GaussianLevels,
    GumbelQuantizer,
    MultiScaleBSQ,
    MultiScaleQuantizer,
    Quantizer,
    ResidualQuantizer,
    Scales,
    VectorQuantizer,
)
from .nn.taming import Layout, TamingNet, Trunk, official_key


def tokenizer(card: Card, weights: Weights) -> LatentTokenizer:
    """An encoder and a decoder of taming-transformers around a quantizer, or around a Gaussian posterior's mean.

    `card.architecture` holds the keys of `nn.taming.Trunk` and

    - `embed_dim`: channels of the code; by default `z_channels`;
    - `kernel`: of the convolutions before and after the code (1, 3, or 0 for none; default 1);
    - `quantizer`: a table whose `kind` is `vq` (`metric`), `gumbel`, `residual` (`depth`, `shared`), `multi-scale`
      (`scales`), `bits` (`scales`) or `gaussian-levels` (`bits`, `scale`); without it the code is continuous;
    - `layout`: how the checkpoint spells its keys, see `nn.taming.official_key` (default `taming`);
    - `inside`: keys that lead to the state dict; not used for safetensors files, which cannot nest;
    - `prefix`: of the keys that belong to the tokenizer; `drop`: globs of keys inference does not need;
    - `ema`: take the moving average of a tensor, kept as `model_ema.` and its key without dots, where there is one.

    The rows of a quantizer's table are `card.spec.codebook_size[0]`. Nothing is sampled and no latent is scaled.

    Args:
        card: The checkpoint's card.
        weights: Role `model` -> the checkpoint.

    Raises:
        CardError: The architecture names an unknown key or quantizer.
        WeightsRefused: The file cannot be read without running code in it, or its keys or shapes do not fit.
    """
    path, arch = weights["model"], card.architecture
    nested = () if path.suffix == ".safetensors" else tuple(arch.get("inside", ()))
    net: TamingNet = skeleton(lambda: build(card))
    state = own_keys(load_state(path, inside=nested), net, arch)
    load_into(net, state, drop=arch.get("drop", ()), source=str(path))
    return LatentTokenizer(card.spec, net, cast("Quantizer | None", net.quantize))


# ---------------------------------------------------------------------------------------------- from card to net

_TRUNK = frozenset(Trunk.__dataclass_fields__)
_NET = frozenset({"embed_dim", "kernel", "quantizer", "layout", "inside", "prefix", "drop", "ema"})


def build(card: Card) -> TamingNet:
    """Build the net a card describes, with values that are not yet those of a checkpoint.

    Raises:
        CardError: The architecture names an unknown key or quantizer, or a key is missing.
    """
    arch = dict(card.architecture)
    unknown = sorted(set(arch) - _TRUNK - _NET)
    if unknown:
        raise CardError(f"{card.name}: unknown architecture key {unknown[0]!r}")
    try:
        trunk = Trunk(**{key: _frozen(value) for key, value in arch.items() if key in _TRUNK})
        embed_dim = int(arch.get("embed_dim", trunk.z_channels))
        size = card.spec.codebook_size[0] if card.spec.codebook_size else 0
        quantize = _quantizer(arch.get("quantizer", {}), size, trunk.z_channels, embed_dim)
        return TamingNet(trunk, embed_dim, int(arch.get("kernel", 1)), quantize)
    except (TypeError, KeyError) as error:
        raise CardError(f"{card.name}: architecture: {error}") from error


def own_keys(state: Mapping[str, Tensor], net: nn.Module, arch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename a checkpoint's tensors to the net's keys; a key that belongs to none keeps its name."""
    prefix, layout = str(arch.get("prefix", "")), cast("Layout", arch.get("layout", "taming"))
    left = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    renamed: dict[str, Tensor] = {}
    for own in net.state_dict():
        official = official_key(own, layout, len(arch["ch_mult"]))
        raw = left.pop(official, None)
        value = left.get("model_ema." + official.replace(".", ""), raw) if arch.get("ema") else raw
        if value is not None:
            renamed[own] = value
    return left | renamed


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _scales(lists: Sequence[Sequence[int]]) -> dict[tuple[int, int], Scales]:
    return {(sides[-1], sides[-1]): tuple((side, side) for side in sides) for sides in lists}


def _quantizer(table: Mapping[str, Any], size: int, channels: int, dim: int) -> nn.Module | None:
    options = dict(table)
    kind = options.pop("kind", None)
    if "scales" in options:
        options["scales"] = _scales(options["scales"])
    if kind is None:
        return None
    makers: Mapping[str, Callable[[], nn.Module]] = {
        "vq": lambda: VectorQuantizer(size, dim, **options),
        "gumbel": lambda: GumbelQuantizer(size, channels, dim, **options),
        "residual": lambda: ResidualQuantizer(size, dim, **options),
        "multi-scale": lambda: MultiScaleQuantizer(size, dim, **options),
        "bits": lambda: MultiScaleBSQ(dim, **options),
        "gaussian-levels": lambda: GaussianLevels(**options),
    }
    return makers[kind]()
