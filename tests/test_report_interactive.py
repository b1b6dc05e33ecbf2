"""What the page's script draws from: names, places, and traces small enough to embed."""

import base64

import numpy as np
import pytest
from sweeps import Gpu, Made, choices, collected, constant, demo

import wattflow
from wattflow.collect.collect import collect
from wattflow.report import interactive
from wattflow.report.interactive import charts, timelines
from wattflow.report.sections import figures


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Four settings of two repeats on simulated watts, a failed point and an infeasible one."""
    directory = demo(tmp_path_factory.mktemp("sweeps") / "demo")
    collect(directory)
    return wattflow.open_sweep(directory.path)


def values_of(device, column):
    """The numbers of a column of an embedded trace."""
    packed = np.frombuffer(base64.b64decode(device.data), "<u2").reshape(4, device.bins)
    low, high = device.ranges[column]
    return low + packed[column] / 65535 * (high - low)


def test_names_and_places_of_a_sweep(simulated):
    """Axes with their values as texts; the cheapest setting, which stands where an axis is not drawn."""
    found = charts(figures(simulated))
    assert [axis["name"] for axis in found["axes"]] == ["shards", "batch_size"]
    assert found["axes"][0]["values"] == ["1", "2", "3", "4"]
    assert found["settings"][0] == ["1", "4"]
    assert found["kinds"] == ["simulated (host, simulated)"]
    assert found["kind_of"] == [0, 0, 0, 0, -1, -1]
    assert found["metrics"][0]["column"] == "energy_per_token_j"
    assert not any("words" in metric["column"] for metric in found["metrics"])
    results = figures(simulated).results
    least = min(results[:4], key=lambda one: one.means["energy_per_token_j"].mean)
    assert found["least"] == results.index(least)


def test_two_sensors_share_no_chart(tmp_path):
    """Simulated watts of a host and those of a GPU are two kinds, each setting of one."""
    points = [choices(batch_size=size) for size in (4, 8)]
    host = Made([Gpu("host-node1")], source="simulated", boundary="host")
    found = charts(figures(collected(tmp_path / "s", [Made([Gpu("GPU-a")]), host], points)))
    assert found["kinds"] == ["nvml_buffer (gpu)", "simulated (host, simulated)"]
    assert found["kind_of"] == [0, 1]


def test_each_point_that_counts_has_its_power(simulated):
    """Eight lines, first repeats first, each of its setting; watts come back to a hundredth."""
    found = timelines(simulated, figures(simulated))
    assert (len(found.points), found.left_out) == (8, 0)
    assert found.points[0].chosen == "shards 1, batch size 4, repeat 0"
    assert [one.setting for one in found.points] == [0, 1, 2, 3, 0, 1, 2, 3]
    (device,) = found.points[0].devices
    power = simulated.power(found.points[0].point_id)
    assert values_of(device, 1) == pytest.approx(power["power_w"].to_numpy(), abs=0.01)
    assert values_of(device, 0) == pytest.approx(power["seconds"].to_numpy(), abs=0.001)
    phases = [phase for phase, *_ in found.points[0].spans]
    assert phases[:5] == ["idle", "load", "warmup", "prefill", "decode"]


def test_constant_watts_come_back_exactly(tmp_path):
    """70 W at each moment: a range of no width is no division by zero."""
    sweep = collected(tmp_path / "s", [Made([Gpu("GPU-a", constant(70.0))])])
    (device,) = timelines(sweep, figures(sweep)).points[0].devices
    assert {*values_of(device, 1)} == {70.0}


def test_traces_have_a_bound(simulated, monkeypatch):
    """Where there is room for few, the others are left out and counted, and no line has too few bins."""
    monkeypatch.setattr(interactive, "TRACES_BYTES", 2000)
    found = timelines(simulated, figures(simulated))
    assert (len(found.points), found.left_out) == (2, 6)
    assert all(50 < device.bins <= 101 for one in found.points for device in one.devices)


def test_very_many_phases_are_one_shade(simulated, monkeypatch):
    """A batch thinner than a hair is not drawn: the measured window is, from first to last."""
    monkeypatch.setattr(interactive, "SPANS", 5)
    spans = timelines(simulated, figures(simulated)).points[0].spans
    assert [phase for phase, *_ in spans] == ["idle", "load", "warmup", "window"]
    assert spans[-1][2] == 0.0
