"""Built-in sounds: recorded speech and music, and synthesised signals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from tokbench.data.samples.entry import Entry
from tokbench.data.samples.recorded import music_entries, speech_entries
from tokbench.data.types import Made, Raw

Signal = npt.NDArray[np.float64]

_RATE = 48_000
_SECONDS = 3


def audio_entries() -> list[Entry]:
    """Return six spoken sentences, three pieces of music and five synthesised signals of 3 s."""
    made = [Entry(f"synth/{name}", Made(partial(make_signal, name))) for name in _SIGNALS]
    return [*speech_entries(), *music_entries(), *made]


def make_signal(name: str) -> Raw:
    """Synthesise a signal: (1, 144000) float32, 48 kHz, peak 0.7.

    Values are multiples of 2^-15. That grid is far coarser than the rounding of sine and exponential functions, which may
    differ between machines, so the samples do not.
    """
    signal = _SIGNALS[name]()
    scaled = np.rint(signal / np.abs(signal).max() * 0.7 * 32768)
    return Raw((scaled / 32768).astype(np.float32)[None], sample_rate=_RATE)


def _time() -> Signal:
    return np.arange(_RATE * _SECONDS) / _RATE


def _chirp() -> Signal:
    """Sine sweep, 50 Hz to 16 kHz, pitch rising linearly, faded in and out over 20 ms."""
    t = _time()
    octaves = np.log(16_000 / 50)
    phase = 2 * np.pi * 50 * _SECONDS / octaves * np.expm1(t / _SECONDS * octaves)
    out: Signal = np.sin(phase) * _fade(0.02)
    return out


def _chord() -> Signal:
    """Four chords of plucked strings: decaying harmonics with a slight inharmonicity."""
    out = np.zeros(_RATE * _SECONDS)
    roots = (220.0, 174.614, 261.626, 195.998)
    beat = len(out) // len(roots)
    for k, root in enumerate(roots):
        t = np.arange(len(out) - k * beat) / _RATE
        for ratio in (1.0, 1.25, 1.5, 2.0):
            for n in range(1, 13):
                pitch = root * ratio * n * np.sqrt(1 + 0.0004 * n * n)
                out[k * beat :] += np.sin(2 * np.pi * pitch * t) * np.exp(-t * (2 + 0.8 * n)) / n
    return out


def _drum() -> Signal:
    """A bar of kick (falling sine), snare (noise and tone) and closed hi-hat (bright noise), twice."""
    random = np.random.Generator(np.random.PCG64(2))
    out = np.zeros(_RATE * _SECONDS)
    step = len(out) // 16
    for k in range(16):
        t = np.arange(min(2 * step, len(out) - k * step)) / _RATE
        noise = random.random(len(t)) * 2 - 1
        hit = 0.25 * np.diff(noise, prepend=0.0) * np.exp(-t * 90)
        if k % 8 in (0, 3):
            hit += np.sin(2 * np.pi * (45 * t + 120 / 30 * (1 - np.exp(-30 * t)))) * np.exp(-t * 9)
        if k % 8 == 4:
            hit += 0.5 * (noise + np.sin(2 * np.pi * 190 * t)) * np.exp(-t * 22)
        out[k * step : k * step + len(t)] += hit
    return out


def _noise_burst() -> Signal:
    """White noise in bursts of 10 to 160 ms, each 6 dB below the one before it, with silence between."""
    random = np.random.Generator(np.random.PCG64(1))
    out = np.zeros(_RATE * _SECONDS)
    for k in range(10):
        start = k * len(out) // 10
        length = _RATE * 10 * 2 ** (k % 5) // 1000
        out[start : start + length] = (random.random(length) * 2 - 1) * 0.5 ** (k % 5)
    return out


def _harmonic_vowel() -> Signal:
    """Five vowels sung with vibrato and pauses: the harmonics of a glottal pulse, shaped by four formants. Not speech."""
    out = np.zeros(_RATE * _SECONDS)
    vowels = (
        (730, 1090, 2440, 3400),
        (530, 1840, 2480, 3500),
        (270, 2290, 3010, 3700),
        (570, 840, 2410, 3300),
        (300, 870, 2240, 3200),
    )
    beat = len(out) // len(vowels)
    for k, formants in enumerate(vowels):
        length = beat * 4 // 5
        t = np.arange(length) / _RATE
        pitch = 130 * 2 ** (k / 12) * (1 + 0.02 * np.sin(2 * np.pi * 5.5 * t))
        phase = 2 * np.pi * np.cumsum(pitch) / _RATE
        voice = np.zeros(length)
        for n in range(1, 60):
            voice += _formant_gain(n * pitch, formants) / n * np.sin(n * phase)
        ramp = np.minimum(1.0, np.minimum(t, t[::-1]) / 0.03)
        out[k * beat : k * beat + length] = voice * ramp
    return out


def _formant_gain(frequency: Signal, formants: tuple[int, ...]) -> Signal:
    """Magnitude of a cascade of two-pole resonators of unit gain at 0 Hz, 90 Hz wide and wider upwards."""
    gain = np.ones_like(frequency)
    for k, centre in enumerate(formants):
        width = 90.0 + 40.0 * k
        gain *= centre**2 / np.sqrt((centre**2 - frequency**2) ** 2 + (width * frequency) ** 2)
    return gain


def _fade(seconds: float) -> Signal:
    t = _time()
    return np.minimum(1.0, np.minimum(t, t[::-1]) / seconds)


_SIGNALS: Mapping[str, Callable[[], Signal]] = {
    "chirp": _chirp,
    "chord": _chord,
    "drum": _drum,
    "harmonic-vowel": _harmonic_vowel,
    "noise-burst": _noise_burst,
}
