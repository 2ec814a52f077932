"""Where weights come from (override, `TOKBENCH_WEIGHTS`, package, Hugging Face cache, download) and how they are read.

Torch is imported only by the functions that return or take tensors; nothing here ever unpickles code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from platformdirs import user_cache_path

from tokbench.errors import MissingExtra, NotAvailable, TokbenchError, UsageError, WeightsAbsent, install_command
from tokbench.spec import WeightFile, digest

if TYPE_CHECKING:
    from torch import Tensor, nn

ALL_ROLES = "*"
"""The key of `overrides` that holds for every role, as `name?weights=/path` means it."""

_NO_OVERRIDES: Mapping[str, Path] = MappingProxyType({})
NOWHERE = "no place: TOKBENCH_WEIGHTS is not set"
OFFLINE = "offline"
ONLINE = "run again without --offline and HF_HUB_OFFLINE"
"""What is said of a file that may not be downloaded now, and what to do."""

_TIMEOUT = 10.0
_PROBE = 5.0
_CHUNK = 1 << 20
_NAMED = 10
_PICKLES = frozenset({".pt", ".pth", ".ckpt", ".bin", ".th", ".pkl"})


class WeightsRefused(NotAvailable):
    """A weight file is here but is not used: wrong digest, wrong keys, or a pickle that wants to run code."""

    state = "weights refused"


@dataclass(frozen=True)
class MissingFile:
    """A weight file that is not on this machine.

    Attributes:
        file: What was looked for.
        looked_in: Every place that was tried, in order.
        fix: The commands and paths that provide it.
    """

    file: WeightFile
    looked_in: tuple[str, ...]
    fix: str


# ---------------------------------------------------------------------------------------------------- finding files


def resolve(
    files: Sequence[WeightFile],
    *,
    owner: str,
    offline: bool,
    overrides: Mapping[str, Path] = _NO_OVERRIDES,
    cache: Path | None = None,
) -> dict[str, Path]:
    """Return role -> local file for every weight file, downloading what is absent unless `offline`.

    Looked for, in this order: `overrides`; `$TOKBENCH_WEIGHTS/<hub id>/<file>`, `$TOKBENCH_WEIGHTS/<owner>/<file>` and,
    where the digest is known or the file has no hub, `$TOKBENCH_WEIGHTS/<file>`; the package that carries it; the
    Hugging Face cache at its revision; earlier downloads; the hub or the URL. Where `HF_HUB_OFFLINE` is set, nothing is
    downloaded.

    Args:
        files: The `weights` of a card.
        owner: The tokenizer or metric they belong to, for messages and for `$TOKBENCH_WEIGHTS/<owner>`.
        offline: Never use the network.
        overrides: Role (or `*` for every role) -> file, or directory laid out as the hub repository is. Binding:
            nothing else is tried for a role that has one.
        cache: Where downloads from URLs and digests are kept; by default the user's cache directory.

    Raises:
        WeightsAbsent: A file is nowhere and cannot be downloaded; `fix` names the commands and paths that provide it.
        WeightsRefused: A file's size or sha256 is not the one the card names.
        UsageError: An override or `TOKBENCH_WEIGHTS` points to nothing.
    """
    found: dict[str, Path] = {}
    absent: list[tuple[MissingFile, str]] = []
    for file in files:
        path, looked_in = _locate(file, owner, overrides, cache, many=len(files) > 1)
        cause = ""
        if path is None:
            path, cause = _download(file, offline, cache)
        if path is None:
            absent.append((MissingFile(file, looked_in, _fix(file, owner, offline)), cause))
        else:
            _check(file, path, cache)
            found[file.role] = path
    if absent:
        parts = [f"{_origin(gap.file)} ({cause})" for gap, cause in absent]
        places = list(dict.fromkeys(place for gap, _ in absent for place in gap.looked_in))
        message = f"{owner} needs {', '.join(parts)}; looked in {', '.join(places) or NOWHERE}"
        raise WeightsAbsent(message, "\n".join(dict.fromkeys(gap.fix for gap, _ in absent)))
    return found


def missing(
    files: Sequence[WeightFile],
    *,
    owner: str,
    overrides: Mapping[str, Path] = _NO_OVERRIDES,
    cache: Path | None = None,
) -> tuple[MissingFile, ...]:
    """Return the files that are not on this machine, without using the network or reading any file.

    Raises:
        UsageError: An override or `TOKBENCH_WEIGHTS` points to nothing.
    """
    gaps: list[MissingFile] = []
    for file in files:
        path, looked_in = _locate(file, owner, overrides, cache, many=len(files) > 1)
        if path is None:
            gaps.append(MissingFile(file, looked_in, _fix(file, owner, offline=False)))
    return tuple(gaps)


def _locate(
    file: WeightFile, owner: str, overrides: Mapping[str, Path], cache: Path | None, *, many: bool
) -> tuple[Path | None, tuple[str, ...]]:
    override = overrides.get(file.role, overrides.get(ALL_ROLES))
    if override is not None:
        alone = file.role in overrides or not many
        return _in_override(file, Path(override), owner, alone), ()
    looked_in: list[str] = []
    for place, candidate in _candidates(file, owner, cache):
        if candidate is not None and candidate.is_file():
            return candidate, ()
        looked_in.append(place)
    return None, tuple(looked_in)


def _in_override(file: WeightFile, path: Path, owner: str, alone: bool) -> Path:
    if path.is_file():
        if alone:
            return path
        raise UsageError(
            f"{owner}: weights={path} is one file, but several are needed; give the directory that holds them"
        )
    if not path.is_dir():
        raise UsageError(f"{owner}: weights={path}: no such file or directory")
    names = [file.file, Path(file.file).name, *([f"{file.hub}/{file.file}"] if file.hub else [])]
    for name in names:
        if (path / name).is_file():
            return path / name
    raise UsageError(f"{owner}: weights={path} holds no {' nor '.join(dict.fromkeys(names))}")


def _candidates(file: WeightFile, owner: str, cache: Path | None) -> Iterable[tuple[str, Path | None]]:
    root = os.environ.get("TOKBENCH_WEIGHTS")
    if root:
        base = Path(root).expanduser()
        if not base.is_dir():
            raise UsageError(f"TOKBENCH_WEIGHTS={root} is not a directory")
        if file.hub:
            yield str(base / file.hub / file.file), base / file.hub / file.file
        yield str(base / owner / file.file), base / owner / file.file
        # Hub repositories share file names (`model.safetensors`): a bare one is only safe with a digest to check it by.
        if file.sha256 or not file.hub:
            yield str(base / file.file), base / file.file
    if file.package:
        yield f"package {file.package}", _in_package(file)
    if file.hub:
        yield f"the Hugging Face cache {_hub_cache()}", _in_hub_cache(file)
    if file.url:
        yield str(_url_path(file.url, cache)), _url_path(file.url, cache)


def _in_package(file: WeightFile) -> Path | None:
    try:
        spec = importlib.util.find_spec(str(file.package))
    except ModuleNotFoundError:
        return None
    roots = spec.submodule_search_locations if spec else None
    return next((Path(root) / file.file for root in roots or () if (Path(root) / file.file).is_file()), None)


def _hub_cache() -> Path:
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(home).expanduser() / "hub"


def _in_hub_cache(file: WeightFile) -> Path | None:
    repository = _hub_cache() / f"models--{str(file.hub).replace('/', '--')}"
    revision = file.revision or "main"
    reference = repository / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    path = repository / "snapshots" / commit / file.file
    return path if path.is_file() else None


def _origin(file: WeightFile) -> str:
    if file.hub:
        return f"{file.file} of {file.hub}" + (f" at {file.revision}" if file.revision else "")
    origin = file.package or file.url
    return f"{file.file} of {origin}" if origin else file.file


def _fix(file: WeightFile, owner: str, offline: bool) -> str:
    steps = [ONLINE] if offline and (file.hub or file.url) else []
    if file.hub:
        at = f" --revision {file.revision}" if file.revision else ""
        steps += [
            f"`hf download {file.hub} {file.file}{at}` (gated repositories: accept the terms, then `hf auth login`)",
            f"or put it at $TOKBENCH_WEIGHTS/{file.hub}/{file.file}",
        ]
    elif file.url:
        steps += [f"download {file.url} to $TOKBENCH_WEIGHTS/{owner}/{file.file}"]
    elif file.package:
        steps += [f"install the package that provides {file.package}"]
    else:
        steps += [f"put it at $TOKBENCH_WEIGHTS/{owner}/{file.file}"]
    return ", ".join([*steps, f"or name it: `{owner}{'&' if '?' in owner else '?'}weights=/path/to/file-or-directory`"])


# ------------------------------------------------------------------------------------------------------- downloads


def _download(file: WeightFile, offline: bool, cache: Path | None) -> tuple[Path | None, str]:
    if not (file.hub or file.url):
        return None, "no hub carries it"
    if offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return None, OFFLINE
    try:
        return (_from_hub(file) if file.hub else _from_url(file, cache)), ""
    except TokbenchError:
        raise
    # Whatever a network, a proxy or a hub answers, the state is the same: the file is not here, and this is why.
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")
        return None, f"download failed: {type(error).__name__}: {first[:200]}"


def _from_hub(file: WeightFile) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError as error:
        needed = f"downloading {_origin(file)} needs huggingface_hub"
        raise MissingExtra(needed, install_command("hf")) from error
    _probe(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    path: str = hf_hub_download(
        str(file.hub), file.file, revision=file.revision, cache_dir=_hub_cache(), etag_timeout=_TIMEOUT
    )
    return Path(path)


def _probe(address: str) -> None:
    # The hub's client repeats a failed request for half a minute; without a network that is too long for each tokenizer.
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_PROBE):  # noqa: S310
            return
    except urllib.error.HTTPError:
        return


def _from_url(file: WeightFile, cache: Path | None) -> Path:
    url = str(file.url)
    if not url.startswith(("https://", "http://")):
        raise UsageError(f"{url}: weights are fetched from http and https addresses only")
    target = _url_path(url, cache)

    def fetch(temporary: Path) -> None:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, temporary.open("wb") as out:  # noqa: S310
            expected = answer.headers.get("Content-Length")
            while block := answer.read(_CHUNK):
                out.write(block)
        if expected is not None and temporary.stat().st_size != int(expected):
            raise OSError(f"{temporary.stat().st_size} of {expected} bytes arrived")
        _check(file, temporary, None, keep=False, shown=url)

    _write_atomically(target, fetch)
    return target


def _url_path(url: str, cache: Path | None) -> Path:
    place, _, query = url.partition("?")
    name = place.rstrip("/").rsplit("/", 1)[-1] or "file"
    # Of an address such as `models?id=v1/net.pt&src=0` the file is in the query, and its suffix says how to read it.
    inner = query.partition("&")[0].rpartition("/")[2]
    name = inner if "." not in name and "." in inner else name
    return _cache(cache) / "weights" / hashlib.sha256(url.encode()).hexdigest()[:16] / name


def _cache(cache: Path | None) -> Path:
    return cache if cache is not None else user_cache_path("tokbench")


def _write_atomically(target: Path, write: Callable[[Path], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------------------- digests


def file_digest(path: Path, *, cache: Path | None = None) -> str:
    """Return the sha256 (64 hex digits) of a file, remembered by its path, size and modification time."""
    stat = path.stat()
    fingerprint = [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
    note = _cache(cache) / "digests" / f"{digest(fingerprint)[:32]}.json"
    with suppress(OSError, ValueError):
        stored = json.loads(note.read_text())
        if stored["file"] == fingerprint:
            return str(stored["sha256"])
    sha256 = _sha256(path)
    # A cache that cannot be written costs time at the next run, nothing else.
    with suppress(OSError):
        _write_atomically(note, lambda temporary: _dump(temporary, {"file": fingerprint, "sha256": sha256}))
    return sha256


def weights_digest(paths: Mapping[str, Path], *, cache: Path | None = None) -> str:
    """Return one digest over role -> sha256: what a tokenizer's content key holds about its weights."""
    return digest({role: file_digest(path, cache=cache) for role, path in paths.items()})


def _dump(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check(file: WeightFile, path: Path, cache: Path | None, *, keep: bool = True, shown: str = "") -> None:
    where, size = shown or str(path), path.stat().st_size
    fix = f"remove {where} and fetch it again" if not shown else "report the address: what it serves has changed"
    fix += "; to evaluate other weights on purpose, copy the card to a file of your own and change its sha256"
    if file.size is not None and size != file.size:
        raise WeightsRefused(f"{where} has {size} bytes where {_origin(file)} has {file.size}", fix)
    if file.sha256 is None:
        return
    actual = file_digest(path, cache=cache) if keep else _sha256(path)
    if actual != file.sha256.lower():
        raise WeightsRefused(f"{where} has sha256 {actual} where {_origin(file)} has {file.sha256.lower()}", fix)


# ------------------------------------------------------------------------------------------------- tensors, modules


def load_state(path: Path, *, inside: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint file, on the CPU, memory-mapped where the format allows it.

    Args:
        path: A `.safetensors` file, or a `.pt`, `.pth`, `.ckpt`, `.bin`, `.th` or `.pkl` file of tensors.
        inside: Keys that lead to the state dict in a file that nests it (`("state_dict",)`). A safetensors file cannot nest,
            so for one that `tokbench convert` wrote they do not apply.

    Raises:
        WeightsRefused: The file would have to run code to be read, is damaged, or holds no flat dict of tensors.
    """
    import torch

    state: Any
    if path.suffix == ".safetensors":
        state = _load_safetensors(path)
    elif path.suffix in _PICKLES:
        state = _load_pickle(path)
    elif path.suffix == ".jit":
        raise WeightsRefused(
            f"{path} is TorchScript, a program, and tokbench never runs code from a weight file",
            f"where you trust it, `tokbench convert {path} {path.stem}.safetensors` reads it in another process and writes its "
            f"tensors; name them with `?weights={path.stem}.safetensors`",
        )
    else:
        known = ", ".join(sorted({".safetensors", *_PICKLES}))
        raise WeightsRefused(
            f"{path}: unknown kind of weight file {path.suffix!r}", f"name a file that ends in {known}"
        )
    for key in inside if path.suffix != ".safetensors" else ():
        if not isinstance(state, Mapping) or key not in state:
            raise WeightsRefused(f"{path} holds no {key!r}", "compare the card's nesting with the file's keys")
        state = state[key]
    if not isinstance(state, Mapping):
        raise WeightsRefused(f"{path} holds a {type(state).__name__}", "name a checkpoint that holds a dict of tensors")
    odd = [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise WeightsRefused(
            f"{path} holds more than tensors: {_names(odd)}", "say in the card which of them is the state"
        )
    return {str(key): value for key, value in state.items()}


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except SafetensorError as error:
        raise WeightsRefused(f"{path} is not a readable safetensors file: {error}", "fetch the file again") from error


def _load_pickle(path: Path) -> Any:
    import pickle
    import zipfile

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, AttributeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise WeightsRefused(
            f"{path} cannot be read as plain tensors, and tokbench never runs the code inside a pickle: {reason[:300]}",
            f"where you trust the file, `tokbench convert {path.name}` reads it in another process and writes safetensors",
        ) from error


def load_into(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    prefix: str = "",
    drop: Sequence[str] = (),
    optional: Sequence[str] = (),
    source: str = "the checkpoint",
) -> None:
    """Put a state dict into a module, which may lie on the meta device, then freeze it and set it to eval.

    Tensors are taken over, not copied, unless the module has them in another dtype.

    Args:
        module: Whose parameters and persistent buffers are replaced.
        state: Key -> tensor.
        prefix: Only keys that start with it are used, without it.
        drop: Glob patterns of keys, after the prefix, that inference does not need.
        optional: Glob patterns of the module's keys that may be missing; they keep the constructor's value.
        source: What to call the checkpoint in messages.

    Raises:
        WeightsRefused: Keys are missing, unexpected or of another shape; the first ten are named.
    """
    own = module.state_dict()
    given = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    given = {key: value for key, value in given.items() if key in own or not _matches(key, drop)}
    absent = [key for key in own if key not in given and not _matches(key, optional)]
    extra = [key for key in given if key not in own]
    shapes = [
        f"{key} {tuple(value.shape)} for {tuple(own[key].shape)}"
        for key, value in given.items()
        if key in own and value.shape != own[key].shape
    ]
    problems = [
        f"{len(found)} {what}: {_names(found)}"
        for what, found in (("keys missing", absent), ("keys unexpected", extra), ("tensors of another shape", shapes))
        if found
    ]
    if problems:
        name = type(module).__name__
        raise WeightsRefused(
            f"{source} does not fit {name}: {'; '.join(problems)}",
            "check that the file belongs to this card and that the card's architecture is that of the checkpoint",
        )
    module.load_state_dict({k: v.to(own[k].dtype) for k, v in given.items()}, strict=False, assign=True)
    hollow = [key for key, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if hollow:
        raise WeightsRefused(
            f"{source} left {type(module).__name__} without values for {_names(hollow)}", "report this card"
        )
    module.requires_grad_(False).eval()


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _names(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return ", ".join(keys[:_NAMED]) + more
