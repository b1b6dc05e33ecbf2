"""What GPUs did in the window, and whether a cap or a clock that was asked for held."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collection import one, readings_of, retraced, rows
from sweeps import START_NS, Gpu, Made, choices, constant, make_attempt, make_sweep

from wattflow.store.schema import TRACE
from wattflow.store.tables import write_table


@pytest.mark.parametrize("source", ["nvml_gpm", "dcgm_profiling"])
def test_activity_is_weighted_by_its_time_in_the_window(tmp_path, source):
    """The window lasts from 3 to 11.5 s: 40 % for 7 s of it and 80 % for 1.5 s are 47.06 %."""
    added = readings_of(
        source, at_s=[2.0, 3.0, 10.0, 12.0], dram_activity_pct=[99.0, 1.0, 40.0, 80.0]
    )
    row = retraced(tmp_path, lambda readings: readings + added)
    assert row["dram_activity_pct"] == pytest.approx((40 * 7 + 80 * 1.5) / 8.5)
    assert row["sm_activity_pct"] is None


@pytest.mark.parametrize(("count", "valid"), [(1, True), (2, False)])
def test_another_process_on_the_gpu_costs_the_row(tmp_path, count, valid):
    """One rank, one process; a second one at the trace's end has spoilt the joules."""
    added = readings_of("nvml_conditions", at_s=[0.0, 11.7], processes=[1, count])
    row = retraced(tmp_path, lambda readings: readings + added)
    assert row["valid"] is valid
    assert ("other_process" in row["reasons"]) is not valid


@pytest.mark.parametrize(("bits", "throttled"), [(0x4, False), (0x40, True), (0x8, True)])
def test_heat_is_a_remark_and_a_power_cap_is_none(tmp_path, bits, throttled):
    """Clocks lowered by heat or the hardware are a remark; the software power cap has its own column."""
    added = readings_of("nvml_conditions", at_s=[5.0], throttle_reasons=[bits])
    row = retraced(tmp_path, lambda rows: rows + added)
    assert ("throttled" in row["reasons"]) is throttled
    assert row["valid"]


def capped(tmp_path, limits_w, *, asked_w=300, under_cap_ns=(0, 0), clocks=(1980, 1980), **over):
    """The collected row of an attempt whose two readings of conditions in the window are these."""
    point = choices(control__power_limit_w=asked_w, **over)
    sweep = make_sweep(tmp_path / "s", [point])
    made = Made([Gpu("GPU-a", constant(290.0))], pause_s=0.0)
    attempt = make_attempt(sweep, point, made)
    path = attempt.trace_path("node1", "GPU-a")
    trace = pq.read_table(path)
    at_ns = [START_NS + round(s * 1e9) for s in (3.5, 10.5)]
    readings = [
        {
            "time_ns": time_ns,
            "source": "nvml_conditions",
            "gap": False,
            "power_limit_w": limit_w,
            "under_cap_ns": 10**12 + spent_ns,
            "sm_clock_mhz": mhz,
        }
        for time_ns, limit_w, spent_ns, mhz in zip(
            at_ns, limits_w, under_cap_ns, clocks, strict=True
        )
    ]
    conditions = pa.Table.from_pylist(readings, schema=TRACE)
    power = trace.filter(pa.compute.not_equal(trace["source"], "nvml_conditions"))
    table = pa.concat_tables([power.replace_schema_metadata(None), conditions])
    write_table(path, table.sort_by("time_ns").replace_schema_metadata(trace.schema.metadata))
    (row,) = rows(sweep)
    return row


def test_a_cap_in_force_that_bound(tmp_path):
    """300 W in force at each reading, 2 of 8 s under the cap: the row counts, and the cap bound."""
    row = capped(tmp_path, (300.0, 300.0), under_cap_ns=(0, 2 * 10**9))
    assert row["counts"]
    assert row["cap_bound"]
    assert row["under_cap_s"] == pytest.approx(2.0)
    assert not {"not_applied", "did_not_bind"} & set(row["reasons"])


@pytest.mark.parametrize(
    "limits_w", [(700.0, 700.0), (300.0, 700.0), (400.0, 400.0), (None, None), (250.0, 250.0)]
)
def test_a_cap_that_was_not_in_force_is_never_shown_as_capped(tmp_path, limits_w):
    """Not set, lost half-way, clipped, not reported, or another one: the row says not_applied and does not count."""
    row = capped(tmp_path, limits_w)
    assert "not_applied" in row["reasons"]
    assert not row["counts"]


def test_a_cap_that_never_bound_is_said(tmp_path):
    """At 290 W under a cap of 400 W, no time under it: a remark, and the row counts."""
    row = capped(tmp_path, (400.0, 400.0), asked_w=400)
    assert row["counts"]
    assert row["cap_bound"] is False
    assert "did_not_bind" in row["reasons"]


def test_samples_near_the_limit_bind(tmp_path):
    """290 W of samples under 295 W bind, though the driver counts no time under the cap."""
    assert capped(tmp_path, (295.0, 295.0), asked_w=295)["cap_bound"]


@pytest.mark.parametrize(
    ("clocks", "applied"),
    [((1200, 1200), True), ((1200, 900), True), ((1980, 1200), False), ((900, 900), False)],
)
def test_a_locked_clock_is_read_back(tmp_path, clocks, applied):
    """1,200 MHz was in force where it was seen and never passed; a cap may hold clocks lower at times."""
    row = capped(tmp_path, (700.0, 700.0), asked_w=None, clocks=clocks, control__sm_clock_mhz=1200)
    assert ("not_applied" not in row["reasons"]) == applied


def test_simulated_watts_are_never_capped(tmp_path):
    """Where no sensor reports a limit, a cap cannot be confirmed."""
    made = Made([Gpu("host-node1")], source="simulated", boundary="host", counter=False)
    _, _, row = one(tmp_path, made, control__power_limit_w=300)
    assert "not_applied" in row["reasons"]
