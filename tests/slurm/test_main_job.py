"""The main job on a real Slurm: shards 1, 2 and 4 over both datasets, measured by NVML, collected by the job after.

The fake driver's watts are known functions of time, so the joules of every attempt are known too.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from engine_ranks import random_weights, save_meta
from fake_nvml import curves
from slurm_sweeps import fresh, plan, states, until, with_cluster

from wattflow.plan import points
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import SPAN
from wattflow.store.tables import read_table
from wattflow.submit import journal, resume, send, status
from wattflow.submit.preview import preview

pytest_plugins = ("fake_nvml.fixtures",)
pytestmark = [pytest.mark.slurm, pytest.mark.fake_nvml]

WORDS = (
    "model=tiny",
    "engine=synthetic",  # NVML is no meter of what computes on the CPU
    "engine.synthetic_ms_per_token=200",  # windows of seconds, of which ranks' edges are small parts
    "power.meter=nvml",
    "power.idle_s=0.2",
    "precision=fp32",
    "n_prompts=8",
    "batch_size=4",
    "max_gen_len=8",
    "max_seq_len=512",
    "dataset.on_bad=truncate",
)


@dataclass(frozen=True)
class Job:
    """A sweep that was submitted, and what its jobs find on their nodes."""

    made: points.Plan
    setup: list[str]

    @property
    def sweep(self) -> SweepDir:
        return self.made.sweep


@pytest.fixture(scope="module")
def job(cluster: Any, nvml_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Six points: shards 1, 2 and 4 (the last on two nodes) over alpaca and gsm8k; submitted, run and collected."""
    setup = [f"export LD_LIBRARY_PATH={nvml_folder}", "export FAKE_NVML_GPUS=2"]
    folder = tmp_path_factory.mktemp("main")
    made = plan(folder, *WORDS, "sweep=main", "shards=1,2,4", "dataset=alpaca,gsm8k")
    made = with_cluster(made, setup=setup)
    send.submit(made)
    until(lambda: not states(made.sweep) & {"waiting", "running"})
    assert states(made.sweep) == {"done"}, fresh(made.sweep)
    until(made.sweep.points_path.is_file)
    return Job(made, setup)


def attempt_of(sweep: SweepDir, point_id: str) -> AttemptDir:
    (attempt,) = sweep.attempts(point_id)
    return attempt


def true_joules(attempt: AttemptDir) -> float:
    """The integral of the fake watts over each node's window, summed over the devices that ranks used."""
    record = attempt.read_record()
    assert record is not None
    total = 0.0
    for node in record["nodes"]:
        spans = read_table(attempt.spans_path(node["node"]), SPAN).to_pylist()
        start_ns = min(s["start_ns"] for s in spans if s["phase"] == "prefill")
        end_ns = max(s["end_ns"] for s in spans if s["phase"] == "decode")
        for uuid in {span["gpu_uuid"] for span in spans}:
            total += curves.curve(uuid).joules(start_ns, end_ns)
    return total


def collected(job: Job) -> list[dict[str, Any]]:
    """The rows that count of the six points."""
    rows: list[dict[str, Any]] = pq.read_table(job.sweep.points_path).to_pylist()
    ids = {point.point_id for point in job.made.points}
    return [row for row in rows if row["counts"] and row["point_id"] in ids]


def test_every_point_is_collected_by_the_job_after_the_arrays(job):
    """Six valid rows that count, and nobody called the collector by hand."""
    collect = next(sent for sent in journal.read(job.sweep) if sent.kind == "collect")
    assert (collect.folder / f"{collect.job_id}_0_result.pkl").is_file()
    rows = collected(job)
    assert sorted((row["shards"], row["dataset"]) for row in rows) == [
        (shards, dataset) for shards in (1, 2, 4) for dataset in ("alpaca", "gsm8k")
    ]
    assert all(row["valid"] for row in rows), [row["reasons"] for row in rows]


def test_each_shape_went_as_one_array(job):
    """Three shapes, three arrays of two tasks."""
    sents = [sent for sent in journal.read(job.sweep) if sent.kind == "points"]
    assert [len(sent.tasks) for sent in sents[:3]] == [2, 2, 2]


def test_four_shards_ran_on_two_nodes_with_a_trace_of_each_device(job):
    """Two ranks a node; every device that a rank used left its trace under its node's name and UUID."""
    nodes_of = {}
    for point in job.made.points:
        attempt = attempt_of(job.sweep, point.point_id)
        record = attempt.read_record()
        assert record is not None
        used = {(rank["node"], rank["gpu_uuid"]) for rank in record["ranks"]}
        assert len(used) == point.config.shards
        assert all(attempt.trace_path(node, uuid).is_file() for node, uuid in used)
        nodes_of.setdefault(point.config.shards, set()).add(len({node for node, _ in used}))
    assert nodes_of == {1: {1}, 2: {1}, 4: {2}}


def test_joules_are_those_of_the_drivers_curves(job):
    """Within 0.1 % of the analytic integral, for every point; the watts came from the driver's own buffer."""
    for row in collected(job):
        truth_j = true_joules(attempt_of(job.sweep, row["point_id"]))
        assert row["energy_j"] == pytest.approx(truth_j, rel=1e-3), row["point_id"]
        assert row["power_source"] == "nvml_buffer"


# --- one point fails, is told, and is run again alone ---------------------------------------------


@dataclass(frozen=True)
class Failure:
    """A point whose checkpoint went away between submit and start, and where it is kept meanwhile."""

    sweep: SweepDir
    point_id: str
    rows: list[status.Row]
    slurm_states: list[str]
    checkpoint: Path
    aside: Path


def scontrol_nodes(*words: str) -> None:
    subprocess.run(["scontrol", "update", "nodename=ALL", *words], check=True, timeout=600)


def slurm_states(job_id: str) -> list[str]:
    command = ["sacct", "-X", "-n", "-P", "-o", "State", "-j", job_id]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    return done.stdout.split()


@pytest.fixture(scope="module")
def failure(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Failure:
    """The second point of a sweep, from a checkpoint that is moved away while the nodes are drained."""
    checkpoint = tmp_path_factory.mktemp("checkpoint") / "tiny"
    aside = checkpoint.with_name("aside")
    model = job.made.points[0].config.model
    save_meta(checkpoint, model, random_weights(model), 1)
    more = ("weights=meta", f"model.path={checkpoint}", "stop=length")
    more += ("engine=paper", "power.meter=simulated")
    words = (*WORDS, "sweep=failing", *more, "dataset=alpaca")
    first = plan(job.sweep.path.parent, *words, "seed=1")
    send.submit(with_cluster(first, setup=job.setup))
    until(lambda: states(first.sweep) == {"done"})
    made = plan(job.sweep.path.parent, *words, "seed=2")
    scontrol_nodes("state=drain", "reason=test")
    sent = send.submit(with_cluster(made, setup=job.setup))
    checkpoint.rename(aside)
    scontrol_nodes("state=resume")
    (point_id,) = [point.point_id for point in made.points]
    until(lambda: not states(made.sweep) & {"waiting", "running"})
    until(
        lambda: slurm_states(sent.job_ids[0]) not in ([], ["RUNNING"], ["PENDING"], ["COMPLETING"])
    )
    rows = fresh(made.sweep)
    return Failure(made.sweep, point_id, rows, slurm_states(sent.job_ids[0]), checkpoint, aside)


def test_a_failing_point_is_failed_in_slurm_and_in_status(failure):
    """Slurm's accounting says FAILED; status says failed, names the folder, and exits with 3. The other stays done."""
    assert failure.slurm_states == ["FAILED"]
    assert status.counts(failure.rows) == {"done": 1, "failed": 1}
    (row,) = [row for row in failure.rows if row.state == "failed"]
    assert row.point_id == failure.point_id
    assert str(failure.checkpoint) in str(row.reason)
    assert row.log is not None
    assert str(failure.checkpoint) in row.log.read_text()
    assert status.exit_code(failure.rows) == 3


def test_resume_after_the_mend_runs_that_point_alone(failure):
    """One task with one point is sent; it finishes as attempt 2, and the other point keeps its one attempt."""
    failure.aside.rename(failure.checkpoint)
    sent = resume.resume(failure.sweep)
    assert sent.points == 1
    assert [s.tasks for s in journal.read(failure.sweep) if s.kind == "points"][-1] == [
        [failure.point_id]
    ]
    until(lambda: states(failure.sweep) == {"done"})
    attempts = {row.point_id: row.attempts for row in fresh(failure.sweep)}
    assert attempts.pop(failure.point_id) == 2
    assert set(attempts.values()) == {1}


def test_the_sweep_leaves_what_plan_said(job):
    """Within 10 % of the files and folders and a factor of 1.5 of the bytes, once the times are those that it took."""
    said = preview(job.made).quote.footprint
    assert said.unknown == 0
    left = list(job.sweep.path.rglob("*"))
    assert len(left) + 1 == pytest.approx(said.files, rel=0.1)
    size = sum(path.lstat().st_size for path in left if path.is_file() and not path.is_symlink())
    assert size / 1.5 < said.bytes < size * 1.5
