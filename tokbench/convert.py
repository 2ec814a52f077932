"""Turns a checkpoint that would run code when it is read into safetensors, in a process of its own, once the user agrees."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tokbench.errors import UsageError

# Runs in the other process: everything that is a tensor survives, everything else stays behind.
_CHILD = """
import sys
from pathlib import Path
import zipfile
import torch
from safetensors.torch import save_file
source, target, inside = Path(sys.argv[1]), Path(sys.argv[2]), [key for key in sys.argv[3].split("/") if key]
names = zipfile.ZipFile(source).namelist() if zipfile.is_zipfile(source) else []
if any(name.endswith("/constants.pkl") for name in names):
    if inside:
        sys.exit(f"{source.name} is TorchScript, one module without nesting; leave --inside out")
    state = torch.jit.load(source, map_location="cpu").state_dict()
else:
    state = torch.load(source, map_location="cpu", weights_only=False)
for key in inside:
    if not isinstance(state, dict) or key not in state:
        sys.exit(f"no {key!r} in {source.name}")
    state = state[key]
if hasattr(state, "state_dict"):
    state = state.state_dict()
if not isinstance(state, dict):
    sys.exit(f"{source.name} holds a {type(state).__name__}, not a dict")
tensors = {str(key): value.contiguous().clone() for key, value in state.items() if isinstance(value, torch.Tensor)}
nested = [str(key) for key, value in state.items() if isinstance(value, dict) or hasattr(value, "state_dict")]
if not tensors:
    sys.exit(f"no tensors at this level; name one with --inside: {', '.join(nested) or 'none'}")
save_file(tensors, target)
print(len(tensors))
"""


def check_places(source: Path, target: Path) -> None:
    """Raise UsageError when the checkpoint is not there, or the file to write is."""
    if not source.is_file():
        raise UsageError(f"{source}: no such file")
    if target.exists():
        raise UsageError(f"{target} is there already; delete it or name another")


def convert(source: Path, target: Path, inside: str = "") -> int:
    """Write the tensors of a checkpoint as safetensors and return how many there are.

    The file's code runs with the user's rights in the child process: call this only for files that are trusted. The child is
    isolated from this process and from the current directory's modules, not from the machine. Of a TorchScript archive, which
    is known by its content, all parameters and buffers are written, under the names its module gives them.

    Args:
        source: A `.pt`, `.pth`, `.ckpt`, `.bin`, `.th`, `.pkl` or `.jit` file.
        target: The `.safetensors` file to write; appears whole or not at all.
        inside: Keys that lead to the state dict, joined by `/` (`state_dict`, `model/ema`); none in a TorchScript archive.

    Raises:
        UsageError: The file is not there, the target exists, or the checkpoint has no tensors at that place.
    """
    check_places(source, target)
    scratch = target.with_name(f".{target.name}.part")
    words = [sys.executable, "-I", "-c", _CHILD, str(source.resolve()), str(scratch.resolve()), inside]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        scratch.unlink(missing_ok=True)
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UsageError(f"{source.name} was not converted: {last}")
    scratch.replace(target)
    return int(done.stdout.split()[-1])
