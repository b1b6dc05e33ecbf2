"""Spans and traces as they are read: which device is billed, by which clock, and which trace is none of its own."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collection import at, one, phases, relabelled, retraced, rows
from sweeps import START_NS, Gpu, Made, choices, constant, make_attempt, make_sweep, trace_of

from wattflow.collect.reading import power_curve
from wattflow.store.tables import write_table


def test_an_unused_gpu_is_never_billed(tmp_path):
    """A trace of a neighbour's GPU at 600 W on the same node changes nothing, and is not collected."""
    made = Made([Gpu("GPU-a")])
    point = choices()
    sweep = make_sweep(tmp_path / "s", [point])
    attempt = make_attempt(sweep, point, made)
    neighbour = Gpu("GPU-other", constant(600.0))
    write_table(attempt.trace_path("node1", "GPU-other"), trace_of(made, neighbour))
    (row,) = rows(sweep)
    assert row["power_w"] == pytest.approx(70.0)
    assert row["gpus"] == 1
    assert {p["gpu_uuid"] for p in phases(sweep)} == {"GPU-a"}
    (bucket,) = sweep.traces.iterdir()
    assert set(pq.read_table(bucket)["gpu_uuid"].to_pylist()) == {"GPU-a"}


def test_eight_ranks_share_one_device(tmp_path):
    """A host device under 8 ranks is billed once: 70 W, not 560."""
    made = Made([Gpu("host-node1", ranks=8)], source="simulated", boundary="host", period_s=0.05)
    sweep, _, row = one(tmp_path, made)
    assert row["power_w"] == pytest.approx(70.0)
    assert row["gpus"] == 1
    assert row["simulated"]
    assert len([p for p in phases(sweep) if p["phase"] == "decode"]) == 1


@pytest.mark.parametrize("drift", [-50e-6, 0.0, 50e-6])
def test_two_nodes_joules_are_the_analytic_sum(drift, tmp_path):
    """A ramp of 20 W/s from 100 W and a wave of 200 and 400 W, clocks 3 s apart that drift by 50 ppm: by hand.

    From 3 to 11.5 s the ramp holds 100 x 8.5 + 10 x (11.5^2 - 3^2) = 2082.5 J, and the wave, which turns each second,
    8 x 300 + 0.5 x 400 = 2600 J. In the prefills, from 3 to 4 and 7.5 to 8.5 s, they hold 170 + 260 and 400 + 300 J.
    """
    ramp = lambda s: 100 + 20 * np.clip(s, 0, None)  # noqa: E731 (a curve)
    wave = lambda s: np.where(np.floor(s) % 2 == 1, 400.0, 200.0)  # noqa: E731 (a curve)
    gpus = [Gpu("GPU-a", ramp, "node1"), Gpu("GPU-b", wave, "node2")]
    made = Made(gpus, offset_s={"node2": 3.0}, drift={"node2": drift}, period_s=0.001)
    row = one(tmp_path, made)[2]
    assert row["energy_j"] == pytest.approx(2082.5 + 2600.0, rel=1e-3)
    assert row["prefill_energy_j"] == pytest.approx(1130.0, rel=1e-3)


def test_two_nodes_with_clocks_3_s_apart(tmp_path):
    """Each node's window is integrated by its own clock: the sum is that of nodes in step, to 0.01 %."""
    wave = lambda s: 200 + 100 * np.sign(np.sin(s * 2))  # noqa: E731 (a curve)
    gpus = [Gpu("GPU-a", wave, "node1"), Gpu("GPU-b", constant(300.0), "node2")]
    _, _, in_step = one(tmp_path / "a", Made(gpus))
    _, _, apart = one(tmp_path / "b", Made(gpus, offset_s={"node2": 3.0}))
    for name in ("energy_j", "prefill_energy_j", "decode_energy_j", "other_energy_j"):
        assert apart[name] == pytest.approx(in_step[name], rel=1e-4)
    assert apart["duration_s"] == in_step["duration_s"]
    assert apart["nodes_seen"] == 2
    assert apart["valid"]


@pytest.mark.parametrize("other", ["host", "module"])
def test_mixed_boundaries_are_not_added(tmp_path, other):
    """A node that measured its host, or a superchip's module, and one that measured its GPU give no sum."""
    sweep, attempt, _ = one(tmp_path, Made([Gpu("GPU-a"), Gpu("GPU-b", node="node2")]))
    record = attempt.read_record()
    record["nodes"][1]["boundary"] = other
    attempt.write_record(record)
    (row,) = rows(sweep)
    assert row["energy_j"] is None
    assert "mixed_boundary" in row["reasons"]


def test_another_sensors_gap_is_none_of_power(tmp_path):
    """A temperature that could not be read, flagged as a gap, takes nothing from the watts."""
    lost = {"time_ns": START_NS + 6_000_000_000, "source": "nvml_conditions", "gap": True}
    row = retraced(tmp_path, lambda readings: [*readings, lost])
    assert row["coverage"] == 1.0


def test_a_stepped_clock_withholds(tmp_path):
    """Pairs of both clocks that jump by 2 s inside the window withhold its joules."""

    def stepped(readings):
        return [
            {**r, "monotonic_ns": r["time_ns"] - START_NS - (2_000_000_000 if at(r) > 6 else 0)}
            for r in readings
        ]

    assert "clock_step" in retraced(tmp_path, stepped)["reasons"]


def test_another_devices_trace_is_damage(tmp_path):
    """A trace whose metadata names another GPU is not taken for this one's."""
    point = choices()
    sweep = make_sweep(tmp_path / "s", [point])
    made = Made([Gpu("GPU-a")])
    attempt = make_attempt(sweep, point, made)
    write_table(attempt.trace_path("node1", "GPU-a"), trace_of(made, Gpu("GPU-b")))
    assert rows(sweep)[0]["reasons"] == ["damaged"]


@pytest.mark.parametrize("value", [None, "another"])
@pytest.mark.parametrize("key", ["node", "gpu_uuid", "source", "scope"])
def test_a_trace_that_does_not_say_what_it_is_is_damage(key, value, tmp_path):
    """Without node, GPU, sensor or scope, or with others than the record has, watts are nobody's, so none counts."""
    sweep, attempt, _ = one(tmp_path, Made([Gpu("GPU-a")]))
    relabelled(attempt, **{key: value})
    sweep.points_path.unlink()
    (row,) = rows(sweep)
    assert row["reasons"] == ["damaged"]
    assert key in row["error"]
    assert row["energy_j"] is None


@pytest.mark.parametrize("column", ["tokens_in", "tokens_kept", "tokens_computed"])
@pytest.mark.parametrize("count", [-1, -(2**62), 2**62])
def test_a_span_of_tokens_that_there_cannot_be_is_damage(tmp_path, column, count):
    """Below 0, or more than there can be: the row is withheld, and the error names the file."""
    sweep = make_sweep(tmp_path / "s", [choices()])
    attempt = make_attempt(sweep, choices(), Made([Gpu("GPU-a")]))
    path = attempt.spans_path("node1")
    table = pq.read_table(path)
    spans = table.to_pylist()
    spans[-1][column] = count
    write_table(path, pa.Table.from_pylist(spans, schema=table.schema))
    (row,) = rows(sweep)
    assert (row["valid"], row["reasons"]) == (False, ["damaged"])
    assert f"{path}: a span with {column} {count}." in row["error"]


@pytest.mark.parametrize(("rate", "withheld"), [(0.005, True), (1e-4, False)])
def test_a_slewed_clock_withholds_joules(tmp_path, rate, withheld):
    """A wall clock that runs 0.5 % fast by the bare oscillator withholds the joules, one 100 ppm off does not."""

    def slewed(readings):
        since = [r["time_ns"] - START_NS for r in readings]
        return [
            {**r, "raw_ns": round(ns / (1 + rate))} for r, ns in zip(readings, since, strict=True)
        ]

    row = retraced(tmp_path, slewed)
    assert ("clock_step" in row["reasons"]) is withheld
    assert (row["energy_j"] is None) is withheld


REFERENCE = {
    "gain": 0.05,
    "offset_w": 5.0,
    "gain_u": 0.004,
    "offset_u_w": 0.3,
    "correlation": -0.5,
    "made": "2026-01-01T00:00:00Z",
}


def referred(tmp_path, reference):
    """The row of one board at 150 W by its sensor before and after its record has a meter's reference."""
    sweep, attempt, before = one(tmp_path, Made([Gpu("GPU-a", constant(150.0))]))
    record = attempt.read_record()
    record["nodes"][0]["devices"][0]["reference"] = reference
    attempt.write_record(record)
    sweep.points_path.unlink()
    return before, rows(sweep)[0]


def test_a_board_beside_which_a_meter_was_is_corrected(tmp_path):
    """(150 - 5) / 1.05 W by samples and counter alike; the doubt is the meter's own, and the row says so."""
    before, row = referred(tmp_path, REFERENCE)
    assert row["power_w"] == pytest.approx(145.0 / 1.05, rel=1e-6)
    assert row["counter_ratio"] == pytest.approx(before["counter_ratio"], abs=2e-3)
    energy_j, seconds = row["energy_j"], row["duration_s"]
    gain_j, offset_j = 0.004 * energy_j, 0.3 * seconds
    assert (row["board_gain_u_j"], row["board_offset_u_j"]) == pytest.approx((gain_j, offset_j))
    board_j = math.sqrt(gain_j**2 + offset_j**2 - gain_j * offset_j)
    assert row["energy_expanded_u_j"] == pytest.approx(2 * math.hypot(board_j, row["energy_u_j"]))
    assert row["energy_expanded_u_j"] < 0.15 * before["energy_expanded_u_j"]
    assert row["board_reference"] == "1 of 1 boards, 2026-01-01T00:00:00Z"
    assert before["board_reference"] is None


def test_the_phases_of_that_board_have_the_meters_doubt_too(tmp_path):
    """Each by its own joules and seconds, as the whole window: a tenth of what the 19 boards would make of it."""
    sweep, attempt, _ = one(tmp_path, Made([Gpu("GPU-a", constant(150.0)), Gpu("GPU-b")]))
    record = attempt.read_record()
    record["nodes"][0]["devices"][0]["reference"] = REFERENCE
    attempt.write_record(record)
    sweep.points_path.unlink()
    (row,) = rows(sweep)
    found = phases(sweep)
    for phase in found:
        if phase["gpu_uuid"] == "GPU-a" and phase["energy_j"]:
            gain_j, offset_j = 0.004 * phase["energy_j"], 0.3 * phase["seconds"]
            board_j = math.sqrt(gain_j**2 + offset_j**2 - gain_j * offset_j)
            by_hand = 2 * math.hypot(board_j, phase["energy_u_j"])
            assert phase["energy_expanded_u_j"] == pytest.approx(by_hand)
    shares = {
        (phase["gpu_uuid"], phase["phase"]): phase["energy_expanded_u_j"] / phase["energy_j"]
        for phase in found
        if phase["energy_j"]
    }
    assert shares["GPU-a", "decode"] < 0.1 * shares["GPU-b", "decode"]
    assert row["board_reference"].startswith("1 of 2 boards")


def test_a_reference_that_is_none_of_a_board_damages_the_attempt(tmp_path):
    """A gain of 300 %: a reason, and no joule."""
    _, row = referred(tmp_path, {**REFERENCE, "gain": 3.0})
    assert row["reasons"] == ["damaged"]
    assert "the reference of GPU-a" in row["error"]
    assert row["energy_j"] is None


def around(power_w):
    """A load as boards have it, 10 W around some watts."""
    return lambda seconds: power_w + 10 * np.sin(seconds * 31)


def joules_within(tmp_path, power_w, limit_w, limits):
    """The joules of a load, without a counter, where the trace has one limit in force and the record others."""
    made = Made([Gpu("GPU-a", around(power_w))], limit_w=limit_w, counter=False)
    sweep, attempt, _ = one(tmp_path, made)
    record = attempt.read_record()
    record["nodes"][0]["devices"][0].update(limits)
    attempt.write_record(record)
    sweep.points_path.unlink()
    return rows(sweep)[0]["energy_j"]


@pytest.mark.parametrize("limit_w", [700.0, None])
def test_watts_far_above_the_highest_limit_are_no_readings(tmp_path, limit_w):
    """4900 W of a board of 700 W give no joule: by the record's highest limit, or by the limit in its trace alone."""
    limits = {} if limit_w else {"power_limit_max_w": 700.0}
    assert joules_within(tmp_path, 4900.0, limit_w, limits) is None


def test_a_cap_is_no_highest_limit(tmp_path):
    """680 W under a cap of 300 W count where the record has a limit of 700 W, be it the default one: 8.5 s, 5780 J."""
    for i, limit in enumerate(("max", "default")):
        joules = joules_within(tmp_path / str(i), 680.0, 300.0, {f"power_limit_{limit}_w": 700.0})
        assert joules == pytest.approx(5780.0, rel=1e-3)


def test_the_counter_of_a_whole_node_may_rise_as_no_board_does(tmp_path):
    """14 kW of a node with eight boards are readings of its counter, which then checks its watts."""
    node = Gpu("node-node1", around(14_000.0))
    _, _, row = one(tmp_path, Made([node], source="cray_node", boundary="node", period_s=0.1))
    assert row["counter_ratio"] == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize(("source", "boundary"), [("simulated", "host"), ("rapl", "host")])
def test_a_host_may_read_nothing(tmp_path, source, boundary):
    """A host of 0 W makes 0 J, where a GPU of 0 W makes none."""
    host = Made([Gpu("host-node1", constant(0.0))], source=source, boundary=boundary, period_s=0.05)
    assert one(tmp_path / "host", host)[2]["energy_j"] == 0.0
    assert one(tmp_path / "gpu", Made([Gpu("GPU-a", constant(0.0))]))[2]["energy_j"] is None


def test_a_reading_of_nothing_is_none_beside_a_reference_either(tmp_path):
    """-1 W less an offset of -5 W are not 4 W: a sample that is none is left out before it is corrected."""
    trace = trace_of(Made([]), Gpu("GPU-a", constant(-1.0)))
    curve = power_curve(trace, "nvml_buffer", 20.0, None, {**REFERENCE, "offset_w": -5.0})
    assert len(curve.time_ns) == 0
