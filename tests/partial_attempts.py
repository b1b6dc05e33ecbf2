"""Points that are measured in several attempts, each interrupted but for the last."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sweeps import Gpu, Made, choices, constant, make_attempt, make_sweep

from wattflow.run.local import RankJob
from wattflow.run.place import Place, TaskEnds
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import JobInfo

JOB: JobInfo = {"job_id": None, "array_task": None, "restart": 0, "cluster": "local"}
BATCHES = 6


def slow(**over: Any) -> dict[str, Any]:
    """Six batches of two prompts, some 0.5 s each; 70 W whatever the machine does."""
    keys = {
        "engine__name": "synthetic",
        "engine__device": "cpu",
        "engine__synthetic_ms_per_token": 60.0,
        "power__meter": "simulated",
        "power__simulated_idle_w": 70.0,
        "power__simulated_full_w": 70.0,
        "power__poll_ms": 20,
        "power__idle_s": 0.1,
        "n_prompts": 2 * BATCHES,
        "batch_size": 2,
        "max_gen_len": 8,
        "max_seq_len": 512,
        "sweep__on_interrupt": "continue",
    }
    return choices(**{**keys, **over})


def start(sweep: SweepDir, point_id: str, spool: Path, world: int = 1) -> list[subprocess.Popen]:
    """The ranks of one attempt as processes of this machine."""
    spool.mkdir()
    ranks = []
    for rank in range(world):
        place = Place(rank, world, rank, "n1", f"file://{spool}/meet", str(spool), JOB)
        text = json.dumps(asdict(RankJob(str(sweep.path), [point_id], {}, TaskEnds(), place)))
        with (spool / f"rank{rank}.log").open("w") as log:
            command = [sys.executable, "-m", "wattflow.run.local", text]
            ranks.append(subprocess.Popen(command, stdout=log, stderr=log))
    return ranks


def three_attempts(
    folder: Path, point: dict[str, Any] | None = None, *, second_boundary: str = "gpu"
) -> tuple[SweepDir, list[AttemptDir], dict[str, Any]]:
    """Three attempts of 2, 1 and 3 batches at 70, 100 and 50 W; the last one finished."""
    point = {**(point or slow()), "n_prompts": 24, "batch_size": 4}
    sweep = make_sweep(folder / "demo", [point])
    attempts, listed, first = [], [], 0
    for number, (batches, power_w) in enumerate([(2, 70.0), (1, 100.0), (3, 50.0)], 1):
        made = Made(
            [Gpu("GPU-0", constant(power_w))],
            batches=batches,
            first_batch=first,
            boundary=second_boundary if number == 2 else "gpu",
        )
        attempt = make_attempt(sweep, point, made)
        listed.append({"attempt": number, "first_batch": first, "batches": batches})
        record = attempt.read_record()
        assert record is not None
        record["status"] = "finished" if number == 3 else "interrupted"
        record["pieces"] = list(listed)
        attempt.write_record(record)
        attempts.append(attempt)
        first += batches
    return sweep, attempts, point
