"""Semanticist: slots in order of importance from a causal ViT, decoded by a diffusion transformer on MAR's KL-16 latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Code, Weights
from tokbench.weights import load_into, load_state

from .nn.checkpoint import assemble, diffusers_attention, dtype_of, library, place, skeleton
from .nn.dit import AncestralSampler, DitBlock, FinalLayer, TimeEmbedding
from .nn.vit2d import Attention, Block, Mlp, layer_norm, unpatch

_KEPT = "kept"


class _PatchEmbed(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to tokens (B, N, width), in raster order."""
        out: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return out


class _Encoder(nn.Module):
    """A ViT over [class token, patches, slots]: slots see everything before them, the rest does not see slots."""

    def __init__(self, size: int, slots: int, width: int, depth: int, heads: int, patch: int = 16) -> None:
        super().__init__()
        self._slots = slots
        self.patch_embed = _PatchEmbed(3, width, patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + (size // patch) ** 2 + slots, width))
        self.slot_embed = nn.Parameter(torch.empty(1, slots, width))
        norm = layer_norm(1e-6)
        self.blocks = nn.ModuleList(
            Block(norm, width, Attention(width, heads), Mlp(width, 4 * width)) for _ in range(depth)
        )
        self.norm = norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, size, size) in [0, 1] to (B, slots, width)."""
        rows = len(x)
        tokens = [self.cls_token.expand(rows, -1, -1), self.patch_embed(x), self.slot_embed.expand(rows, -1, -1)]
        h = torch.cat(tokens, dim=1) + self.pos_embed
        count = h.shape[1]
        mask = torch.ones(count, count, dtype=torch.bool, device=h.device)
        mask[:, -self._slots :] = False
        mask[-self._slots :, -self._slots :] = torch.ones_like(mask[: self._slots, : self._slots]).tril()
        for block in self.blocks:
            h = block(h, mask=mask)
        out: Tensor = self.norm(h)[:, -self._slots :]
        return out


class _Dit(nn.Module):
    """A diffusion transformer that has the slots as further tokens, without a place."""

    def __init__(self, size: int, channels: int, slots: int, dim: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self._patch = 2
        self.pos_embed = nn.Parameter(torch.empty(1, (size // self._patch) ** 2, width))
        self.null_cond = nn.Parameter(torch.empty(1, slots, dim))
        self.x_embedder = _PatchEmbed(channels, width, self._patch)
        self.t_embedder = TimeEmbedding(width)
        self.blocks = nn.ModuleList(DitBlock(width, heads) for _ in range(depth))
        self.final_layer = FinalLayer(width, self._patch**2 * 2 * channels)
        self.autoenc_cond_embedder = nn.Linear(dim, width)

    def forward(self, x: Tensor, t: Tensor, slots: Tensor) -> Tensor:
        """Map noisy latents (B, C, h, w), times (B,) and slots (B, K, dim) to (B, 2C, h, w)."""
        h = self.x_embedder(x) + self.pos_embed
        count, grid = h.shape[1], (x.shape[2] // self._patch, x.shape[3] // self._patch)
        h = torch.cat([h, self.autoenc_cond_embedder(slots)], dim=1)
        c = self.t_embedder(t)
        for block in self.blocks:
            h = block(h, c)
        return unpatch(self.final_layer(h[:, :count], c), self._patch, grid, channels_last=True)


class Semanticist(nn.Module):
    """The encoder of slots and the diffusion transformer. Reference: arXiv:2503.08685, visual-gen/semanticist.

    Args:
        size: Height and width of the image.
        slots: How many.
        slot_dim: Values of one.
        encoder: `width`, `depth`, `heads` of the ViT.
        decoder: The same of the diffusion transformer.
        latent: `channels` and `stride` of the latents it works on.
    """

    def __init__(
        self,
        size: int,
        slots: int,
        slot_dim: int,
        encoder: Mapping[str, int],
        decoder: Mapping[str, int],
        latent: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.encoder = _Encoder(size, slots, **encoder)
        self.encoder2slot = nn.Linear(encoder["width"], slot_dim)
        self.grid = size // latent["stride"]
        self.channels = latent["channels"]
        self.dit = _Dit(self.grid, self.channels, slots, slot_dim, **decoder)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, size, size) in [0, 1] to slots (B, K, slot_dim), each of mean 0 and deviation 1."""
        slots: Tensor = self.encoder2slot(self.encoder(x))
        return (slots - slots.mean(-1, keepdim=True)) / slots.std(-1, keepdim=True)

    def guided(self, x: Tensor, t: Tensor, slots: Tensor, guidance: float) -> Tensor:
        """Return noise and variance with classifier-free guidance of the noise: away from no slots at all."""
        output: Tensor = self.dit(x, t, slots)
        if guidance == 1.0:
            return output
        without = self.dit(x, t, self.dit.null_cond.expand(len(x), -1, -1))[:, : self.channels]
        noise, rest = output[:, : self.channels], output[:, self.channels :]
        return torch.cat([without + guidance * (noise - without), rest], dim=1)


class SemanticistTokenizer:
    """Slots as a continuous code (B, slot_dim, K); any first part decodes, the others are replaced by a learned absence.

    Decoding draws from torch's global generator: the noise it begins with and one draw a step.

    Args:
        card: Its options are `steps`, `guidance` and `tokens`.
        module: The network.
        vae: diffusers' AutoencoderKL for the latents.
        scale: By which latents were multiplied before the diffusion.
    """

    def __init__(self, card: Card, module: Semanticist, vae: Any, scale: float) -> None:
        self.spec = card.spec
        self._module, self._vae, self._scale = module, vae, scale
        self._sampler = AncestralSampler(int(card.options["steps"]))
        self._guidance, self._tokens = float(card.options["guidance"]), int(card.options["tokens"])

    @property
    def module(self) -> Semanticist:
        """The encoder and the diffusion transformer."""
        return self._module

    def to(self, device: str, dtype: str) -> None:
        """Move both networks."""
        place(self._module, device, dtype)
        place(self._vae, device, dtype)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, 3, size, size) in [0, 1] to the first `tokens` slots."""
        slots = self._module.encode(x.to(dtype_of(self._module)))
        return Code(latents=slots[:, : self._tokens].transpose(1, 2).contiguous())

    def drop(self, code: Code, keep: Tensor) -> Code:
        """Return `code` without the slots where `keep`, (B, N) bool, is False; every row keeps as many as the others."""
        if code.latents is None:
            raise ValueError(f"{self.spec.name} decodes latents; this code has none")
        places = keep.nonzero()[:, 1].view(len(keep), -1)
        kept = code.latents.gather(2, places[:, None].expand(-1, code.latents.shape[1], -1))
        before = code.side.get(_KEPT)
        return replace(code, latents=kept, side={_KEPT: places if before is None else before.gather(1, places)})

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map slots back to (B, 3, size, size) float32, nominally in [0, 1]."""
        if code.latents is None:
            raise ValueError(f"{self.spec.name} decodes latents; this code has none")
        net, rows, count = self._module, len(code.latents), code.latents.shape[2]
        given = code.latents.transpose(1, 2).to(dtype_of(net))
        places = code.side.get(_KEPT, torch.arange(count, device=given.device).expand(rows, -1))
        slots = net.dit.null_cond.expand(rows, -1, -1).scatter(1, places[..., None].expand_as(given), given)
        noise = torch.randn(rows, net.channels, net.grid, net.grid).to(slots)
        latents = self._sampler.sample(lambda x, t: net.guided(x, t, slots, self._guidance), noise)
        image: Tensor = self._vae.decode(latents / self._scale).sample
        return ((image + 1) / 2).float()


_UNUSED = ("repa_encoder.*", "dit.projector.*", "vae.*", "nested_sampler.arange")


def network(architecture: Mapping[str, Any]) -> Semanticist:
    """Build the module a card's architecture describes."""
    keys = ("size", "slots", "slot_dim", "encoder", "decoder", "latent")
    return Semanticist(**{key: architecture[key] for key in keys})


def tokenizer(card: Card, weights: Weights) -> SemanticistTokenizer:
    """Load a published model (role `model`) and the autoencoder below it (role `vae`, diffusers' layout).

    Raises:
        MissingExtra: diffusers is not installed.
        WeightsRefused: A file cannot be read safely or does not fit.
    """
    arch = card.architecture
    state = {key.replace("._orig_mod", ""): value for key, value in load_state(weights["model"]).items()}
    module = assemble(partial(network, arch), state, drop=_UNUSED, source=str(weights["model"]))
    (kind,) = library("diffusers", ["AutoencoderKL"], card.name, card.extra or "diffusers")
    arguments = dict(arch["vae"])
    scale = float(arguments["scaling_factor"])
    vae = skeleton(lambda: kind(**arguments))
    below = diffusers_attention(load_state(weights["vae"]), vae.state_dict().keys())
    load_into(vae, below, source=str(weights["vae"]))
    return SemanticistTokenizer(card, module, vae, scale)
