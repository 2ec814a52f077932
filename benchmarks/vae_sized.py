"""A tokenizer of a VAE's size with random weights: what the engine's overhead is measured against."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from tokbench.spec import TokenizerSpec
from tokbench.types import Code


class VaeSized:
    """A convolutional f8 autoencoder with random weights, about a tenth of the compute of Stable Diffusion's VAE."""

    spec = TokenizerSpec(
        "vae-sized", "image", "continuous", (-1.0, 1.0), (8, 8), latent_channels=4, batch_exact=False, batch_atol=1e-3
    )

    def __init__(self) -> None:
        torch.manual_seed(0)
        widths = (64, 128, 256, 256)
        encoder: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1)]
        for a, b in pairwise(widths):
            encoder += [_block(a), nn.Conv2d(a, b, 3, stride=2, padding=1)]
        decoder: list[nn.Module] = [nn.Conv2d(4, widths[-1], 3, padding=1)]
        for a, b in pairwise(widths[::-1]):
            decoder += [_block(a), nn.Upsample(scale_factor=2), nn.Conv2d(a, b, 3, padding=1)]
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(widths[-1], 4, 1)).eval()
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(widths[0], 3, 3, padding=1), nn.Tanh()).eval()

    def to(self, device: str, dtype: str) -> None:
        for net in (self.encoder, self.decoder):
            net.to(device=device, dtype=getattr(torch, dtype), memory_format=torch.channels_last)

    def encode(self, x: Tensor) -> Code:
        return Code(latents=self.encoder(x.contiguous(memory_format=torch.channels_last)))

    def decode(self, code: Code) -> Tensor:
        out: Tensor = self.decoder(code.latents)
        return out


def _block(width: int) -> nn.Module:
    return nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
