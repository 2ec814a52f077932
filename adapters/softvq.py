"""SoftVQ-VAE and MAETok: continuous tokens between two DINOv2-style transformers, set up by the published `config.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from tokbench.spec import Card
from tokbench.types import Weights
from tokbench.weights import WeightsRefused

from .nn.codebooks import CodebookTokenizer, load_tokens
from .nn.network import NetworkTokenizer
from .nn.token_quantizers import SoftMixture, Unquantized
from .nn.vit1d import DINOV2_NAMES, Autoencoder1d, dinov2_layout

UNUSED = (
    "quantize.*codebook_used",
    "repa_model.*",
    "projection.*",
    "encoder.mask_token",
    "encoder.freqs_t_?",
    "decoder.freqs_t_?",
    "decoder.model.patch_embed.*",
)
"""Published keys inference does not need: usage counters, what guided the training, and tables that are computed here."""

_SIZES = frozenset({"encoder", "decoder"})
_MODEL = re.compile(r"vit_(small|base|large)_patch14_dinov2\.lvd142m")


def module_of(card: Card) -> Autoencoder1d:
    """Build the network a card describes.

    `card.architecture` holds `encoder`, `decoder` (sizes), `image_size`, `patch`, `latents`, `channels` of a token,
    `rotary`, `decoder_class`, and `tables`, `table_size`, `tau` of the mixture, without which tokens are not quantized.
    """
    architecture = card.architecture
    channels = int(architecture["channels"])
    layout = replace(
        dinov2_layout(architecture, latents=int(architecture["latents"]), code_channels=channels),
        rotary=bool(architecture.get("rotary", False)),
        decoder_class=bool(architecture.get("decoder_class", True)),
    )
    quantizer: nn.Module = Unquantized()
    if "tables" in architecture:
        tables, size = int(architecture["tables"]), int(architecture["table_size"])
        quantizer = SoftMixture(tables, size, channels, float(architecture["tau"]))
    return Autoencoder1d(layout, quantizer)


def softvq(card: Card, weights: Weights) -> NetworkTokenizer | CodebookTokenizer:
    """Load a SoftVQ checkpoint as the hub mixin of the official repository saves it.

    Args:
        card: `architecture` as `module_of` reads it; `config.json` must agree with it.
        weights: Roles `model` and `config` -> the published files.

    Raises:
        WeightsRefused: The file does not fit, or its configuration is not the card's.
    """
    return _load(_settled(card, weights, mixture=True), weights)


def maetok(card: Card, weights: Weights) -> NetworkTokenizer | CodebookTokenizer:
    """Load a MAETok checkpoint; `config.json` says what it is.

    Args:
        card: `architecture` may fix what `module_of` reads; `config.json` adds the rest.
        weights: Roles `model` and `config` -> the published files.

    Raises:
        WeightsRefused: The file does not fit, or its configuration asks for something this adapter does not build.
    """
    return _load(_settled(card, weights, mixture=False), weights)


def _load(card: Card, weights: Weights) -> NetworkTokenizer | CodebookTokenizer:
    return load_tokens(card, weights, lambda: module_of(card), DINOV2_NAMES, drop=UNUSED)


def _settled(card: Card, weights: Weights, *, mixture: bool) -> Card:
    """Return the card with its architecture completed by the published configuration, or refuse a contradiction."""
    path = weights["config"]
    table = json.loads(path.read_text(encoding="utf-8"))
    table = table.get("config", table)
    try:
        published = described(table, mixture=mixture)
    except (KeyError, ValueError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise WeightsRefused(f"{path} of {card.name} {reason}", "report this card") from error
    wrong = [
        f"{key} {published[key]!r} for {card.architecture[key]!r}"
        for key in sorted(set(published) & set(card.architecture) - _SIZES)
        if published[key] != card.architecture[key]
    ]
    if wrong:
        raise WeightsRefused(f"{path} is not what the card of {card.name} says: {'; '.join(wrong)}", "report this card")
    return replace(card, architecture={**published, **card.architecture})


def described(table: Mapping[str, Any], *, mixture: bool) -> dict[str, Any]:
    """Return the architecture a published configuration (the official `ModelArgs`) describes.

    Raises:
        KeyError: An entry is missing.
        ValueError: It asks for something this adapter does not build; the message says what.
    """
    wanted = {"enc_type": "vit", "dec_type": "vit", "to_pixel": "linear", "dec_patch_size": table["enc_patch_size"]}
    if mixture:
        wanted["codebook_l2_norm"] = True
    if table["use_rope"]:
        wanted["rope_mixed"] = True
    else:
        wanted |= {"use_ape": True, "dec_cls_token": True}
    odd = [f"{key}={table[key]!r}" for key, value in wanted.items() if table[key] != value]
    models = [_MODEL.fullmatch(str(table[key])) for key in ("encoder_model", "decoder_model")]
    odd += [f"{table[key]}" for key, found in zip(("encoder_model", "decoder_model"), models, strict=True) if not found]
    if odd:
        raise ValueError(f"asks for {', '.join(odd)}, which this adapter does not build")
    sizes = [found[1] for found in models if found]
    architecture: dict[str, Any] = {
        "encoder": sizes[0],
        "decoder": sizes[1],
        "image_size": table["image_size"],
        "patch": table["enc_patch_size"],
        "latents": table["num_latent_tokens"],
        "channels": table["codebook_embed_dim"],
        "rotary": bool(table["use_rope"]),
        "decoder_class": bool(table["dec_cls_token"]),
    }
    if mixture:
        architecture |= {"tables": table["num_codebooks"], "table_size": table["codebook_size"], "tau": table["tau"]}
    return architecture
