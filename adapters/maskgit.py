"""MaskGIT's VQGAN and its descendants: MAGE, VQGAN+ and MaskBit."""

from __future__ import annotations

from torch import nn

from tokbench.spec import Card
from tokbench.types import Weights

from .nn.codebooks import CodebookTokenizer, load_tokens
from .nn.keynames import Rule
from .nn.maskgit_cnn import Shape, SignAutoencoder, TableAutoencoder, naming
from .nn.network import NetworkTokenizer


def shape_of(card: Card) -> Shape:
    """Read `channels`, `multipliers`, `blocks`, `latent_channels`, `strided` from `card.architecture`."""
    known = {key: value for key, value in card.architecture.items() if key in Shape.__dataclass_fields__}
    if "multipliers" in known:
        known["multipliers"] = tuple(known["multipliers"])
    return Shape(**known)


def module_of(card: Card) -> nn.Module:
    """Build the network a card describes: a table of `spec.codebook_size`, or signs where `quantizer` says so."""
    shape = shape_of(card)
    if card.architecture.get("quantizer") == "signs":
        return SignAutoencoder(shape)
    return TableAutoencoder(shape, card.spec.codebook_size[0])


def names(card: Card) -> tuple[Rule, ...]:
    """Return the rules from the module's keys to the published ones."""
    return naming(str(card.architecture["keys"]), len(shape_of(card).levels))


def maskgit(card: Card, weights: Weights) -> NetworkTokenizer | CodebookTokenizer:
    """Load a checkpoint of this family.

    Args:
        card: `architecture` holds the sizes (`tokbench.adapters.nn.maskgit_cnn.Shape`), `keys` (a key layout, see
            `naming`) and, for MaskBit, `quantizer = "signs"`.
        weights: Role `model` -> the published file, a plain state dict or one under `state_dict`.

    Raises:
        WeightsRefused: The file does not fit.
    """
    return load_tokens(
        card,
        weights,
        lambda: module_of(card),
        names(card),
        inside=((), ("state_dict",)),
        # Tables of powers of two and of all signs, which MaskBit's official code stores and this one computes.
        drop=["quantize.bits_to_indices", "quantize.codebook"] if card.architecture.get("quantizer") else [],
    )
