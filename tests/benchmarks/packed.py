"""Files, and CPU time of `status` and `collect`, of one sweep whose points lie alone and packed by tasks.

    python tests/benchmarks/packed.py [POINTS [A_TASK]]     # 10,000 points, 50 a task

The attempts are copies of one of two batches on one GPU, each with a record of its own. Collections begin without
results, then are made once more with nothing new. Prints a Markdown table.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a program: what the tests share

from sweeps import Gpu, Made, choices, make_attempt, make_sweep

from wattflow.collect.collect import collect
from wattflow.store import packed
from wattflow.store.grid import GridPoint, write_grid
from wattflow.store.layout import SweepDir
from wattflow.store.packing import pack
from wattflow.submit.status import states


def many(folder: Path, count: int) -> SweepDir:
    """A sweep of so many points, each with a copy of one attempt."""
    point = choices(cluster__name="site", n_prompts=64)
    one = make_attempt(make_sweep(folder / "one", [point]), point, Made([Gpu("GPU-a")]))
    files = {path.relative_to(one.path): path.read_bytes() for path in one.path.rglob("*.parquet")}
    record = one.read_record()
    sweep = SweepDir(folder / "many")
    sweep.make()
    points = []
    for i in range(count):
        made = json.dumps(point | {"seed": i})
        points.append(GridPoint(f"{(i * 7919 + 1) % 16**12:012x}", i, None, made))
    write_grid(sweep.grid_path, points)
    for grid_point in points:
        attempt = sweep.claim_attempt(grid_point.point_id)
        for name, data in files.items():
            (attempt.path / name).write_bytes(data)
        own = {**record, "point_id": grid_point.point_id, "choices": json.loads(grid_point.text)}
        attempt.record_path.write_text(json.dumps(own))
    return sweep


def inodes(sweep: SweepDir) -> int:
    """Files and folders of attempts."""
    return sum(1 for part in ("points", "packed") for _ in (sweep.path / part).rglob("*"))


def cpu_s(of: Callable[[], object]) -> float:
    """Seconds of a CPU that a call takes, of this process and in the kernel."""
    began = time.process_time()
    of()
    return time.process_time() - began


def measured(sweep: SweepDir) -> dict[str, float]:
    """Files, and CPU seconds of each reader."""
    found: dict[str, float] = {"files and folders a point": inodes(sweep) / len(sweep.points())}
    found["status, nothing collected"] = cpu_s(lambda: states(sweep))
    found["collect"] = cpu_s(lambda: collect(sweep))
    found["collect, nothing new"] = cpu_s(lambda: collect(sweep))
    found["status, collected"] = cpu_s(lambda: states(sweep))
    return found


def main() -> None:
    """Print the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    a_task = int(sys.argv[2]) if len(sys.argv) > 2 else 50
    with tempfile.TemporaryDirectory() as folder:
        sweep = many(Path(folder), count)
        alone = measured(sweep)
        shutil.rmtree(sweep.results)
        sweep.make()
        ids = [point.point_id for point in sweep.points()]
        tasks = [ids[start : start + a_task] for start in range(0, count, a_task)]
        packing_s = cpu_s(lambda: [pack(sweep, task) for task in tasks])
        # packed an hour ago: a folder that has just changed is listed at each look
        os.utime(sweep.path / packed.FOLDER, times=(time.time() - 3600,) * 2)
        together = measured(sweep)
    print(f"{count} points, {a_task} a task; packing them took {packing_s:.1f} CPU s\n", flush=True)
    print("| | alone | packed | ratio |\n| --- | --- | --- | --- |")
    for name, value in alone.items():
        print(f"| {name} | {value:.2f} | {together[name]:.2f} | {together[name] / value:.2f} |")


if __name__ == "__main__":
    main()
