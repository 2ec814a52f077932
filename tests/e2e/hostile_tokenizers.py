"""Tokenizers that misbehave on purpose, for the engine's tests; what they do is chosen by environment variables."""

import os
import signal
import time
from pathlib import Path

import torch

from tokbench import store
from tokbench.spec import TokenizerSpec
from tokbench.types import Code


class _Identity:
    def __init_subclass__(cls):
        if "spec" not in vars(cls):
            cls.spec = TokenizerSpec(cls.__name__.lower(), "image", "none")

    def encode(self, x):
        return Code(side={"x": x})

    def decode(self, code):
        return code.side["x"]


class KilledAtEncode(_Identity):
    """Kills its process with SIGKILL at the n-th call of encode, n from TOKBENCH_TEST_KILL_AT."""

    def __init__(self):
        self.calls = 0
        self.at = int(os.environ.get("TOKBENCH_TEST_KILL_AT", "0"))
        if os.environ.get("TOKBENCH_TEST_KILL_IN_WRITE"):
            whole = store.write_rows

            def half(path: Path, rows) -> None:
                whole(path, rows)
                path.write_bytes(path.read_bytes()[:40])
                os.kill(os.getpid(), signal.SIGKILL)

            store.write_rows = half

    def encode(self, x):
        self.calls += 1
        if self.calls == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(x)


class Slow(_Identity):
    """Takes 150 ms a call, so that two processes meet in one store."""

    def encode(self, x):
        time.sleep(0.15)
        return super().encode(x)


class FailsOnDark(_Identity):
    """Raises when a row's mean is below 0.2: one row of a batch fails, the others stand."""

    def encode(self, x):
        if bool((x.mean(dim=(1, 2, 3)) < 0.2).any()):
            raise RuntimeError("too dark")
        return super().encode(x)


class Hungry(_Identity):
    """Runs out of memory above two rows."""

    def encode(self, x):
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().encode(x)


class Noisy(_Identity):
    """Stochastic decoder: adds noise from torch's generator."""

    spec = TokenizerSpec("noisy", "image", "none", deterministic=False)

    def decode(self, code):
        x = code.side["x"]
        return x + 0.05 * torch.randn(x.shape)


class NotANumber(_Identity):
    """Returns NaN."""

    def decode(self, code):
        return code.side["x"] * float("nan")


class WrongShape(_Identity):
    """Returns one column too few."""

    def decode(self, code):
        return code.side["x"][..., :-1]


class BatchDependent(_Identity):
    """Subtracts the batch mean: what a row gives depends on its company."""

    def decode(self, code):
        x = code.side["x"]
        return x - 0.01 * x.mean()


class WrongRange(_Identity):
    """Returns 0..255 where it declares 0..1."""

    def decode(self, code):
        return code.side["x"] * 255


class LyingRate(_Identity):
    """Emits indices beyond its codebook."""

    spec = TokenizerSpec("lying", "image", "discrete", codebook_size=(16,))

    def encode(self, x):
        from tokbench.types import Stream

        return Code((Stream("0", 16, torch.full((len(x), 4), 99)),), side={"x": x})


class Close(_Identity):
    """A small network whose batches are only close to its single rows."""

    spec = TokenizerSpec(
        "close", "image", "continuous", (-1.0, 1.0), (4, 4), latent_channels=8, batch_exact=False, batch_atol=1e-4
    )

    def __init__(self):
        torch.manual_seed(0)
        self.down = torch.nn.Conv2d(3, 8, 4, 4)
        self.up = torch.nn.ConvTranspose2d(8, 3, 4, 4)

    def encode(self, x):
        return Code(latents=self.down(x))

    def decode(self, code):
        return self.up(code.latents) * (1 + 1e-7 * len(code.latents))
