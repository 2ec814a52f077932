"""The usual research workflow beside `tokbench run`: the same images, tokenizers, metrics and (seeded) weights.

    python benchmarks/research_workflow.py                     # 256 images, about 14 minutes on 2 idle CPU cores
    python benchmarks/research_workflow.py --images 64
    python benchmarks/research_workflow.py --careful           # the usual way keeps what it can for the next tokenizer
    python benchmarks/research_workflow.py --fidelity-batch 16 # torch-fidelity at the batch size that suits CPUs best
    python benchmarks/research_workflow.py --components        # images a second of each part, theirs and ours
    python benchmarks/research_workflow.py --memory 500 5000   # peak memory of tokbench alone, at two sizes
    python benchmarks/research_workflow.py --workers 2         # tokbench with two processes of one thread each

The usual way writes PNG files of references and reconstructions, then runs torch-fidelity (FID, IS, KID in one call), lpips and
scikit-image (PSNR, SSIM) over them, one after the other, each reading the files. Nothing of it is slowed down: the tokenizer
runs in batches of 8 and torch-fidelity as it does by itself, in batches of 64. `--careful` keeps the PNG files of the
references and torch-fidelity's own cache of their features for the next tokenizer, which takes options that few scripts set.

Two jobs are timed: one tokenizer on images never seen before, and a board of four tokenizers. Both ways do each job in one
process tree; wall time includes imports and loading. Each runs once on eight images first, so that neither pays for compiling
Python or for a cold disk. The numbers of both are printed: they must agree (rFID of a few hundred images to about 1e-3:
torch-fidelity then sums the roots of some 1,900 eigenvalues that are rounding noise, tokbench leaves them out). Inception takes
most of either way and runs near the peak of float32 in ours, and the tokenizer's own time is in both, which bounds the ratio of
the first job (`--components` shows by how much); every further tokenizer saves the references' half of Inception. Ratios are of
runs side by side in one call on one machine; not a test. On a busy machine read the CPU seconds, and set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from pictures import make_pictures

BOARD = ("tokbench-tiny-image", "jpeg?quality=30", "webp?quality=40", "jxl?quality=10")
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


def measured(*command: str, bytecode: Path) -> Cost:
    """Run a command, wait for it, and add up its processes' memory meanwhile; compiled Python is kept in `bytecode`."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    env |= {"PYTHONWARNINGS": "ignore", "PYTHONPYCACHEPREFIX": str(bytecode)}
    with tempfile.TemporaryFile("w+") as out:
        start, before, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN), 0
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env)
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


@dataclass(frozen=True)
class Found:
    """What one tokenizer got from one way: its numbers, and the seconds of each part where they were taken."""

    numbers: dict[str, float]
    seconds: dict[str, float] = field(default_factory=dict)


def usual(asked: argparse.Namespace) -> None:
    """Do it the usual way, in this process, and print for each tokenizer the numbers and the seconds of each part as JSON."""
    begun = time.perf_counter()
    import lpips  # noqa: F401 - imports are timed apart
    import torch_fidelity  # noqa: F401
    from skimage.metrics import structural_similarity  # noqa: F401

    loading = time.perf_counter() - begun
    for place, tokenizer in enumerate(asked.usual):
        found = usual_one(tokenizer, asked)
        if not place:
            found.seconds["imports"] = loading
        print(json.dumps(asdict(found)), flush=True)


def usual_one(tokenizer: str, asked: argparse.Namespace) -> Found:  # noqa: PLR0915 - as scripts are
    """Evaluate one tokenizer the usual way."""
    clock = [("", time.perf_counter())]
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

    weights: Path = asked.weights
    keep: Path | None = asked.keep
    (card,) = expand([tokenizer])
    files = sorted(asked.folder.iterdir())
    with tempfile.TemporaryDirectory() as scratch:
        reference, reconstruction = (keep or Path(scratch)) / "reference", Path(scratch) / "reconstruction"
        known = reference.is_dir()
        reference.mkdir(parents=True, exist_ok=True)
        reconstruction.mkdir()
        net = build_tokenizer(card, {role: Path(path) for role, path in find_weights(card, True)[0].items()})
        low, high = card.spec.input_range
        clock.append(("tokenizer", time.perf_counter()))
        with torch.inference_mode():
            for start in range(0, len(files), 8):
                some = files[start : start + 8]
                crops = [apply_image(Image.open(file).convert("RGB"), ImagePrepare()).signal for file in some]
                x = torch.from_numpy(np.stack(crops)).float() / 255
                y = (net.decode(net.encode(x * (high - low) + low)).float() - low) / (high - low)
                y = (y.clamp(0, 1) * 255 + 0.5).floor().to(torch.uint8).numpy()
                for file, a, b in zip(some, crops, y, strict=True):
                    if not known:
                        Image.fromarray(a.transpose(1, 2, 0)).save(reference / f"{file.stem}.png")
                    Image.fromarray(b.transpose(1, 2, 0)).save(reconstruction / f"{file.stem}.png")
        clock.append(("reconstruct, write PNG", time.perf_counter()))
        found = torch_fidelity.calculate_metrics(
            input1=str(reconstruction), input2=str(reference), fid=True, isc=True, isc_splits=1, kid=True,
            kid_subset_size=min(1000, len(files)), cuda=False, verbose=False, batch_size=asked.fidelity_batch,
            cache=keep is not None, cache_root=str(keep or scratch), cache_input2_name="reference" if keep else None,
            feature_extractor_weights_path=str(weights / "inception.pth"), feature_extractor="inception-v3-compat",
        )  # fmt: skip
        clock.append(("torch-fidelity", time.perf_counter()))
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
        clock.append(("lpips", time.perf_counter()))
        for file in sorted(reference.iterdir()):
            a, b = (np.array(Image.open(p / file.name)) for p in (reference, reconstruction))
            scores["psnr"].append(peak_signal_noise_ratio(a, b))
            scores["ssim"].append(
                structural_similarity(
                    a, b, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
                )
            )
        clock.append(("scikit-image", time.perf_counter()))
    out = {name: sum(values) / len(values) for name, values in scores.items()}
    out |= {"rfid": found["frechet_inception_distance"], "isc": found["inception_score_mean"]}
    out |= {"kid": found["kernel_inception_distance_mean"]}
    return Found(out, {name: end - start for (_, start), (name, end) in pairwise(clock)})


@dataclass(frozen=True)
class Setting:
    """What both ways share."""

    pictures: Path
    weights: Path
    bytecode: Path
    careful: bool = False
    workers: int = 0
    fidelity_batch: int = 64


def ours(setting: Setting, output: Path, tokenizers: Sequence[str]) -> tuple[Cost, dict[str, Found]]:
    """Run `tokbench run` into an empty store and return what it took and what it found."""
    suite = output.parent / "workflow.toml"
    suite.write_text(SUITE)
    count = sum(1 for _ in setting.pictures.iterdir())
    inception = f"weights={setting.weights / 'inception.pth'}"
    metrics = (
        f"rfid?{inception}", f"isc?{inception}", f"kid?{inception}&subset_size={min(1000, count)}",
        f"lpips?weights={setting.weights / 'alex.pth'}", "psnr", "ssim",
    )  # fmt: skip
    workers = setting.workers
    split = ["--workers", str(workers), "--shard-size", str(-(-count // workers))] if workers else []
    words = [word for name in tokenizers for word in ("-t", name)]
    words += [word for metric in metrics for word in ("-m", metric)]
    cost = measured(
        sys.executable, "-m", "tokbench", "run", "-s", str(suite), "-d", f"folder:{setting.pictures}", "-o", str(output),
        "--device", "cpu", "--offline", *words, *split, bytecode=setting.bytecode,
    )  # fmt: skip
    results = [json.loads(path.read_text()) for path in output.glob("*/*/*/result.json")]
    numbers = {
        result["tokenizer"]["name"]: {column: cell["value"] for column, cell in result["metrics"].items()}
        for result in results
    }
    return cost, {name: Found(numbers[name]) for name in tokenizers}


def theirs(setting: Setting, keep: Path, tokenizers: Sequence[str]) -> tuple[Cost, dict[str, Found]]:
    """Run the usual way and return what it took and what it found."""
    words = ["--usual", *tokenizers, "--folder", str(setting.pictures), "--weights", str(setting.weights)]
    words += ["--fidelity-batch", str(setting.fidelity_batch)]
    words += ["--keep", str(keep)] if setting.careful else []
    cost = measured(sys.executable, __file__, *words, bytecode=setting.bytecode)
    lines = [line for line in cost.output.splitlines() if line.startswith('{"numbers"')]
    return cost, {name: Found(**json.loads(line)) for name, line in zip(tokenizers, lines, strict=True)}


def side_by_side(images: int, scratch: Path, weights: Path, asked: argparse.Namespace) -> None:
    """Print both ways' costs and numbers, for one tokenizer on new images and for a board of several."""

    def setting(count: int) -> Setting:
        pictures = make_pictures(scratch / f"pictures-{count}", count)
        return Setting(pictures, weights, scratch / "bytecode", asked.careful, asked.workers, asked.fidelity_batch)

    few, whole = setting(8), setting(images)
    ours(few, scratch / "warm", BOARD)
    theirs(few, scratch / "kept-few", BOARD)
    how = "careful" if asked.careful else "usual"
    print(f"{images} images of 256x256, rFID + IS + KID + LPIPS (alex) + PSNR + SSIM, {os.cpu_count()} CPUs")
    for job, tokenizers in (("one tokenizer, images never seen", BOARD[:1]), (f"a board of {len(BOARD)}", BOARD)):
        mine, numbers = ours(whole, scratch / f"results-{len(tokenizers)}", tokenizers)
        other, published = theirs(whole, scratch / f"kept-{len(tokenizers)}", tokenizers)
        print(job)
        for tokenizer, found in published.items():
            print(f"  {tokenizer}")
            for name, value in found.numbers.items():
                print(f"    {name:11} {how} {value:.5f}   tokbench {numbers[tokenizer].numbers[name]:.5f}")
            print(f"    {how} way: " + ", ".join(f"{name} {value:.1f} s" for name, value in found.seconds.items()))
        compare(how, mine, other)


def compare(how: str, mine: Cost, other: Cost) -> None:
    """Print two costs and their ratios."""
    print(f"  wall   {how} {other.seconds:7.1f} s   tokbench {mine.seconds:7.1f} s   "
          f"ratio {other.seconds / mine.seconds:.2f}")  # fmt: skip
    print(f"  CPU    {how} {other.cpu:7.1f} s   tokbench {mine.cpu:7.1f} s   ratio {other.cpu / mine.cpu:.2f}")
    print(f"  memory {how} {other.peak >> 20:7} MiB tokbench {mine.peak >> 20:7} MiB "
          f"ratio {other.peak / max(1, mine.peak):.2f}", flush=True)  # fmt: skip


def components(weights: Path) -> None:
    """Print how fast each part runs, theirs and ours, taking turns in one process, best of five.

    What the ratios bound: one image costs Inception twice (reference and reconstruction; once for a second tokenizer) and
    every other part once.
    """
    import lpips
    import numpy as np
    import torch
    from PIL import Image
    from skimage.metrics import structural_similarity
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from tokbench.device import pin_numerics
    from tokbench.metrics.features import Inception
    from tokbench.metrics.perceptual import Lpips
    from tokbench.metrics.ssim import Ssim
    from tokbench.spec import TokenizerSpec
    from tokbench.types import Code, Sample

    pin_numerics()
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (16, 3, 256, 256), generator=g).float() / 255
    y = ((x + 0.05 * torch.randn(x.shape, generator=g)).clamp(0, 1) * 255).round() / 255
    levels = [(side * 255).byte() for side in (x, y)]
    arrays = [np.ascontiguousarray(side.permute(0, 2, 3, 1).numpy()) for side in levels]
    inception = FeatureExtractorInceptionV3(
        "i", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights / "inception.pth")
    )
    perceptual = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    mine, near, alike = (
        Inception("tf1", str(weights / "inception.pth")),
        Lpips(weights=str(weights / "alex.pth")),
        Ssim(),
    )
    keys = tuple(str(index) for index in range(8))
    batch = Sample(keys, x[:8], y[:8], y[:8], Code(), TokenizerSpec("x", "image", "none"), groups=keys)

    def png() -> None:
        for image in arrays[0][:8]:
            file = io.BytesIO()
            Image.fromarray(image).save(file, "png")
            for _ in range(3):
                np.array(Image.open(file))

    def skimage() -> None:
        for a, b in zip(arrays[0][:8], arrays[1][:8], strict=True):
            structural_similarity(a, b, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)

    def one_by_one() -> None:
        for a, b in zip(x[:8], y[:8], strict=True):
            perceptual(a[None] * 2 - 1, b[None] * 2 - 1)

    rows: list[tuple[str, int, Callable[[], object], Callable[[], object] | None]] = [
        ("Inception, images/s", 16, lambda: inception(levels[0]), lambda: mine.of(x)),
        ("LPIPS alex, pairs/s", 8, one_by_one, lambda: near(batch)),
        ("SSIM, pairs/s", 8, skimage, lambda: alike(batch)),
        ("PNG, written once and read three times, images/s", 8, png, None),
    ]
    with torch.inference_mode():
        for name, count, other, own in rows:
            best = [math.inf, math.inf]
            for _ in range(6):
                for place, call in enumerate((other, own)):
                    start = time.perf_counter()
                    if call is not None:
                        call()
                    best[place] = min(best[place], time.perf_counter() - start)
            told = f"tokbench {count / best[1]:8.1f}   ratio {best[0] / best[1]:.2f}" if own else "tokbench: not needed"
            print(f"{name:50} usual {count / best[0]:8.1f}   {told}", flush=True)


def memory(sizes: list[int], scratch: Path, weights: Path) -> None:
    """Print the peak memory of tokbench at several numbers of images."""
    for size in sizes:
        pictures = make_pictures(scratch / f"pictures-{size}", size)
        cost, _ = ours(Setting(pictures, weights, scratch / "bytecode"), scratch / f"results-{size}", BOARD[1:2])
        print(f"{size:6} images: {cost.peak >> 20:6} MiB, {cost.seconds:6.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument(
        "--careful", action="store_true", help="let the usual way keep references for the next tokenizer"
    )
    parser.add_argument("--fidelity-batch", type=int, default=64, help="torch-fidelity's batch size; 64 is its own")
    parser.add_argument("--components", action="store_true", help="time the parts one by one")
    parser.add_argument("--workers", type=int, default=0, help="processes of tokbench")
    parser.add_argument("--memory", type=int, nargs="+", metavar="IMAGES")
    parser.add_argument("--usual", nargs="+", metavar="TOKENIZER", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.usual:
        usual(asked)
        return
    from tokbench.metrics import seeded

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for name in ("inception", "alex"):
            seeded.write(name, scratch / "weights" / f"{name}.pth")
        if asked.memory:
            memory(asked.memory, scratch, scratch / "weights")
        elif asked.components:
            components(scratch / "weights")
        else:
            side_by_side(asked.images, scratch, scratch / "weights", asked)


if __name__ == "__main__":
    main()
