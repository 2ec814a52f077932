"""X-Codec (Ye et al. 2024, arXiv 2408.17175) and Higgs Audio's tokenizer, one design, through transformers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Weights

from .nn.checkpoint import transformers_model, weight_norm
from .nn.codec import CodebookCodec
from .nn.resample import resampled


def tokenizer(card: Card, weights: Weights) -> CodebookCodec:
    """Build a HuBERT or WavLM branch beside a DAC encoder, quantized together; one stream for each of the first K codebooks.

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
    arguments = dict(card.architecture)
    higgs = arguments.pop("model_type", "xcodec") == "higgs_audio_v2_tokenizer"
    module = transformers_model(
        card,
        weights,
        "HiggsAudioV2TokenizerConfig" if higgs else "XcodecConfig",
        "XcodecModel",
        arguments,
        layouts=[weight_norm],
        drop=["decoder_semantic.*", "fc1.*", "*masked_spec_embed"],
        optional=["*.codebook.inited", "*.codebook.cluster_size", "*.codebook.embed_avg", "*masked_spec_embed"],
        change=partial(for_inference, projected=higgs),
    )
    if higgs:
        module._extract_semantic_features = partial(semantic_features, module)
    config = module.config
    bandwidth, hop = float(card.options.get("bandwidth", config.target_bandwidths[-1])), int(config.hop_length)
    count = int(module.quantizer.get_num_quantizers_for_bandwidth(bandwidth))
    sizes = (int(config.codebook_size),) * count
    return CodebookCodec(
        replace(card.spec, codebook_size=sizes, token_rate=count * config.sample_rate / hop),
        module,
        encode=lambda x: module.encode(x, bandwidth=bandwidth).audio_codes,
        decode=lambda indices: module.decode(indices).audio_values,
        hop=hop,
    )


Xcodec = tokenizer
"""What the cards name as their target, which is part of the identity of stored results."""


def semantic_features(module: Any, x: Tensor) -> Tensor:
    """Average the semantic model's hidden states at its own rate; (B, 1, T) to (B, frames, D)."""
    config = module.config
    low = resampled(x[:, 0], config.sample_rate, config.semantic_sample_rate)
    states = module.semantic_model(torch.nn.functional.pad(low, (160, 160)), output_hidden_states=True).hidden_states
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
