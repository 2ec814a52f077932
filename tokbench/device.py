"""The compute device: choosing it, pinning its numerics, waiting for it, and reading its memory."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tokbench.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> str:
    """Return `cpu` or `cuda:i` for `auto`, `cpu`, `cuda` or `cuda:i`.

    Raises:
        UsageError: The device does not exist on this machine.
    """
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device("cuda:0" if name == "cuda" else name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: use auto, cpu or cuda:i") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    if device.type not in {"cpu", "cuda"}:
        raise UsageError(f"--device {name}: use auto, cpu or cuda:i")
    return str(device)


def check_dtype(name: str) -> None:
    """Raise UsageError for a dtype no tokenizer is run in."""
    if name not in DTYPES:
        raise UsageError(f"--dtype {name}: choose {', '.join(DTYPES)}")


def move(tokenizer: object, device: str, dtype: str) -> None:
    """Move a tokenizer that holds a torch module, by its `to`; one that is itself a module takes `dtype` by torch's name."""
    if isinstance(tokenizer, torch.nn.Module) and getattr(type(tokenizer), "to", None) is torch.nn.Module.to:
        torch.nn.Module.to(tokenizer, device, DTYPES[dtype])
    elif hasattr(tokenizer, "to"):
        tokenizer.to(device, dtype)


@contextmanager
def evaluating(tokenizer: object) -> Iterator[None]:
    """Hold a tokenizer that is itself a torch module in evaluation mode, and give it back as it was."""
    modules = list(tokenizer.modules()) if isinstance(tokenizer, torch.nn.Module) else []
    before = [module.training for module in modules]
    for module in modules[:1]:
        module.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):  # frozen parts of a module in training stay frozen
            module.training = training


def pin_numerics(threads: int | None = None) -> None:
    """Turn TF32 and autotuning off and set the number of CPU threads; metrics are float32 and float64 whatever runs."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    if threads is not None:
        torch.set_num_threads(threads)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    # Large CPU activations are freed to the system and faulted in again every batch; on glibc keeping them halves that time.
    if sys.platform == "linux" and "TOKBENCH_NO_MALLOPT" not in os.environ:
        try:
            libc = ctypes.CDLL("libc.so.6")
            trim_threshold, top_pad, mmap_threshold = -1, -2, -3
            libc.mallopt(mmap_threshold, 2**31 - 1)
            libc.mallopt(trim_threshold, 2**31 - 1)
            libc.mallopt(top_pad, 64 * 2**20)
        except OSError:
            return


def synchronize(device: str) -> None:
    """Wait until all work queued on a CUDA device is done; nothing to do on the CPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def reset_peak_memory(device: str) -> None:
    """Start a new peak on a CUDA device; a process's resident peak cannot be reset."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: str) -> int:
    """Return the peak of allocated device memory, or of this process's resident memory on the CPU."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_name(device: str) -> str:
    """Return what the device calls itself."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception is a failed allocation, on either device."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
