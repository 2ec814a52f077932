"""Builds a library's module around a checkpoint, in whichever key layout it was saved, and moves it to a device."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from tokbench.errors import MissingExtra, UsageError, install_command
from tokbench.spec import Card
from tokbench.types import Weights
from tokbench.undrawn import Undrawn
from tokbench.weights import load_into, load_state

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
)

State = Mapping[str, Tensor]
Layout = Callable[[State, Collection[str]], dict[str, Tensor]]
"""Renames (and, where it must, recomputes) a checkpoint's tensors for a module with the given state-dict keys."""

_OLD_ATTENTION = MappingProxyType({"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"})
_ATTENTION_KEY = re.compile(r"(?P<block>.*attentions\.\d+)\.(?P<name>query|key|value|proj_attn)\.(?P<kind>weight|bias)")


class _EmptyOnMeta(Undrawn):
    """Sends `torch.empty`, the storage that carries no value yet, to the meta device; what has a value stays real.

    Buffers that are computed in a constructor and not saved (strides, rotary frequencies) therefore keep their values,
    which building everything under `torch.device("meta")` would lose.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return super().__torch_function__(func, types, args, kwargs)


def skeleton(make: Callable[[], Any]) -> Any:
    """Build a module without allocating its parameters and without advancing the global random generator."""
    with torch.random.fork_rng(devices=[]), _EmptyOnMeta():
        return make()


def assemble(
    make: Callable[[], Any],
    state: State,
    *,
    layouts: Sequence[Layout] = (),
    drop: Sequence[str] = (),
    optional: Sequence[str] = (),
    source: str = "the checkpoint",
) -> Any:
    """Build a module, fill it from a state dict and freeze it.

    Args:
        make: Calls the library's constructor.
        state: The checkpoint.
        layouts: Applied to the checkpoint in order, for files written by other releases of the library.
        drop: Globs of checkpoint keys that inference does not need.
        optional: Globs of module keys that a checkpoint may lack.
        source: What to call the checkpoint in messages.

    Raises:
        WeightsRefused: Keys or shapes do not fit.
    """
    module = skeleton(make)
    wanted = module.state_dict().keys()
    for layout in layouts:
        state = layout(state, wanted)
    load_into(module, state, drop=drop, optional=optional, source=source)
    return module


def place(module: nn.Module, device: str, dtype: str) -> None:
    """Move a module. `dtype` is float32, bfloat16 or float16; anything else is a UsageError."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    # Not the library's own `to`: diffusers warns there of layers that none of these networks has.
    nn.Module.to(module, device=torch.device(device), dtype=DTYPES[dtype])


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the dtype of the module's parameters."""
    return next(module.parameters()).dtype


def library(name: str, members: Sequence[str], owner: str, extra: str) -> tuple[Any, ...]:
    """Return members of an optional library, imported now.

    Raises:
        MissingExtra: It is not installed, too old, or cannot be imported beside the other packages of this environment.
    """
    fix = install_command(extra)
    try:
        with warnings.catch_warnings():  # what a library deprecates of its own is no news to who runs it here
            warnings.simplefilter("ignore")
            module = importlib.import_module(name)
        return tuple(getattr(module, member) for member in members)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{owner} needs {error.name}", fix) from error
    # A broken neighbour (a torchaudio built for another torch) surfaces as any of these, far from its cause.
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise MissingExtra(f"{owner}: {name} cannot be imported: {reason[:300]}", fix) from error


def transformers_model(
    card: Card,
    weights: Weights,
    config: str,
    model: str,
    arguments: Mapping[str, Any],
    *,
    layouts: Sequence[Layout] = (),
    drop: Sequence[str] = (),
    optional: Sequence[str] = (),
    change: Callable[[Any], Any] = lambda module: module,
) -> Any:
    """Build a model of transformers from `arguments` of its configuration and fill it from the file of role `model`.

    Args:
        card: The checkpoint's card.
        weights: Role `model` -> a state dict.
        config: Name of the configuration's class.
        model: Name of the model's class.
        arguments: Of the configuration, which the model returned holds as `config`.
        layouts: As of `assemble`.
        drop: As of `assemble`.
        optional: As of `assemble`.
        change: Makes what is filled of the model as the library builds it.

    Raises:
        MissingExtra: transformers is not installed or too old.
        WeightsRefused: The file does not fit the architecture.
    """
    config_kind, model_kind = library("transformers", [config, model], card.name, card.extra or "transformers")
    settings = config_kind(**arguments)
    path = weights["model"]
    return assemble(
        lambda: change(model_kind(settings)),
        load_state(path),
        layouts=layouts,
        drop=drop,
        optional=optional,
        source=str(path),
    )


def diffusers_attention(state: State, wanted: Collection[str]) -> dict[str, Tensor]:
    """Rename the attention keys of VAEs saved by early diffusers (`query` -> `to_q`); 1x1 kernels are flattened."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        match = _ATTENTION_KEY.fullmatch(key)
        renamed = f"{match['block']}.{_OLD_ATTENTION[match['name']]}.{match['kind']}" if match else key
        is_old = match is not None and key not in wanted and renamed in wanted
        out[renamed if is_old else key] = value.flatten(1) if is_old and value.ndim == 4 else value
    return out


def weight_norm(state: State, wanted: Collection[str]) -> dict[str, Tensor]:
    """Bring weight-normalised tensors to the form the module has: `weight_g`/`weight_v`, parametrizations, or folded.

    Folding computes g * v / ||v||, the norm taken over all axes but the first, as `torch.nn.utils.weight_norm` does.
    """
    out = dict(state)
    for key in state:
        for gain, direction in (
            ("weight_g", "weight_v"),
            ("parametrizations.weight.original0", "parametrizations.weight.original1"),
        ):
            stem = key.removesuffix(f".{gain}")
            if stem == key or key in wanted or f"{stem}.{direction}" not in state:
                continue
            g, v = out.pop(key), out.pop(f"{stem}.{direction}")
            if f"{stem}.parametrizations.weight.original0" in wanted:
                out[f"{stem}.parametrizations.weight.original0"] = g
                out[f"{stem}.parametrizations.weight.original1"] = v
            elif f"{stem}.weight_g" in wanted:
                out[f"{stem}.weight_g"], out[f"{stem}.weight_v"] = g, v
            else:
                out[f"{stem}.weight"] = torch._weight_norm(v, g, 0)
    return out
