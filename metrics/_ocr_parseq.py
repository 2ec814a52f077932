"""PARSeq as docTR publishes it, the recogniser of TokBench: network, preprocessing and decoding, without docTR itself."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from string import ascii_letters, digits, punctuation
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokbench.weights import file_digest, load_into, load_state

from ._backbones import Backbone
from ._ocr import Pixels, Read, Region, cut

FRENCH = digits + ascii_letters + punctuation + "°" + "£€¥¢฿" + "àâéèêëîïôùûüçÀÂÉÈÊËÎÏÔÙÛÜÇ"
"""The 126 characters of docTR's `french` vocabulary, in the order of the network's outputs."""


def _doctr_cache() -> Path:
    return Path(os.environ.get("DOCTR_CACHE_DIR", "~/.cache/doctr")).expanduser() / "models"


WEIGHTS = Backbone(
    "doctr-parseq",
    ("parseq-56125471.pt",),
    "https://doctr-static.mindee.com/models?id=v0.7.0/parseq-56125471.pt&src=0",
    "56125471",
    _doctr_cache,
)

_HEIGHT, _WIDTH = 32, 128
_MEAN, _STD = (0.694, 0.695, 0.693), (0.299, 0.296, 0.301)
_LENGTH = 32  # characters a reading can have
_BATCH = 64


# -------------------------------------------------------------------------------------------------------- network
# Attribute names are those of docTR's checkpoint.


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_layers = nn.ModuleList([nn.Linear(width, width) for _ in range(3)])
        self.output_linear = nn.Linear(width, width)

    def project(self, which: int, x: Tensor) -> Tensor:
        """Return queries (0), keys (1) or values (2): (B, heads, N, width / heads) of (B, N, width)."""
        out: Tensor = self.linear_layers[which](x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return out

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        seen = F.scaled_dot_product_attention(self.project(0, query), keys, values, attn_mask=mask)
        out: Tensor = self.output_linear(seen.transpose(1, 2).flatten(2))
        return out


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Identity(), nn.Linear(4 * width, width))


class _Patches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + _HEIGHT // 4 * _WIDTH // 8, width))
        self.projection = nn.Conv2d(3, width, kernel_size=(4, 8), stride=(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.projection(x).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1) + self.positions


class _Encoder(nn.Module):
    """Twelve pre-norm blocks that share their norms, as docTR's do."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.layer_norm_input = nn.LayerNorm(width)
        self.layer_norm_attention = nn.LayerNorm(width)
        self.layer_norm_output = nn.LayerNorm(width)
        self.attention = nn.ModuleList([_Attention(width, heads) for _ in range(layers)])
        self.position_feed_forward = nn.ModuleList([_feed_forward(width) for _ in range(layers)])

    def forward(self, x: Tensor) -> Tensor:
        for module, feed_forward in zip(self.attention, self.position_feed_forward, strict=True):
            attention = cast("_Attention", module)
            normed = self.layer_norm_input(x)
            x = x + attention(normed, attention.project(1, normed), attention.project(2, normed))
            x = x + feed_forward(self.layer_norm_attention(x))
        out: Tensor = self.layer_norm_output(x)
        return out


class _Decoder(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = _Attention(width, heads)
        self.cross_attention = _Attention(width, heads)
        self.position_feed_forward = _feed_forward(width)
        for name in ("attention_norm", "cross_attention_norm", "query_norm", "content_norm", "feed_forward_norm"):
            setattr(self, name, nn.LayerNorm(width))  # the first two are in the checkpoint and unused
        self.output_norm = nn.LayerNorm(width)


class _Embedding(nn.Module):
    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = math.sqrt(self.embedding.embedding_dim) * self.embedding(x)
        return out


class ParseqNetwork(nn.Module):
    """docTR's `parseq`: a small ViT on 32x128 images, and one decoder layer that reads left to right and refines once.

    The decoder's content stream is not contextual, so its keys and values are made once a character, and those of the image
    once: the logits are docTR's to rounding.
    """

    def __init__(self, characters: int = len(FRENCH), width: int = 384, layers: int = 12, heads: int = 6) -> None:
        super().__init__()
        self.end, self.start = characters, characters + 1
        self.feat_extractor = nn.ModuleDict({"0": _Patches(width), "1": _Encoder(width, heads, layers)})
        self.decoder = _Decoder(width, 2 * heads)
        self.head = nn.Linear(width, characters + 1)
        self.embed = _Embedding(characters + 3, width)
        self.pos_queries = nn.Parameter(torch.zeros(1, _LENGTH + 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 33, characters + 1) of normalised images (B, 3, 32, 128); the last class ends a word."""
        memory = self.feat_extractor["1"](self.feat_extractor["0"](x))[:, 1:]
        image = self.decoder.cross_attention.project(1, memory), self.decoder.cross_attention.project(2, memory)
        length = _LENGTH + 1
        token = torch.full((len(x), 1), self.start, dtype=torch.long, device=x.device)
        tokens, kept = [token], self._content(self.embed(token))
        ended = torch.zeros_like(token, dtype=torch.bool)
        for step in range(length - 1):
            token = self._look(self.pos_queries[:, step : step + 1].expand(len(x), -1, -1), kept, image).argmax(-1)
            tokens.append(token)
            ended |= token == self.end
            if bool(ended.all()):
                break
            keys, values = self._content(self.pos_queries[:, step : step + 1] + self.embed(token))
            kept = torch.cat([kept[0], keys], dim=2), torch.cat([kept[1], values], dim=2)
        # Refinement: each place sees all characters but its own, up to the first end.
        read = torch.cat(tokens, dim=1)[:, : kept[0].shape[2]]
        places = torch.arange(length, device=x.device)
        others = places[:, None] + 1 != places[None, : read.shape[1]]
        mask = others[None, None] & ((read == self.end).cumsum(-1) == 0)[:, None, None]
        return self._look(self.pos_queries.expand(len(x), -1, -1), kept, image, mask)

    def _content(self, x: Tensor) -> tuple[Tensor, Tensor]:
        normed = cast("nn.LayerNorm", self.decoder.content_norm)(x)
        return self.decoder.attention.project(1, normed), self.decoder.attention.project(2, normed)

    def _look(
        self, query: Tensor, content: tuple[Tensor, Tensor], image: tuple[Tensor, Tensor], mask: Tensor | None = None
    ) -> Tensor:
        decoder = self.decoder
        query_norm, forward_norm = (
            cast("nn.LayerNorm", decoder.query_norm),
            cast("nn.LayerNorm", decoder.feed_forward_norm),
        )
        x = query + decoder.attention(query_norm(query), *content, mask)
        x = x + decoder.cross_attention(query_norm(x), *image)
        x = x + decoder.position_feed_forward(forward_norm(x))
        out: Tensor = self.head(decoder.output_norm(x))
        return out


# ------------------------------------------------------------------------------------------------------ recogniser


@dataclass(frozen=True)
class Parseq:
    """The recogniser; build it with `load`."""

    network: ParseqNetwork
    device: str

    @property
    def alphabet(self) -> frozenset[str]:
        """Every character it can write."""
        return frozenset(FRENCH)

    def read(self, images: Sequence[Pixels], places: Sequence[Sequence[Region]]) -> list[list[Read]]:
        """Read the regions of each image."""
        crops = [cut(image, region.box) for image, regions in zip(images, places, strict=True) for region in regions]
        reads: list[Read] = []
        for start in range(0, len(crops), _BATCH):
            batch = torch.stack([prepare(crop) for crop in crops[start : start + _BATCH]]).to(self.device)
            with torch.inference_mode():
                reads += decode(self.network(batch))
        found = iter(reads)
        return [[next(found) for _ in regions] for regions in places]


def prepare(crop: Pixels) -> Tensor:
    """Fit a crop into (3, 32, 128), aspect kept (bilinear, antialiased), black to the right or below, normalised."""
    from torchvision.transforms import functional as vision  # type: ignore[import-untyped]

    x = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1).float() / 255
    ratio, wanted = crop.shape[0] / crop.shape[1], _HEIGHT / _WIDTH
    size = [_HEIGHT, max(int(_HEIGHT / ratio), 1)] if ratio > wanted else [max(int(_WIDTH * ratio), 1), _WIDTH]
    x = vision.resize(x, size, vision.InterpolationMode.BILINEAR, antialias=True)
    x = F.pad(x, (0, _WIDTH - x.shape[2], 0, _HEIGHT - x.shape[1]))
    mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
    return (x - mean) / std


def decode(logits: Tensor) -> list[Read]:
    """Return the characters up to the first end, with the mean of their probabilities as confidence."""
    best, probability = logits.argmax(-1).cpu().numpy(), torch.softmax(logits, -1).amax(-1).cpu().numpy()
    out = []
    for row, sure in zip(best, probability, strict=True):
        ends = np.flatnonzero(row == len(FRENCH))
        length = int(ends[0]) if len(ends) else len(row)
        text = "".join(FRENCH[index] for index in row[:length])
        out.append(Read(text, float(sure[:length].mean()) if length else 0.0))
    return out


def load(path: Path, device: str) -> Parseq:
    """Build the recogniser from docTR's file; kept for the process, by the file's content."""
    return _load(path, file_digest(path), device)


@lru_cache(maxsize=2)
def _load(path: Path, _sha256: str, device: str) -> Parseq:
    network = ParseqNetwork()
    load_into(network, load_state(path), source=path.name)
    return Parseq(network.to(device), device)
