"""Makes the sweeps, the bundles and what is expected of them; runs with the code of one old commit only.

    git worktree add OLD ef8ca80d4b9400987d1f48ab048a34b73d7848b2
    OLD/.venv/bin/python tests/data/golden/make.py OLD

The sweeps are those of tests/test_golden.py: most are written with the old tests' own writers, from power curves that
are known; those of `ran` and `measured*` were really run, on CPUs and on a fake NVML. They and the bundles are made
once; what is expected of them follows later changes on purpose, by tests/test_golden.py.
"""

# ruff: noqa: E402, I001 (the old code is put on the path before it is imported)

import contextlib
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

COMMIT = "ef8ca80d4b9400987d1f48ab048a34b73d7848b2"
HERE = Path(__file__).resolve().parent
OLD = Path(sys.argv[1]).resolve()
sys.path[:0] = [str(OLD), str(OLD / "tests"), str(HERE.parents[1])]

import fake_nvml
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import test_golden
from sweeps import ABOUT, START_NS, Gpu, Made, choices, constant, demo, make_attempt, make_sweep
from sweeps import spans_of, trace_of

from wattflow import config
from wattflow.collect import collect
from wattflow.schema import REQUEST, SPAN, TRACE
from wattflow.stream import TableStream, write_table
from wattflow.sweepdir import AttemptDir, SweepDir

Row = dict[str, Any]
SWEEPS: dict[str, Callable[[Path], None]] = {}
BUNDLED = (
    "profiles",
    "pieces",
    "nodes",
    "measured_nodes",
    "damaged",
    "ran",
)  # by the old code, to be kept
MACHINE = [str(OLD), str(HERE), "/tmp/", "/root", "/home", f'"{os.uname().nodename}"']


def sweep_of(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Note a function that makes the sweep of its own name."""
    SWEEPS[make.__name__] = make
    return make


# --- what most of them are made of ----------------------------------------------------------------


def point_of(**over: Any) -> Row:
    """Choices with the number of prompts that an attempt of two batches has."""
    return choices(**{"n_prompts": 8, "batch_size": 4, **over})


def wave(base_w: float, swing_w: float = 0.0, turns: float = 7.0) -> Callable[[Any], Any]:
    """Watts that rise from 40 at the load and then swing."""

    def power(seconds: Any) -> Any:
        rise = 1 / (1 + np.exp(-(seconds - 1.2) * 8))
        return 40 + (base_w - 40 + swing_w * np.sin(seconds * turns)) * rise

    return power


def made(*gpus: Gpu, **over: Any) -> Made:
    """An attempt on some GPUs, sampled each 100 ms so that it is small."""
    return Made(list(gpus) or [Gpu("GPU-a", wave(300, 60))], **{"period_s": 0.1, **over})


def at_s(reading: Row) -> float:
    """Seconds after the start."""
    return float(reading["time_ns"] - START_NS) / 1e9


def retrace(
    attempt: AttemptDir, change: Callable[[list[Row]], list[Row]], gpu: str = "GPU-a"
) -> None:
    """Change the readings of a trace."""
    path = attempt.trace_path("node1", gpu)
    found = pq.read_table(path)
    write_table(path, pa.Table.from_pylist(change(found.to_pylist()), schema=found.schema))


def rerecord(attempt: AttemptDir, change: Callable[[Any], None]) -> None:
    """Change a record."""
    record = attempt.read_record()
    change(record)
    assert record is not None
    attempt.write_record(record)


def readings(source: str, at: Sequence[float], **columns: Sequence[Any]) -> list[Row]:
    """Readings of one sensor at some seconds."""
    return [
        {
            **dict.fromkeys(TRACE.names),
            "time_ns": START_NS + round(s * 1e9),
            "source": source,
            "gap": False,
            **{name: values[i] for name, values in columns.items()},
        }
        for i, s in enumerate(at)
    ]


def many(folder: Path, *cases: Callable[[SweepDir, Row], object], **over: Any) -> SweepDir:
    """A sweep of a point a case, each made by the case."""
    points = [point_of(seed=seed, **over) for seed in range(len(cases))]
    sweep = make_sweep(folder, points)
    for point, case in zip(points, cases, strict=True):
        case(sweep, point)
    return sweep


def traced(
    change: Callable[[list[Row]], list[Row]], **over: Any
) -> Callable[[SweepDir, Row], None]:
    """A case whose readings are changed."""
    return lambda sweep, point: retrace(make_attempt(sweep, point, made(**over)), change)


# --- repeats, profiles, failures ------------------------------------------------------------------


@sweep_of
def repeats(folder: Path) -> None:
    """Two shards by two batch sizes by three repeats on boards of their own, one of which failed, one infeasible."""
    points = [
        point_of(shards=shards, batch_size=batch, n_prompts=3 * batch, repeat=repeat)
        for shards in (1, 2)
        for batch in (2, 4)
        for repeat in range(3)
    ]
    bad = point_of(shards=3)
    sweep = make_sweep(folder, [*points, bad], [None] * 12 + ["shards=3 does not divide n_heads=8"])
    for i, point in enumerate(points):
        shards, batch = point["shards"], point["batch_size"]
        boards = [f"GPU-{point['repeat']}{rank}" for rank in range(shards)]
        gpus = [Gpu(uuid, wave(250 + 9 * i - 60 * shards, 30, 5 + i)) for uuid in boards]
        one = made(
            *gpus,
            batches=3,
            prefill_s=0.4,
            decode_s=2.0 - 0.4 * shards + 0.03 * i,
            pause_s=0.1,
            prompts=batch,
            tokens=32 * batch,
            idle_after_s=0.5,
            after_s=0.8,
            started_s=40.0 * i,
            status="failed" if i == 11 else "finished",
        )
        make_attempt(sweep, point, one)


@sweep_of
def profiles(folder: Path) -> None:
    """Two sites with other GPUs and drivers, words of real weights, a reference load, hosts and a shared load."""
    sites = [("site-a", "h100-sxm5-80gb", 300.0), ("site-b", "a100-sxm4-80gb", 220.0)]
    points = [
        point_of(
            cluster__name=name,
            cluster__gpu_model=gpu,
            cluster__partition="gpu-partition",
            cluster__account="p_energy",
            weights="hf",
            model__path="/data/models/tiny",
            precision=precision,
        )
        for name, gpu, _ in sites
        for precision in ("bf16", "fp16")
    ]
    sweep = make_sweep(folder, points)
    for i, point in enumerate(points):
        name, gpu, watts = sites[i // 2]
        node = f"{name}-node"
        one = made(
            Gpu(f"GPU-{name}", wave(watts + 20 * (i % 2), 25), node),
            dummy=False,
            reference_s=0.6,
            hosts={node: constant(90.0 + i)} if name == "site-a" else {},
            started_s=50.0 * i,
        )

        def other(record: Any, *, i: int = i, gpu: str = gpu, name: str = name) -> None:
            record["job"] = {
                "job_id": f"{900 + i}",
                "array_task": f"{i}",
                "restart": 0,
                "cluster": name,
            }
            record["reference_rounds"] = 40 + i
            record["load_shared"] = i == 3
            if name == "site-b":
                record["nodes"][0]["driver"] = "550.54.15"
                record["nodes"][0]["devices"][0].update(
                    name="NVIDIA A100-SXM4-80GB", ecc=True, power_limit_max_w=400.0
                )
                record["ranks"][0]["device"] = "NVIDIA A100-SXM4-80GB"
            record["engine"] |= {"parameters": 3_000_000, "weight_bytes": 6_000_000}

        rerecord(make_attempt(sweep, point, one), other)


def failed_rank(sweep: SweepDir, point: Row) -> None:
    """Rank 1 of two ran out of memory."""

    def why(record: Any) -> None:
        record |= {"error": "rank 1: CUDA out of memory", "error_rank": 1}

    gpus = [Gpu("GPU-a", wave(200, 20)), Gpu("GPU-b", wave(150, 20))]
    rerecord(make_attempt(sweep, point, made(*gpus, status="failed")), why)


def hung(sweep: SweepDir, point: Row) -> None:
    """Nothing moved, and it was ended."""
    attempt = make_attempt(sweep, point, made(status="failed"))
    rerecord(attempt, lambda record: record.update(reason="hung", error="nothing moved for 900 s"))


def unfinished(sweep: SweepDir, point: Row) -> None:
    """A claim without a record."""
    attempt = sweep.claim_attempt(config.point_id(point))
    (attempt.logs / "rank0.log").write_text("loading\n")


def running(sweep: SweepDir, point: Row) -> None:
    """A record that still says running."""
    make_attempt(sweep, point, made(status="running"))


def no_ranks(sweep: SweepDir, point: Row) -> None:
    """No rank came to say which GPU it had."""
    attempt = make_attempt(sweep, point, made(status="failed", hosts={"node1": constant(200.0)}))
    rerecord(attempt, lambda record: (record.pop("ranks"), record.pop("nodes")))
    shutil.rmtree(attempt.path / "timings")


def cut_trace(sweep: SweepDir, point: Row) -> None:
    """A killed sidecar left the copies of its trace, in two files, the last one cut."""
    one = made(status="failed")
    attempt = make_attempt(sweep, point, one)
    table = trace_of(one, one.gpus[0]).sort_by("time_ns")
    about = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    rows = [row for row in table.to_pylist() if row["power_w"] is not None]
    for number, part in enumerate((rows[:40], rows[40:80])):
        stream = TableStream(attempt.trace_path("node1", "GPU-a", f".{number}.arrow"), TRACE, about)
        for row in part:
            stream.add(row)
        stream.close()
    path = attempt.trace_path("node1", "GPU-a", ".1.arrow")
    path.write_bytes(path.read_bytes()[:-3])
    attempt.trace_path("node1", "GPU-a").unlink()


def late(sweep: SweepDir, point: Row) -> None:
    """Failed, interrupted, finished twice and failed again."""
    for i, status in enumerate(("failed", "interrupted", "finished", "finished", "failed")):
        make_attempt(
            sweep,
            point,
            made(Gpu("GPU-a", wave(200 + 9 * i, 9)), status=status, started_s=60.0 * i),
        )


def without_trace(sweep: SweepDir, point: Row) -> None:
    """One of two GPUs has no trace."""
    attempt = make_attempt(sweep, point, made(Gpu("GPU-a"), Gpu("GPU-b")))
    attempt.trace_path("node1", "GPU-b").unlink()


@sweep_of
def failures(folder: Path) -> None:
    """What ends without a measurement, one way a point, and a point that succeeded after two failures."""
    cases = {
        failed_rank: {"shards": 2},
        hung: {},
        unfinished: {},
        running: {},
        no_ranks: {},
        cut_trace: {},
        late: {},
        without_trace: {"shards": 2},
        lambda sweep, point: make_attempt(sweep, point, made()): {"shards": 2},  # missing_rank
        lambda sweep, point: make_attempt(sweep, point, made(Gpu("GPU-a", ranks=2))): {"shards": 2},
        lambda sweep, point: make_attempt(sweep, point, made(status="interrupted")): {},
        lambda *_: None: {},
    }
    points = [point_of(seed=seed, **over) for seed, over in enumerate(cases.values())]
    infeasible = [point_of(shards=3), point_of(batch_size=1024, n_prompts=1024)]
    why = ["shards=3 does not divide n_heads=8", "needs 92.1 GiB of 80 GiB"]
    sweep = make_sweep(folder, [*points, *infeasible], [None] * len(points) + why)
    for case, point in zip(cases, points, strict=True):
        case(sweep, point)


@sweep_of
def pieces(folder: Path) -> None:
    """Attempts that went on from others: whole, of two kinds of meter, with a piece lost, with nothing left, cut."""
    points = [
        point_of(seed=seed, n_prompts=24, sweep__on_interrupt="continue") for seed in range(5)
    ]
    sweep = make_sweep(folder, points)
    for seed, point in enumerate(points):
        first, listed = 0, []
        for number, (batches, watts) in enumerate([(2, 70.0), (1, 100.0), (3, 50.0)], 1):
            one = made(
                Gpu("GPU-0", wave(watts, 5)),
                batches=batches,
                first_batch=first,
                boundary="host" if (seed, number) == (1, 2) else "gpu",
                started_s=60.0 * number,
            )
            attempt = make_attempt(sweep, point, one)
            listed.append({"attempt": number, "first_batch": first, "batches": batches})
            status = "finished" if number == 3 and seed != 4 else "interrupted"
            rerecord(
                attempt,
                lambda r, s=status, all_=tuple(listed): r.update(status=s, pieces=list(all_)),
            )
            first += batches
        if seed == 2:
            sweep.attempts(config.point_id(point))[0].spans_path("node1").write_bytes(b"PAR1")
        if (
            seed == 3
        ):  # interrupted in its last idle window, and a fourth attempt that had nothing to run
            rerecord(attempt, lambda record: record.update(status="interrupted"))
            last = sweep.claim_attempt(config.point_id(point))
            record = attempt.read_record()
            assert record is not None
            record |= {"attempt": 4, "status": "finished", "nodes": [], "ranks": []}
            last.write_record(record)
            table = REQUEST.empty_table().replace_schema_metadata(ABOUT)
            write_table(last.requests_path, table)


# --- sensors, caps, nodes -------------------------------------------------------------------------


@sweep_of
def sensors(folder: Path) -> None:
    """The buffer with all that may be wrong with it or its counter, and other sensors, a case a point."""
    zero = 126_000_000_000

    def counted(change: Callable[[Row], int]) -> Callable[[list[Row]], list[Row]]:
        return lambda rows: [
            row if row["counter_mj"] is None else {**row, "counter_mj": change(row)} for row in rows
        ]

    def scaled(factor: float) -> Callable[[list[Row]], list[Row]]:
        return counted(lambda row: zero + round((row["counter_mj"] - zero) * factor))

    def stepped(rows: list[Row]) -> list[Row]:
        jump = 2_000_000_000
        return [
            {**row, "monotonic_ns": row["time_ns"] - START_NS - (jump if at_s(row) > 6 else 0)}
            for row in rows
        ]

    def counter_alone(sweep: SweepDir, point: Row) -> None:
        attempt = make_attempt(sweep, point, made())
        rerecord(attempt, lambda record: record["nodes"][0].update(source="nvml_counter"))
        path = attempt.trace_path("node1", "GPU-a")
        trace = pq.read_table(path)
        write_table(
            path,
            trace.replace_schema_metadata({**trace.schema.metadata, b"source": b"nvml_counter"}),
        )

    def tokens_differ(sweep: SweepDir, point: Row) -> None:
        attempt = make_attempt(sweep, point, made())
        rows = [
            {**row, "tokens_kept": 101} if row["phase"] == "decode" else row
            for row in spans_of(made())
        ]
        table = pa.Table.from_pylist(rows, schema=SPAN).replace_schema_metadata(ABOUT)
        write_table(attempt.spans_path("node1"), table)

    def restarted(sweep: SweepDir, point: Row) -> None:
        attempt = make_attempt(sweep, point, made())
        rerecord(attempt, lambda record: record["nodes"][0].update(sidecar_restarts=1))

    activity = readings(
        "nvml_gpm",
        [2.0, 3.0, 10.0, 12.0],
        dram_activity_pct=[99.0, 1.0, 40.0, 80.0],
        sm_activity_pct=[9.0, 11.0, 51.0, 77.0],
        pcie_tx_mib_s=[1.0, 2.0, 3.0, 4.0],
    )
    profiling = readings("dcgm_profiling", [3.0, 9.0, 12.0], tensor_activity_pct=[7.0, 31.0, 62.0])
    memory = readings(
        "nvml_conditions", [4.0, 9.0], memory_used_bytes=[2**33, 2**34], gpu_activity_pct=[88.0, 93.0],
        sm_clock_mhz=[1980, 1755], memory_clock_mhz=[2619, 2619], temperature_c=[55.0, 63.0],
    )  # fmt: skip
    many(
        folder,
        lambda sweep, point: make_attempt(sweep, point, made(period_s=0.02)),
        traced(counted(lambda row: row["counter_mj"] - (zero if at_s(row) > 6 else 0))),
        traced(scaled(1.1)),
        traced(scaled(1.5)),
        traced(lambda rows: [row for row in rows if not 5.0 < at_s(row) < 6.0]),
        traced(lambda rows: [{**row, "gap": at_s(row) > 7 and at_s(row) < 7.15} for row in rows]),
        traced(lambda rows: [row for row in rows if at_s(row) < 11.0]),
        traced(lambda rows: [row for row in rows if row["power_w"] is None]),
        traced(stepped),
        traced(lambda rows: rows, source="nvml_average"),
        traced(lambda rows: rows, source="nvml_average", batches=3),
        traced(lambda rows: rows, source="dcgm", after_s=2.0),
        traced(lambda rows: rows, source="dcgm_mean", batches=3),
        traced(lambda rows: rows, source="nvml_instant", counter=False),
        traced(lambda rows: [row for i, row in enumerate(rows) if row["power_w"] is None or i % 3]),
        traced(lambda rows: rows + activity + memory),
        traced(lambda rows: rows + profiling),
        traced(lambda rows: rows + readings("nvml_conditions", [0.0, 11.7], processes=[1, 2])),
        traced(lambda rows: rows + readings("nvml_conditions", [5.0], throttle_reasons=[0x48])),
        traced(
            lambda rows: [
                row for row in rows if row["power_w"] is None or not 3.7 < at_s(row) < 3.83
            ]
        ),
        counter_alone,
        tokens_differ,
        restarted,
    )


@sweep_of
def caps(folder: Path) -> None:
    """Caps that bound, did not bind, were lost and were not known."""
    controlled(
        folder,
        ({"power_limit_w": 400}, {"watts": 390.0, "limit": (400.0, 400.0), "held_s": 1}),
        ({"power_limit_w": 400}, {"watts": 385.0, "limit": (400.0, 400.0), "held_s": 0}),
        ({"power_limit_w": 300}, {"watts": 285.0, "limit": (300.0, 300.0), "held_s": 4, "decode_s": 4.0}),
        ({"power_limit_w": 300}, {"watts": 284.0, "limit": (300.0, 300.0), "held_s": 5, "decode_s": 4.1}),
        ({"power_limit_w": 600}, {"watts": 390.0, "limit": (600.0, 600.0), "held_s": 0}),
        ({"power_limit_w": 250}, {"watts": 390.0, "limit": (250.0, 700.0), "held_s": 0}),
        ({"power_limit_w": 200}, {"watts": 390.0, "limit": (None, None), "held_s": 0}),
    )  # fmt: skip


@sweep_of
def clocks(folder: Path) -> None:
    """A clock that was in force, two boards at it, one that passed it; boards as found."""
    controlled(
        folder,
        (
            {"sm_clock_mhz": 1200},
            {"watts": 240.0, "limit": (700.0, 700.0), "held_s": 0, "mhz": (1200, 1155)},
        ),
        (
            {"sm_clock_mhz": 1200},
            {"watts": 244.0, "limit": (700.0, 700.0), "held_s": 0, "mhz": (1200, 1200)},
        ),
        (
            {"sm_clock_mhz": 1400},
            {"watts": 330.0, "limit": (700.0, 700.0), "held_s": 0, "mhz": (1980, 1400)},
        ),
        ({}, {"watts": 400.0, "limit": (700.0, 700.0), "held_s": 0}),
    )


def controlled(folder: Path, *cases: tuple[Row, Row]) -> None:
    """A sweep of points with a cap or a clock, and what was read of it at both ends of the window."""
    seen: list[Row] = []
    points = []
    for asked, _ in cases:
        points.append(
            point_of(repeat=seen.count(asked), **{f"control__{k}": v for k, v in asked.items()})
        )
        seen.append(asked)
    sweep = make_sweep(folder, points)
    for i, (point, (asked, case)) in enumerate(zip(points, cases, strict=True)):
        one = made(
            Gpu("GPU-a", wave(case["watts"], 4)),
            decode_s=case.get("decode_s", 3.0),
            limit_w=case["limit"][0],
            started_s=60.0 * i,
        )
        attempt = make_attempt(sweep, point, one)
        zero_s = 60.0 * i
        read = readings(
            "nvml_conditions",
            [zero_s + 3.6, zero_s + 10.4],
            power_limit_w=case["limit"],
            under_cap_ns=[10**12, 10**12 + case["held_s"] * 10**9],
            sm_clock_mhz=case.get("mhz", (1980, 1950)),
        )
        retrace(
            attempt,
            lambda rows, read=read: [r for r in rows if r["source"] != "nvml_conditions"] + read,
        )
        if asked:
            was_set = {
                "uuid": "GPU-a",
                "prior_limit_w": 700.0,
                "power_limit_w": asked.get("power_limit_w"),
                "sm_clock_mhz": asked.get("sm_clock_mhz"),
                "limit_in_force_w": case["limit"][0] or 700.0,
            }
            rerecord(attempt, lambda record, one=was_set: record["nodes"][0].update(control=[one]))


@sweep_of
def nodes(folder: Path) -> None:
    """Two nodes whose clocks differ and drift, with hosts; one host lacking; two boundaries; a node without spans."""
    gpus = [Gpu("GPU-a", wave(300, 80), "node1"), Gpu("GPU-b", wave(260, 50, 3), "node2")]
    both = {"node1": wave(90, 10), "node2": wave(110, 15)}
    one = made(*gpus, hosts=both, offset_s={"node2": 3.0}, drift={"node2": 50e-6}, batches=4)

    def mixed(sweep: SweepDir, point: Row) -> None:
        rerecord(
            make_attempt(sweep, point, made(*gpus)), lambda r: r["nodes"][1].update(boundary="host")
        )

    many(
        folder,
        lambda sweep, point: make_attempt(sweep, point, one),
        lambda sweep, point: make_attempt(sweep, point, replace(one, started_s=90.0)),
        lambda sweep, point: make_attempt(
            sweep, point, made(*gpus, hosts={"node1": constant(90.0)})
        ),
        mixed,
        lambda sweep, point: make_attempt(sweep, point, made(*gpus)).spans_path("node2").unlink(),
        lambda sweep, point: make_attempt(sweep, point, made(*gpus, status="failed", hosts=both)),
        shards=2,
        nodes=2,
        cluster__gpus_per_node=1,
    )
    # its results stay, as a later version finds them; with other times of the records, so that they are made anew
    for path in folder.glob("points/*/attempt-*/record.json"):
        os.utime(path, ns=(START_NS, START_NS))
    collect(SweepDir(folder))


@sweep_of
def simulated(folder: Path) -> None:
    """The demo: a host's simulated watts under one and two shards, a failed point and an infeasible one."""
    demo(folder)
    grid = pq.read_table(folder / "grid.parquet")
    assert all(json.loads(text)["n_prompts"] for text in grid["choices"].to_pylist())


@sweep_of
def odd(folder: Path) -> None:
    """Spans without a window, without tokens, that overlap; lost phases; a host by RAPL; an unknown choice."""

    def respan(change: Callable[[list[Row]], list[Row]]) -> Callable[[SweepDir, Row], None]:
        def case(sweep: SweepDir, point: Row) -> None:
            attempt = make_attempt(sweep, point, made())
            rows = change(pq.read_table(attempt.spans_path("node1")).to_pylist())
            table = pa.Table.from_pylist(rows, schema=SPAN).replace_schema_metadata(ABOUT)
            write_table(attempt.spans_path("node1"), table)

        return case

    def late_prefill(row: Row) -> Row:
        return (
            {**row, "start_ns": row["start_ns"] - 500_000_000} if row["phase"] == "decode" else row
        )

    def by_rapl(sweep: SweepDir, point: Row) -> None:
        host = Gpu("host-node1", wave(150, 10))
        one = made(host, source="rapl", boundary="host", counter=False, period_s=0.05)
        rerecord(
            make_attempt(sweep, point, one), lambda record: record["nodes"][0].update(meter="rapl")
        )

    def later(sweep: SweepDir, point: Row) -> None:
        def add(record: Any) -> None:
            record["choices"] = {**record["choices"], "new_axis": 1}

        rerecord(make_attempt(sweep, point, made()), add)

    many(
        folder,
        respan(lambda rows: [row for row in rows if row["phase"] != "decode"]),
        respan(lambda rows: [{**row, "tokens_kept": None} for row in rows]),
        respan(lambda rows: [late_prefill(row) for row in rows]),
        traced(lambda rows: [row for row in rows if not 1.0 < at_s(row) < 2.0]),
        traced(
            lambda rows: [row for row in rows if not 3.01 < at_s(row) < 3.11],
            period_s=0.02,
            prefill_s=0.2,
            batches=5,
        ),
        by_rapl,
        later,
    )


# --- damage, prices -------------------------------------------------------------------------------


@sweep_of
def damaged(folder: Path) -> None:
    """A file of each kind cut, foreign, garbled or of another schema; a whole attempt beside them."""

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-40])

    def foreign(path: Path) -> None:
        write_table(path, pa.table({"x": [1]}))

    def text(path: Path) -> None:
        path.write_text("not what you think")

    def spans_schema(path: Path) -> None:
        found = pq.read_table(path)
        at = found.schema.get_field_index("start_ns")
        changed = found.set_column(at, "start_ns", found["start_ns"].cast(pa.string()))
        write_table(path, changed.replace_schema_metadata(found.schema.metadata))

    def version(path: Path) -> None:
        found = pq.read_table(path)
        write_table(
            path, found.replace_schema_metadata({**found.schema.metadata, b"schema_version": b"99"})
        )

    def newer(path: Path) -> None:
        path.write_text('{"schema_version": 99}')

    def owner(path: Path) -> None:
        one = made()
        write_table(path, trace_of(one, Gpu("GPU-b")))

    harms = {
        "record": [cut, text, newer, lambda path: path.write_text("[]")],
        "trace": [cut, foreign, text, owner, version],
        "spans": [cut, foreign, spans_schema, version],
        "requests": [cut, foreign, lambda path: path.unlink()],
    }  # fmt: skip

    def case(which: str, harm: Callable[[Path], object]) -> Callable[[SweepDir, Row], None]:
        def one(sweep: SweepDir, point: Row) -> None:
            attempt = make_attempt(sweep, point, made(counter=False))
            harm(
                {
                    "record": attempt.record_path,
                    "trace": attempt.trace_path("node1", "GPU-a"),
                    "spans": attempt.spans_path("node1"),
                    "requests": attempt.requests_path,
                }[which]
            )

        return one

    cases = [case(which, harm) for which, of_file in harms.items() for harm in of_file]
    many(folder, lambda sweep, point: make_attempt(sweep, point, made()), *cases)


@sweep_of
def priced(folder: Path) -> None:
    """Constants of price and carbon with a PUE; a price that changes over time; none at all."""
    declared = {
        "cluster__cost__price_per_kwh": 0.25,
        "cluster__cost__currency": "EUR",
        "cluster__cost__price_source": "tariff of 2026",
        "cluster__cost__carbon_g_per_kwh": 400.0,
        "cluster__cost__carbon_source": "grid operator, mean of 2025",
        "cluster__cost__pue": 1.5,
        "cluster__cost__pue_source": "the data centre's own meters",
    }
    table = {
        **declared,
        "cluster__cost__price_per_kwh": None,
        "cluster__cost__price_path": "priced/prices.csv",
    }
    points = [
        point_of(batch_size=2, **declared), point_of(batch_size=4, **declared), point_of(batch_size=8, **table),
        point_of(batch_size=8, seed=1, **declared),
    ]  # fmt: skip
    sweep = make_sweep(folder, points)
    for i, point in enumerate(points):
        one = made(Gpu("GPU-a", wave(310 - 30 * i, 20)), prompts=2 * (i + 1), tokens=64 * (i + 1))
        make_attempt(sweep, point, replace(one, status="failed" if i == 3 else "finished"))
    (folder / "prices.csv").write_text(
        "time,price_per_kwh\n2025-10-09T08:00:00Z,0.20\n2025-10-09T08:53:25Z,0.40\n2025-10-09T09:53:25Z,0.10\n"
    )


# --- what was really run --------------------------------------------------------------------------

SPANS = """
import time, wattflow
with wattflow.span("load"): time.sleep(0.2)
for _ in range(3):
    with wattflow.span("prefill", tokens_in=40): time.sleep(0.15)
    with wattflow.span("decode", tokens_out=24): time.sleep(0.4)
"""


ODD = """
import os, subprocess, sys, time, wattflow
time.sleep(0.3)
turn = int(open("turn").read())
if turn == 2:
    sys.exit(3)
if turn == 3:
    with open(os.environ["WATTFLOW_SPANS"], "a") as file:
        file.write("no span\\n")
    with wattflow.span("forward", tokens_out=5): time.sleep(0.3)
    subprocess.Popen(["sleep", "2"])
if turn == 4:
    open("tokens.json", "w").write('{"usage": {"output": 17}}')
"""


def call(*words: str, cwd: Path, code: int = 0, **environment: str) -> None:
    """Run a verb of the old code where nothing of this machine is seen."""
    hidden = ("SLURM", "CUDA_", "WATTFLOW", "FAKE_NVML_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    env |= {
        "PYTHONPATH": str(OLD),
        "LOGNAME": "user",
        "SLURMD_NODENAME": "node1",
        "OMP_NUM_THREADS": "1",
    }
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "wattflow.cli", *words],
        cwd=cwd, env={**env, **environment}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr


def keep(made_at: Path, folder: Path) -> None:
    """Take over what a later reader needs of a sweep that was run: no logs, pickles or results."""
    out = shutil.ignore_patterns(
        "logs", "results", "submitit", "journal.jsonl", "sweep.yaml", "turns", ".*"
    )
    shutil.copytree(made_at, folder, ignore=out)


@sweep_of
def ran(folder: Path) -> None:
    """Three engines' runs by simulated watts on one and two ranks, with their work and ceilings."""
    with tempfile.TemporaryDirectory() as name:
        words = [
            "engine.device=cpu",
            "precision=fp32",
            "power=simulated",
            "n_prompts=4",
            "batch_size=2",
        ]
        words += [
            "max_gen_len=8",
            "power.idle_s=0.3",
            "power.poll_ms=20",
            "sweep=ran",
            "repeat=0,1",
        ]
        for engine in ("paper", "fast", "synthetic"):
            call("run", "-m", f"engine={engine}", *words, cwd=Path(name))
        keep(Path(name) / "sweeps" / "ran", folder)


@sweep_of
def measured(folder: Path) -> None:
    """A program that reports its spans, on two GPUs of the fake NVML."""
    with tempfile.TemporaryDirectory() as name:
        where = Path(name)
        library = fake_nvml.build(where / "nvml")
        (where / "program.py").write_text(SPANS)
        call(
            "measure", "--out", "measured", "--set", "power.meter=nvml", "--", "python3", "program.py",
            cwd=where, LD_LIBRARY_PATH=str(library), FAKE_NVML_GPUS="2", FAKE_NVML_PROCESSES="0",
        )  # fmt: skip
        keep(where / "measured", folder)


@sweep_of
def measured_odd(folder: Path) -> None:
    """A command four times: without spans, failing, with a bad line and a daemon, with its tokens in a file."""
    with tempfile.TemporaryDirectory() as name:
        where = Path(name)
        (where / "program.py").write_text(ODD)
        words = [
            "measure",
            "--out",
            "measured_odd",
            "--set",
            "power.meter=simulated",
            "--set",
            "power.poll_ms=20",
        ]
        for turn in range(1, 5):
            (where / "turn").write_text(str(turn))
            more = (
                ["--tokens-json", "tokens.json", "--tokens-key", "usage.output"]
                if turn == 4
                else []
            )
            call(
                *words, *more, "--", "python3", "program.py", cwd=where, code=3 if turn == 2 else 0
            )
        keep(where / "measured_odd", folder)


@sweep_of
def measured_nodes(folder: Path) -> None:
    """The same program as a step of two nodes, by simulated watts."""
    with tempfile.TemporaryDirectory() as name:
        where = Path(name)
        (where / "program.py").write_text(SPANS)
        words = [
            "measure",
            "--out",
            "measured_nodes",
            "--set",
            "power.meter=simulated",
            "--set",
            "power.poll_ms=20",
        ]
        step = {f"SLURM_{k}": "2" for k in ("NNODES", "NTASKS", "STEP_NUM_NODES", "STEP_NUM_TASKS")}
        step |= {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0"}

        def on_node(i: int) -> None:
            own = {
                "SLURM_NODEID": f"{i}",
                "SLURM_PROCID": f"{i}",
                "SLURMD_NODENAME": f"node{i + 1}",
            }
            call(*words, "--", "python3", "program.py", cwd=where, **step, **own)

        with ThreadPoolExecutor() as both:
            list(both.map(on_node, range(2)))
        keep(where / "measured_nodes", folder)


# --- all of it ------------------------------------------------------------------------------------


def names_no_machine(folder: Path) -> None:
    """Fail where a text of a sweep, or of its tables, holds a path or name of this machine."""
    for path in folder.rglob("*"):
        text = path.read_text(errors="replace") if path.is_file() else ""
        if path.suffix == ".parquet":
            with contextlib.suppress(pa.ArrowInvalid):  # damaged on purpose
                table = pq.read_table(path)
                text += f"{table.to_pydict()} {table.schema.metadata}"
        found = [word for word in MACHINE if word in text]
        assert not found, (path, found)


def pack(folder: Path, path: Path) -> None:
    """Pack a sweep, owned by nobody."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mode = 0o755 if member.isdir() else 0o644
        member.mtime = test_golden.RECORDED_NS // 10**9
        return member

    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:xz", preset=9) as packed:
        packed.add(folder, folder.name, filter=plain)


def main(names: Sequence[str]) -> None:
    """Make some sweeps, or all; then the bundles, and what the old code makes of them."""
    head = subprocess.run(
        ["git", "-C", OLD, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    assert head.stdout.strip() == COMMIT, f"{OLD} is not at {COMMIT}"
    os.environ["PYTHONPATH"] = str(OLD)
    for name in names or SWEEPS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / name
            SWEEPS[name](folder)
            if name != "nodes":
                shutil.rmtree(folder / "results", ignore_errors=True)
            shutil.rmtree(folder / "submitit", ignore_errors=True)
            # the salt makes pseudonyms; the time of change of a record stands in the results
            (folder / "bundle.salt").write_text("5a" * 32 + "\n")
            names_no_machine(folder)
            pack(folder, HERE / "sweeps" / f"{name}.tar.xz")
    (HERE / "bundles").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, test_golden.command_line() as call:
        for name in BUNDLED:
            test_golden.unpacked(name, Path(temporary))
            call(temporary, ["collect", name], ["bundle", name, "--out", f"{name}.zip"])
            bundle = lzma.compress((Path(temporary) / f"{name}.zip").read_bytes(), preset=9)
            (HERE / "bundles" / f"{name}.zip.xz").write_bytes(bundle)
    with tempfile.TemporaryDirectory() as temporary, test_golden.command_line() as call:
        test_golden.write_expected(Path(temporary), call, names or list(SWEEPS))


if __name__ == "__main__":
    main(sys.argv[2:])
