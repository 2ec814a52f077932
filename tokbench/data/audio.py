"""Decodes sound files with soundfile, or PyAV where it cannot, into float32 and cuts them into segments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tokbench.data.containers import check_complete
from tokbench.data.types import Blob, Item, Raw
from tokbench.errors import DecodeError, UsageError
from tokbench.spec import AudioPrepare

if TYPE_CHECKING:
    import soundfile

Sound = npt.NDArray[np.float32]

_BLOCK = 1 << 16
_FRAME = 4096  # no codec here has longer frames
_BY_PYAV = (".aac", ".m4a", ".mka", ".mp4", ".opus", ".webm")
_NAMES: Mapping[str, tuple[str, ...]] = {
    "AIFF": (".aif", ".aiff"),
    "AU": (".au",),
    "CAF": (".caf",),
    "FLAC": (".flac",),
    "MPEG": (".mp3",),
    "MP3": (".mp3",),
    "OGG": (".ogg", ".oga", ".opus"),
    "WAV": (".wav",),
    "WAVEX": (".wav",),
    "RF64": (".wav",),
}


def load_audio(
    key: str, source: Blob | Raw, prepare: AudioPrepare, annotations: Mapping[str, object]
) -> tuple[Item, ...]:
    """Decode, mix, resample and cut one recording.

    Order: decode to float32, average the channels if `mono`, resample, clip to [-1, 1], cut. Samples beyond [-1, 1] (float
    files, or overshoot of the resampler) are clipped after resampling and counted in the notes.

    Raises:
        DecodeError: The file cannot be read, holds no samples, or holds NaN or infinite ones.
    """
    from tokbench.prepare.audio import channels, resample_numpy

    notes: list[str] = []
    if isinstance(source, Raw):
        sound, rate = source.array.astype(np.float32, copy=False), source.sample_rate or 0
    else:
        sound, rate, notes = read_sound(source)
    if sound.shape[1] == 0:
        raise DecodeError("holds no samples")
    if not np.isfinite(sound).all():
        raise DecodeError(f"holds {int((~np.isfinite(sound)).sum())} NaN or infinite samples")
    if rate < 1:
        raise DecodeError(f"declares a sample rate of {rate} Hz")
    if prepare.channels == "mono" and len(sound) > 1:
        notes.append(f"{len(sound)} channels averaged to one")
    sound = channels(sound, prepare.channels)
    if prepare.sample_rate is not None and rate != prepare.sample_rate:
        sound = np.asarray(resample_numpy(sound, rate, prepare.sample_rate), dtype=np.float32)
        rate = prepare.sample_rate
    beyond = int((np.abs(sound) > 1.0).sum())
    if beyond:
        notes.append(f"{beyond} of {sound.size} samples beyond [-1, 1] clipped")
        sound = np.clip(sound, -1.0, 1.0)
    return _segments(key, np.ascontiguousarray(sound), rate, prepare, tuple(notes), annotations)


def _segments(
    key: str, sound: Sound, rate: int, prepare: AudioPrepare, notes: tuple[str, ...], annotations: Mapping[str, object]
) -> tuple[Item, ...]:
    if prepare.seconds is None:
        return (Item(key, key, sound, sample_rate=rate, notes=notes, annotations=annotations),)
    length = round(prepare.seconds * rate)
    if length < 1:
        raise UsageError(f"segments of {prepare.seconds} s hold no sample at {rate} Hz")
    total = sound.shape[1]
    starts = [start for start in range(0, total, length) if 2 * min(length, total - start) >= length]
    if not starts:
        raise DecodeError(f"lasts {total / rate:.3f} s, less than half a segment of {prepare.seconds:g} s")
    left = total - min(total, starts[-1] + length)
    tail = (f"last {left / rate:.3f} s left out",) if left else ()
    return tuple(
        Item(
            key=f"{key}#{start / rate:010.3f}",
            group=key,
            signal=sound[:, start : start + length].copy(),
            sample_rate=rate,
            notes=(*notes, *tail) if start == starts[-1] else notes,
            annotations=annotations,
        )
        for start in starts
    )


def read_sound(blob: Blob) -> tuple[Sound, int, list[str]]:
    """Read a whole file: samples (C, T) float32 as stored, the rate in Hz, and notes.

    Integers of n bits are divided by 2^(n-1). What an encoder added for priming is cut where the container says so.

    Raises:
        DecodeError: Not a sound file of a known format, without sound, truncated or damaged.
    """
    import soundfile

    with blob.open() as handle:
        check_complete(handle)
        if blob.extension not in _BY_PYAV:
            try:
                with soundfile.SoundFile(handle) as file:
                    return _through_soundfile(file, blob.extension)
            except soundfile.LibsndfileError as error:
                if error.code != 1:  # 1 is "format not recognised": it may be one PyAV knows
                    raise DecodeError(f"cannot be decoded: {error.error_string.rstrip('.').lower()}") from error
            handle.seek(0)
        return _through_pyav(handle, blob.extension)


def _through_soundfile(file: soundfile.SoundFile, extension: str) -> tuple[Sound, int, list[str]]:
    # In blocks: a damaged header may declare any length, and reading at once would allocate it.
    declared = file.frames
    blocks = []
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block)
    sound = np.concatenate(blocks).T if blocks else np.zeros((file.channels, 0), np.float32)
    if file.format == "FLAC" and 0 < sound.shape[1] < declared < 1 << 62:
        raise DecodeError(f"is cut short: {sound.shape[1]} of {declared} samples are there")
    named_otherwise = extension not in _NAMES.get(file.format, (extension,))
    notes = [f"named {extension} but holds {file.format}"] if named_otherwise else []
    return sound, int(file.samplerate), notes


def _through_pyav(handle: BinaryIO, extension: str) -> tuple[Sound, int, list[str]]:
    import av

    from tokbench.data.video import CLOSED

    try:
        with av.open(handle, mode="r", options=dict(CLOSED)) as container:
            tracks = container.streams.audio
            if not tracks:
                raise DecodeError("has no sound track")
            rate = tracks[0].codec_context.sample_rate
            sound = _decoded(container, tracks[0])
            notes = [f"first of {len(tracks)} sound tracks"] if len(tracks) > 1 else []
            name = container.format.name
    except (av.error.FFmpegError, EOFError) as error:
        detail = str(getattr(error, "strerror", "") or error).lower()
        raise DecodeError(f"cannot be decoded: {detail}") from error
    if extension not in _BY_PYAV and extension in {suffix for suffixes in _NAMES.values() for suffix in suffixes}:
        notes.append(f"named {extension} but holds {name}")
    return sound, int(rate), notes


def _decoded(container: Any, track: Any) -> Sound:
    import av

    context = track.codec_context
    planar: Any = av.AudioResampler(format="fltp", layout=context.layout, rate=context.sample_rate)
    first = (context.sample_rate, len(context.layout.channels))
    blocks: list[Sound] = []
    for frame in container.decode(track):
        if (frame.sample_rate, len(frame.layout.channels)) != first:
            raise DecodeError("changes its sample rate or channels on the way")
        if frame.is_corrupt:
            raise DecodeError(f"is damaged after {sum(block.shape[1] for block in blocks)} samples")
        blocks.extend(part.to_ndarray() for part in planar.resample(frame))
    blocks.extend(part.to_ndarray() for part in planar.resample(None))
    sound = np.concatenate(blocks, axis=1) if blocks else np.zeros((first[1], 0), np.float32)
    if "mov" not in container.format.name or track.duration is None:
        return sound
    # MP4 states the exact length; FFmpeg leaves the zeros with which the encoder filled its last frame.
    stated = round(track.duration * track.time_base * context.sample_rate)
    return sound[:, :stated] if 0 < sound.shape[1] - stated < _FRAME else sound
