"""What the rest of a node does in a point's window, on a fake driver whose watts are known."""

import time

import pytest
from fake_nvml import curves

from wattflow.power.gpus import find_gpus
from wattflow.power.neighbours import Look, NodeWatch, Window
from wattflow.power.nvml_calls import call, call_or_none

pytest_plugins = ("fake_nvml.fixtures",)
pytestmark = pytest.mark.fake_nvml


@pytest.fixture
def watch(fake_driver, monkeypatch):
    """A watch of three GPUs in three slots, which looks only when it is asked to."""
    monkeypatch.setenv("FAKE_NVML_GPUS", "3")
    monkeypatch.setenv("FAKE_NVML_CURVE", "constant")
    call("nvmlInit")
    yield NodeWatch(find_gpus(), 3)
    call_or_none("nvmlShutdown")


def test_a_window_knows_its_neighbours_watts_and_not_its_own(watch):
    """The mean of the two other GPUs, each at a constant power of its own; nobody else is measured."""
    uuids = [curves.uuid("n1", k) for k in range(3)]
    window = watch.window(uuids[:1])
    window.mark()
    time.sleep(0.05)  # a length, whatever it is
    window.mark()
    found = window.close()
    others = [curves.curve(uuid, "constant").base_w for uuid in uuids[1:]]
    assert found["neighbour_power_w"] == pytest.approx(sum(others) / 2, rel=0.02)
    assert (found["slots"], found["neighbours"], found["neighbour_gpus"]) == (3, 0.0, 2)
    assert found["neighbour_temperature_c"] > 0
    assert 0 <= found["host_load_pct"] <= 100


class Looks:
    """A node whose looks are given."""

    slots, uuids = 2, {"a", "b"}

    def __init__(self, *looks):
        self.looks = list(looks)

    def look(self):
        return self.looks.pop(0)

    def leave(self, window):
        pass


def at(time_s, watts, points, *, ticks=0, busy=0, celsius=50.0):
    return Look(time_s, {"a": 1.0, "b": watts}, {"a": 99.0, "b": celsius}, busy, ticks, points)


def test_a_neighbour_for_half_of_the_window_is_half_a_neighbour():
    """2 s with another point at 200 W, 2 s without at 100 W; between two looks watts are a line: 175 W."""
    looks = [at(0, 200.0, 2), at(2, 200.0, 1, celsius=70.0), at(4, 100.0, 1, ticks=400, busy=200)]
    node = Looks(looks[0], looks[2])
    window = Window(node, ["a"])
    window.mark()
    window.add(looks[1])
    window.add(looks[2])
    window.mark()
    found = window.close()
    assert found["neighbours"] == pytest.approx(0.5)
    assert found["neighbour_power_w"] == pytest.approx((400 + 300) / 4)
    assert found["neighbour_temperature_c"] == 70.0
    assert found["host_load_pct"] == pytest.approx(50.0)


def test_a_window_of_one_edge_has_no_figures():
    """A sidecar that began in its middle saw no whole window; nor is a GPU's mean known that was silent once."""
    window = Window(Looks(at(0, 200.0, 2)), ["a"])
    window.mark()
    assert window.close()["neighbours"] is None
    silent = Window(Looks(at(0, 200.0, 2), at(2, None, 2, ticks=10)), ["a"])
    silent.mark()
    silent.add(at(2, None, 2, ticks=10))
    silent.mark()
    found = silent.close()
    assert (found["neighbours"], found["neighbour_power_w"]) == (1.0, None)
