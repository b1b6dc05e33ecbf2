"""What follows from exact reads: periods, lags, windows, plateaus and costs come out as they were put in."""

import pytest
from calibrations import buffer_rows, counter_rows, reads_of, step, unix

from wattflow.calibrate import findings

# no whole number of samples apart, so that samples fall on other places of each step
SLOW_S = [1 + 1.5037 * k for k in range(8)]
FAST_S = [20.5 + 0.5037 * k for k in range(16)]


@pytest.fixture(scope="module")
def loaded():
    """A slow load in the first 14 s and a fast one from 20 to 29 s, by the buffer; the slow one by the counter too."""
    steps = [step("slow", 0, 14, SLOW_S, half_s=1.5), step("fast", 20, 29, FAST_S, half_s=0.5)]
    rows = buffer_rows(0, 0.1, 14, SLOW_S) + buffer_rows(1, 20, 29, FAST_S)
    return reads_of(steps, rows + counter_rows(0, 0.1, 14, SLOW_S))


def test_the_buffer_is_found_as_it_is(loaded):
    """A sample each 20 ms with a lag of 15 ms and a window of 25 ms, a box; fitted to the fast load's 16 edges."""
    found = findings.sensor(loaded, "nvml_buffer")
    assert (found["unit"], found["stamped_by"], found["answer_reason"]) == ("W", "driver", None)
    assert found["period_ms"]["median"] == pytest.approx(20, abs=0.01)
    answer = found["answer"]
    assert (answer["shape"], answer["load"], answer["edges"]) == ("box", "fast", 16)
    for fit in (answer, answer["on"], answer["off"], answer["box"]):
        assert fit["lag_ms"] == pytest.approx(15, abs=0.3)
        assert fit["window_ms"] == pytest.approx(25, abs=0.6)
    assert answer["exponential"]["rms"] > answer["rms"]
    assert found["spacings_ms"]["counts"][-3] == sum(found["spacings_ms"]["counts"])


def test_the_counter_is_found_as_it_is(loaded):
    """It ticks each 100 ms, each tick the mean of the time since the one before: no lag, a window of 100 ms."""
    found = findings.sensor(loaded, "nvml_counter")
    assert found["beat_ms"] == pytest.approx(100, abs=0.1)
    assert found["answer"]["load"] == "slow"  # there was no step of ticks
    assert found["answer"]["lag_ms"] + found["answer"]["window_ms"] / 2 == pytest.approx(50, abs=6)


def test_a_sensor_without_a_step_has_no_answer():
    """Watched idle, and under a load that changed nothing: both say why."""
    idle = reads_of([step("watched", 0, 3)], buffer_rows(0, 0.1, 3))
    assert (
        findings.sensor(idle, "nvml_buffer")["answer_reason"] == "no step of the load could be seen"
    )
    flat = reads_of([step("slow", 0, 14, SLOW_S, half_s=1.5)], buffer_rows(0, 0.1, 14))
    assert findings.sensor(flat, "nvml_buffer")["answer"] is None
    assert findings.sensor(idle, "nvml_buffer")["spacings_ms"] is None  # of a load's steps alone


def test_plateaus(loaded):
    """The load takes the GPU from 100 to 400 W; without a slow step there are no plateaus."""
    assert findings.levels(loaded) == {"off_w": 100, "on_w": 400}
    assert findings.levels(reads_of([step("watched", 0, 3)], buffer_rows(0, 0.1, 3))) is None


def test_the_buffers_history():
    """Whole reads of 119 samples, 20 ms apart: 2.36 s."""
    reads = reads_of([step("costs", 0, 3)], buffer_rows(0, 0.005, 2.38))
    assert findings.sensor(reads, "nvml_buffer")["history"] == {"samples": 119, "seconds": 2.36}


def test_a_sample_is_shown_so_long_after_its_stamp():
    """Each sample's read ends 6 ms after its stamp; the first read, of older samples, is left out."""
    rows = [row for k in range(4) for row in buffer_rows(0, 1 + 0.02 * k, 1.019 + 0.02 * k)]
    shown = findings.sensor(reads_of([step("watched", 0, 3)], rows), "nvml_buffer")[
        "shown_after_ms"
    ]
    assert shown["n"] == 3
    assert (shown["least"], shown["most"]) == (6, 6)


def test_idle_power_in_each_step_of_a_state():
    """Two steps of 100 W by buffer and counter; a sample outside its step is not counted; no such state, no power."""
    steps = [step("bare", 0, 2), step("bare", 4, 6)]
    rows = buffer_rows(0, 0.1, 2) + buffer_rows(1, 4, 6) + counter_rows(1, 4, 6.005)
    rows.append((1, "nvml_buffer", unix(6.1), unix(6.2), unix(6.1), 700.0))
    found = findings.idle_power(reads_of(steps, rows), "bare")
    assert found["power_w"] == 100
    assert found["buffer"] == [100, 100]
    assert found["counter"] == [pytest.approx(100, abs=5)]  # its ticks are 100 ms apart, of 2 s
    assert findings.idle_power(reads_of(steps, rows), "context") is None


def test_the_cost_of_a_call():
    """Calls of 1, 2 and 3 ms on an idle GPU, one of 5 ms on a busy one; a read of many samples is one call."""
    steps = [step("costs", 0, 1), step("costs-on", 1, 2)]
    rows = [
        (0, "nvml_instant", unix(at), unix(at + ms / 1e3), None, 100.0)
        for at, ms in ((0.1, 1), (0.2, 2), (0.3, 3))
    ]
    rows.append((1, "nvml_instant", unix(1.1), unix(1.105), None, 400.0))
    rows += buffer_rows(0, 0.5, 0.9)
    costs = findings.call_costs(reads_of(steps, rows))
    assert set(costs) == {"nvml_buffer", "nvml_instant"}
    idle = costs["nvml_instant"]["idle"]
    assert (idle["n"], idle["least"], idle["median"], idle["most"]) == (3, 1, 2, 3)
    assert costs["nvml_instant"]["busy"]["median"] == 5
    assert costs["nvml_buffer"] == {
        "idle": {**dict.fromkeys(("least", "p5", "median", "p95", "most"), 1.0), "n": 1}
    }


def test_joules_of_a_load_that_the_buffer_follows():
    """On for half of each 200 ms: 250 W by the counter, the buffer and the plateaus; 1 s holds the same anywhere."""
    edges = [20 + 0.1 * k for k in range(60)]
    steps = [
        step("slow", 0, 14, SLOW_S, half_s=1.5),
        step("alias-200", 20, 26, edges, period_ms=200.0),
    ]
    rows = buffer_rows(0, 0.1, 14, SLOW_S) + counter_rows(0, 0.1, 14, SLOW_S)
    rows += buffer_rows(1, 20, 26, edges) + counter_rows(1, 20, 26, edges)
    reads = reads_of(steps, rows)
    sensors = {source: findings.sensor(reads, source) for source in reads.sources}
    found = findings.aliasing(reads, sensors, 1)
    assert found["period_ms"] == 200
    assert found["seconds"] == pytest.approx(
        3.9, abs=0.11
    )  # 6 s less 2 s at its ends, between ticks
    mean_w = found["energy_j"]["nvml_counter"] / found["seconds"]
    assert mean_w == pytest.approx(250, abs=4)  # 20 whole periods, but for half of one
    assert found["on_share"] == pytest.approx((mean_w - 100) / 300, abs=0.02)
    assert found["ratio"] == {"nvml_buffer": pytest.approx(1, abs=0.02)}
    assert found["levels_j"] == pytest.approx(found["energy_j"]["nvml_counter"], rel=0.03)
    assert found["windows_1s"]["nvml_buffer"] == pytest.approx([1, 1], abs=0.02)


def test_without_two_ticks_there_are_no_joules():
    """A step of 1 s has no window once its ends are left out."""
    edges = [20.0, 20.1]
    reads = reads_of(
        [step("alias-200", 20, 21, edges, period_ms=200.0)],
        buffer_rows(0, 20, 21, edges) + counter_rows(0, 20, 21, edges),
    )
    sensors = {source: findings.sensor(reads, source) for source in reads.sources}
    found = findings.aliasing(reads, sensors, 0)
    assert (found["seconds"], found["energy_j"], found["levels_j"]) == (None, {}, None)


def test_figures_show_the_first_seconds_and_the_fitted_samples(loaded):
    """10 s of the slow load with its 6 edges until then, 3 s of the fast one; at most some 400 samples an answer."""
    sensors = {source: findings.sensor(loaded, source) for source in loaded.sources}
    found = findings.figures(loaded, sensors)
    slow = found["traces"]["slow"]
    assert slow["edges_s"] == pytest.approx([edge for edge in SLOW_S if edge <= 10])
    assert slow["lines"]["nvml_buffer"][0] == [0.1, 100.0]
    assert slow["lines"]["nvml_buffer"][-1][0] <= 10
    assert found["traces"]["fast"]["lines"]["nvml_buffer"][-1][0] <= 3
    for points in found["answers"].values():
        assert 12 < len(points) < 2 * findings.MOST_POINTS
