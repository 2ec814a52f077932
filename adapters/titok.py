"""TiTok and what grew from it: One-D-Piece, TA-TiTok and TokenSet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from tokbench.spec import Card
from tokbench.types import Neighbours, Weights
from tokbench.weights import load_state

from .nn.checkpoint import assemble, library
from .nn.codebooks import CodebookTokenizer, load_tokens
from .nn.keynames import Rule, published_as
from .nn.maskgit_cnn import Shape
from .nn.network import NetworkTokenizer
from .nn.token_quantizers import Posterior, Table
from .nn.vit1d import Autoencoder1d, Layout, Size, clip_names

SIZES: Mapping[str, Size] = MappingProxyType(
    {"small": Size(512, 8, 8), "base": Size(768, 12, 12), "large": Size(1024, 24, 16)}
)
"""TiTok's transformers."""

_CONTEXT = 77
_START, _END, _PAD = 49406, 49407, 0


def size_of(value: str | Sequence[int]) -> Size:
    """Read a size from a card: the name of one, or [width, depth, heads]."""
    return SIZES[value] if isinstance(value, str) else Size(*value)


def module_of(card: Card) -> Autoencoder1d:
    """Build the network a card describes.

    `card.architecture` holds `encoder`, `decoder` (sizes), `image_size`, `patch`, `latents`, `channels` of a token, `metric`
    of the table (discrete ones), `pixels`, `positions`, `scrambled`, `text` and `pixel_decoder` (see `Layout`); the spec's
    kind and codebook choose the quantizer; the option `tokens` is how many tokens of the code are kept.
    """
    architecture, spec, keep = card.architecture, card.spec, card.options.get("tokens")
    channels = int(architecture["channels"])
    discrete = spec.kind == "discrete"
    pixel = dict(architecture.get("pixel_decoder", {}))
    table = int(pixel.pop("table", 1024))
    text = architecture.get("text")
    layout = Layout(
        style="clip",
        encoder=size_of(architecture["encoder"]),
        decoder=size_of(architecture["decoder"]),
        image_size=int(architecture.get("image_size", 256)),
        patch=int(architecture.get("patch", 16)),
        latents=int(architecture["latents"]),
        code_channels=channels if discrete else 2 * channels,
        embedded_channels=channels,
        positions=architecture.get("positions", "own"),
        scrambled=bool(architecture.get("scrambled", False)),
        pixels=architecture["pixels"],
        text=None if text is None else (int(text[0]), int(text[1])),
        pixel_shape=Shape(**pixel),
        pixel_table=table,
    )
    quantizer: nn.Module = Table(spec.codebook_size[0], channels, architecture["metric"]) if discrete else Posterior()
    return Autoencoder1d(layout, quantizer, keep=None if keep is None else int(keep))


def names(card: Card) -> tuple[Rule, ...]:
    """Return the rules from the module's keys to the published ones."""
    pixel = {key: value for key, value in card.architecture.get("pixel_decoder", {}).items() if key != "table"}
    return clip_names(len(Shape(**pixel).levels))


def titok(card: Card, weights: Weights) -> NetworkTokenizer | CodebookTokenizer:
    """Load a TiTok, One-D-Piece or TokenSet checkpoint.

    The option `tokens`, where a card has it, keeps the first tokens of every code: the encoder writes them all, the
    decoder reads what it is given. Gaussian posteriors give their mean. The official TokenSet shuffles its tokens before
    decoding, which its decoder cannot notice; here they stay in order.

    Args:
        card: `architecture` as `module_of` reads it.
        weights: Role `model` -> the published file, a plain state dict.

    Raises:
        WeightsRefused: The file does not fit.
    """
    return load_tokens(card, weights, lambda: module_of(card), names(card))


# ------------------------------------------------------------------------------------------------------ text-aware


class Captioned(nn.Module):
    """A tokenizer whose decoder reads a text, with the text fixed.

    Args:
        module: The tokenizer.
        caption: (1, T, C) hidden states of the text.
    """

    caption: Tensor

    def __init__(self, module: Autoencoder1d, caption: Tensor) -> None:
        super().__init__()
        self._module = module
        self.register_buffer("caption", caption)

    def encode(self, x: Tensor) -> Tensor:
        """Map (B, 3, S, S) to a code; the encoder does not see the text."""
        return self._module.encode(x)

    def decode(self, code: Tensor) -> Tensor:
        """Map a code to (B, 3, S, S) under the caption."""
        return self._module.decode(code, self.caption.expand(len(code), -1, -1))

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of the table."""
        return self._module.neighbours(codebook)

    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return what the quantizer saw of the images, (B, N, C)."""
        return self._module.unquantized(x, codebook)


def ta_titok(card: Card, weights: Weights) -> NetworkTokenizer | CodebookTokenizer:
    """Load a TA-TiTok checkpoint with the text encoder its decoder listens to, and decode under the empty caption.

    The text states are those of CLIP ViT-L/14-336 at all 77 positions after its last norm; an empty caption is the start
    token, the end token and zeros, as the official code pads. They are computed once.

    Args:
        card: `architecture` as `module_of` reads it, with `text`, and `text_encoder`, the arguments of
            `transformers.CLIPTextConfig`.
        weights: Roles `model` and `text` -> the published file; a CLIP state dict in transformers' key names.

    Raises:
        MissingExtra: transformers is not installed.
        WeightsRefused: A file does not fit.
    """
    path = weights["model"]
    layouts = [published_as(names(card))]
    module = assemble(lambda: module_of(card), load_state(path), layouts=layouts, source=str(path))
    captioned = Captioned(module, empty_caption(card, weights)).eval()
    network = NetworkTokenizer(card.spec, captioned)
    return CodebookTokenizer(network, captioned) if card.spec.kind == "discrete" else network


def empty_caption(card: Card, weights: Weights) -> Tensor:
    """Return the text states (1, 77, C) of an empty caption."""
    config_kind, model_kind = library(
        "transformers", ["CLIPTextConfig", "CLIPTextModel"], card.name, card.extra or "transformers"
    )
    config: Any = config_kind(**card.architecture["text_encoder"])
    path = weights["text"]
    state = {key: value for key, value in load_state(path).items() if key.startswith("text_model.")}
    model: Any = assemble(
        lambda: model_kind(config),
        state,
        layouts=[_without_prefix],
        drop=["*position_ids"],
        source=str(path),
    )
    tokens = torch.full((1, _CONTEXT), _PAD)
    tokens[0, 0], tokens[0, 1] = _START, _END
    with torch.no_grad():
        states: Tensor = model(input_ids=tokens).last_hidden_state
    return states


def _without_prefix(state: Mapping[str, Tensor], wanted: Any) -> dict[str, Tensor]:
    """Drop `text_model.` where the installed transformers has the text model at the top."""
    if any(key.startswith("text_model.") for key in wanted):
        return dict(state)
    return {key.removeprefix("text_model."): value for key, value in state.items()}
