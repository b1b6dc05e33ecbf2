"""Points that share a task: one sidecar for all of them and, where asked, one load of the weights for several."""

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_ranks import random_weights, save_meta
from sweeps import id_of, make_sweep

from wattflow.collect import collect
from wattflow.config import choices
from wattflow.plan import grid
from wattflow.run.place import Place
from wattflow.run.resources import NodeSidecar, SharedWeights
from wattflow.store.columns import POINT
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import TRACE
from wattflow.store.tables import read_table

# one rank of a task; prints what it finds at each progress, and moves the checkpoint in the first point's batches
TASK = """
import json, os, pathlib, sys, time
from wattflow.run.place import Place
from wattflow.run.signals import Signals
from wattflow.run.task import Todo, run_points
from wattflow.store.layout import SweepDir
job = json.loads(sys.argv[1])
seen = []
def sidecars():
    found = []
    for folder in pathlib.Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                words = (folder / "cmdline").read_bytes()
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if b"wattflow.power.sidecar" in words and int(parent) == os.getpid():
                found.append(folder.name)
    return found
def report(point, progress):
    running = progress.phase == "batches"
    seen.append([progress.phase, progress.of, time.time_ns(), sidecars() if running else []])
    if running and job["aside"] and os.path.exists(job["aside"][0]):
        os.rename(*job["aside"])
slurm_job = {"job_id": None, "array_task": None, "restart": 0, "cluster": "local"}
place = Place(0, 1, 0, "n1", "file:///nowhere", job["spool"], slurm_job)
todo = Todo(SweepDir(pathlib.Path(job["sweep"])), job["ids"], {})
try:
    run_points(todo, place, Signals(), report)
except Exception as error:
    print(error, file=sys.stderr)
print(json.dumps(seen))
"""


def run_task(sweep: SweepDir, ids: list[str], aside: tuple[Path, Path] | None = None) -> list[Any]:
    """Run points as one task; at each progress the phase, batches in all, the time, the sidecars."""
    with tempfile.TemporaryDirectory(prefix="wattflow-packed-") as spool:
        job = {"sweep": str(sweep.path), "ids": ids, "spool": spool}
        text = json.dumps({**job, "aside": aside and [str(path) for path in aside]})
        done = subprocess.run(
            [sys.executable, "-c", TASK, text],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
    assert done.returncode == 0, done.stderr
    seen: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


def tiny(*words: str) -> dict[str, Any]:
    """The choices of a point of the tiny model on the CPU, done in a moment."""
    small = ["n_prompts=2", "batch_size=2", "max_gen_len=4", "precision=fp32", "power.idle_s=0.1"]
    where = ["model=tiny", "dataset=alpaca", "cluster=local", "engine.device=cpu"]
    how = ["power.meter=simulated", "dataset.on_bad=truncate", "sweep.repeats=1"]
    (point,) = grid.plan([*small, *where, *how, *words]).points
    return choices.to_dict(point.config)


def statuses(sweep: SweepDir, ids: list[str]) -> list[str | None]:
    records = [attempt.read_record() for i in ids for attempt in sweep.attempts(i)]
    return [record["status"] if record else None for record in records]


@pytest.mark.parametrize("engine", ["paper", "fast"])
def test_two_points_share_each_load_and_no_joule_of_it(engine, tmp_path):
    """The checkpoint goes away once it was read: the second point needs it no more, the third fails alone.

    The loads of weights end before the traces begin; one sidecar serves all points.
    """
    model = choices.from_dict(tiny()).model
    checkpoint, aside = tmp_path / "tiny", tmp_path / "aside"
    save_meta(checkpoint, model, random_weights(model), 1)
    words = ("weights=meta", "stop=length", f"model.path={checkpoint}", "sweep.load_shared_by=2")
    points = [tiny(*words, f"seed={seed}", f"engine={engine}") for seed in (1, 2, 3)]
    sweep = make_sweep(tmp_path / "demo", points)
    ids = [id_of(point) for point in points]
    seen = run_task(sweep, ids, (checkpoint, aside))
    assert statuses(sweep, ids) == ["finished", "finished", "failed"]
    loads = [when for phase, of, when, _ in seen if (phase, of) == ("load", 0)]
    assert len(loads) == 2  # the third point's came to nothing
    idles = [when for phase, _, when, _ in seen if phase == "idle"]
    attempt = sweep.attempts(ids[0])[0]
    (trace,) = (attempt.path / "traces").glob("*.parquet")
    first_ns = min(read_table(trace, TRACE)["time_ns"].to_pylist())
    assert loads[0] < first_ns <= idles[0]
    assert len({pid for phase, _, _, pids in seen if phase == "batches" for pid in pids}) == 1
    collect.collect(sweep)
    rows = read_table(sweep.points_path, POINT).to_pylist()
    assert [row["valid"] for row in rows] == [True, True, False]
    assert all("load_shared" in row["reasons"] for row in rows[:2])


def test_a_failure_costs_its_own_point_of_a_shared_load(tmp_path):
    """The second of three points finds no prompts; the third loads anew and finishes, and nothing is left running."""
    points = [tiny(f"seed={seed}", "sweep.load_shared_by=3") for seed in (1, 2, 3)]
    points[1]["dataset"]["path"] = str(tmp_path / "nowhere.json")
    sweep = make_sweep(tmp_path / "demo", points)
    ids = [id_of(point) for point in points]
    seen = run_task(sweep, ids)
    assert statuses(sweep, ids) == ["finished", "failed", "finished"]
    assert sum((phase, of) == ("load", 0) for phase, of, _, _ in seen) == 2


class Loader:
    """Counts the loads of weights."""

    def __init__(self):
        self.loads = 0

    def load_weights(self):
        self.loads += 1
        return f"weights {self.loads}"


def test_weights_are_shared_by_so_many_points_of_one_model():
    """Two points a load: the third loads anew, as does another precision, and whoever comes after a failure."""
    engine, weights, begun = Loader(), SharedWeights(), []
    config = choices.from_dict(tiny("sweep.load_shared_by=2"))
    other = replace(config, precision="bf16")
    wanted = (config, config, config, other, other)
    taken = [weights.take(one, engine, lambda: begun.append(1)) for one in wanted]
    assert [text[-1] for text in taken] == ["1", "1", "2", "3", "3"]
    weights.take(config, engine, lambda: begun.append(1))
    weights.drop()
    assert weights.take(config, engine, lambda: begun.append(1)) == "weights 5"
    assert len(begun) == engine.loads == 5


def test_other_local_ranks_have_no_sidecar(tmp_path):
    """Local rank 0 has the node's; on the others nothing is started, and nothing is to be closed."""
    job = {"job_id": None, "array_task": None, "restart": 0, "cluster": "local"}
    sidecar = NodeSidecar(Place(1, 2, 1, "n1", "", str(tmp_path), job))
    config = choices.from_dict(tiny())
    assert sidecar.start(config, AttemptDir(tmp_path, "0123456789ab", 1)) is None
    sidecar.mark()
    assert sidecar.so_far() is None
    assert sidecar.stop() is None
    sidecar.close_failed()
    sidecar.close()
    assert list(tmp_path.iterdir()) == []
