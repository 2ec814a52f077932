"""What a tokenizer, a metric, a protocol and a suite *are*: frozen, hashable, JSON-able, free of torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, cast

Modality = Literal["image", "video", "audio"]
CodeKind = Literal["discrete", "continuous", "payload", "none"]
Option = str | int | float | bool
Capability = Literal["neighbours", "unquantized", "edit", "drop", "prefix", "text"]
"""What a tokenizer offers beside encode and decode; `tokbench.contract` holds what is declared to what is there.

`neighbours`: says what lies near an entry of a codebook (`tokbench.types.Neighbouring`). `unquantized`: shows what its
quantizers see (`LatentSource`). `edit`: decodes indices that were changed. `drop`: decodes what is left when tokens are taken
out (`Droppable`). `prefix`: decodes any first part of its tokens, so its length is variable. `text`: its decoder is conditioned
on a text. That a decoder is stochastic, or works at one size only, is said by `deterministic` and `native_size`.
"""

SIGNAL_RANGE: Mapping[Modality, tuple[float, float]] = {"image": (0.0, 1.0), "video": (0.0, 1.0), "audio": (-1.0, 1.0)}
"""The canonical range of each modality inside the engine."""


def canonical_json(value: object) -> str:
    """Serialise dataclasses, mappings and sequences to one JSON text: sorted keys, no spaces, no NaN."""
    return json.dumps(jsonable(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def jsonable(value: object) -> Any:
    """Turn frozen dataclasses and tuples into the dicts and lists JSON knows."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = [jsonable(v) for v in value]
        return sorted(items) if isinstance(value, set | frozenset) else items
    return value


def digest(value: object) -> str:
    """Return the sha256 (64 hex digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------ tokenizers


@dataclass(frozen=True)
class FrameRule:
    """Which clip lengths a video tokenizer takes: `first + k * step` frames; (0, 1) takes any, (1, 4) is causal 1 + 4k."""

    first: int = 0
    step: int = 1

    def next_valid(self, frames: int) -> int:
        """Return the smallest valid length that is at least `frames`."""
        k = max(0 if self.first else 1, -(-(frames - self.first) // self.step))
        return self.first + k * self.step


@dataclass(frozen=True)
class TokenizerSpec:
    """What the engine must know to feed a tokenizer and to read its code. The engine derives every rate from the code itself.

    Attributes:
        name: Full name with its operating point, e.g. `jpeg?quality=50`.
        modality: `image`, `video` or `audio`.
        kind: What `encode` emits: `discrete` streams, `continuous` latents, `payload` bytes, or `none` (identity rows).
        input_range: The range `encode` expects and `decode` returns; the engine maps from and to the canonical one.
        downsample: Integer stride per axis: (H, W), (T, H, W) or (T,). Inputs are padded to multiples of it and un-padded.
        native_size: (H, W) when only that size works, else None.
        sample_rate: Hz for audio tokenizers that have one; None takes any rate.
        channels: 1 or 2 for audio tokenizers that need that many; None takes any.
        frames: Clip lengths a video tokenizer takes.
        codebook_size: Entries of each codebook (nominal); () for continuous latents and payloads.
        latent_channels: Channels of continuous latents.
        token_rate: Tokens per second over all codebooks (audio), where the publication states one; checked, never used.
        padding_safe: A row padded at its end decodes, on its own part, as if it were alone.
        encode_only: Nothing was published that turns tokens back into a signal: `decode` is never called, and only metrics
            of the code itself apply.
        deterministic: Encode and decode draw no random numbers.
        batch_exact: A batch gives the same bits as its rows one by one; False: within `batch_atol` of them.
        batch_atol: Largest difference allowed between a batch and single rows, in units of the canonical range.
        capabilities: What it offers beside encode and decode; metrics that need one apply to those that declare it.
        version: Raised when the adapter computes something else than before.
    """

    name: str
    modality: Modality
    kind: CodeKind
    input_range: tuple[float, float] = (0.0, 1.0)
    downsample: tuple[int, ...] = ()
    native_size: tuple[int, int] | None = None
    sample_rate: int | None = None
    channels: int | None = None
    frames: FrameRule = FrameRule()
    codebook_size: tuple[int, ...] = ()
    latent_channels: int | None = None
    token_rate: float | None = None
    padding_safe: bool = False
    encode_only: bool = False
    deterministic: bool = True
    batch_exact: bool = True
    batch_atol: float = 0.0
    capabilities: tuple[Capability, ...] = ()
    version: int = 1


@dataclass(frozen=True)
class WeightFile:
    """One file a tokenizer or metric needs, and every way to find it.

    `role` is how the adapter asks for it (`"model"`, `"config"`); `file` its name inside the hub repository, package or
    directory. `sha256` is None when it is not known: written as unknown, never invented.
    """

    role: str
    file: str
    hub: str | None = None
    revision: str | None = None
    url: str | None = None
    package: str | None = None
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Reported:
    """A number the authors published, under the protocol they used."""

    metric: str
    value: float
    dataset: str
    protocol: str
    source: str
    verified: bool = True


@dataclass(frozen=True)
class OptionSpec:
    """One option of a card: `name?key=value`. Either `choices` or `minimum`/`maximum` bound it."""

    name: str
    default: Option
    help: str = ""
    choices: tuple[Option, ...] = ()
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class Card:
    """A published checkpoint or codec: what `list` and `show` print and what the adapter is built from.

    Attributes:
        target: `module:Class` of the adapter; it is called as `Class(card, weights)`, see `tokbench.types.AdapterFactory`.
        options: Resolved options (defaults, then the card's, then the user's).
        architecture: Free-form architecture options for the adapter, from the card; part of the content key.
        points: Operating points worth a row each, as the text behind `?` (`quality=50`).
        point_specs: Keys of `spec` that change at an operating point.
        extra: The extra of tokbench that installs what the adapter imports.
        status: `available`, `planned` or `unreleased`.
    """

    name: str
    family: str
    target: str
    spec: TokenizerSpec
    summary: str = ""
    options: Mapping[str, Option] = field(default_factory=dict, hash=False)
    option_specs: tuple[OptionSpec, ...] = ()
    architecture: Mapping[str, Any] = field(default_factory=dict, hash=False)
    points: tuple[str, ...] = ()
    point_specs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    weights: tuple[WeightFile, ...] = ()
    extra: str | None = None
    licence: str = "unknown"
    licence_note: str = ""
    paper: str | None = None
    repository: str | None = None
    training_data: str = "unknown"
    notes: str = ""
    reported: tuple[Reported, ...] = ()
    status: Literal["available", "planned", "unreleased"] = "available"
    source: str = "tokbench"

    def identity(self) -> dict[str, Any]:
        """Return what changes the numbers: target, spec, options and architecture, without weights, prose or folders."""
        return {
            "target": Path(self.target).name,
            "spec": asdict(self.spec),
            "options": {key: value for key, value in self.options.items() if key != "weights"},
            "architecture": jsonable(self.architecture),
            "source": self.source,
        }


# --------------------------------------------------------------------------------------------------- metrics


@dataclass(frozen=True)
class Column:
    """One number of a metric.

    Attributes:
        higher_is_better: None where neither direction is better (token counts).
        atol: Difference between machines that is still "the same"; used by tests and regression checks.
        where: `row` (per sample; the engine derives mean, interval and n) or `corpus` (one number for the set).
        level: False for a column that supports others (a pooled numerator); boards hide it.
        ratio: Of a corpus column: two row columns; it is the sum of the first over the sum of the second (words read right
            over words, errors over words). The engine computes it, with a bootstrap interval over files; the cell's n is
            the second sum.
        mean_of: Of a corpus column: the `ratio` columns whose plain mean it is, with an interval as theirs.
    """

    name: str
    unit: str = ""
    higher_is_better: bool | None = None
    description: str = ""
    atol: float = 1e-6
    decimals: int = 4
    where: Literal["row", "corpus"] = "row"
    level: bool = True
    ratio: tuple[str, str] | None = None
    mean_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class MetricSpec:
    """A metric as a published thing: its columns, its version, what it can be applied to and where it comes from.

    `version` is part of the protocol hash; raise it whenever any number may change. `protocol` holds the settings that
    define it (window, range, weights digests) and is hashed too. `of_code` marks a metric that looks at the code and the
    reference alone, and so holds for a tokenizer that cannot decode. `needs` names what a tokenizer must offer.
    """

    name: str
    modalities: tuple[Modality, ...]
    columns: tuple[Column, ...]
    version: int = 1
    summary: str = ""
    reference: str = ""
    protocol: Mapping[str, Any] = field(default_factory=dict, hash=False)
    kinds: tuple[CodeKind, ...] = ("discrete", "continuous", "payload", "none")
    of_code: bool = False
    needs: tuple[Capability, ...] = ()
    extra: str | None = None

    def ratio_parts(self, column: Column) -> list[tuple[str, str]]:
        """Return the (above, below) row columns that a `ratio` or `mean_of` column is made of."""
        if column.ratio is not None:
            return [column.ratio]
        known = {entry.name: entry for entry in self.columns}
        return [part for name in column.mean_of for part in self.ratio_parts(known[name])]

    def mismatch(self, tokenizer: TokenizerSpec) -> str:
        """Return why this metric means nothing for a tokenizer, by what both are; an empty string when it does."""
        if tokenizer.modality not in self.modalities or tokenizer.kind not in self.kinds:
            return f"{self.name} is not defined for {tokenizer.kind} {tokenizer.modality} tokenizers"
        if tokenizer.encode_only and not self.of_code:
            return f"{tokenizer.name} cannot decode: no decoder was published, and {self.name} needs a reconstruction"
        for capability in self.needs:
            if capability not in tokenizer.capabilities:
                return f"{self.name} needs {capability!r}, which is not among the capabilities of {tokenizer.name}"
        return ""


# ---------------------------------------------------------------------------------------- protocols and suites

ResizePreset = Literal["adm", "pil-bicubic", "pil-bilinear", "pil-lanczos", "lanczos-cover", "tokbench-pad", "native"]
Rounding = Literal["round", "truncate", "none"]


@dataclass(frozen=True)
class ImagePrepare:
    """How an image becomes the reference: a named preset and its size (None only for `native`)."""

    preset: ResizePreset = "adm"
    size: int | None = 256


@dataclass(frozen=True)
class VideoPrepare:
    """How a video becomes clips: frames at `fps` (None: as stored), cut to consecutive clips of `frames`, at most `clips` each.

    A last clip shorter than `frames` is left out and counted; a video shorter than one clip is a failed row.
    """

    preset: ResizePreset = "adm"
    size: int | None = 256
    frames: int = 17
    fps: float | None = None
    clips: int | None = None


@dataclass(frozen=True)
class AudioPrepare:
    """How a recording becomes the reference: resampled once to `sample_rate` (None: as stored), channels, and cut.

    `seconds` cuts consecutive segments of that length (None: whole files); a shorter last segment is kept when it has at
    least half of it. Tokenizers of another rate are fed through the same named resampler and brought back.
    """

    sample_rate: int | None = 24_000
    channels: Literal["mono", "native"] = "mono"
    seconds: float | None = None
    resampler: Literal["sinc-hann-6-0.99"] = "sinc-hann-6-0.99"


@dataclass(frozen=True)
class EvalProtocol:
    """All that changes a number and is not the tokenizer.

    `hash` covers what every number of a run shares; two numbers compare when it agrees and their metric's own entry in
    `metrics` does (version, settings, weights). So adding a metric to a suite does not cut a board in two.

    Attributes:
        prepare: How a file becomes the reference.
        rounding: How an 8-bit reconstruction is made: `round` half up, `truncate`, or `none` (float). Audio uses `none`.
        seed: Seeds stochastic decoders and perturbations together with the sample's key.
        dataset: Digest of the dataset manifest: every (key, sha256).
        limit: First n keys only; None is all. Limited results are barred from boards.
        metrics: Name -> {version, protocol} of every metric.
    """

    modality: Modality
    prepare: ImagePrepare | VideoPrepare | AudioPrepare
    rounding: Rounding = "round"
    seed: int = 0
    dataset: str = ""
    limit: int | None = None
    dtype: str = "float32"
    metrics: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def hash(self) -> str:
        """Return the sha256 of everything but `metrics`."""
        return digest({key: value for key, value in jsonable(self).items() if key != "metrics"})


@dataclass(frozen=True)
class Suite:
    """A dataset, a protocol and the metrics; `tokenizers` are what runs when the user names none."""

    name: str
    modality: Modality
    dataset: str
    prepare: ImagePrepare | VideoPrepare | AudioPrepare
    metrics: tuple[str, ...]
    rounding: Rounding = "round"
    summary: str = ""
    tokenizers: tuple[str, ...] = ()
    expected_samples: int | None = None
    board: tuple[str, ...] = ()


def prepare_for(modality: Modality, table: Mapping[str, Any]) -> ImagePrepare | VideoPrepare | AudioPrepare:
    """Build the prepare step of `modality` from a TOML or JSON table. Raises TypeError on an unknown key.

    TOML has no word for None: the preset `native` leaves `size` out, and `sample_rate = "native"` is the rate as stored.
    """
    if table.get("preset") == "native":
        table = {"size": None, **table}
    if table.get("sample_rate") == "native":
        table = {**table, "sample_rate": None}
    kind = {"image": ImagePrepare, "video": VideoPrepare, "audio": AudioPrepare}[modality]
    return cast("ImagePrepare | VideoPrepare | AudioPrepare", kind(**table))
