"""Time and size of a report of many points, and how tall its page stands in a browser.

    python tests/benchmarks/report.py [POINTS]      # 1,000

Points differ in batch size, shards, precision and dataset, each run twice, with a trace of 20 ms samples on each GPU.
Prints a line a figure, and ends with 1 where a goal is missed: at 1,000 points 20 s to write, 15 MB, 2 s until the page
can be used; at 200 points 5 screens of 1280 x 800 above its details.
"""

import sys
import tempfile
import time
from itertools import islice, product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a program: what the tests share

from browser import opened
from sweeps import Gpu, Made, choices, collected, constant

from wattflow.report.page import report

DATASETS, PRECISIONS, SHARDS = ("alpaca", "gsm8k"), ("bf16", "fp8", "fp32"), (1, 2, 4)
BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 448, 512, 640, 768)
LENGTHS = (256, 512)


def made(point: dict[str, object]) -> Made:
    """An attempt whose joules a token fall with the batch, and rise with shards."""
    batch, shards = int(str(point["batch_size"])), int(str(point["shards"]))
    fp8 = point["precision"] == "fp8"
    watts = 180.0 + 60.0 * (batch / 128) ** 0.5 + 7.0 * int(str(point["repeat"])) - 20.0 * fp8
    return Made(
        [Gpu(f"GPU-{rank}", constant(watts)) for rank in range(shards)],
        batches=1,
        decode_s=2.0 + batch / 200 / shards,
        tokens=32 * batch,
        prompts=batch,
        counter=False,
    )


def main(count: int) -> int:
    """Make the sweep, write its report and open it; return 1 where a goal is missed."""
    keys = ("batch_size", "shards", "precision", "dataset__name", "max_gen_len", "repeat")
    settings = list(product(BATCHES, SHARDS, PRECISIONS, DATASETS, LENGTHS))
    some = islice(settings, 0, None, max(1, 2 * len(settings) // count))
    runs = islice(product(some, (0, 1)), count)
    points = [choices(**dict(zip(keys, (*of, run), strict=True))) for of, run in runs]
    with tempfile.TemporaryDirectory() as folder:
        sweep = collected(Path(folder) / "s", [made(point) for point in points], points)
        began = time.perf_counter()
        page = report(sweep)
        write_s = time.perf_counter() - began
        size_mb = page.stat().st_size / 1e6
        with opened(page, width=1280, height=800) as tab:
            ready_s = tab.evaluate("performance.getEntriesByName('ready')[0].startTime") / 1e3
            screens = tab.evaluate("document.querySelector('#details').offsetTop") / 800
    print(f"{len(points)} points: written in {write_s:.1f} s, {size_mb:.1f} MB")
    print(f"ready {ready_s:.2f} s after its opening began; {screens:.1f} screens before details")
    quick = count > 1000 or (write_s < 20 and size_mb < 15 and ready_s < 2)
    return int(not quick or (count <= 200 and screens > 5))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
