"""The closing table and the table of costs as text."""

import pytest
from sweeps import Gpu, Made, choices, collected, constant, demo

import wattflow
from wattflow.collect.collect import collect
from wattflow.report.terminal import cost_table, table


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Four settings of two repeats on simulated watts, a failed point and an infeasible one."""
    directory = demo(tmp_path_factory.mktemp("sweeps") / "demo")
    collect(directory)
    return wattflow.open_sweep(directory.path)


def test_table_of_means(sweep):
    """Each combination has one row over its two repeats, its simulated watts and joules marked."""
    rows = table(sweep)
    assert [(row["shards"], row["batch_size"], row["n"]) for row in rows[:4]] == [
        ("1", "4", "2"),
        ("1", "8", "2"),
        ("2", "4", "2"),
        ("2", "8", "2"),
    ]
    for heading in ("W", "J/token", "J/response"):
        assert all(row[heading].startswith("~") for row in rows[:4])
    assert not rows[0]["tokens/s"].startswith("~")


def test_table_says_why_there_is_no_number(sweep):
    """Points that failed or cannot run have `-`, and why in place of a sensor."""
    rows = table(sweep)[4:]
    assert [row["J/token"] for row in rows] == ["-", "-"]
    assert [row["source"] for row in rows] == ["failed", "infeasible"]


def test_measured_watts_carry_no_mark(tmp_path):
    """70 W over 200 tokens in 10 s, from the buffer, print as 70.0 W and 3.50 J/token."""
    made = Made([Gpu("GPU-a")], decode_s=3.5, pause_s=1.0)
    (row,) = table(collected(tmp_path / "s", [made]))
    assert (row["W"], row["J/token"], row["source"]) == (
        "70 ± 11",
        "3.50 ± 0.53",
        "nvml_buffer (gpu)",
    )


def test_means_leave_out_what_does_not_count(tmp_path):
    """Of three repeats at 70, 80 and a failed one, n is 2 and the mean is 75 W."""
    points = [choices(repeat=i) for i in range(3)]
    made = [Made([Gpu("GPU-a", constant(w))]) for w in (70.0, 80.0)]
    failed = Made([Gpu("GPU-a")], status="failed")
    (row,) = table(collected(tmp_path / "s", [*made, failed], points))
    assert (row["n"], row["W"]) == ("2", "75 ± 15")


def test_costs_of_what_was_simulated_are_marked_and_factors_that_nobody_declared_left_out(sweep):
    """Six settings were tried but the infeasible one: no GPU-hours, as there is no GPU, ~kWh, and no price."""
    rows = cost_table(sweep)
    assert len(rows) == 5
    assert list(rows[0]) == [
        "shards",
        "batch_size",
        "attempts",
        "unknown",
        "GPU-hours",
        "kWh",
        "boundary",
    ]
    assert all(row["kWh"].startswith("~") for row in rows)
    assert {row["GPU-hours"] for row in rows} == {"-"}
