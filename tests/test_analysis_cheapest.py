"""The cheapest setting, from sweeps on disk whose joules are known by hand."""

import pytest
from sweeps import Gpu, Made, choices, constant, make_attempt, make_sweep

from wattflow import open_sweep
from wattflow.analysis.cheapest import cheapest
from wattflow.collect.collect import collect
from wattflow.report.page import report


def made(folder, watts_by_batch, source="nvml_buffer"):
    """A sweep of some batch sizes, a repeat on each of three boards; size 8 on boards of its own."""
    gains = {"a": 1.0, "b": 1.1, "c": 0.9}
    points = [
        (choices(batch_size=size, repeat=k), Gpu(f"GPU-{board}{size // 8}", constant(watts * gain)))
        for size, watts in watts_by_batch.items()
        for k, (board, gain) in enumerate(gains.items())
    ]
    sweep = make_sweep(folder / "s", [point for point, _ in points])
    for point, gpu in points:
        make_attempt(sweep, point, Made([gpu], source=source))
    collect(sweep)
    return open_sweep(sweep.path)


def test_the_lowest_mean_is_named_with_what_may_be_as_low(tmp_path):
    """300 W against 400 W on the same three boards is established; 301 W on three others is not."""
    sweep = made(tmp_path, {2: 400.0, 4: 300.0, 8: 301.0})
    found = cheapest(sweep.points)
    assert (found.setting, found.settings) == ("batch_size 4", 3)
    assert found.mean.mean == pytest.approx(595 / 200 * 300 / 70, rel=1e-3)
    assert found.not_established == ["batch_size 8"]
    page = report(sweep).read_text()
    assert "<b>Cheapest: batch_size 4</b>" in page
    assert "It is not established against batch_size 8" in page


def test_simulated_joules_establish_nothing(tmp_path):
    """All other settings stand, and the page says why."""
    sweep = made(tmp_path, {2: 400.0, 4: 300.0}, source="simulated")
    assert cheapest(sweep.points).not_established == ["batch_size 2"]
    assert "These joules are simulated" in report(sweep).read_text()


def test_one_setting_is_no_cheapest(tmp_path):
    """Nothing to compare it with."""
    sweep = made(tmp_path, {2: 400.0})
    assert cheapest(sweep.points) is None
    assert "Cheapest" not in report(sweep).read_text()
