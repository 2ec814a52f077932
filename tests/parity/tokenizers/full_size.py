"""Runs the contract on published configurations at full size with seeded weights: `python full_size.py [golden ...]`.

The tests do the same on the small configurations of the goldens; this takes minutes a card and some gigabytes of scratch.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "helpers")]


def main(names: list[str]) -> int:
    """Check the goldens with a full key table; return how many failed."""
    from seeded import seeded_tensor
    from test_image_networks import NAMES, Golden

    from tokbench.contract import check, passed
    from tokbench.device import pin_numerics
    from tokbench.reconstruct import Engine
    from tokbench.registry import build_tokenizer

    pin_numerics(int(os.environ.get("OMP_NUM_THREADS", "0")) or None)
    failed = 0
    for name in names or NAMES:
        golden, begun = Golden(name), time.monotonic()
        golden.meta["extra"] = ()  # keys that loading drops, named for the small configuration
        for plan in golden.plans().values():
            # Files of plain arrays: the golden holds those of the small configuration.
            golden.arrays |= {
                array: seeded_tensor(array, tuple(shape)) for array, shape in plan.get("arrays", {}).values()
            }
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer = build_tokenizer(golden.card, golden.files(golden.full, Path(scratch)))
            found = check(tokenizer, Engine(), trained=False)
        bad = [f"{item.name}: {item.verdict} ({item.detail})" for item in found if item.verdict in {"fail", "warn"}]
        failed += not passed(found)
        print(f"{golden.card.name}: {'; '.join(bad) or 'passes'}, {time.monotonic() - begun:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
