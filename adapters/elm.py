"""The binary autoencoders of ELM: every channel of the latents is one bit, drawn with its own probability or rounded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Neighbours, Weights

from .nn.bits import bits_of, index_of
from .nn.checkpoint import State
from .nn.codebooks import CodebookTokenizer
from .nn.neighbours import BitNeighbours
from .nn.network import load_network
from .nn.taming import Decoder, Encoder, Trunk


class BinaryAutoencoder(nn.Module):
    """Convolutional encoder -> a probability a bit -> bits -> the sum of the vectors of those that are set -> decoder.

    The first bit is the highest of an index, as the official language models read it.

    Reference: Liu et al., "Elucidating the design space of language models for image generation", arXiv:2410.16257,
    Pepper-lll/LMforImageGeneration; after Wang et al., "Binary Latent Diffusion", 2023.

    Args:
        ch: Channels of the finest level.
        ch_mult: Their multiple at each level, finest first.
        res_blocks: Residual blocks a level, of the encoder and of the decoder.
        emb_dim: Channels of the latents and of a bit's vector.
        bits: Of an index.
        attention: Levels with attention after each block.
        sampled: Bits are drawn by their probabilities from torch's global generator; else 1 above one half.
    """

    def __init__(
        self,
        ch: int,
        ch_mult: Sequence[int],
        res_blocks: int,
        emb_dim: int,
        bits: int,
        attention: Sequence[int],
        sampled: bool = False,
    ) -> None:
        super().__init__()
        trunk = Trunk(ch, tuple(ch_mult), res_blocks, emb_dim, attention=tuple(attention))
        self.encoder = Encoder(trunk, head=False)
        self.norm_out = nn.GroupNorm(32, ch * ch_mult[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(ch * ch_mult[-1], emb_dim, 3, padding=1)
        self.to_logits = nn.Conv2d(emb_dim, bits, 1)
        self.vectors = nn.Parameter(torch.empty(bits, emb_dim))
        self.norm_in = nn.GroupNorm(32, emb_dim, eps=1e-6)
        # The decoder of the family has one block a level more than it is told; this one has not.
        self.decoder = Decoder(replace(trunk, num_res_blocks=res_blocks - 1))
        self._bits, self._sampled = bits, sampled

    def neighbours(self, codebook: str) -> Neighbours:
        """Return the words of bits around an index."""
        del codebook
        return BitNeighbours(self._bits)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return the logit of every bit, (B, h, w, bits)."""
        del codebook
        return self._logits(x).movedim(1, -1)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [0, 1] to indices (B, 1, h, w)."""
        likely = self._logits(x).sigmoid()
        chosen = torch.bernoulli(likely) > 0 if self._sampled else likely > 0.5
        return index_of(chosen, dim=1, low_first=False)[:, None]

    def decode(self, indices: Tensor) -> Tensor:
        """Map indices (B, 1, h, w) to (B, 3, H, W), nominally in [0, 1]."""
        bits = bits_of(indices[:, 0], self._bits, dim=1, low_first=False)
        quantized = torch.einsum("bnhw,nd->bdhw", bits.to(self.vectors.dtype), self.vectors)
        h = self.decoder.mid(self.decoder.conv_in(self.norm_in(quantized)))
        for level in reversed(self.decoder.up):
            h = level(h)
        # No activation stands between the last norm and the last convolution, in either half.
        out: Tensor = self.decoder.conv_out(self.decoder.norm_out(h))
        return out

    def _logits(self, x: Tensor) -> Tensor:
        out: Tensor = self.to_logits(self.conv_out(self.norm_out(self.encoder(x))))
        return out


def _flat(levels: int, blocks: int, attention: Collection[int]) -> dict[str, str]:
    """Return the modules of both halves, in the order in which the published file numbers them, with their names there."""
    middle = ["mid.block_1", "mid.attn_1", "mid.block_2"]

    def level(side: str, i: int, resample: str) -> list[str]:
        names = []
        for j in range(blocks):
            names += [f"{side}.{i}.block.{j}", *([f"{side}.{i}.attn.{j}"] if i in attention else [])]
        return [*names, f"{side}.{i}.{resample}"]

    down = [name for i in range(levels) for name in level("down", i, "downsample")][:-1]
    up = [name for i in reversed(range(levels)) for name in level("up", i, "upsample")][:-1]
    encoder = ["conv_in", *down, *middle, "norm_out", "conv_out"]
    decoder = ["conv_in", *middle, *up, "norm_out", "conv_out"]
    names = {f"encoder.{name}": f"ae.encoder.blocks.{k}" for k, name in enumerate(encoder)}
    names |= {name: names.pop(f"encoder.{name}") for name in ("norm_out", "conv_out")}
    names |= {f"decoder.{name}": f"ae.generator.blocks.{k}" for k, name in enumerate(decoder, start=1)}
    return names | {"norm_in": "ae.generator.blocks.0", "to_logits": "ae.quantize.proj.0"}


def _unnumbered(state: State, wanted: Collection[str], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Give the tensors this net's names and leave out the shortcuts of blocks that do not change their channels."""
    published = {"ae.quantize.embed.weight": "vectors"}
    for own in wanted:
        name = next((part for part in names if own.startswith(part + ".")), None)
        if name is not None:
            published[names[name] + own.removeprefix(name).replace(".nin_shortcut.", ".conv_out.")] = own
    blocks = {names[name] for name in names if ".block" in name}
    idle = {f"{block}.conv_out.{kind}" for block in blocks for kind in ("weight", "bias")} - published.keys()
    return {published.get(key, key): value for key, value in state.items() if key not in idle}


def network(architecture: Mapping[str, Any]) -> nn.Module:
    """Build the module a card's architecture describes."""
    return BinaryAutoencoder(**architecture)


def tokenizer(card: Card, weights: Weights) -> CodebookTokenizer:
    """Load the autoencoder of a training checkpoint, without its discriminator and losses."""
    arch = card.architecture
    names = _flat(len(arch["ch_mult"]), arch["res_blocks"], arch["attention"])
    loaded = load_network(
        card,
        weights,
        partial(network, arch),
        layouts=[partial(_unnumbered, names=names)],
        drop=["ae.generator.logsigma.*", "disc.*", "perceptual.*"],
    )
    return CodebookTokenizer(loaded, loaded.module)
