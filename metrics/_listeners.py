"""Speech recognisers behind one method, each with the text normalisation its published error rates use."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from . import _hub
from ._hub import Checkpoint
from ._models import Model
from ._optional import optional
from ._options import require_positive_integer
from ._packaged import Packaged, digest
from ._speech import RATE

WHISPER = "openai/whisper-large-v3"
HUBERT = "facebook/hubert-large-ls960-ft"
ACOUSTICS = Packaged("wer_pocketsphinx", "pocketsphinx", "model/en-us/en-us/mdef", "audio")
LANGUAGE = Packaged("wer_pocketsphinx", "pocketsphinx", "model/en-us/en-us.lm.bin", "audio")

WINDOW_SECONDS = 30
"""What Whisper hears at once; longer clips go through its own sequential long-form decoding."""

_WHISPER_FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    "normalizer.json",
)  # fmt: skip
_HUBERT_FILES = ("config.json", "preprocessor_config.json", "tokenizer_config.json", "vocab.json")


class Listener(Model, Protocol):
    """A speech recogniser; its settings include how texts are normalised."""

    @property
    def slug(self) -> str:
        """Of its columns: `wer_<slug>`."""
        ...

    def hear(self, wave: Tensor) -> str:
        """Return what is said in (T,) at 16 kHz, T at least 1."""
        ...

    def normalise(self, text: str) -> str:
        """Bring a text to the form that is compared: words with single spaces between them."""
        ...


def plain(text: str) -> str:
    """Return a text in lower case (NFKC), without accents, punctuation but the apostrophe, or runs of spaces.

    >>> plain("“It’s GOOD,” she said -- twice.")
    "it's good she said twice"
    """
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold().replace("’", "'"))
    kept = "".join(mark for mark in folded if not unicodedata.combining(mark))
    return " ".join(word.strip("'") for word in re.sub(r"[^\w']|_", " ", kept).split() if word.strip("'"))


PLAIN = "NFKC, casefolded, accents and punctuation but apostrophes removed"


@dataclass(frozen=True)
class Whisper:
    """A Whisper model of `transformers`, float32, no sampling and no temperature fallback.

    Clips up to 30 s are decoded without time stamps, longer ones by the sequential long-form rule. English text goes
    through Whisper's own English normaliser (numbers, titles, British spelling), other languages through its basic one.

    Attributes:
        checkpoint: Which, and where it is.
        language: Spoken; a code Whisper knows.
        beams: Of the beam search; 1 is greedy.
    """

    checkpoint: Checkpoint
    language: str = "en"
    beams: int = 5

    reference = "Radford et al. 2022, arXiv 2212.04356; transformers WhisperForConditionalGeneration; jiwer"
    extra = "audio"

    def __post_init__(self) -> None:
        require_positive_integer("wer_whisper", "beams", self.beams)

    @property
    def name(self) -> str:
        """Every checkpoint is a metric of its own."""
        return "wer_whisper" if self.checkpoint.hub == WHISPER else f"wer_{self.slug}"

    @property
    def slug(self) -> str:
        """The checkpoint is in the columns' names."""
        return self.checkpoint.slug

    @property
    def about(self) -> str:
        """Name the checkpoint and the search."""
        return f"{self.checkpoint.hub}, beam {self.beams}"

    def settings(self) -> Mapping[str, Any]:
        """Return checkpoint, search and normalisation."""
        return {
            "model": self.checkpoint.hub,
            "language": self.language,
            "beams": self.beams,
            "text": "whisper english normaliser" if self.language == "en" else "whisper basic normaliser",
            "weights": _hub.identity(self.checkpoint),
        }

    def fetch(self, *, offline: bool) -> None:
        """Download the checkpoint where it is absent and `offline` allows it."""
        _hub.fetch(self.checkpoint, offline)

    def hear(self, wave: Tensor) -> str:
        """Return what Whisper writes down of (T,) at 16 kHz."""
        model = _hub.build(self.checkpoint, "WhisperForConditionalGeneration", str(wave.device))
        listen = _hub.beside(self.checkpoint, "WhisperFeatureExtractor")
        long = len(wave) > WINDOW_SECONDS * RATE
        about = {"truncation": False, "padding": "longest", "return_attention_mask": True} if long else {}
        heard = listen(wave.cpu().numpy(), sampling_rate=RATE, return_tensors="pt", **about)
        how: dict[str, Any] = {"num_beams": self.beams, "do_sample": False, "return_timestamps": long}
        if long:
            how["attention_mask"] = heard.attention_mask.to(wave.device)
        if getattr(model.generation_config, "is_multilingual", True):
            how |= {"language": self.language, "task": "transcribe"}
        with torch.inference_mode(), _hub.quiet():
            tokens = model.generate(heard.input_features.to(wave.device), **how)
        text: str = self._tokenizer().decode(tokens[0], skip_special_tokens=True)
        return text.strip()

    def normalise(self, text: str) -> str:
        """Apply Whisper's own normaliser."""
        tokenizer = self._tokenizer()
        rule = tokenizer.normalize if self.language == "en" else tokenizer.basic_normalize
        return " ".join(rule(text).split())

    def _tokenizer(self) -> Any:
        return _hub.beside(self.checkpoint, "WhisperTokenizer")


@dataclass(frozen=True)
class Hubert:
    """A HuBERT CTC model of `transformers`, greedy: the recogniser of X-Codec 2's, XY-Tokenizer's and MOSS's tables.

    Attributes:
        checkpoint: Which, and where it is.
    """

    checkpoint: Checkpoint

    reference = "Hsu et al. 2021, arXiv 2106.07447; transformers HubertForCTC; jiwer"
    extra = "audio"

    @property
    def name(self) -> str:
        """Every checkpoint is a metric of its own."""
        return "wer_hubert" if self.checkpoint.hub == HUBERT else f"wer_{self.slug}"

    @property
    def slug(self) -> str:
        """The checkpoint is in the columns' names."""
        return self.checkpoint.slug

    @property
    def about(self) -> str:
        """Name the checkpoint."""
        return f"{self.checkpoint.hub}, greedy CTC"

    def settings(self) -> Mapping[str, Any]:
        """Return checkpoint and normalisation."""
        return {"model": self.checkpoint.hub, "text": PLAIN, "weights": _hub.identity(self.checkpoint)}

    def fetch(self, *, offline: bool) -> None:
        """Download the checkpoint where it is absent and `offline` allows it."""
        _hub.fetch(self.checkpoint, offline)

    def hear(self, wave: Tensor) -> str:
        """Return the greedy CTC text of (T,) at 16 kHz; empty for clips below one frame."""
        model = _hub.build(self.checkpoint, "HubertForCTC", str(wave.device))
        if _hub.frames(model, len(wave)) < 1:
            return ""
        extract = _hub.beside(self.checkpoint, "Wav2Vec2FeatureExtractor")
        values = extract(wave.cpu().numpy(), sampling_rate=RATE, return_tensors="pt").input_values
        with torch.inference_mode():
            best = model(values.to(wave.device)).logits[0].argmax(-1).cpu()
        text: str = _hub.beside(self.checkpoint, "Wav2Vec2CTCTokenizer").decode(best, skip_special_tokens=True)
        return text.strip()

    def normalise(self, text: str) -> str:
        """Apply `plain`."""
        return plain(text)


@dataclass(frozen=True)
class PocketSphinx:
    """PocketSphinx 5 with the English models inside its package: an offline smoke test, far behind any neural recogniser.

    Cepstral mean and noise are estimated anew for each clip, over its own length, so that no clip depends on the one before.
    """

    name = "wer_pocketsphinx"
    slug = "pocketsphinx"
    about = "PocketSphinx, English, a smoke test only"
    reference = "Huggins-Daines et al. 2006; pocketsphinx 5.1; jiwer"
    extra = "audio"

    def settings(self) -> Mapping[str, Any]:
        """Return models and normalisation."""
        return {"text": PLAIN, "weights": {"acoustics": digest(ACOUSTICS), "language": digest(LANGUAGE)}}

    def fetch(self, *, offline: bool) -> None:
        """Do nothing: a package cannot be fetched from here."""

    def hear(self, wave: Tensor) -> str:
        """Return the best hypothesis for (T,) at 16 kHz, as 16-bit PCM; empty where there is none."""
        decoder = _decoder()
        pcm = (np.clip(wave.cpu().numpy(), -1, 1) * 32767).round().astype("<i2")
        decoder.reinit_feat()  # else its noise estimate is that of the clip before
        decoder.start_utt()
        decoder.process_raw(pcm.tobytes(), full_utt=True)
        decoder.end_utt()
        best = decoder.hyp()
        return str(best.hypstr) if best else ""

    def normalise(self, text: str) -> str:
        """Apply `plain`."""
        return plain(text)


@lru_cache(maxsize=1)
def _decoder() -> Any:
    return optional("pocketsphinx", "wer_pocketsphinx").Decoder(samprate=RATE, loglevel="FATAL")


def whisper(model: str, language: str, beams: int, weights: str) -> Whisper:
    """Return a Whisper listener by its checkpoint's id."""
    return Whisper(Checkpoint("wer_whisper", model, _WHISPER_FILES, weights), language, beams)


def hubert(model: str, weights: str) -> Hubert:
    """Return a HuBERT listener by its checkpoint's id."""
    return Hubert(Checkpoint("wer_hubert", model, _HUBERT_FILES, weights))


def require_jiwer() -> Any:
    """Return the module `jiwer`.

    Raises:
        MissingExtra: It is not installed.
    """
    return optional("jiwer", "the word error rate")
