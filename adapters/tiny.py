"""Two tokenizers small enough to travel inside the package, so that all of tokbench can run without a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Code, Neighbours, Stream, Weights
from tokbench.weights import load_state

from .nn.checkpoint import assemble, dtype_of, place
from .nn.fsq import FSQ
from .nn.neighbours import GridNeighbours

# The norm in front of the quantizer counts its training batches; inference has no use for the number.
_UNUSED = ("norm.num_batches_tracked",)


@dataclass(frozen=True)
class ImageConfig:
    """Shape of `ImageNet`: f8 FSQ with most of its parameters at the f8 grid.

    Attributes:
        levels: FSQ levels of the one codebook.
        fine: Channels at f4 in the encoder and in the decoder.
        coarse: Channels at f8.
        encoder: Residual blocks at f4 and at f8 in the encoder.
        decoder: Residual blocks at f8 and at f4 in the decoder.
    """

    levels: tuple[int, ...] = (8, 5, 5, 5)
    fine: tuple[int, int] = (80, 64)
    coarse: int = 128
    encoder: tuple[int, int] = (2, 1)
    decoder: tuple[int, int] = (4, 3)


@dataclass(frozen=True)
class AudioConfig:
    """Shape of `AudioNet`: a loudness codebook and `groups` parallel FSQ codebooks on a grid of 50 frames a second.

    Attributes:
        levels: FSQ levels of each codebook.
        groups: Parallel FSQ codebooks.
        strides: Strides of the three stages; their product is the hop in samples.
        channels: Channels of the three stages.
        encoder: Residual blocks of the three stages in the encoder.
        decoder: Residual blocks of the three stages in the decoder, in the encoder's order.
        gain_step: Step of the loudness codebook in dB.
        gain_floor: Loudness of its entry 0 in dB relative to full scale.
        gain_size: Entries of the loudness codebook.
    """

    levels: tuple[int, ...] = (8, 5, 5, 5)
    groups: int = 4
    strides: tuple[int, int, int] = (20, 4, 4)
    channels: tuple[int, int, int] = (96, 144, 176)
    encoder: tuple[int, int, int] = (2, 2, 2)
    decoder: tuple[int, int, int] = (3, 3, 2)
    gain_step: float = 1.5
    gain_floor: float = -90.0
    gain_size: int = 64


class Block2d(nn.Module):
    """Residual block of two 3x3 convolutions, without a norm: a pixel depends on its neighbourhood only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.normal_(self.second.weight, std=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        y: Tensor = self.second(nn.functional.silu(self.first(nn.functional.silu(x))))
        return x + y


class Block1d(nn.Module):
    """Residual block of a dilated convolution over time and a pointwise one."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(channels, channels, 5, padding=2 * dilation, dilation=dilation)
        self.second = nn.Conv1d(channels, channels, 1)
        nn.init.normal_(self.second.weight, std=1e-2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T) to the same shape."""
        y: Tensor = self.second(nn.functional.silu(self.first(nn.functional.silu(x))))
        return x + y


class ImageNet(nn.Module):
    """Convolutional FSQ autoencoder of images in [-1, 1] with stride 8."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        (enc_fine, dec_fine), coarse, dim = config.fine, config.coarse, len(config.levels)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, enc_fine, 3, padding=1),
            *(Block2d(enc_fine) for _ in range(config.encoder[0])),
            nn.Conv2d(enc_fine, coarse, 4, stride=2, padding=1),
            *(Block2d(coarse) for _ in range(config.encoder[1])),
            nn.SiLU(),
            nn.Conv2d(coarse, dim, 1),
        )
        self.norm = nn.BatchNorm2d(dim, affine=False, momentum=0.01)
        self.fsq = FSQ(config.levels)
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, coarse, 3, padding=1),
            *(Block2d(coarse) for _ in range(config.decoder[0])),
            nn.Conv2d(coarse, 4 * dec_fine, 1),
            nn.PixelShuffle(2),
            *(Block2d(dec_fine) for _ in range(config.decoder[1])),
            nn.SiLU(),
            nn.Conv2d(dec_fine, 48, 3, padding=1),
            nn.PixelShuffle(4),
        )

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1], sides multiples of 8, to codes (B, H/8, W/8, dim) in [-1, 1]."""
        codes: Tensor = self.fsq(self.norm(self.encoder(x)).permute(0, 2, 3, 1))
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Map codes (B, H/8, W/8, dim) to (B, 3, H, W), about [-1, 1] and not clamped."""
        image: Tensor = self.decoder(codes.permute(0, 3, 1, 2))
        return image.float()


class AudioNet(nn.Module):
    """Convolutional codec of mono sound: the loudness of each frame apart, and FSQ codes of the levelled signal."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config, self.hop = config, prod(config.strides)
        (s0, s1, s2), (c0, c1, c2), dim = config.strides, config.channels, len(config.levels)

        def blocks(channels: int, count: int) -> list[nn.Module]:
            return [Block1d(channels, 3 ** (i % 3)) for i in range(count)]

        def down(inputs: int, outputs: int, stride: int) -> nn.Module:
            return nn.Conv1d(inputs, outputs, 2 * stride, stride=stride, padding=stride // 2)

        def up(inputs: int, outputs: int, stride: int) -> nn.Module:
            return nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride=stride, padding=stride // 2)

        self.encoder = nn.Sequential(
            down(1, c0, s0),
            *blocks(c0, config.encoder[0]),
            down(c0, c1, s1),
            *blocks(c1, config.encoder[1]),
            down(c1, c2, s2),
            *blocks(c2, config.encoder[2]),
            nn.SiLU(),
            nn.Conv1d(c2, dim * config.groups, 1),
        )
        self.norm = nn.BatchNorm1d(dim * config.groups, affine=False, momentum=0.01)
        self.fsq = FSQ(config.levels)
        self.decoder = nn.Sequential(
            nn.Conv1d(dim * config.groups, c2, 3, padding=1),
            *blocks(c2, config.decoder[2]),
            up(c2, c1, s2),
            *blocks(c1, config.decoder[1]),
            up(c1, c0, s1),
            *blocks(c0, config.decoder[0]),
            nn.SiLU(),
            up(c0, 1, s0),
        )

    def loudness(self, x: Tensor) -> Tensor:
        """Return the RMS (B, F) of each frame of (B, 1, F * hop)."""
        return x.reshape(len(x), -1, self.hop).square().mean(-1).add(1e-14).sqrt()

    def gains(self, x: Tensor) -> Tensor:
        """Return the loudness index (B, T/hop) of each frame of (B, 1, T)."""
        config = self.config
        level = 20 * torch.log10(self.loudness(x.float()).clamp_min(1e-6))
        steps = ((level - config.gain_floor) / config.gain_step).round()
        return steps.clamp(0, config.gain_size - 1).to(torch.int64)

    def amplitudes(self, gains: Tensor) -> Tensor:
        """Turn loudness indices (B, F) into RMS amplitudes (B, F)."""
        level: Tensor = gains.float() * self.config.gain_step + self.config.gain_floor
        return 10 ** (level / 20)

    def spread(self, frames: Tensor) -> Tensor:
        """Turn a value a frame (B, F) into one a sample (B, 1, F * hop), linear between the middles of frames."""
        frames = frames.unsqueeze(1)
        return nn.functional.interpolate(frames, scale_factor=self.hop, mode="linear", align_corners=False)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, 1, T), T a multiple of the hop, to loudness indices (B, F) and codes (B, F, groups, dim)."""
        gains = self.gains(x)
        levelled = (x / self.spread(self.amplitudes(gains))).to(x.dtype)
        latents = self.norm(self.encoder(levelled))
        codes: Tensor = self.fsq(latents.reshape(len(x), self.config.groups, -1, latents.shape[-1]).permute(0, 3, 1, 2))
        return gains, codes

    def decode(self, gains: Tensor, codes: Tensor) -> Tensor:
        """Map loudness indices (B, F) and codes (B, F, groups, dim) to (B, 1, F * hop)."""
        wanted = self.amplitudes(gains)
        wave: Tensor = self.decoder(codes.flatten(2).transpose(1, 2)).float() * self.spread(wanted)
        # Trained on errors, the decoder is quieter than the signal where it is unsure; the loudness it was sent is exact.
        return wave * self.spread((wanted / self.loudness(wave)).clamp(0.25, 100.0))


class TinyImage:
    """tokbench-tiny-image: (B, 3, H, W) in [-1, 1] <-> one stream of indices (B, H/8, W/8).

    `card.architecture` holds the fields of `ImageConfig` that differ from its defaults. Rows are run one by one, so
    that a batch gives the same bits as its rows.

    Args:
        card: The checkpoint's card.
        weights: Role `model` -> the safetensors file.

    Raises:
        WeightsRefused: The file does not fit the architecture.
    """

    def __init__(self, card: Card, weights: Weights) -> None:
        config = ImageConfig(**_tuples(card.architecture))
        path = weights["model"]
        self._net: ImageNet = assemble(lambda: ImageNet(config), load_state(path), optional=_UNUSED, source=str(path))
        self.spec = replace(card.spec, codebook_size=(self._net.fsq.codebook_size,))

    def to(self, device: str, dtype: str) -> None:
        """Move the network."""
        place(self._net, device, dtype)

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of the one codebook: the entries a few levels away."""
        del codebook
        return GridNeighbours(self._net.fsq.levels.tolist())

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, 3, H, W) in [-1, 1] to indices (B, H/8, W/8)."""
        rows = [self._net.encode(row) for row in torch.split(x.to(dtype_of(self._net)), 1)]
        return Code((Stream("fsq", self._net.fsq.codebook_size, self._net.fsq.codes_to_indices(torch.cat(rows))),))

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map a code to (B, 3, H, W) float32, about [-1, 1]."""
        codes = self._net.fsq.indices_to_codes(code.streams[0].indices).to(dtype_of(self._net))
        return torch.cat([self._net.decode(row) for row in torch.split(codes, 1)])


class TinyAudio:
    """tokbench-tiny-audio: (B, 1, T) at 16 kHz <-> a stream of loudness and four of FSQ indices, each (B, T/320).

    `card.architecture` holds the fields of `AudioConfig` that differ from its defaults. Rows are run one by one, so
    that a batch gives the same bits as its rows.

    Args:
        card: The checkpoint's card.
        weights: Role `model` -> the safetensors file.

    Raises:
        WeightsRefused: The file does not fit the architecture.
    """

    def __init__(self, card: Card, weights: Weights) -> None:
        config = AudioConfig(**_tuples(card.architecture))
        path = weights["model"]
        self._net: AudioNet = assemble(lambda: AudioNet(config), load_state(path), optional=_UNUSED, source=str(path))
        sizes = (config.gain_size, *(self._net.fsq.codebook_size for _ in range(config.groups)))
        self.spec = replace(card.spec, codebook_size=sizes)

    def to(self, device: str, dtype: str) -> None:
        """Move the network."""
        place(self._net, device, dtype)

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry: loudness is a line, every other codebook a grid of levels."""
        gain = codebook == "gain"
        return GridNeighbours([self._net.config.gain_size] if gain else self._net.fsq.levels.tolist())

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, 1, T) in [-1, 1], T a multiple of 320, to indices of loudness and of the levelled signal."""
        fsq, rows = self._net.fsq, [self._net.encode(row) for row in torch.split(x.to(dtype_of(self._net)), 1)]
        gains = torch.cat([row[0] for row in rows])
        indices = fsq.codes_to_indices(torch.cat([row[1] for row in rows]))
        streams = (Stream(f"fsq{k}", fsq.codebook_size, part.contiguous()) for k, part in enumerate(indices.unbind(-1)))
        return Code((Stream("gain", self._net.config.gain_size, gains), *streams))

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map a code to (B, 1, T) float32."""
        gains, *parts = (stream.indices for stream in code.streams)
        codes = self._net.fsq.indices_to_codes(torch.stack(parts, -1)).to(dtype_of(self._net))
        return torch.cat(
            [self._net.decode(g, c) for g, c in zip(torch.split(gains, 1), torch.split(codes, 1), strict=True)]
        )


def _tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the lists of a card's table into the tuples that a config holds."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
