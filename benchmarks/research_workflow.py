"""The usual research workflow beside `tokbench run`: the same images, tokenizer, metrics and (seeded) weights.

    python benchmarks/research_workflow.py                     # 256 images, about 10 minutes on 2 CPU cores
    python benchmarks/research_workflow.py --images 64
    python benchmarks/research_workflow.py --memory 500 5000   # peak memory of tokbench alone, at two sizes
    python benchmarks/research_workflow.py --workers 2         # tokbench with two processes of one thread each

The usual way writes PNG files of references and reconstructions, then runs torch-fidelity (FID, IS), lpips and scikit-image
(PSNR, SSIM) over them, one after the other. Both ways run as one process tree each; wall time includes imports and loading.
The numbers of both are printed: they must agree. Ratios are of runs side by side in one call on one machine; not a test. On a
busy machine read the CPU seconds, and set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pictures import make_pictures

TOKENIZERS = ("tokbench-tiny-image", "jpeg?quality=30")
SUITE = """name = "workflow"
modality = "image"
dataset = "sample:image"
metrics = ["psnr"]
[prepare]
preset = "adm"
size = 256
"""


@dataclass(frozen=True)
class Cost:
    """Wall seconds, CPU seconds and peak resident bytes (sampled) of the whole process tree, and what was printed."""

    seconds: float
    cpu: float
    peak: int
    output: str


def measured(*command: str) -> Cost:
    """Run a command, wait for it, and add up its processes' memory meanwhile."""
    with tempfile.TemporaryFile("w+") as out:
        start, before, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN), 0
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONWARNINGS": "ignore"}
        )
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.05)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        out.seek(0)
        text = out.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{text[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(seconds, cpu, peak, text)


def resident(pid: int) -> int:
    """Return the resident bytes of a process and its descendants; Linux only, elsewhere 0."""
    total = 0
    try:
        total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, IndexError):
        return total
    return total + sum(resident(int(child)) for child in children)


def usual(pictures: Path, weights: Path, tokenizer: str) -> None:
    """Do it the usual way, in this process, and print the numbers as JSON."""
    import lpips
    import numpy as np
    import torch
    import torch_fidelity
    from PIL import Image
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    from tokbench.prepare.image import apply_image
    from tokbench.registry import build_tokenizer, expand
    from tokbench.session import find_weights
    from tokbench.spec import ImagePrepare

    (card,) = expand([tokenizer])
    files = sorted(pictures.iterdir())
    with tempfile.TemporaryDirectory() as scratch:
        reference, reconstruction = Path(scratch) / "reference", Path(scratch) / "reconstruction"
        reference.mkdir()
        reconstruction.mkdir()
        net = build_tokenizer(card, {role: Path(path) for role, path in find_weights(card, True)[0].items()})
        low, high = card.spec.input_range
        with torch.inference_mode():
            for start in range(0, len(files), 8):
                some = files[start : start + 8]
                crops = [apply_image(Image.open(file).convert("RGB"), ImagePrepare()).signal for file in some]
                x = torch.from_numpy(np.stack(crops)).float() / 255
                y = (net.decode(net.encode(x * (high - low) + low)).float() - low) / (high - low)
                y = (y.clamp(0, 1) * 255 + 0.5).floor().to(torch.uint8).numpy()
                for file, a, b in zip(some, crops, y, strict=True):
                    Image.fromarray(a.transpose(1, 2, 0)).save(reference / f"{file.stem}.png")
                    Image.fromarray(b.transpose(1, 2, 0)).save(reconstruction / f"{file.stem}.png")
        found = torch_fidelity.calculate_metrics(
            input1=str(reconstruction), input2=str(reference), fid=True, isc=True, isc_splits=1, cuda=False, cache=False,
            verbose=False, batch_size=16, feature_extractor_weights_path=str(weights / "inception.pth"),
            feature_extractor="inception-v3-compat",
        )  # fmt: skip
        perceptual = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
        trunk = torch.load(weights / "alex.pth", weights_only=True)
        perceptual.net.load_state_dict(
            {key: trunk["features." + key.partition(".")[2]] for key in perceptual.net.state_dict()}
        )
        scores: dict[str, list[float]] = {"lpips_alex": [], "psnr": [], "ssim": []}
        for file in sorted(reference.iterdir()):
            pair = [torch.from_numpy(np.array(Image.open(p / file.name))) for p in (reference, reconstruction)]
            a, b = (image.permute(2, 0, 1)[None].float() / 127.5 - 1 for image in pair)
            with torch.inference_mode():
                scores["lpips_alex"].append(float(perceptual(a, b)))
        for file in sorted(reference.iterdir()):
            a, b = (np.array(Image.open(p / file.name)) for p in (reference, reconstruction))
            scores["psnr"].append(peak_signal_noise_ratio(a, b))
            scores["ssim"].append(
                structural_similarity(
                    a, b, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
                )
            )
    out = {name: sum(values) / len(values) for name, values in scores.items()}
    out |= {"rfid": found["frechet_inception_distance"], "isc": found["inception_score_mean"]}
    print(json.dumps(out))


def ours(pictures: Path, weights: Path, output: Path, tokenizer: str, workers: int) -> tuple[Cost, dict[str, float]]:
    """Run `tokbench run` and return what it took and what it found."""
    suite = output.parent / "workflow.toml"
    suite.write_text(SUITE)
    metrics = (
        f"rfid?weights={weights / 'inception.pth'}", f"isc?weights={weights / 'inception.pth'}",
        f"lpips?weights={weights / 'alex.pth'}", "psnr", "ssim",
    )  # fmt: skip
    count = sum(1 for _ in pictures.iterdir())
    split = ["--workers", str(workers), "--shard-size", str(-(-count // workers))] if workers else []
    words = [word for metric in metrics for word in ("-m", metric)]
    cost = measured(
        sys.executable, "-m", "tokbench", "run", "-s", str(suite), "-d", f"folder:{pictures}", "-t", tokenizer,
        "-o", str(output), "--device", "cpu", "--offline", *words, *split,
    )  # fmt: skip
    results = (json.loads(path.read_text()) for path in output.glob("*/*/*/result.json"))
    (result,) = (result for result in results if result["tokenizer"]["name"] == tokenizer)
    return cost, {column: cell["value"] for column, cell in result["metrics"].items()}


def side_by_side(images: int, scratch: Path, weights: Path, workers: int) -> None:
    """Print both ways' costs and numbers, for a first tokenizer and for a second one on the same data."""
    pictures = make_pictures(scratch / "pictures", images)
    print(f"{images} images of 256x256, rFID + IS + LPIPS (alex) + PSNR + SSIM, {os.cpu_count()} CPUs")
    for place, tokenizer in zip(("first", "second"), TOKENIZERS, strict=True):
        mine, numbers = ours(pictures, weights, scratch / "results", tokenizer, workers)
        theirs = measured(
            sys.executable, __file__, "--usual", tokenizer, "--folder", str(pictures), "--weights", str(weights)
        )
        published = json.loads(theirs.output.strip().splitlines()[-1])
        print(f"{place} tokenizer, {tokenizer}")
        for name, value in published.items():
            print(f"  {name:11} usual {value:.5f}   tokbench {numbers[name]:.5f}")
        wall, peak = theirs.seconds / mine.seconds, theirs.peak / max(1, mine.peak)
        print(f"  wall   usual {theirs.seconds:7.1f} s   tokbench {mine.seconds:7.1f} s   ratio {wall:.2f}")
        print(f"  CPU    usual {theirs.cpu:7.1f} s   tokbench {mine.cpu:7.1f} s   ratio {theirs.cpu / mine.cpu:.2f}")
        print(f"  memory usual {theirs.peak >> 20:7} MiB tokbench {mine.peak >> 20:7} MiB ratio {peak:.2f}", flush=True)


def memory(sizes: list[int], scratch: Path, weights: Path) -> None:
    """Print the peak memory of tokbench at several numbers of images."""
    for size in sizes:
        pictures = make_pictures(scratch / f"pictures-{size}", size)
        cost, _ = ours(pictures, weights, scratch / f"results-{size}", TOKENIZERS[1], 0)
        print(f"{size:6} images: {cost.peak >> 20:6} MiB, {cost.seconds:6.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--workers", type=int, default=0, help="processes of tokbench")
    parser.add_argument("--memory", type=int, nargs="+", metavar="IMAGES")
    parser.add_argument("--usual", metavar="TOKENIZER", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.usual:
        usual(asked.folder, asked.weights, asked.usual)
        return
    from tokbench.metrics import seeded

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for name in ("inception", "alex"):
            seeded.write(name, scratch / "weights" / f"{name}.pth")
        if asked.memory:
            memory(asked.memory, scratch, scratch / "weights")
        else:
            side_by_side(asked.images, scratch, scratch / "weights", asked.workers)


if __name__ == "__main__":
    main()
