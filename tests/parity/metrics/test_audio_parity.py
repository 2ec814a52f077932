"""Audio metrics against reference implementations: torchmetrics, transformers, SciPy, and recorded numbers.

The recorded numbers come from a throw-away environment, on the signals of `pair` below, which
are those of `tones` (tests/helpers/sounds.py):

    pip install torch auraloss==0.4.0 descript-audiotools==0.7.2 librosa==0.11.0
    python - <<'END'
    # pair = the function below, with tones
    import auraloss, librosa
    from audiotools import AudioSignal
    from audiotools.metrics.spectral import MelSpectrogramLoss
    for rate, channels in [(24000, 1), (16000, 1), (44100, 2)]:
        x, y = pair(rate, channels)
        print(float(auraloss.freq.MultiResolutionSTFTLoss()(y, x)))
        print(float(MelSpectrogramLoss()(AudioSignal(x, rate), AudioSignal(y, rate))))
    for rate, n_fft, n_mels in [(24000, 2048, 150), (24000, 512, 80), (44100, 2048, 150), (16000, 512, 80)]:
        m = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=n_mels, dtype="float64")
        print(m.sum(), m.max(), m[n_mels // 2].argmax(), m[3].sum())
    END

audiotools also imports torchaudio and torch.utils.tensorboard, which these losses do not use: empty stand-ins in
`sys.modules` served. Both libraries compute in float32, tokbench in float64: hence the tolerance of 1e-4.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sounds import tones
from torch import Tensor

from tokbench.metrics._audio import spectrum
from tokbench.metrics.spectral import MelDistance, MultiResolutionStft, mel_filterbank
from tokbench.metrics.waveform import SiSdr
from tokbench.spec import TokenizerSpec
from tokbench.types import Code, Sample


def pair(rate: int, channels: int = 1, seconds: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The two sounds of `tones` as batches of one: (1, C, T) each."""
    x, y = tones(rate, channels, seconds, seed)
    return torch.from_numpy(x)[None], torch.from_numpy(y)[None]


def sample(reference: Tensor, reconstruction: Tensor, rate: int) -> Sample:
    spec = TokenizerSpec(name="t", modality="audio", kind="none")
    keys = tuple(map(str, range(reference.shape[0])))
    return Sample(keys, reference, reconstruction, reconstruction, Code(), spec, sample_rate=rate)


@pytest.mark.parametrize("channels", [1, 2])
def test_si_sdr_is_torchmetrics(channels: int) -> None:
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio as reference_si_sdr

    pairs = [pair(16_000, channels, seed=seed) for seed in range(3)]
    x, y = (torch.cat([p[i] for p in pairs]) for i in (0, 1))
    y = y + 0.05  # zero_mean has something to do
    expected = reference_si_sdr(y.double(), x.double(), zero_mean=True).mean(dim=1)
    torch.testing.assert_close(SiSdr()(sample(x, y, 16_000))["si_sdr"], expected, atol=1e-4, rtol=0)
    shifted = torch.roll(y, 8, dims=-1)
    expected = reference_si_sdr(shifted.double(), x.double(), zero_mean=True).mean(dim=1)
    torch.testing.assert_close(SiSdr()(sample(x, shifted, 16_000))["si_sdr"], expected, atol=1e-4, rtol=0)


def test_aligned_si_sdr_is_torchmetrics_on_the_overlap() -> None:
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio as reference_si_sdr

    x, y = pair(16_000, seconds=0.05)
    y[..., :5] += 0.5  # outside the overlap: the means must be those of the overlap
    x[..., -5:] += 0.5
    out = SiSdr()(sample(x[..., 5:], y[..., :-5], 16_000))
    assert out["delay"].item() == 5
    expected = reference_si_sdr(y[0, 0, 5:-5].double(), x[0, 0, 5:-5].double(), zero_mean=True)
    torch.testing.assert_close(out["si_sdr_aligned"][0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_delay_is_the_peak_of_scipys_correlation(seed: int) -> None:
    from scipy.signal import correlate, correlation_lags

    rng = np.random.RandomState(seed)
    x, y = rng.randn(2, 900)
    y[40 * seed : 40 * seed + 500] += 0.5 * x[100:600]
    x, y = (0.1 * (s - s.mean()) for s in (x, y))
    lags, values = correlation_lags(900, 900), np.abs(correlate(y, x, method="direct"))
    near = np.abs(lags) <= 200
    expected = lags[near][values[near].argmax()]
    signals = [torch.from_numpy(s).float()[None, None] for s in (x, y)]
    out = SiSdr(max_delay_ms=200.0)(sample(signals[0], signals[1], 1000))
    assert out["delay"].item() == expected == 40 * seed - 100


MRSTFT = {(24_000, 1): 0.6249465346336365, (16_000, 1): 0.6298273205757141, (44_100, 2): 0.6254591941833496}


@pytest.mark.parametrize(("rate", "channels"), MRSTFT)
def test_mrstft_is_auraloss(rate: int, channels: int) -> None:
    value = MultiResolutionStft()(sample(*pair(rate, channels), rate))["mrstft"].item()
    assert value == pytest.approx(MRSTFT[rate, channels], rel=1e-4)


MEL = {(24_000, 1): 0.41200846433639526, (16_000, 1): 0.4200555384159088, (44_100, 2): 0.43070828914642334}


@pytest.mark.parametrize(("rate", "channels"), MEL)
def test_mel_distance_is_audiotools(rate: int, channels: int) -> None:
    value = MelDistance()(sample(*pair(rate, channels), rate))["mel_dac"].item()
    assert value == pytest.approx(MEL[rate, channels], rel=1e-4)


@pytest.mark.parametrize(
    ("rate", "n_fft", "n_mels", "total", "largest", "peak", "third"),
    [
        (24_000, 2048, 150, 12.799204401530694, 0.04426590306297441, 179, 0.08521019630847984),
        (24_000, 512, 80, 1.7054253513838658, 0.023224272423862026, 45, 0.021058018093726413),
        (44_100, 2048, 150, 6.963219172328969, 0.037464546865793494, 132, 0.0494261326423123),
        (16_000, 512, 80, 2.5582607778404807, 0.0264065916319165, 55, 0.031172270994257508),
    ],
)
def test_mel_filters_are_librosas(
    rate: int, n_fft: int, n_mels: int, total: float, largest: float, peak: int, third: float
) -> None:
    bank = mel_filterbank(rate, n_fft, n_mels)
    assert bank.sum().item() == pytest.approx(total, rel=1e-10)
    assert bank.max().item() == pytest.approx(largest, rel=1e-10)
    assert bank[n_mels // 2].argmax().item() == peak
    assert bank[3].sum().item() == pytest.approx(third, rel=1e-10)


@pytest.mark.parametrize(
    ("rate", "n_fft", "n_mels"), [(16_000, 512, 80), (22_050, 2048, 150), (24_000, 2048, 150), (48_000, 512, 80)]
)
@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_mel_filters_are_transformers(rate: int, n_fft: int, n_mels: int) -> None:
    audio_utils = pytest.importorskip("transformers.audio_utils")
    expected = audio_utils.mel_filter_bank(
        n_fft // 2 + 1, n_mels, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney"
    )
    torch.testing.assert_close(mel_filterbank(rate, n_fft, n_mels), torch.from_numpy(expected.T), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(("n_fft", "hop", "window"), [(1024, 120, 600), (2048, 240, 1200), (512, 128, 512)])
def test_spectra_are_the_definition(n_fft: int, hop: int, window: int) -> None:
    from scipy.signal import get_window

    x = np.random.RandomState(0).randn(3000)
    left = (n_fft - window) // 2
    taper = np.pad(get_window("hann", window), (left, n_fft - window - left))
    padded = np.pad(x, n_fft // 2, mode="reflect")
    frames = [padded[i : i + n_fft] * taper for i in range(0, len(x) + 1, hop)]
    expected = np.fft.rfft(np.stack(frames), axis=-1).T
    got = spectrum(torch.from_numpy(x)[None], n_fft, hop, window)[0]
    torch.testing.assert_close(got, torch.from_numpy(expected), atol=1e-10, rtol=0)
