"""Time and memory of `status`, `list` and `collect` at very many points, each verb in a process of its own.

    python tests/benchmarks/many.py [POINTS]      # 100,000

Three sweeps, of points that differ in batch size, length and seed: all wait in one local task; all are finished and
collected; all failed, to be collected, and collected once more with one attempt more. Prints a Markdown table, and
fails where a goal for 100,000 points is missed: `status` 10 s of a CPU and 1 GB, `list` and further collections 1 GB.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a program: what the tests share

import pyarrow as pa
from sweeps import Gpu, Made, choices, make_attempt, make_sweep

from wattflow import process
from wattflow.collect.collect import collect
from wattflow.store.columns import PHASE, POINT
from wattflow.store.grid import GridPoint, write_grid
from wattflow.store.layout import SweepDir
from wattflow.store.schema import SCHEMA_VERSION
from wattflow.store.tables import read_table, write_table
from wattflow.submit import journal

GOALS = {"status, all wait": (10.0, 1000.0), "status, all done": (10.0, 1000.0)}
GOALS |= {
    "list": (None, 1000.0),
    "collect none": (None, 1000.0),
    "collect one more": (None, 1000.0),
}
VERB = """
import json, re, sys, time
sys.argv = ["wattflow", *sys.argv[1:]]
sys.stdout, out = open("/dev/null", "w"), sys.stdout
began = time.perf_counter()
try:
    from wattflow.cli.app import main
    main()
except SystemExit:
    pass
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024  # ru_maxrss is a parent's too
print(json.dumps([time.perf_counter() - began, time.process_time(), peak]), file=out)
"""


def grid(count: int) -> list[GridPoint]:
    """So many points; ids are numbers, as nothing here holds them to their choices."""
    made = choices(cluster__name="site", n_prompts=64)
    points = []
    for i in range(count):
        one = made | {"batch_size": 1 + i % 50, "max_gen_len": 64 + i // 50 % 50, "seed": i // 2500}
        points.append(GridPoint(f"{i * 7919 % 16**12:012x}", i, None, json.dumps(one)))
    return points


def empty(folder: Path, points: list[GridPoint]) -> SweepDir:
    """A sweep of these points, and nothing run."""
    sweep = SweepDir(folder)
    sweep.make()
    write_grid(sweep.grid_path, points)
    return sweep


def waiting(folder: Path, points: list[GridPoint]) -> SweepDir:
    """All in one task of a process that lives, this one."""
    sweep = empty(folder, points)
    sent = journal.begin(sweep, "points", [[point.point_id for point in points]])
    journal.write(sweep, "submitted", sent.name, job_id=process.job_id(os.getpid()))
    return sweep


def finished(folder: Path, points: list[GridPoint]) -> SweepDir:
    """All with a row of one real attempt, and a folder without files."""
    point = choices(cluster__name="site", n_prompts=64)
    one = make_sweep(folder.with_name("one"), [point])
    make_attempt(one, point, Made([Gpu("GPU-a")]))
    collect(one)
    sweep = empty(folder, points)
    for which, schema in ((SweepDir.points_path, POINT), (SweepDir.phases_path, PHASE)):
        table = read_table(which.fget(one), schema)  # type: ignore[attr-defined]
        whole = pa.concat_tables([table] * len(points)).combine_chunks()
        ids = [point.point_id for point in points for _ in range(table.num_rows)]
        at = whole.schema.get_field_index("point_id")
        whole = whole.set_column(at, whole.schema.field(at), pa.array(ids, pa.string()))
        write_table(which.fget(sweep), whole)  # type: ignore[attr-defined]
    for point_ in points:
        (sweep.path / "points" / point_.point_id).mkdir()
    return sweep


def failed(folder: Path, points: list[GridPoint]) -> SweepDir:
    """All with an attempt that failed."""
    sweep = empty(folder, points)
    for point in points:
        fail(sweep, point.point_id)
    return sweep


def fail(sweep: SweepDir, point_id: str) -> None:
    """One attempt more, as it lies when the engine could not load its weights."""
    path = sweep.path / "points" / point_id
    number = len(os.listdir(path)) + 1 if path.is_dir() else 1  # noqa: PTH208
    (path / f"attempt-{number}").mkdir(parents=True)
    record = {"schema_version": SCHEMA_VERSION, "point_id": point_id, "attempt": number}
    record |= {"status": "failed", "error": "the checkpoint ends early", "error_rank": 0}
    record |= {"started_ns": time.time_ns(), "ended_ns": time.time_ns()}
    (path / f"attempt-{number}" / "record.json").write_text(json.dumps(record))


def asked(*words: str) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak megabytes of a verb."""
    done = subprocess.run(
        [sys.executable, "-c", VERB, *words], capture_output=True, text=True, check=True
    )
    seconds, cpu_s, peak_mb = json.loads(done.stdout)
    return seconds, cpu_s, peak_mb


def measured(folder: Path, count: int) -> Iterator[tuple[str, tuple[float, float, float]]]:
    """Yield what each verb took."""
    points = grid(count)
    sweep = waiting(folder / "waiting", points)
    yield "status, all wait", asked("status", str(sweep.path))
    sweep = finished(folder / "finished", points)
    yield "status, all done", asked("status", str(sweep.path))
    yield "list", asked("list", str(sweep.path))
    sweep = failed(folder / "failed", points)
    del points[1:]
    yield "collect all", asked("collect", str(sweep.path))
    yield "collect none", asked("collect", str(sweep.path))
    fail(sweep, points[0].point_id)
    yield "collect one more", asked("collect", str(sweep.path))


def main() -> int:
    """Print the table; 1 when a goal was missed."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    missed = False
    print(f"| {count:,} points | s | CPU s | MB | goal |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="wattflow-many-") as name:
        for what, (seconds, cpu_s, peak_mb) in measured(Path(name), count):
            most_s, most_mb = GOALS.get(what, (None, None))
            missed |= cpu_s > (most_s or math.inf) or peak_mb > (most_mb or math.inf)
            goal = ", ".join(
                f"{most:g} {unit}" for most, unit in ((most_s, "s"), (most_mb, "MB")) if most
            )
            print(f"| {what} | {seconds:.1f} | {cpu_s:.1f} | {peak_mb:.0f} | {goal} |", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
