"""Measure the shipped tiny tokenizers on sound and pictures they have not seen: the numbers on their cards."""

from __future__ import annotations

import argparse
import io
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from skimage import data
from torch import Tensor

from tokbench.adapters.tiny import AudioConfig, AudioNet, ImageConfig, ImageNet

Pixels = NDArray[np.uint8]

NAMES = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "immunohistochemistry")


def adm(pixels: Pixels, side: int = 256) -> Pixels:
    """Resize and crop (H, W, 3) to (side, side, 3) as in guided-diffusion: halve by box, then bicubic, then centre."""
    image = Image.fromarray(pixels[..., :3])
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    out = np.asarray(image)
    top, left = (out.shape[0] - side) // 2, (out.shape[1] - side) // 2
    return out[top : top + side, left : left + side]


def pictures() -> dict[str, Pixels]:
    """Return the colour photographs that travel with scikit-image, none of which is training data."""
    found = {name: getattr(data, name)() for name in NAMES}
    found["motorcycle_left"], found["motorcycle_right"], _ = data.stereo_motorcycle()  # type: ignore[no-untyped-call]
    return {name: adm(pixels) for name, pixels in found.items()}


def psnr(a: Pixels, b: Pixels) -> float:
    """PSNR in dB of two 8-bit pictures over all pixels and channels."""
    return 10 * math.log10(255**2 / float(np.square(a.astype(np.float64) - b).mean()))


def jpeg(pixels: Pixels, rate: float, subsampling: str) -> tuple[float, float, int]:
    """Return (bpp, PSNR in dB, quality) of the smallest baseline JPEG file, q 1 to 95, of at least `rate` bpp."""
    found: list[tuple[float, float, int]] = []
    for quality in range(1, 96):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
        bpp = len(file.getvalue()) * 8 / (pixels.shape[0] * pixels.shape[1])
        if bpp >= rate:
            found.append((bpp, psnr(pixels, np.asarray(Image.open(file))), quality))
    return min(found, key=lambda row: (row[0], -row[1]))


@torch.no_grad()
def image(path: Path) -> None:
    """Print rate and PSNR of the tokenizer beside those of JPEG."""
    net = ImageNet(ImageConfig()).eval()
    net.load_state_dict({k: v.float() for k, v in load_file(path).items()}, strict=False)
    rate = math.log2(net.fsq.codebook_size) / 64
    print(f"{rate:.4f} bpp\n\n| picture | tiny | JPEG 4:2:0 | JPEG 4:4:4 | lead |\n|---|---|---|---|---|")
    leads, used = [], []
    for name, pixels in pictures().items():
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        codes = net.encode(x)
        used.append(net.fsq.codes_to_indices(codes).flatten())
        out = ((net.decode(codes) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0).numpy()
        mine, rows = psnr(pixels, out), [jpeg(pixels, rate, s) for s in ("4:2:0", "4:4:4")]
        leads.append(mine - max(r[1] for r in rows))
        cells = " | ".join(f"{p:.2f} ({b:.3f} bpp, q{q})" for b, p, q in rows)
        print(f"| {name} | {mine:.2f} | {cells} | {leads[-1]:+.2f} |")
    counts = torch.bincount(torch.cat(used), minlength=net.fsq.codebook_size).double()
    share = counts[counts > 0] / counts.sum()
    entropy = float(-(share * share.log2()).sum())
    print(f"\nsmallest lead {min(leads):+.2f} dB; {len(share)} entries used, entropy {entropy:.2f} bit a token")


def si_sdr(out: Tensor, x: Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, means removed (Le Roux et al. 2019)."""
    out, x = out - out.mean(), x - x.mean()
    target = (out @ x) / (x @ x) * x
    return float(10 * torch.log10(target.square().sum() / (out - target).square().sum()))


def log_mel(x: Tensor, bands: int = 80) -> Tensor:
    """Return natural-log mel magnitudes (bands, frames): 1024 points, hop 256, HTK scale, floor 1e-5."""
    bins = torch.stft(x, 1024, 256, window=torch.hann_window(1024), return_complex=True).abs()
    points = 700 * (10 ** (torch.linspace(0, 2595 * math.log10(1 + 8000 / 700), bands + 2) / 2595) - 1)
    frequency = torch.linspace(0, 8000, 513)
    rise = (frequency - points[:-2, None]) / (points[1:-1] - points[:-2])[:, None]
    fall = (points[2:, None] - frequency) / (points[2:] - points[1:-1])[:, None]
    return torch.log((torch.minimum(rise, fall).clamp_min(0) @ bins).clamp_min(1e-5))


@torch.no_grad()
def audio(path: Path, folders: list[Path]) -> None:
    """Print waveform and mel errors, gain and delay for every recording of `folders` (first 20 s each)."""
    from sounds import RATE, SUFFIXES, read

    net = AudioNet(AudioConfig()).eval()
    net.load_state_dict({k: v.float() for k, v in load_file(path).items()}, strict=False)
    config = net.config
    bits = config.groups * math.log2(net.fsq.codebook_size) + math.log2(config.gain_size)
    print(f"{bits * RATE / net.hop / 1000:.3f} kbit/s\n")
    print("| file | PSNR | SI-SDR | mel L1 | gain dB | delay |\n|---|---|---|---|---|---|")
    rows: list[tuple[float, ...]] = []
    for file in sorted(p for d in folders for p in (d.rglob("*") if d.is_dir() else [d])):
        if file.suffix not in SUFFIXES | {".mp4"}:
            continue
        wave = torch.from_numpy(read(file)[: 20 * RATE])
        x = wave[: len(wave) // net.hop * net.hop]
        y = net.decode(*net.encode(x[None, None]))[0, 0]
        mine = float(10 * torch.log10(1 / (y - x).square().mean()))
        gain = float(10 * torch.log10(y.square().sum() / x.square().sum()))
        size = 2 * len(x)
        cross = torch.fft.irfft(torch.fft.rfft(y, size) * torch.fft.rfft(x, size).conj(), size)
        lag = int(cross.argmax())
        mel = float((log_mel(y) - log_mel(x)).abs().mean())
        rows.append((mine, si_sdr(y, x), mel, gain, lag if lag < len(x) else lag - size))
        print(f"| {file.name} | " + " | ".join(f"{v:.2f}" for v in rows[-1]) + " |")
    print("| mean | " + " | ".join(f"{v:.2f}" for v in np.mean(rows, axis=0)) + " |")


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=("image", "audio"))
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path, nargs="*", help="recordings or folders of them (audio)")
    args = parser.parse_args()
    if args.model == "image":
        image(args.weights)
    else:
        audio(args.weights, args.data)


if __name__ == "__main__":
    main()
