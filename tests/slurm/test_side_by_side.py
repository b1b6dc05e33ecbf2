"""Points side by side on the nodes of a real Slurm, each on a fake GPU of its own whose curve is known."""

import itertools
from collections import Counter

import polars as pl
import pytest
from fake_nvml import curves
from slurm_sweeps import QUICK, fresh, plan, states, until

from wattflow.analysis.sweep import open_sweep
from wattflow.collect.collect import collect
from wattflow.plan.points import Plan
from wattflow.store import heartbeat
from wattflow.store.layout import SweepDir
from wattflow.store.schema import SPAN
from wattflow.store.tables import read_table
from wattflow.submit import resume, send

pytestmark = [pytest.mark.slurm, pytest.mark.fake_nvml]
pytest_plugins = ("fake_nvml.fixtures",)

# two batches of 4 steps: a window of 0.8 s
POINT = (*QUICK, "power.meter=nvml", "engine.synthetic_ms_per_token=100", "power.host=false")
BESIDE = "cluster.side_by_side=true"


def seeds(count: int) -> str:
    return f"seed={','.join(map(str, range(count)))}"


def collected(made: Plan) -> pl.DataFrame:
    """The rows of a sweep, collected now."""
    collect(made.sweep)
    return open_sweep(made.sweep.path).points


def true_j(sweep: SweepDir, row: dict) -> float:
    """What the curve of a point's own board holds in its measured window."""
    attempt = sweep.attempts(row["point_id"])[row["attempt"] - 1]
    (path,) = (attempt.path / "timings").glob("*.parquet")
    spans = [r for r in read_table(path, SPAN).to_pylist() if r["phase"] in ("prefill", "decode")]
    (board,) = row["boards"]
    start_ns, end_ns = min(r["start_ns"] for r in spans), max(r["end_ns"] for r in spans)
    return curves.curve(board).joules(start_ns, end_ns)


def windows(sweep: SweepDir) -> dict[str, list[tuple[int, int]]]:
    """When each board was measured, in order."""
    found: dict[str, list[tuple[int, int]]] = {}
    for point in sweep.points_on_disk():
        for path in sweep.path.glob(f"points/{point}/attempt-*/timings/*.parquet"):
            rows = read_table(path, SPAN).to_pylist()
            edges = min(r["start_ns"] for r in rows), max(r["end_ns"] for r in rows)
            found.setdefault(rows[0]["gpu_uuid"], []).append(edges)
    return {board: sorted(edges) for board, edges in found.items()}


def check_joules(sweep: SweepDir, rows: pl.DataFrame) -> None:
    """Each row's joules are its own board's, to 0.1 %, and no board was measured for two points at once."""
    for row in rows.to_dicts():
        assert row["valid"], row["reasons"]
        assert row["energy_j"] == pytest.approx(true_j(sweep, row), rel=1e-3)
    for edges in windows(sweep).values():
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(edges))


def test_points_run_side_by_side_on_gpus_of_their_own(gpus, tmp_path):
    """Eight points as two tasks of four: both boards of a node at once, each point's joules its own, one sidecar."""
    made = plan(tmp_path, *POINT, "sweep=beside", seeds(8), BESIDE, "cluster.points_per_task=2")
    sent = send.submit(made)
    (shape,) = sent.shapes
    assert (shape.slots, [len(task) for task in shape.tasks]) == (2, [4, 4])
    until(lambda: states(made.sweep) == {"done"})
    rows = collected(made)
    check_joules(made.sweep, rows)
    assert all(n == 2 for n in Counter(b for (b,) in rows["boards"]).values())
    beside = rows.filter(pl.col("neighbours") > 0)
    assert len(beside) >= 4
    assert (rows["slots"] == 2).all()
    assert (rows["neighbour_power_w"] > 50).all()
    assert (rows["neighbour_temperature_c"] > 0).all()
    assert rows["host_load_pct"].is_between(0, 100).all()
    assert {row.attempts for row in fresh(made.sweep)} == {1}


def rank_of(point_id: str, sweep: SweepDir) -> int | None:
    """The process that measures a point, once it is in its batches."""
    attempts = sweep.attempts(point_id)
    beat = heartbeat.read(attempts[-1]) if attempts else None
    return None if beat is None else int(beat.by.rsplit(":", 2)[1])


def test_a_killed_point_frees_its_slot_and_costs_its_attempt_alone(gpus, tmp_path):
    """kill -9 of a rank in the middle: its point fails with the reason, its slot runs the next one, resume runs it."""
    made = plan(tmp_path, *POINT, "sweep=killed", seeds(6), BESIDE, "cluster.points_per_task=3")
    victim = made.points[0].point_id
    send.submit(made)
    until(lambda: rank_of(victim, made.sweep) is not None)
    gpus.inside("kill", "-KILL", str(rank_of(victim, made.sweep)))
    until(lambda: states(made.sweep) == {"done", "failed"})
    failed = {row.point_id: row for row in fresh(made.sweep) if row.state == "failed"}
    assert list(failed) == [victim]
    assert "SIGKILL" in str(failed[victim].reason)
    rows = collected(made).filter(pl.col("status") == "finished")
    assert len(rows) == 5
    check_joules(made.sweep, rows)
    assert resume.resume(made.sweep).points == 1
    until(lambda: states(made.sweep) == {"done"})
    again = collected(made).filter((pl.col("point_id") == victim) & pl.col("counts"))
    assert again["attempt"].to_list() == [2]
    assert again["neighbours"].to_list() == [0.0]


def test_a_control_bounds_what_neighbours_change(gpus, tmp_path, monkeypatch):
    """grid=neighbours: each GPU of a node alone, then both; the fake watts know no neighbours, so the ratio is 1."""
    monkeypatch.setenv("FAKE_NVML_CURVE", "constant")  # joules do not depend on when a window lies
    made = plan(tmp_path, *POINT, "grid=neighbours", "sweep.repeats=4")
    assert [len(task) for task in send.submit(made).shapes[0].tasks] == [4]
    until(lambda: states(made.sweep) == {"done"})
    rows = collected(made).sort("repeat")
    assert rows["beside"].to_list() == [False, False, True, True]
    assert rows["boards"].to_list()[:2] == rows["boards"].to_list()[2:]
    assert rows["neighbours"].to_list()[:2] == [0.0, 0.0]
    (control,) = open_sweep(made.sweep.path).controls
    assert control.bounds["power"].ratio == pytest.approx(1.0, abs=2e-3)
    assert (control.cluster, control.slots) == ("testcluster", 2)
