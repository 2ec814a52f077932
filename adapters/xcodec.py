"""X-Codec (Ye et al. 2024, arXiv 2408.17175) and Higgs Audio's tokenizer, one design, through transformers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Code, Weights
from tokbench.weights import load_state

from .nn.audio_codes import parallel_streams, stacked_indices
from .nn.audio_resample import resampled
from .nn.checkpoint import assemble, dtype_of, library, place, weight_norm


class Xcodec:
    """A HuBERT or WavLM branch beside a DAC encoder, quantized together; one stream for each of the first K codebooks.

    `card.architecture` holds the arguments of `XcodecConfig`, or with `model_type = "higgs_audio_v2_tokenizer"` those of
    `HiggsAudioV2TokenizerConfig`; the option `bandwidth` (kbit/s) chooses K as floor(bandwidth / (bits of a codebook x frame
    rate)). The semantic branch sees the whole clip, so padding changes every token a little. The library's own Higgs class
    imports torchaudio for one resampler; here it is X-Codec's class with Higgs's codebooks and semantic branch.

    Args:
        card: The checkpoint's card.
        weights: Role `model` -> a state dict in transformers' key names, the semantic model included.

    Raises:
        MissingExtra: transformers is not installed or too old.
        WeightsRefused: The file does not fit the architecture.
    """

    def __init__(self, card: Card, weights: Weights) -> None:
        arguments = dict(card.architecture)
        higgs = arguments.pop("model_type", "xcodec") == "higgs_audio_v2_tokenizer"
        config_name = "HiggsAudioV2TokenizerConfig" if higgs else "XcodecConfig"
        config_kind, model_kind = library(
            "transformers", [config_name, "XcodecModel"], card.name, card.extra or "transformers"
        )
        config: Any = config_kind(**arguments)
        path = weights["model"]
        self._module: Any = assemble(
            lambda: for_inference(model_kind(config), projected=higgs),
            load_state(path),
            layouts=[weight_norm],
            drop=["decoder_semantic.*", "fc1.*", "*masked_spec_embed"],
            optional=["*.codebook.inited", "*.codebook.cluster_size", "*.codebook.embed_avg", "*masked_spec_embed"],
            source=str(path),
        )
        if higgs:
            self._module._extract_semantic_features = self._semantic_features
        self._bandwidth = float(card.options.get("bandwidth", config.target_bandwidths[-1]))
        self._hop = int(config.hop_length)
        self._size = int(config.codebook_size)
        self._count = int(self._module.quantizer.get_num_quantizers_for_bandwidth(self._bandwidth))
        self.spec = replace(
            card.spec,
            codebook_size=(self._size,) * self._count,
            token_rate=self._count * config.sample_rate / self._hop,
        )

    def to(self, device: str, dtype: str) -> None:
        """Move the network."""
        place(self._module, device, dtype)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, 1, T) in [-1, 1], T a multiple of the hop, to K streams of indices (B, T / hop)."""
        if x.shape[-1] % self._hop:
            raise ValueError(f"{self.spec.name} takes multiples of {self._hop} samples, not {x.shape[-1]}")
        out = self._module.encode(x.to(dtype_of(self._module)), bandwidth=self._bandwidth)
        return Code(parallel_streams(out.audio_codes, self._size))

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map a code to (B, 1, frames x hop) float32.

        Raises:
            ValueError: The code has another number of streams.
        """
        signal: Tensor = self._module.decode(stacked_indices(code, self._count, self.spec.name)).audio_values
        return signal.float()

    def _semantic_features(self, x: Tensor) -> Tensor:
        """Average the semantic model's hidden states at its own rate; (B, 1, T) to (B, frames, D)."""
        config = self._module.config
        low = resampled(x[:, 0], config.sample_rate, config.semantic_sample_rate)
        states = self._module.semantic_model(
            torch.nn.functional.pad(low, (160, 160)), output_hidden_states=True
        ).hidden_states
        mean = torch.stack(states, dim=1).mean(dim=1)
        return mean[:, :: max(1, config.semantic_downsample_factor)]


class ProjectedCodebook(nn.Module):
    """Higgs's quantizer: a Euclidean codebook behind a projection down, and one up after the look-up."""

    def __init__(self, codebook: Any, wide: int, narrow: int) -> None:
        super().__init__()
        self.codebook = codebook
        self.project_in = nn.Linear(wide, narrow)
        self.project_out = nn.Linear(narrow, wide)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, D, T) to indices (B, T)."""
        indices: Tensor = self.codebook.encode(self.project_in(x.transpose(1, 2)))
        return indices

    def decode(self, indices: Tensor) -> Tensor:
        """Map (B, T) to (B, D, T)."""
        vectors: Tensor = self.project_out(self.codebook.decode(indices))
        return vectors.transpose(1, 2)


def for_inference(module: Any, *, projected: bool) -> Any:
    """Leave out what only the semantic loss reads, and put Higgs's projections around the codebooks if `projected`."""
    module.decoder_semantic, module.fc1 = nn.Identity(), nn.Identity()
    if projected:
        config, layers = module.config, module.quantizer.quantizers
        for index, layer in enumerate(layers):
            layers[index] = ProjectedCodebook(layer.codebook, config.hidden_size, config.codebook_dim)
    return module
