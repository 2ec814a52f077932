"""What the engine costs beyond the work itself: overhead over bare kernels, memory against dataset size, and workers.

    python benchmarks/engine.py              # all three; about 10 minutes on 2 CPU cores
    python benchmarks/engine.py --images 32  # a quick look

Ratios are of runs side by side in one call on one machine; nothing here is a test.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
SUITE = """name = "bench"
modality = "image"
dataset = "sample:image"
metrics = ["psnr", "ssim", "mae", "rate"]
[prepare]
preset = "adm"
size = 256
"""


def overhead(images: int, folder: Path, suite: Path, out: Path) -> None:
    """Print wall time of a run / wall time of encode, decode and metric kernels on preloaded tensors, alternating."""
    import numpy as np
    import torch
    from vae_sized import VaeSized

    from tokbench.data import Item, load, open_source
    from tokbench.device import pin_numerics
    from tokbench.registry import build_metric
    from tokbench.session import Request, run
    from tokbench.spec import ImagePrepare
    from tokbench.types import Sample

    pin_numerics()
    source = open_source(str(folder), "image")
    keys = source.keys()
    rows = [row for key in keys for row in load(source, key, ImagePrepare()) if isinstance(row, Item)]
    x = torch.from_numpy(np.stack([row.signal for row in rows])).float() / 255
    names = ("psnr", "ssim", "mae", "rate")
    metrics = [build_metric(name) for name in names]
    net = VaeSized()
    net.to("cpu", "float32")

    def bare() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for i in range(0, len(x), 8):
                reference = x[i : i + 8]
                code = net.encode(reference * 2 - 1)
                raw = net.decode(code).add(1).div(2)
                rounded = raw.clamp(0, 1).mul(255).add(0.5).floor().div(255)
                keys = tuple(str(j) for j in range(len(reference)))
                sample = Sample(keys, reference, rounded, raw, code, net.spec, groups=keys)
                for metric in metrics:
                    metric(sample)
        return time.perf_counter() - start

    def whole(store: Path) -> float:
        start = time.perf_counter()
        name = f"{HERE / 'vae_sized.py'}:VaeSized"
        request = Request((str(suite),), (name,), (str(folder),), names, store, device="cpu", batch_size=8)
        report = run(request)
        assert report.results[0]["samples"]["ok"] == images
        return time.perf_counter() - start

    with torch.inference_mode():
        net.decode(net.encode(x[:8]))
    pairs = [(bare(), whole(out / f"overhead-{i}")) for i in range(2)]
    best_bare, best_whole = (min(column) for column in zip(*pairs, strict=True))
    print(f"overhead: {images} images of 256x256: bare {best_bare:.1f} s, tokbench {best_whole:.1f} s, "
          f"ratio {best_whole / best_bare:.3f} (aim: at most 1.05)")  # fmt: skip


def memory(counts: tuple[int, int], scratch: Path, suite: Path) -> None:
    """Print the peak resident memory of whole runs on a small and a ten times larger folder."""
    from pictures import make_pictures

    peaks = []
    for count in counts:
        folder = make_pictures(scratch / f"pictures-{count}", count)
        words = ["-t", "jpeg?quality=50", "-s", str(suite), "-d", str(folder), "--device", "cpu"]
        words += ["-o", str(scratch / f"memory-{count}")]
        code = "import resource, sys; from tokbench.cli import app; app(sys.argv[1:], standalone_mode=False); " \
               "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code, "run", *words, "--json"], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout.rpartition("PEAK ")[2]) / 1024)
    small, large = peaks
    print(f"memory: peak {small:.0f} MB at {counts[0]} images, {large:.0f} MB at {counts[1]}, "
          f"ratio {large / small:.3f} (aim: equal)")  # fmt: skip


def workers(images: int, folder: Path, suite: Path, out: Path) -> None:
    """Print wall time of whole commands with one and with two worker processes on the same jobs."""
    name = f"{HERE / 'vae_sized.py'}:VaeSized"
    base = ["run", "-t", name, "-s", str(suite), "-d", str(folder), "--device", "cpu", "--json"]
    base += ["--shard-size", str(-(-images // 4))]
    seconds = []
    for count in (1, 2):
        words = [*base, "-o", str(out / f"workers-{count}"), "--workers", str(count)]
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "tokbench", *words], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
        assert json.loads(done.stdout)[0]["samples"]["ok"] == images
    print(f"workers: one {seconds[0]:.1f} s (all threads), two {seconds[1]:.1f} s (one thread each), "
          f"ratio {seconds[1] / seconds[0]:.3f}")  # fmt: skip


def main() -> None:
    """Run the benchmarks and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--memory", type=int, nargs=2, default=(500, 5000), metavar=("SMALL", "LARGE"))
    parser.add_argument("--only", choices=("overhead", "memory", "workers"))
    args = parser.parse_args()
    from pictures import make_pictures

    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        suite = scratch / "bench.toml"
        suite.write_text(SUITE)
        folder = make_pictures(scratch / "pictures", args.images)
        if args.only in {None, "overhead"}:
            overhead(args.images, folder, suite, scratch)
        if args.only in {None, "memory"}:
            memory(tuple(args.memory), scratch, suite)
        if args.only in {None, "workers"}:
            workers(args.images, folder, suite, scratch)


if __name__ == "__main__":
    main()
