"""Train the two tokenizers that travel inside the package; the README says with what data and how long."""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import photos
import sounds
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tokbench.adapters.tiny import AudioConfig, AudioNet, ImageConfig, ImageNet


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=("image", "audio"))
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder of photos or recordings")
    parser.add_argument("--extra", type=Path, action="append", default=[], help="folder of art or music, drawn less")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--checkpoint", type=Path, required=True, help="state of the run; resumed if there")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, help="a .safetensors file to start from instead of random weights")
    return parser.parse_args(argv)


def schedule(step: int, steps: int, peak: float) -> float:
    """Return the learning rate: 200 steps of warm-up, then a cosine down to 1 % of the peak."""
    return peak * min(1.0, (step + 1) / 200) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move the weight average (decay 0.999, less at first) towards the model."""
    decay = min(0.999, (1 + step) / (10 + step))
    for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
        mine.lerp_(theirs, 1 - decay)


@torch.no_grad()
def settle(average: nn.Module, encode: Callable[[Tensor], object], batches: Iterator[Tensor], count: int = 40) -> None:
    """Measure the statistics of the norm before the quantizer anew: those of the model are not those of its average."""
    for module in average.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
    average.train()
    for _ in range(count):
        encode(next(batches))
    average.eval()


def export(model: nn.Module, path: Path) -> None:
    """Write float16 tensors, the counter of the norm left out, replacing the file in one step."""
    tensors = {k: v.half().contiguous() for k, v in model.state_dict().items() if v.is_floating_point()}
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".part")
    save_file(tensors, fresh)
    fresh.chmod(0o644)
    fresh.replace(path)


def run(
    args: argparse.Namespace,
    model: nn.Module,
    encode: Callable[[nn.Module, Tensor], object],
    loss: Callable[[nn.Module, Tensor], Tensor],
    batches: Iterator[Tensor],
    score: Callable[[nn.Module], float],
) -> None:
    """Train `model`, keep its weight average, and write the average whenever it scores higher on what was kept out."""
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    first, best = 0, -math.inf
    if args.checkpoint.exists():
        state = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        first, best = int(state["step"]), float(state["best"])
    started, losses = time.monotonic(), []
    for step in range(first, args.steps):
        for group in optimiser.param_groups:
            group["lr"] = schedule(step, args.steps, args.rate)
        value = loss(model.train(), next(batches))
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        follow(average, model, step)
        losses.append(value.item())
        if (step + 1) % args.every and step + 1 != args.steps:
            continue
        settle(average, lambda x: encode(average, x), batches)
        now = score(average)
        seconds = time.monotonic() - started
        line = f"step {step + 1} loss {np.mean(losses):.5f} kept-out {now:.3f} {seconds:.0f} s"
        print(line, file=sys.stderr, flush=True)
        losses.clear()
        if now > best:
            best = now
            export(average, args.out)
        state = {"model": model.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
        fresh = args.checkpoint.with_suffix(".part")
        torch.save({**state, "step": step + 1, "best": best}, fresh)
        fresh.replace(args.checkpoint)


def half() -> torch.autocast:
    """Compute convolutions in bfloat16; weights, norms and losses stay float32."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


def train_image(args: argparse.Namespace) -> None:
    """Train tokbench-tiny-image: squared error, and a little absolute error, on crops of 128 x 128."""
    rng = np.random.default_rng(args.seed)
    pool, held = photos.load(args.data, args.extra, rng)
    kept = torch.from_numpy(np.stack(held)).permute(0, 3, 1, 2).float() / 127.5 - 1
    model = ImageNet(ImageConfig()).to(memory_format=torch.channels_last)
    start(model, args.init)

    def loss(net: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(net, ImageNet)
        with half():
            error = net.decode(net.encode(x)) - x
        return error.square().mean() + 0.02 * error.abs().mean()

    def encode(net: nn.Module, x: Tensor) -> object:
        assert isinstance(net, ImageNet)
        with half():
            return net.encode(x)

    @torch.no_grad()
    def score(net: nn.Module) -> float:
        """PSNR in dB, the mean over the kept-out photographs."""
        assert isinstance(net, ImageNet)
        error = (net.decode(net.encode(kept)).clamp(-1, 1) - kept).square().mean((1, 2, 3))
        return float((10 * torch.log10(4 / error)).mean())

    def batches() -> Iterator[Tensor]:
        while True:
            yield photos.batch(pool, rng, args.batch, 128)

    print(f"{len(pool.pyramids)} pictures, {len(held)} kept out", file=sys.stderr)
    run(args, model, encode, loss, batches(), score)


def train_audio(args: argparse.Namespace) -> None:
    """Train tokbench-tiny-audio: waveform error and multi-resolution spectral error on one-second cuts."""
    rng = np.random.default_rng(args.seed)
    pool, kept = sounds.load(args.data, args.extra)
    model = AudioNet(AudioConfig())
    start(model, args.init)

    def loss(net: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(net, AudioNet)
        with half():
            out = net.decode(*net.encode(x))
        return sounds.distance(out, x)

    def encode(net: nn.Module, x: Tensor) -> object:
        assert isinstance(net, AudioNet)
        with half():
            return net.encode(x)

    @torch.no_grad()
    def score(net: nn.Module) -> float:
        """Negated training distance on the kept-out recordings."""
        assert isinstance(net, AudioNet)
        return -float(sounds.distance(net.decode(*net.encode(kept)), kept))

    def batches() -> Iterator[Tensor]:
        while True:
            yield sounds.batch(pool, rng, args.batch, sounds.RATE)

    print(f"{len(pool.clips)} recordings, {len(kept)} s kept out", file=sys.stderr)
    run(args, model, encode, loss, batches(), score)


def start(model: nn.Module, init: Path | None) -> None:
    """Load `init` into `model` when one is named."""
    if init is not None:
        from safetensors.torch import load_file

        model.load_state_dict({k: v.float() for k, v in load_file(init).items()}, strict=False)


def main(argv: list[str] | None = None) -> None:
    """Train what the command line names."""
    args = parse(argv)
    torch.manual_seed(args.seed)
    (train_image if args.model == "image" else train_audio)(args)


if __name__ == "__main__":
    main()
