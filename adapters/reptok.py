"""RepTok: the class token of a fine-tuned DINOv2 is the whole code; a flow transformer paints latents of Stable Diffusion's."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Code, Weights
from tokbench.weights import load_into, load_state

from .nn.checkpoint import State, assemble, dtype_of, library, place, skeleton
from .nn.keynames import Rule, published_as
from .nn.vit2d import Attention, Block, Mlp, imagenet, layer_norm, patches, rotate_halves, unpatch

_HEAD = 72
_EPS = 1e-6
_REGISTERS = 4
_TABLE = 37


class _Dino(nn.Module):
    """DINOv2 with registers at one size; what it says is its class token."""

    def __init__(self, size: int, width: int, depth: int, heads: int, patch: int = 14) -> None:
        super().__init__()
        self._size = size
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_tokens = nn.Parameter(torch.empty(1, _REGISTERS, width))
        self.pos_embed = nn.Parameter(torch.empty(1, _TABLE**2 + 1, width))
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        norm = layer_norm(_EPS)
        self.blocks = nn.ModuleList(
            Block(norm, width, Attention(width, heads), Mlp(width, 4 * width), scaled=True) for _ in range(depth)
        )
        self.norm = norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [0, 1], square, to (B, width)."""
        if (factor := x.shape[2] // self._size) > 1:
            x = F.avg_pool2d(x, factor)
        x = F.interpolate(x, (self._size, self._size), mode="bilinear", align_corners=False)
        mean, std = imagenet(x)
        grid = self.patch_embed((x - mean) / std)
        table = torch.unflatten(self.pos_embed[:, 1:].transpose(1, 2), 2, (_TABLE, _TABLE))
        table = F.interpolate(table.float(), grid.shape[2:], mode="bicubic", antialias=True).to(table.dtype)
        first = self.cls_token + self.pos_embed[:, :1]
        extra = [part.expand(len(x), -1, -1) for part in (first, self.register_tokens)]
        h = torch.cat([*extra, (grid + table).flatten(2).transpose(1, 2)], dim=1)
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.norm(h[:, 0])
        return out


class _Rms(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=_EPS).to(x.dtype) * self.scale


class _TimedRms(nn.Module):
    """Root-mean-square norm whose gain is 1 plus what the time says."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.linear = nn.Linear(condition, width, bias=False)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Norm (B, N, width) by a time (B, condition)."""
        out: Tensor = F.rms_norm(x.float(), x.shape[-1:], eps=_EPS).to(x.dtype) * (self.linear(time)[:, None] + 1)
        return out


class _Gated(nn.Module):
    """down(a * silu(b)), where a and b are the halves of one projection."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(width, 2 * hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up_proj(x).chunk(2, dim=-1)
        out: Tensor = self.down_proj(value * F.silu(gate))
        return out


class _MapBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mlp = _Rms(width), _Gated(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mlp(self.norm(x))
        return out


class _Time(nn.Module):
    """Fixed random waves of the time, then a small network of norms and gated MLPs."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.waves: Tensor
        self.register_buffer("waves", torch.empty(width // 2, 1))
        self.time_in = nn.Linear(width, width, bias=False)
        self.in_norm, self.out_norm = _Rms(width), _Rms(width)
        self.blocks = nn.Sequential(*(_MapBlock(width) for _ in range(depth)))

    def forward(self, t: Tensor) -> Tensor:
        """Map times (B,) to (B, width)."""
        angles = 2 * math.pi * t[:, None] * self.waves[:, 0].float()
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.waves.dtype)
        out: Tensor = self.out_norm(self.blocks(self.in_norm(self.time_in(waves))))
        return out


class _Layer(nn.Module):
    """Attention by cosine similarity with learned places' frequencies a head, and a gated MLP, normed by the time."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        heads = width // _HEAD
        self.attn_norm, self.mlp_norm = _TimedRms(width, condition), _TimedRms(width, condition)
        self.qkv_proj, self.out_proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.empty(heads))
        self.freqs = nn.Parameter(torch.empty(2, heads, _HEAD // 8))
        self.mlp = _Gated(width, 3 * width)

    def forward(self, x: Tensor, time: Tensor, places: Tensor) -> Tensor:
        """Map (B, N, width), a time (B, condition) and rows and columns (N, 2) to (B, N, width)."""
        q, k, v = torch.unflatten(self.qkv_proj(self.attn_norm(x, time)), -1, (3, -1, _HEAD)).permute(2, 0, 3, 1, 4)
        angles = [places[:, axis, None] * self.freqs[axis, :, None].float() for axis in range(2)]
        turned = torch.cat(angles, dim=-1).repeat(1, 1, 2)
        q, k = (self._turn(part, turned.cos(), turned.sin()) for part in (q, k))
        x = x + self.out_proj(F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.mlp_norm(x, time))
        return out

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Scale (B, heads, N, 72) to a length and turn the first half of each head."""
        wide, gain = x.float(), self.scale.float().sqrt()[:, None, None]
        wide = wide * gain * torch.rsqrt(wide.square().sum(-1, keepdim=True) + _EPS)
        half = _HEAD // 2
        return torch.cat([rotate_halves(wide[..., :half], cos, sin), wide[..., half:]], dim=-1).to(x.dtype)


class RepTok(nn.Module):
    """Encoder and flow transformer. Reference: arXiv:2510.14630, CompVis/RepTok.

    Args:
        encoder: `size`, `width`, `depth` and `heads` of DINOv2.
        width: Of the flow transformer.
        depth: Of it.
        time: `width` and `depth` of what the time passes.
        channels: Of the latents.
        side: Of the latents.
    """

    def __init__(
        self,
        encoder: Mapping[str, int],
        width: int,
        depth: int,
        time: Mapping[str, int],
        channels: int,
        side: int,
    ) -> None:
        super().__init__()
        token = encoder["width"]
        self.shape = (channels, side, side)
        self.encoder = _Dino(**encoder)
        self.temp_pos_embed = nn.Parameter(torch.empty(1, 1, 1, token))
        self.project, self.project_norm = nn.Linear(token, width), nn.LayerNorm(width)
        self.time = _Time(**time)
        self.merge, self.mix = nn.Linear(4 * channels, width, bias=False), nn.Linear(width, width, bias=False)
        self.layers = nn.ModuleList(_Layer(width, time["width"]) for _ in range(depth))
        self.norm, self.split = _Rms(width), nn.Linear(width, 4 * channels, bias=False)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1], square, to (B, token width)."""
        out: Tensor = self.encoder((x + 1) / 2)
        return out

    def condition(self, token: Tensor) -> Tensor:
        """Map a token (B, token width) to what goes before the latents, (B, 1, width)."""
        h = token[:, None] + self.temp_pos_embed[0]
        projected: Tensor = self.project_norm(self.project(h))
        return projected + F.pad(h, (0, projected.shape[-1] - h.shape[-1]))

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Map noisy latents (B, C, h, w), times (B,) and conditions (B, 1, width) to noise minus latents."""
        side = self.shape[1] // 2
        pieces = patches(x, 2)
        # Values of a patch: (row, column, channel).
        pieces = torch.unflatten(pieces, -1, (-1, 4)).transpose(2, 3).flatten(2)
        h = self.mix(torch.cat([condition, self.merge(pieces)], dim=1))
        time, places = self.time(t), _places(side, x.device)
        for layer in self.layers:
            h = layer(h, time, places)
        return unpatch(self.split(self.norm(h[:, 1:])), 2, (side, side), channels_last=True)

    def flow(self, noise: Tensor, token: Tensor, steps: int) -> Tensor:
        """Walk from noise (B, C, h, w) at time 1 to latents by Euler's method."""
        x, condition = noise.float(), self.condition(token)
        for step in range(steps, 0, -1):
            t = torch.full((len(x),), step / steps, device=x.device)
            x = x - self.velocity(x.to(condition.dtype), t, condition).float() / steps
        return x


def _places(side: int, device: torch.device) -> Tensor:
    """Return rows and columns of the token, in the middle, then of the cells, whose centres are within (-1, 1)."""
    along = (torch.arange(side, dtype=torch.float32, device=device) + 0.5) * 2 / side - 1
    cells = torch.stack(torch.meshgrid(along, along, indexing="ij"), dim=-1).flatten(0, 1)
    return torch.cat([cells.new_zeros(1, 2), cells])


class RepTokTokenizer:
    """One vector as a continuous code (B, width, 1); decoding draws noise from torch's global generator.

    Args:
        card: Its option is `steps`.
        module: The network.
        vae: diffusers' AutoencoderKL for the latents.
        scale: By which latents were multiplied before the flow.
    """

    def __init__(self, card: Card, module: RepTok, vae: Any, scale: float) -> None:
        self.spec = card.spec
        self._module, self._vae, self._scale, self._steps = module, vae, scale, int(card.options["steps"])

    @property
    def module(self) -> RepTok:
        """The encoder and the flow transformer."""
        return self._module

    def to(self, device: str, dtype: str) -> None:
        """Move both networks."""
        place(self._module, device, dtype)
        place(self._vae, device, dtype)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, 3, H, W) in [-1, 1] to one vector a row."""
        return Code(latents=self._module.encode(x.to(dtype_of(self._module)))[..., None])

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map vectors back to (B, 3, H, W) float32, nominally in [-1, 1]."""
        if code.latents is None:
            raise ValueError(f"{self.spec.name} decodes latents; this code has none")
        token = code.latents[..., 0].to(dtype_of(self._module))
        noise = torch.randn(len(token), *self._module.shape).to(token.device)
        latents = self._module.flow(noise, token, self._steps) / self._scale
        image: Tensor = self._vae.decode(latents.to(token.dtype)).sample
        return image.float()


_MODEL = "first_stage.decoder.decoder."
RULES: Sequence[Rule] = (
    (r"^encoder\.patch_embed\.", "encoder.patch_embed.proj."),
    (r"^(encoder\.blocks\.\d+)\.gamma([12])$", r"\1.ls\2.gamma"),
    (r"^encoder\.", "first_stage.encoder.encoder."),
    (r"^temp_pos_embed$", _MODEL + "encoder.dino.temp_pos_embed"),
    (r"^project\.", _MODEL + "encoder.dino.backbone.fc."),
    (r"^project_norm\.", _MODEL + "encoder.dino.backbone.ln."),
    (r"^time\.waves$", _MODEL + "time_emb.weight"),
    (r"^time\.time_in\.", _MODEL + "time_in_proj."),
    (r"^time\.(blocks\.\d+)\.mlp\.", _MODEL + r"mapping.\1."),
    (r"^time\.", _MODEL + "mapping."),
    (r"^merge\.", _MODEL + "backbone.mid_merge.pre_proj.proj."),
    (r"^mix\.", _MODEL + "backbone.mid_merge.proj."),
    (r"^norm\.", _MODEL + "backbone.mid_split.post_proj.norm."),
    (r"^split\.", _MODEL + "backbone.mid_split.post_proj.proj."),
    (r"^(layers\.\d+)\.attn_norm\.", r"\1.self_attn.norm."),
    (r"^(layers\.\d+)\.mlp_norm\.", r"\1.ff.norm."),
    (r"^(layers\.\d+)\.mlp\.", r"\1.ff."),
    (r"^(layers\.\d+)\.freqs$", r"\1.self_attn.pos_emb.freqs"),
    (r"^(layers\.\d+)\.(qkv_proj|out_proj|scale)\b", r"\1.self_attn.\2"),
    (r"^layers\.", _MODEL + "backbone.mid_level."),
)
"""From the module's key names to the published ones."""

VAE = _MODEL + "ae.ae."
"""Where the autoencoder below lies among the published keys."""

UNUSED = (
    "first_stage.encoder.encoder.mask_token",
    _MODEL + "encoder.dino.model.*",
    _MODEL + "encoder.dino.target_model.*",
    _MODEL + "encoder.dino.new_reg",
)
"""Published keys of the tokenizer that no reconstruction passes: the encoder is held twice, and once more as it was."""


def tokenizer_part(state: State, wanted: Collection[str]) -> dict[str, Tensor]:
    """Return what is the tokenizer's of a checkpoint that holds a generator too, without the autoencoder below."""
    del wanted
    return {key: v for key, v in state.items() if key.startswith("first_stage.") and not key.startswith(VAE)}


def network(architecture: Mapping[str, Any]) -> RepTok:
    """Build the module a card's architecture describes."""
    return RepTok(**{key: value for key, value in architecture.items() if key != "vae"})


def tokenizer(card: Card, weights: Weights) -> RepTokTokenizer:
    """Load the tokenizer, and the autoencoder below it, of a published generator (role `model`).

    Raises:
        MissingExtra: diffusers is not installed.
        WeightsRefused: The file cannot be read safely or does not fit.
    """
    arch, path = card.architecture, weights["model"]
    state = load_state(path, inside=("state_dict",))
    layouts = [tokenizer_part, published_as(RULES)]
    module = assemble(partial(network, arch), state, layouts=layouts, drop=UNUSED, source=str(path))
    (kind,) = library("diffusers", ["AutoencoderKL"], card.name, card.extra or "diffusers")
    arguments = dict(arch["vae"])
    vae = skeleton(lambda: kind(**arguments))
    below = {key.removeprefix(VAE): value for key, value in state.items() if key.startswith(VAE)}
    load_into(vae, below, source=str(path))
    return RepTokTokenizer(card, module, vae, float(arguments["scaling_factor"]))
