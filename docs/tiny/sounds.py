"""Training cuts for tokbench-tiny-audio, and the distance it is trained on."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Wave = NDArray[np.float32]

RATE = 16_000
SUFFIXES = {".wav", ".flac", ".ogg", ".g722"}
LONGEST = 120 * RATE


@dataclass(frozen=True)
class Pool:
    """One mono recording per folder, its files in a row, and how often each is drawn."""

    clips: tuple[Wave, ...]
    weights: NDArray[np.float64]


def read(path: Path) -> Wave:
    """Decode the first two minutes of a file to mono at 16 kHz."""
    chunks: list[NDArray[np.int16]] = []
    with av.open(str(path), metadata_errors="replace") as container:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
        for frame in container.decode(audio=0):
            chunks.extend(np.asarray(f.to_ndarray())[0] for f in resampler.resample(frame))
            if sum(map(len, chunks)) > LONGEST:
                break
    return np.concatenate(chunks or [np.zeros(0, np.int16)]).astype(np.float32) / 32768


def folders(roots: list[Path]) -> tuple[list[Wave], list[Wave]]:
    """Join the files of every folder; every fortieth one, where it has a second, is kept out and returned apart."""
    joined: dict[Path, list[Wave]] = {}
    kept: list[Wave] = []
    found = sorted(p for root in roots for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
    for i, path in enumerate(found):
        try:
            wave = read(path)
        except av.FFmpegError as error:
            print(f"left out {path.name}: {error.strerror}", file=sys.stderr)
            continue
        if not loud(wave):
            continue
        if i % 40 == 39 and len(wave) >= RATE and loud(wave[:RATE]):
            kept.append(wave[:RATE])
            continue
        joined.setdefault(path.parent, []).append(wave)
    whole = [np.concatenate(parts) for parts in joined.values()]
    return [w for w in whole if len(w) > 2 * RATE], kept


def load(speech: list[Path], music: list[Path]) -> tuple[Pool, Tensor]:
    """Return the pool (75 % speech, 25 % music where there is some) and (N, 1, RATE) of kept-out sound.

    Within its share a folder, about one speaker, is drawn as the root of its duration: many voices matter more than
    long ones.
    """
    voices, kept = folders(speech)
    if not voices:
        raise SystemExit(f"no recordings below {', '.join(map(str, speech))}; the README tells where to get them")
    pieces, more = folders(music)
    spoken, played = (np.sqrt([float(len(w)) for w in part]) for part in (voices, pieces))
    share = 0.25 if pieces else 0.0
    weights = np.concatenate([(1 - share) * spoken / spoken.sum(), share * played / max(1.0, played.sum())])
    return Pool((*voices, *pieces), weights / weights.sum()), torch.from_numpy(np.stack(kept + more)).unsqueeze(1)


def loud(wave: Wave) -> bool:
    """Tell whether there is sound: an RMS of at least -60 dB."""
    return len(wave) > 0 and float(np.square(wave).mean()) > 1e-6


def cut(pool: Pool, rng: np.random.Generator, size: int) -> Wave:
    """Cut `size` samples at a random place and a random speed of 0.8 to 1.25."""
    while True:
        wave = pool.clips[int(rng.choice(len(pool.weights), p=pool.weights))]
        length = min(len(wave), int(size * rng.uniform(0.8, 1.25) / 200) * 200)
        begin = int(rng.integers(0, len(wave) - length + 1))
        if loud(wave[begin : begin + length]):
            break
    bins = np.fft.rfft(wave[begin : begin + length])
    fitted = np.zeros(size // 2 + 1, np.complex128)
    used = min(len(bins), len(fitted))
    fitted[:used] = bins[:used]
    return (np.fft.irfft(fitted, size) * (size / length)).astype(np.float32)


def synthetic(rng: np.random.Generator, size: int) -> Wave:
    """Make tones, a sweep, clicks or noise."""
    t = np.arange(size) / RATE
    kind = int(rng.integers(4))
    if kind == 0:
        base = float(np.exp(rng.uniform(np.log(60), np.log(2000))))
        parts = [rng.uniform(0.1, 1) / k * np.sin(2 * np.pi * base * k * t + rng.uniform(0, 6.28)) for k in range(1, 9)]
        wave = np.sum(parts[: int(rng.integers(1, 9))], axis=0)
    elif kind == 1:
        low, high = np.exp(rng.uniform(np.log(50), np.log(7000), 2))
        wave = np.sin(2 * np.pi * np.cumsum(np.geomspace(low, high, size)) / RATE)
    elif kind == 2:
        wave = np.zeros(size)
        wave[rng.integers(0, size, int(rng.integers(2, 20)))] = 1.0
        wave = wave + 1e-3 * rng.standard_normal(size)
    else:
        wave = rng.standard_normal(size) * np.interp(t, np.linspace(0, t[-1], 5), rng.uniform(0.05, 1, 5))
    return wave.astype(np.float32)


def batch(pool: Pool, rng: np.random.Generator, count: int, size: int) -> Tensor:
    """Return (count, 1, size) in [-1, 1] at -45 to -10 dB RMS: cuts, mixtures of two, noisy cuts, synthetic signals."""
    rows: list[Wave] = []
    for _ in range(count):
        wave = synthetic(rng, size) if rng.random() < 0.06 else cut(pool, rng, size)
        if rng.random() < 0.1:
            wave = wave + rng.uniform(0.1, 0.7) * cut(pool, rng, size)
        rms = float(np.sqrt(np.square(wave).mean())) + 1e-5
        if rng.random() < 0.1:
            wave = wave + (rms * 10 ** rng.uniform(-2.5, -0.7) * rng.standard_normal(size)).astype(np.float32)
        wave = wave * min(10 ** rng.uniform(-2.25, -0.5) / rms, 0.99 / (float(np.abs(wave).max()) + 1e-5))
        rows.append(wave.astype(np.float32))
    return torch.from_numpy(np.stack(rows)).unsqueeze(1)


def spectrum(x: Tensor, size: int) -> Tensor:
    """Return STFT magnitudes (B, size // 2 + 1, frames) of (B, T), hop size / 4, scaled by the root of `size`."""
    window = torch.hann_window(size)
    bins = torch.stft(x, size, size // 4, window=window, return_complex=True)
    return (bins.real.square() + bins.imag.square() + 1e-7).sqrt() / size**0.5


def distance(out: Tensor, x: Tensor) -> Tensor:
    """Waveform error, spectral convergence and log-magnitude error at three resolutions, all relative to the level of x."""
    scale = x.square().mean((1, 2)).sqrt().clamp_min(1e-4)[:, None]
    out, x = out.squeeze(1) / scale, x.squeeze(1) / scale
    total = 2 * (out - x).abs().mean() + 0.5 * (out - x).square().mean()
    for size in (2048, 512, 128):
        mine, theirs = spectrum(out, size), spectrum(x, size)
        gap = (mine - theirs).square().sum((1, 2)).sqrt() / theirs.square().sum((1, 2)).sqrt()
        total = total + gap.mean() / 3 + 0.5 * (torch.log(mine + 1e-3) - torch.log(theirs + 1e-3)).abs().mean() / 3
    return total
