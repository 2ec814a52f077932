"""A seeded synthetic voice: what the tests of speech metrics measure, where no recording is at hand."""

from __future__ import annotations

import numpy as np

VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (570, 840, 2410), (440, 1020, 2240), (530, 1840, 2480))


def voice(seconds: float = 3.0, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """Return (T,) float32 within ±0.5: vowels of a gliding pitch, hisses and short pauses, over a faint room noise."""
    rng = np.random.RandomState(seed)
    parts: list[np.ndarray] = []
    total = int(seconds * rate)
    pitch = 110.0 + 20 * rng.rand()
    while sum(map(len, parts)) < total:
        n = int(rate * rng.uniform(0.12, 0.28))
        glide = pitch * np.exp(np.linspace(0, rng.uniform(-0.25, 0.25), n)) * (1 + 0.004 * rng.randn())
        source = np.diff(np.floor(np.cumsum(glide) / rate), prepend=0.0) + 0.01 * rng.randn(n)
        vowel = source
        for formant, width in zip(VOWELS[rng.randint(len(VOWELS))], (80, 110, 160), strict=True):
            vowel = _resonate(vowel, formant, width, rate)
        vowel = vowel / np.abs(vowel).max()
        hiss = _resonate(rng.randn(int(rate * rng.uniform(0.04, 0.1))), 0.3 * rate, 0.1 * rate, rate)
        parts += [
            _fade(vowel, rate) * rng.uniform(0.25, 0.5),
            _fade(0.06 * hiss / np.abs(hiss).max(), rate),
            np.zeros(int(rate * rng.choice([0.0, 0.03, 0.15]))),
        ]
    x = np.concatenate(parts)[:total] + 3e-4 * rng.randn(total)
    return x.astype(np.float32)


def at_snr(clean: np.ndarray, snr_db: float, seed: int = 1) -> np.ndarray:
    """Return `clean` with noise that follows its level, as codecs make it, `snr_db` below it overall; float32."""
    noise = np.random.RandomState(seed).randn(len(clean))
    envelope = np.sqrt(np.convolve(clean.astype(np.float64) ** 2, np.ones(320) / 320, mode="same"))
    noise *= envelope + 0.02 * envelope.max()
    gain = np.sqrt((clean.astype(np.float64) ** 2).sum() / (noise**2).sum() / 10 ** (snr_db / 10))
    return (clean + gain * noise).astype(np.float32)


def _resonate(x: np.ndarray, centre: float, width: float, rate: int) -> np.ndarray:
    from scipy.signal import lfilter

    radius = np.exp(-np.pi * width / rate)
    return np.asarray(lfilter([1 - radius], [1, -2 * radius * np.cos(2 * np.pi * centre / rate), radius**2], x))


def _fade(x: np.ndarray, rate: int) -> np.ndarray:
    n = min(len(x) // 2, int(0.01 * rate))
    ramp = np.sin(np.linspace(0, np.pi / 2, n)) ** 2
    return np.concatenate([x[:n] * ramp, x[n : len(x) - n], x[len(x) - n :] * ramp[::-1]])


def recording(name: str = "austen-0880") -> np.ndarray:
    """Return one of the built-in sentences: (T,) float32 at 16 kHz."""
    from pathlib import Path

    import soundfile

    import tokbench.data.samples

    path = Path(tokbench.data.samples.__file__).parent / "recordings" / f"{name}.flac"
    sound, rate = soundfile.read(path, dtype="float32")
    assert rate == 16_000
    return np.asarray(sound)


def shifted(x: np.ndarray, samples: int) -> np.ndarray:
    """Return `x` late by `samples` (early where negative), zeros moved in, its length kept."""
    out = np.zeros_like(x)
    if samples >= 0:
        out[samples:] = x[: len(x) - samples]
    else:
        out[:samples] = x[-samples:]
    return out
