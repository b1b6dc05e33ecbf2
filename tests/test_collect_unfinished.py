"""Joules of attempts that did not finish: from their traces, closed or cut, and none where a device is not known."""

import dataclasses

import pytest
from sweeps import Gpu, Made, choices, constant, make_attempt, make_sweep, trace_of

import wattflow
from wattflow.collect.collect import collect
from wattflow.publish import archive
from wattflow.publish.bundle import bundle
from wattflow.publish.verify import verify
from wattflow.store.schema import TRACE
from wattflow.store.tables import TableStream

# traces reach from 0.1 s before the start to 3 + 8.5 + 0.2 s after it: 11.8 s
MADE = Made([Gpu("GPU-a", constant(100.0))], status="failed", batches=2)
TOOK_S = 11.8


def collected(tmp_path, made, spoil=lambda _: None):
    """The row of one attempt, after something happened to its folder."""
    point = choices(shards=len(made.gpus))
    sweep = make_sweep(tmp_path / "s", [point])
    spoil(make_attempt(sweep, point, made))
    collect(sweep)
    (row,) = wattflow.open_sweep(sweep.path).attempts.to_dicts()
    return row


def test_a_failed_attempt_has_the_joules_of_its_trace(tmp_path):
    """100 W over 11.8 s of samples are 1,180 J; they stand in no other column, and the row stays as it was."""
    row = collected(tmp_path, MADE)
    assert row["unfinished_energy_j"] == pytest.approx(100 * TOOK_S, rel=2e-3)
    assert row["unfinished_s"] == pytest.approx(TOOK_S, rel=2e-3)
    assert (row["energy_j"], row["job_energy_j"], row["valid"]) == (None, None, False)
    assert (row["status"], row["reasons"]) == ("failed", ["failed"])
    assert row["unfinished_source"] == "nvml_buffer"


def test_its_uncertainty(tmp_path):
    """A step of 80 W within 20 ms is uncertain by 80 W x 20 ms / sqrt(12), two boards of it by sqrt(2) times that."""

    def step(seconds):
        return constant(100.0)(seconds) + 80.0 * (seconds > 5.001)

    gpus = [Gpu("GPU-a", step), Gpu("GPU-b", step)]
    row = collected(tmp_path, dataclasses.replace(MADE, gpus=gpus))
    edges_j = 80.0 * 0.02 / 3**0.5  # as it ends with more than it began with
    assert row["unfinished_energy_u_j"] == pytest.approx(
        2**0.5 * (80.0**2 * 0.02**2 / 12 + edges_j**2) ** 0.5, rel=0.05
    )


def test_a_finished_attempt_has_none(tmp_path):
    """The column is for attempts without a measured window alone."""
    row = collected(tmp_path, dataclasses.replace(MADE, status="finished"))
    assert row["unfinished_energy_j"] is None
    assert row["energy_j"] is not None


def test_gpus_are_added_and_hosts_are_not(tmp_path):
    """Two GPUs of 100 W and 50 W on two nodes, one of which has its host's 200 W: 150 W."""
    gpus = [Gpu("GPU-a", constant(100.0)), Gpu("GPU-b", constant(50.0), node="node2")]
    made = dataclasses.replace(MADE, gpus=gpus, hosts={"node1": constant(200.0)})
    row = collected(tmp_path, made)
    assert row["unfinished_energy_j"] == pytest.approx(150 * TOOK_S, rel=2e-3)


def _forget_ranks(attempt):
    record = attempt.read_record()
    del record["ranks"], record["nodes"]
    attempt.write_record(record)


def test_ranks_that_never_came(tmp_path):
    """Where no rank came to say which GPU it has, all traced ones are the job's, and still no host."""
    made = dataclasses.replace(MADE, hosts={"node1": constant(200.0)})
    row = collected(tmp_path, made, _forget_ranks)
    assert row["unfinished_energy_j"] == pytest.approx(100 * TOOK_S, rel=2e-3)


def test_a_gpu_without_a_trace(tmp_path):
    """If one of two GPUs left no trace nobody knows what the attempt took."""
    gpus = [Gpu("GPU-a", constant(100.0)), Gpu("GPU-b", constant(50.0))]
    made = dataclasses.replace(MADE, gpus=gpus)
    row = collected(tmp_path, made, lambda one: one.trace_path("node1", "GPU-b").unlink())
    assert row["unfinished_energy_j"] is None


def test_a_gap_is_not_bridged(tmp_path):
    """Samples of a third of the time say nothing of the rest."""

    def hole(seconds):
        watts = constant(100.0)(seconds)
        watts[(seconds > 3) & (seconds < 10)] = float("nan")
        return watts

    row = collected(tmp_path, dataclasses.replace(MADE, gpus=[Gpu("GPU-a", hole)], counter=False))
    assert row["unfinished_energy_j"] is None


def test_copies_of_a_trace_that_was_never_closed(tmp_path):
    """A killed sidecar leaves what was copied last, in two files if it was restarted: both are read."""

    def cut(attempt):
        closed = attempt.trace_path("node1", "GPU-a")
        table = trace_of(MADE, MADE.gpus[0]).sort_by("time_ns")
        about = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
        rows = [row for row in table.to_pylist() if row["power_w"] is not None]
        for number, part in enumerate((rows[:200], rows[200:400])):
            path = attempt.trace_path("node1", "GPU-a", f".{number}.arrow")
            stream = TableStream(path, TRACE, about)
            for row in part:
                stream.add(row)
            stream.close()
        whole = path.read_bytes()
        path.write_bytes(whole[:-3])  # cut in its last bytes, as by a kill
        closed.unlink()

    row = collected(tmp_path, MADE, cut)
    # 400 samples, 20 ms apart
    assert row["unfinished_s"] == pytest.approx(399 * 0.02)
    assert row["unfinished_energy_j"] == pytest.approx(100 * 399 * 0.02)


def test_no_trace_at_all(tmp_path):
    """An attempt that failed before its first sample has null, not 0."""
    row = collected(tmp_path, MADE, lambda one: one.trace_path("node1", "GPU-a").unlink())
    assert row["unfinished_energy_j"] is None
    assert row["status"] == "failed"


def test_a_bundle_holds_neither_factors_nor_what_cannot_be_checked(tmp_path):
    """A bundle carries no traces of a failed attempt, hence none of its joules, and no prices; it verifies."""
    priced = {"cluster__cost__pue": 1.25, "cluster__cost__pue_source": "the meters of Erewhon"}
    points = [choices(seed=seed, **priced) for seed in (0, 1)]
    sweep = make_sweep(tmp_path / "s", points)
    make_attempt(sweep, points[0], MADE)
    make_attempt(sweep, points[1], dataclasses.replace(MADE, status="finished", started_s=60.0))
    collect(sweep)
    assert verify(sweep.path).verified
    bundle(sweep, tmp_path / "b.zip")
    assert verify(tmp_path / "b.zip").verified
    assert b"Erewhon" not in (tmp_path / "b.zip").read_bytes()
    archive.unpack(tmp_path / "b.zip", tmp_path / "b")
    rows = wattflow.open_sweep(tmp_path / "b" / "sweep").attempts.to_dicts()
    assert [row["unfinished_energy_j"] for row in rows] == [None, None]
    assert "1.25" not in rows[0]["cluster_cost"]
