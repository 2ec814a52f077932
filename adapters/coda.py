"""CODA: a continuous autoencoder, slightly adapted, whose latents attend to a table over several scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Neighbours, Stream, Weights
from tokbench.weights import load_state

from .nn.checkpoint import State, assemble, library
from .nn.latent import LatentTokenizer
from .nn.neighbours import TableNeighbours
from .nn.quantize import channels_first, channels_last, lookup, no_single_search
from .nn.taming import TamingNet, Trunk


class AttentiveQuantizer(nn.Module):
    """At every scale, the row whose key answers the latent's query most; its value is taken from what is left.

    State dict: `codebooks.weight` (size, dim), `attn.to_{q,k,v}`, `attn.norm_{q,k}`.

    Args:
        size: Rows.
        dim: Channels of the latents.
        width: Of queries and keys.
        sides: Of the scales, coarse to fine; the last is that of the latents.
    """

    def __init__(self, size: int, dim: int, width: int, sides: Sequence[int]) -> None:
        super().__init__()
        self.codebooks = nn.Embedding(size, dim)
        self.attn = nn.ModuleDict({name: nn.Linear(dim, out) for name, out in _projections(dim, width)})
        self.attn.update({name: nn.RMSNorm(width, eps=1e-5) for name in ("norm_q", "norm_k")})
        self.sides = tuple(sides)

    def encode(self, z: Tensor) -> tuple[Stream, ...]:
        """Map (B, dim, s, s) to a stream (B, s_k, s_k) a scale."""
        keys = self.attn["norm_k"](self.attn["to_k"](self.codebooks.weight)).float()
        values, rest, streams = self._values(), z, []
        for side in self.sides:
            pooled = channels_last(F.interpolate(rest, size=(side, side), mode="area"))
            queries = self.attn["norm_q"](self.attn["to_q"](pooled)).float()
            indices = (queries @ keys.T).argmax(-1)
            streams.append(Stream("0", len(keys), indices))
            rest = rest - self._enlarged(indices, values)
        return tuple(streams)

    def decode(self, streams: Sequence[Stream]) -> Tensor:
        """Map the streams of all scales to (B, dim, s, s)."""
        values = self._values()
        parts = [self._enlarged(stream.indices, values) for stream in streams]
        return sum(parts[1:], start=parts[0])

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry among the values, which are what the decoder receives."""
        del codebook
        return TableNeighbours(self._values())

    def seen(self, z: Tensor, codebook: str) -> Tensor:
        """Raise NotApplicable: the table sees a residual a scale, by inner products."""
        del z
        raise no_single_search(codebook)

    def _values(self) -> Tensor:
        values: Tensor = self.attn["to_v"](self.codebooks.weight)
        return values

    def _enlarged(self, indices: Tensor, values: Tensor) -> Tensor:
        rows = channels_first(lookup(indices, values))
        return F.interpolate(rows, size=(self.sides[-1], self.sides[-1]), mode="bicubic")


def _projections(dim: int, width: int) -> tuple[tuple[str, int], ...]:
    return ("to_q", width), ("to_k", width), ("to_v", dim)


class Coda(nn.Module):
    """The mean of an autoencoder's posterior, shifted and scaled as generators see it, and back.

    Reference: Liu et al., "CODA: Repurposing Continuous VAEs for Discrete Tokenization", arXiv:2503.17760.

    Args:
        vae: A `TamingNet` (MAR) or an `AutoencoderKL` of diffusers (FLUX.1).
        quantizer: Between its halves.
        scale: What latents are multiplied by,
        shift: after this is taken from them.
    """

    def __init__(self, vae: nn.Module, quantizer: AttentiveQuantizer, scale: float, shift: float) -> None:
        super().__init__()
        self.vae: Any = vae
        self.quantizer = quantizer
        self._scale, self._shift = scale, shift

    def latents(self, x: Tensor) -> Tensor:
        """Map (B, 3, S, S) in [-1, 1] to (B, C, s, s)."""
        taming = isinstance(self.vae, TamingNet)
        mean: Tensor = self.vae.latents(x) if taming else self.vae.encode(x).latent_dist.mode()
        return (mean - self._shift) * self._scale

    def image(self, latents: Tensor) -> Tensor:
        """Map (B, C, s, s) to (B, 3, S, S), nominally in [-1, 1]."""
        z = latents / self._scale + self._shift
        out: Tensor = self.vae.image(z) if isinstance(self.vae, TamingNet) else self.vae.decode(z).sample
        return out


def folded(state: State) -> dict[str, Tensor]:
    """Add the low-rank updates of convolutions to their weights: `X.lora_layer.{down,up}.weight` into `X.weight`."""
    out = {key: value for key, value in state.items() if ".lora_layer." not in key}
    for key, up in state.items():
        stem = key.removesuffix(".lora_layer.up.weight")
        down = state.get(f"{stem}.lora_layer.down.weight")
        if stem != key and down is not None and f"{stem}.weight" in out:
            update = torch.einsum("or,rihw->oihw", up.flatten(1), down)
            out[f"{stem}.weight"] = out[f"{stem}.weight"] + update
    return out


def network(card: Card) -> Coda:
    """Build the module a card describes; with `vae` in its architecture the autoencoder is one of diffusers.

    Raises:
        MissingExtra: diffusers is not installed.
    """
    arch: Mapping[str, Any] = card.architecture
    if "vae" in arch:
        (kind,) = library("diffusers", ["AutoencoderKL"], card.name, card.extra or "diffusers")
        vae, channels = kind(**arch["vae"]), arch["vae"]["latent_channels"]
    else:
        sizes: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in arch["trunk"].items()
        }
        trunk = Trunk(**sizes, double_z=True, decoder_attention=())
        vae, channels = TamingNet(trunk, trunk.z_channels, 1, None), trunk.z_channels
    quantizer = AttentiveQuantizer(card.spec.codebook_size[0], channels, arch["width"], arch["sides"])
    return Coda(vae, quantizer, arch["scale"], arch.get("shift", 0.0))


def tokenizer(card: Card, weights: Weights) -> LatentTokenizer:
    """Load the autoencoder with its updates folded in (role `model`) and the quantizer (role `quantizer`)."""
    state = {f"vae.{key}": value for key, value in folded(load_state(weights["model"])).items()}
    state |= {f"quantizer.{key}": value for key, value in load_state(weights["quantizer"]).items()}
    net: Coda = assemble(lambda: network(card), state, source=", ".join(str(path) for path in weights.values()))
    return LatentTokenizer(card.spec, net, net.quantizer)
