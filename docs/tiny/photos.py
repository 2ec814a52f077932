"""Training crops for tokbench-tiny-image: photographs from folders, and drawings made here for lines and letters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Pixels = NDArray[np.uint8]

SHORT_SIDES = (256, 320, 400, 512, 640, 800)
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
WORDS = (
    "the quick brown fox",
    "jumps over",
    "a lazy dog",
    "TOKEN",
    "codebook 0123456789",
    "rate PSNR",
    "Exit",
    "Café №",
    "42%",
)


@dataclass(frozen=True)
class Pool:
    """Pictures as pyramids of (H, W, 3) arrays, and how often each is drawn."""

    pyramids: tuple[tuple[Pixels, ...], ...]
    weights: NDArray[np.float64]


def pyramid(path: Path) -> tuple[Pixels, ...]:
    """Load a picture at every short side of `SHORT_SIDES` it reaches, each (H, W, 3)."""
    with Image.open(path) as opened:
        opened.draft("RGB", (2 * SHORT_SIDES[-1], 2 * SHORT_SIDES[-1]))
        whole = opened.convert("RGB")
    out: list[Pixels] = []
    for side in SHORT_SIDES:
        scale = side / min(whole.size)
        if scale > 1:
            break
        size = (round(whole.width * scale), round(whole.height * scale))
        out.append(np.asarray(whole.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)))
    return tuple(out)


def drawing(rng: np.random.Generator, side: int = 384) -> Pixels:
    """Draw a picture of shapes, lines and words on a plain or shaded ground: (side, side, 3)."""

    def colour() -> tuple[int, int, int]:
        r, g, b = (int(v) for v in rng.integers(0, 256, 3))
        return r, g, b

    ramp = np.linspace(0, 1, side)[:, None, None] * rng.uniform(0, 1)
    ground = np.array(colour()) * (1 - ramp) + np.array(colour()) * ramp
    image = Image.fromarray(np.broadcast_to(ground, (side, side, 3)).astype(np.uint8).copy())
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 9))):
        x, y = (int(v) for v in rng.integers(-40, side, 2))
        w, h = (int(v) for v in rng.integers(10, side // 2, 2))
        shape = draw.ellipse if rng.random() < 0.4 else draw.rectangle
        shape((x, y, x + w, y + h), fill=colour(), outline=colour(), width=int(rng.integers(1, 4)))
        draw.line((x, y, *(int(v) for v in rng.integers(0, side, 2))), fill=colour(), width=int(rng.integers(1, 5)))
    for _ in range(int(rng.integers(4, 14))):
        font = ImageFont.load_default(size=int(rng.integers(10, 48)))
        text = " ".join(str(w) for w in rng.choice(WORDS, int(rng.integers(1, 6))))
        draw.text((int(rng.integers(-20, side // 2)), int(rng.integers(0, side))), text, fill=colour(), font=font)
    return np.asarray(image)


def load(photos: list[Path], art: list[Path], rng: np.random.Generator) -> tuple[Pool, tuple[Pixels, ...]]:
    """Return the pool (80 % photographs, 12 % art, 8 % drawings) and a centre square of each kept-out photograph.

    Every twelfth photograph in name order is kept out of training and steers which checkpoint is written.
    """
    found = [
        sorted(p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        for folders in (photos, art)
    ]
    if not found[0]:
        raise SystemExit(f"no pictures below {', '.join(map(str, photos))}; the README tells where to get them")
    kept = {p for i, p in enumerate(found[0]) if i % 12 == 11}
    held = tuple(centre(pyramid(p)[0]) for p in sorted(kept))
    parts = [
        [pyramid(p) for p in found[0] if p not in kept],
        [pyramid(p) for p in found[1]],
        [(drawing(rng),) for _ in range(64)],
    ]
    shares = (0.80, 0.12, 0.08)
    pyramids = [(p, share / len(part)) for part, share in zip(parts, shares, strict=True) for p in part if p]
    weights = np.array([w for _, w in pyramids])
    return Pool(tuple(p for p, _ in pyramids), weights / weights.sum()), held


def centre(pixels: Pixels, side: int = 256) -> Pixels:
    """Cut the centre square."""
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side]


def crop(pool: Pool, rng: np.random.Generator, side: int) -> Pixels:
    """Cut one random square, turned and mirrored; of two candidates the busier one is taken half of the time."""
    levels = pool.pyramids[int(rng.choice(len(pool.weights), p=pool.weights))]
    pixels = levels[int(rng.integers(len(levels)))]

    def cut() -> Pixels:
        top, left = (int(rng.integers(0, n - side + 1)) for n in pixels.shape[:2])
        return pixels[top : top + side, left : left + side]

    best = cut()
    if rng.random() < 0.5:
        best = max(best, cut(), key=lambda a: float(np.abs(np.diff(a[::2, ::2, 1].astype(np.float32), axis=1)).mean()))
    best = np.rot90(best, int(rng.integers(4)))
    return np.ascontiguousarray(best[:, ::-1] if rng.random() < 0.5 else best)


def batch(pool: Pool, rng: np.random.Generator, size: int, side: int) -> Tensor:
    """Return (size, 3, side, side) in [-1, 1] every other with a light change of contrast and colour."""
    x = torch.from_numpy(np.stack([crop(pool, rng, side) for _ in range(size)])).permute(0, 3, 1, 2).float() / 127.5 - 1

    changed = torch.from_numpy(rng.random((size, 1, 1, 1)) < 0.5).float()

    def uniform(low: float, high: float, same: float) -> Tensor:
        return same + changed * (torch.from_numpy(rng.uniform(low, high, (size, 1, 1, 1)).astype(np.float32)) - same)

    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * uniform(0.6, 1.3, 1.0)
    x = x * uniform(0.7, 1.15, 1.0) + uniform(-0.15, 0.15, 0.0)
    for i in np.flatnonzero(rng.random(size) < 0.25):
        x[i] = x[i, torch.from_numpy(rng.permutation(3))]
    return x.clamp(-1, 1).contiguous(memory_format=torch.channels_last)
