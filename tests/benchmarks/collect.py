"""What a collection costs of one attempt of an hour on 32 GPUs: time and memory, in a process of its own each time.

    python tests/benchmarks/collect.py [CALLS [SECONDS]]     # 5 calls, 3,600 s

Traces as sidecars leave them: power at 20 Hz, conditions each second, counter and activity each 5 s; then the same at
the 50 Hz of an H100's buffer. Prints a Markdown table, and fails where 20 Hz takes 2 s or 1 GB, or where joules
are off by more than 1e-6.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a program: what the tests share

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sweeps import ABOUT, START_NS, Gpu, Made, choices, constant, make_attempt, make_sweep

from wattflow.store.layout import SweepDir
from wattflow.store.schema import TRACE
from wattflow.store.tables import write_table

GPUS, GOAL_S, GOAL_MB = 32, 2.0, 1000.0
COLLECT = """
import json, resource, sys, time
from wattflow.collect.collect import collect
from wattflow.store.layout import SweepDir
began = time.perf_counter()
collect(SweepDir.existing(sys.argv[1]))
took_s = time.perf_counter() - began
print(json.dumps([took_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def trace(gpu: Gpu, power_w: float, period_s: float, window_s: float) -> pa.Table:
    """The readings of one device over a window and some seconds, in order of time."""
    kinds = {"nvml_buffer": period_s, "nvml_conditions": 1.0, "nvml_counter": 5.0, "nvml_gpm": 5.0}
    seconds = {source: np.arange(-0.1, window_s + 10, every_s) for source, every_s in kinds.items()}
    at_s = np.concatenate(list(seconds.values()))
    source = np.repeat(list(kinds), [len(part) for part in seconds.values()])
    jitter_s = np.random.default_rng(0).uniform(0, 0.004, len(at_s))
    columns = {
        "time_ns": START_NS + np.rint((at_s + jitter_s) * 1e9).astype(np.int64),
        "source": source.astype(object),
        "gap": np.zeros(len(at_s), bool),
    }
    polled = {
        "power_w": ("nvml_buffer", np.full(len(at_s), power_w)),
        "counter_mj": ("nvml_counter", (1.26e11 + power_w * 1e3 * (at_s + jitter_s))),
        "monotonic_ns": ("nvml_conditions", columns["time_ns"] - START_NS),
        "sm_clock_mhz": ("nvml_conditions", np.full(len(at_s), 1755)),
        "temperature_c": ("nvml_conditions", np.full(len(at_s), 61.0)),
        "gpu_activity_pct": ("nvml_conditions", np.full(len(at_s), 98.0)),
        "power_limit_w": ("nvml_conditions", np.full(len(at_s), 700.0)),
        "throttle_reasons": ("nvml_conditions", np.full(len(at_s), 4)),
        "under_cap_ns": ("nvml_conditions", np.full(len(at_s), 0)),
        "sm_activity_pct": ("nvml_gpm", np.full(len(at_s), 80.0)),
    }
    order = np.argsort(columns["time_ns"])
    arrays = []
    for field in TRACE:
        if field.name in columns:
            arrays.append(pa.array(columns[field.name][order], field.type))
        elif field.name in polled:
            of, values = polled[field.name]
            polls = pa.array(values[order].astype(field.type.to_pandas_dtype()), field.type)
            arrays.append(pc.if_else((source == of)[order], polls, None))
        else:
            arrays.append(pa.nulls(len(at_s), field.type))
    about = {**ABOUT, "node": gpu.node, "gpu_uuid": gpu.uuid, "source": "nvml_buffer"}
    about |= {"scope": "gpu", "boundary": "gpu", "period_ms": str(period_s * 1e3)}
    return pa.Table.from_arrays(arrays, schema=TRACE).replace_schema_metadata(about)


def made(folder: Path, period_s: float, window_s: float) -> tuple[SweepDir, float]:
    """A sweep with an attempt of so many seconds on four nodes of eight GPUs, and its joules; each draws 10 W more."""
    gpus = [
        Gpu(f"GPU-{i:08x}-0000", constant(300.0 + 10 * i), node=f"node{i // 8}")
        for i in range(GPUS)
    ]
    batches = max(1, round(window_s / 18.0))
    one = Made(
        gpus,
        batches,
        prefill_s=1.0,
        decode_s=window_s / batches - 1.1,
        pause_s=0.1,
        period_s=60.0,
        counter=False,
    )
    point = choices(shards=GPUS)
    sweep = make_sweep(folder, [point])
    attempt = make_attempt(sweep, point, one)
    record = attempt.read_record()
    assert record is not None
    for node in record["nodes"]:
        node["period_ms"] = period_s * 1e3
    attempt.write_record(record)
    for i, gpu in enumerate(gpus):
        write_table(
            attempt.trace_path(gpu.node, gpu.uuid), trace(gpu, 300.0 + 10 * i, period_s, window_s)
        )
    return sweep, sum(300.0 + 10 * i for i in range(GPUS)) * one.window_s


def main() -> int:
    """Print the table; 1 when a goal was missed."""
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    window_s = float(sys.argv[2]) if len(sys.argv) > 2 else 3600.0
    missed = 0
    print("| samples | rows | median, s | least, s | most, s | memory, MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for period_s in (0.05, 0.02):
        with tempfile.TemporaryDirectory() as folder:
            sweep, true_j = made(Path(folder) / "s", period_s, window_s)
            taken, memory = [], 0.0
            for _ in range(calls):
                for path in sweep.points_path.parent.rglob("*.parquet"):
                    path.unlink()
                command = [sys.executable, "-c", COLLECT, str(sweep.path)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                took_s, peak_mb = json.loads(done.stdout)
                taken.append(took_s)
                memory = max(memory, peak_mb)
            row = pq.read_table(sweep.points_path).to_pylist()[0]
            rows = sum(pq.read_metadata(p).num_rows for p in sweep.traces.iterdir())
            print(
                f"| {1 / period_s:.0f} Hz | {rows:,} | {statistics.median(taken):.2f} | {min(taken):.2f} | "
                f"{max(taken):.2f} | {memory:.0f} |"
            )
            wrong = not row["valid"] or abs(row["energy_j"] / true_j - 1) > 1e-6
            slow = period_s == 0.05 and (statistics.median(taken) >= GOAL_S or memory >= GOAL_MB)
            missed += wrong or slow
            if wrong:
                print(f"not the true joules: {row['energy_j']} for {true_j}; {row['reasons']}")
    print(
        f"\nthe goals at 20 Hz are {GOAL_S:g} s and {GOAL_MB:g} MB, for {GPUS} GPUs and {window_s:g} s"
    )
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
