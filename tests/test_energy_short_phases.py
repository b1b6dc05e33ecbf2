"""Short phases by a sensor that answers late, against loads whose joules are known."""

from dataclasses import replace

import coverage_counts as coverage
import numpy as np
import pytest
from waves import Steps, ns, sampled

from wattflow.energy import curve, short_phases
from wattflow.store.sources import Response

PATTERN = ("prefill", 0.05, 700.0), ("decode", 0.513, 400.0), ("other", 0.01, 150.0)


def batches(count):
    """A load of alike batches from 1 s on, and the edges of its phases in ns."""
    edges, watts, spans = [1.0], [100.0], {name: [] for name, _, _ in PATTERN}
    for _ in range(count):
        for name, seconds, level in PATTERN:
            spans[name].append((edges[-1], edges[-1] + seconds))
            edges.append(edges[-1] + seconds)
            watts.append(level)
    load = Steps(np.array(edges[:-1]), np.array([*watts[:-1], 100.0]))
    spans["other"].pop()
    return load, {k: (ns([a for a, _ in v]), ns([b for _, b in v])) for k, v in spans.items()}


def both(count, response=coverage.HOPPER, true=None):
    """Joules of the phases as integrated and as corrected, and the true ones."""
    load, edges = batches(count)
    window = int(edges["prefill"][0][0]), int(edges["decode"][1][-1])
    seconds = float(load.edges_s[-1]) + 1.0
    random = np.random.default_rng(3)
    power = sampled(random, load, "nvml_buffer", true or response, seconds, stray_s=0.006)
    found = {name: curve.summed(curve.between(power, *pair)) for name, pair in edges.items()}
    found["window"] = curve.summed(curve.between(power, [window[0]], [window[1]]))
    truth = {
        name: 1e-9 * float((pair[1] - pair[0]).sum()) * level
        for (name, _, level), pair in zip(PATTERN, edges.values(), strict=True)
    }
    return found, short_phases.corrected(power, response, edges, window, found), truth


def test_prefills_of_50_ms_are_put_right():
    """40 of 700 W are 1400 J: integrated they lack 15 % or more, corrected 1 % at most, which U holds."""
    found, right, truth = both(40)
    assert truth["prefill"] == pytest.approx(40 * 0.05 * 700)
    assert found["prefill"].energy_j < 0.85 * truth["prefill"]
    assert right["prefill"].energy_j == pytest.approx(truth["prefill"], rel=0.01)
    assert right["decode"].energy_j == pytest.approx(truth["decode"], rel=0.003)
    for name, one in right.items():
        assert abs(one.energy_j - truth[name]) <= 2 * one.u_j
    assert 2 * right["prefill"].u_j < 0.03 * truth["prefill"]


def test_what_phases_draw_together_stays():
    """They add up to the window's joules, as those integrated do."""
    found, right, _ = both(40)
    assert sum(one.energy_j for one in right.values()) == pytest.approx(found["window"].energy_j)


def test_a_sensor_that_nobody_measured_is_left_alone():
    """Without a known lag, and with too few batches, the joules are those that were integrated."""
    unknown = Response(20.0)
    found, right, _ = both(40, unknown, coverage.HOPPER)
    assert right == {name: found[name] for name in right}
    found, right, _ = both(3)
    assert right == {name: found[name] for name in right}


def test_a_wrong_lag_shows_in_the_uncertainty():
    """A lag known to 4 ms in place of 0.4, and 4 ms off: the response's part is wider, and U holds the truth."""
    vague = replace(coverage.HOPPER, lag_u_ms=4.0)
    _, sharp, _ = both(40)
    _, wide, truth = both(40, vague, replace(coverage.HOPPER, lag_ms=coverage.HOPPER.lag_ms + 4))
    assert wide["prefill"].response_u_j > 1.5 * sharp["prefill"].response_u_j
    assert abs(wide["prefill"].energy_j - truth["prefill"]) <= 2 * wide["prefill"].u_j


def test_of_a_long_window_a_part_is_solved_for(monkeypatch):
    """With 500 samples at most, what is moved there is moved in all batches."""
    monkeypatch.setattr(short_phases, "MOST_SAMPLES", 500)
    found, right, truth = both(60)
    assert found["prefill"].energy_j < 0.85 * truth["prefill"]
    assert right["prefill"].energy_j == pytest.approx(truth["prefill"], rel=0.03)
    assert abs(right["prefill"].energy_j - truth["prefill"]) <= 2 * right["prefill"].u_j
    assert sum(one.energy_j for one in right.values()) == pytest.approx(found["window"].energy_j)


def test_no_phase_draws_less_than_nothing(monkeypatch):
    """Pauses of 1 ms, of which samples show next to nothing, have 0 J or more, and all still add up."""
    short = ("prefill", 0.05, 700.0), ("decode", 0.513, 400.0), ("other", 0.001, 20.0)
    monkeypatch.setattr(f"{__name__}.PATTERN", short)
    for most in (10_000, 500):
        monkeypatch.setattr(short_phases, "MOST_SAMPLES", most)
        found, right, _ = both(40)
        assert min(one.energy_j for one in right.values()) >= 0
        whole_j = found["window"].energy_j
        assert sum(one.energy_j for one in right.values()) == pytest.approx(whole_j)


def test_long_phases_are_left_as_they_are():
    """Where lateness moves less than 0.1 % of each phase nothing is solved for."""
    load = Steps(np.array([1.0, 61.0, 181.0]), np.array([100.0, 700.0, 400.0, 100.0]))
    edges = {"prefill": (ns([1.0]), ns([61.0])), "decode": (ns([61.0]), ns([181.0]))}
    power = sampled(np.random.default_rng(3), load, "nvml_buffer", coverage.HOPPER, 182.0)
    found = {name: curve.summed(curve.between(power, *pair)) for name, pair in edges.items()}
    found["window"] = curve.summed(curve.between(power, ns([1.0]), ns([181.0])))
    window = int(edges["prefill"][0][0]), int(edges["decode"][1][0])
    right = short_phases.corrected(power, coverage.HOPPER, edges, window, found)
    assert right == {name: found[name] for name in edges}


@pytest.mark.parametrize("pattern", coverage.PATTERNS)
def test_phases_of_30_batches_and_more_are_covered(pattern):
    """Prefill and decode are in 95 % inside U, not inside half of it, and known in at least 80 % of cases."""
    counts, withheld, _ = coverage.phases(np.random.default_rng(12), pattern, 16)
    rows = sum(one.rows for one in counts.values())
    assert sum(one.within for one in counts.values()) >= 0.95 * rows
    assert sum(one.within_half for one in counts.values()) < 0.95 * rows
    assert withheld <= 0.2 * (rows + withheld)
