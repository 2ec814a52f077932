"""Autoencoders of diffusers, images and video, continuous and discrete: arguments in the card, tensors in a file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tokbench.errors import CardError, NotApplicable
from tokbench.spec import Card
from tokbench.types import Code, Neighbours, Stream, Weights
from tokbench.weights import load_state

from .nn.checkpoint import assemble, diffusers_attention, dtype_of, library, place
from .nn.neighbours import TableNeighbours


def _posterior_mode(output: Any) -> Tensor:
    latents: Tensor = output.latent_dist.mode()
    return latents


def _latents(output: Any) -> Tensor:
    latents: Tensor = output.latents
    return latents


def _latent(output: Any) -> Tensor:
    latents: Tensor = output.latent
    return latents


_CLASSES: Mapping[str, Callable[[Any], Tensor]] = MappingProxyType(
    {
        "AutoencoderKL": _posterior_mode,
        "AutoencoderKLFlux2": _posterior_mode,
        "AutoencoderKLWan": _posterior_mode,
        "AsymmetricAutoencoderKL": _posterior_mode,
        "ConsistencyDecoderVAE": _posterior_mode,
        "AutoencoderTiny": _latents,
        "AutoencoderDC": _latent,
    }
)


def _load(card: Card, weights: Weights, known: Collection[str]) -> tuple[Any, str]:
    """Return the filled module a card describes and the name of its class."""
    arguments = dict(card.architecture)
    name = str(arguments.pop("class", ""))
    if name not in known:
        raise CardError(f"{card.name}: architecture.class is {name!r}; this adapter knows {', '.join(known)}")
    (kind,) = library("diffusers", [name], card.name, card.extra or "diffusers")
    path = weights["model"]
    module = assemble(
        lambda: kind(**arguments),
        load_state(path),
        layouts=[diffusers_attention],
        # Batch counters of the DC-AE decoder; inference reads the running statistics only.
        optional=["*.num_batches_tracked"],
        source=str(path),
    )
    return module, name


class DiffusersVAE:
    """An image or video autoencoder of diffusers behind `encode` and `decode`.

    `card.architecture` holds `class` (a class of diffusers named in this file) and that class's constructor arguments;
    no configuration file is read and no hub is called. The latents are the posterior's mode, never a sample, and they
    are what the encoder emits: the shift and scale a diffusion model applies to them are not applied. Tiling and
    slicing are off. `to(..., "float16")` is refused for a checkpoint whose architecture says `force_upcast`. A
    stochastic decoder draws from torch's global generator.

    Args:
        card: The checkpoint's card.
        weights: Role `model` -> a state dict in the class's own key names (older attention names are understood).

    Raises:
        MissingExtra: diffusers is not installed.
        WeightsRefused: The file does not fit the architecture.
        CardError: `class` is not one this adapter knows.
    """

    def __init__(self, card: Card, weights: Weights) -> None:
        self.spec = card.spec
        self._module, name = _load(card, weights, _CLASSES)
        self._read = _CLASSES[name]
        self._upcast = bool(card.architecture.get("force_upcast", False))

    def to(self, device: str, dtype: str) -> None:
        """Move the network. Raises NotApplicable where its activations overflow in float16."""
        if self._upcast and dtype == "float16":
            raise NotApplicable(f"{self.spec.name} overflows in float16; use --dtype float32 or bfloat16")
        place(self._module, device, dtype)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, 3, H, W) or (B, 3, T, H, W) in [-1, 1] to latents (B, C, *grid) in the network's dtype."""
        return Code(latents=self._read(self._module.encode(x.to(dtype_of(self._module)))))

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map latents (B, C, *grid) back to a float32 signal, unclamped where the class itself does not clamp."""
        if code.latents is None:
            raise ValueError(f"{self.spec.name} decodes latents; this code has none")
        signal: Tensor = self._module.decode(code.latents.to(dtype_of(self._module))).sample
        return signal.float()


class DiffusersVQ:
    """`VQModel` of diffusers behind `encode` and `decode`: one codebook over a convolutional grid.

    `card.architecture` holds the constructor's arguments. With `norm_type = "spatial"` the decoder also sees the
    quantized grid in its norms (MoVQ).

    Args:
        card: The checkpoint's card.
        weights: Role `model` -> a state dict in the class's own key names.

    Raises:
        MissingExtra: diffusers is not installed.
        WeightsRefused: The file does not fit the architecture.
    """

    def __init__(self, card: Card, weights: Weights) -> None:
        self.spec = card.spec
        self._module, _ = _load(card, weights, ("VQModel",))

    def to(self, device: str, dtype: str) -> None:
        """Move the network."""
        place(self._module, device, dtype)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Map (B, 3, H, W) in [-1, 1] to indices (B, h, w): the entry at the least Euclidean distance."""
        latents = self._module.encode(x.to(dtype_of(self._module))).latents
        _, _, (_, _, indices) = self._module.quantize(latents)
        grid = (latents.shape[0], *latents.shape[2:])
        return Code((Stream("0", self.spec.codebook_size[0], indices.view(grid)),))

    @torch.no_grad()
    def decode(self, code: Code) -> Tensor:
        """Map indices (B, h, w) back to a float32 signal, unclamped."""
        indices = code.streams[0].indices
        quantized = self._module.quantize.get_codebook_entry(indices.flatten(), (*indices.shape, -1))
        signal: Tensor = self._module.decode(quantized, force_not_quantize=True).sample
        return signal.float()

    def neighbours(self, codebook: str) -> Neighbours:
        """Return what lies near an entry of the table."""
        del codebook
        return TableNeighbours(self._module.quantize.embedding.weight)

    @torch.no_grad()
    def unquantized(self, x: Tensor, codebook: str) -> Tensor:
        """Return what the table is searched with, (B, h, w, D)."""
        del codebook
        latents: Tensor = self._module.encode(x.to(dtype_of(self._module))).latents
        return latents.movedim(1, -1).float()
