"""Joules of requests: exact sums by construction, and the experiment that sums cannot replace: taking a class away."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hidden_power import LAW, Simulated

from wattflow.analysis.attribution import (
    Measured,
    attribute,
    class_energy,
    events,
)
from wattflow.config.choices import Model
from wattflow.store.sources import Response

RC = Response(20.0, 13.7, 3.9, "exponential")


@pytest.mark.parametrize("rate_per_s", [0.5, 3.0, 12.0])
def test_requests_and_idle_are_the_meter_on_each_device(rate_per_s):
    """A thousand requests at three rates in all, two devices: sums exact to rounding, nobody below 0."""
    run = Simulated(1, seconds=340 / rate_per_s, response=RC, rate_per_s=rate_per_s)
    whole = run.measured()
    two = np.concatenate([0.7 * whole.device_j, 0.3 * whole.device_j])
    found = attribute(run.requests, run.iterations, run.ends, replace(whole, device_j=two), None)
    assert found.device_j.sum(axis=0) + found.device_idle_j == pytest.approx(
        two.sum(axis=1), rel=1e-12
    )
    assert found.request_j.sum() + found.idle_j == pytest.approx(found.measured_j, rel=1e-12)
    assert found.request_j.min() > 0
    assert found.tokens_j.sum() == pytest.approx(
        found.measured_j, rel=0.02
    )  # blocks without tokens are nobody's
    assert len(found.request_j) == 340


def intervention(seed, *, by="model"):
    """Half the requests of long prompts taken away: the meter's change, what was attributed to them, and U (k = 2)."""
    whole = Simulated(seed, seconds=40, response=RC)
    members = [k for k in range(120) if whole.tokens_in[k] > 700][::2]
    less = Simulated(seed, seconds=40, response=RC, without=members)
    found = whole.attributed()
    busy_s = float((whole.end_s - whole.start_s).sum() - (less.end_s - less.start_s).sum())
    until = max(whole.end_s[-1], less.end_s[-1]) + 1.0
    (before_j, before_u), (after_j, after_u) = whole.until(until), less.until(until)
    said_j, said_u = class_energy(found, members, busy_s)
    if by == "tokens":
        said_j = float(found.tokens_j[members].sum())
    return before_j - after_j, said_j, 2 * float(np.sqrt(said_u**2 + before_u**2 + after_u**2))


@pytest.mark.parametrize(
    ("runs", "least"), [(20, 0.9), pytest.param(100, 0.95, marks=pytest.mark.slow)]
)
def test_requests_taken_away_take_their_joules_with_them(runs, least):
    """The meter's change equals what was attributed to the class within U in 95 of 100 draws."""
    draws = [intervention(seed) for seed in range(runs)]
    assert np.mean([abs(change - said) <= u for change, said, u in draws]) >= least
    # U is no excuse: it is a small part of what was taken away
    assert np.median([u / change for change, _, u in draws]) < 0.05


def test_joules_by_tokens_alone_fail_the_same_experiment():
    """Negative control: a prompt's token costs a thirtieth of an output token here, and constant power stays."""
    draws = [intervention(seed, by="tokens") for seed in range(5)]
    assert not any(abs(change - said) <= u for change, said, u in draws)


def test_a_sum_that_is_exact_proves_nothing():
    """Shares by a wrong sensor still add up to the meter, and their model is doubted by blocks that it did not see."""
    slow = Response(100.0, 1000.0)
    run = Simulated(4, seconds=40, response=slow)
    right = run.attributed()
    wrong = attribute(
        run.requests, run.iterations, run.ends, replace(run.measured(), response=RC), None
    )
    assert wrong.request_j.sum() + wrong.idle_j == pytest.approx(right.measured_j, rel=1e-12)
    assert wrong.model.held_out > 10 * right.model.held_out


def test_each_requests_joules_are_near_the_hidden_laws():
    """What the law says of each request, its share of busy seconds too, within 3 % for nearly all."""
    run = Simulated(2, seconds=60, response=RC)
    found = run.attributed()
    true_j = found.amounts @ LAW[1:]
    assert np.mean(np.abs(found.request_j / true_j - 1) < 0.03) > 0.95


def test_the_amounts_of_a_request():
    """A prompt of 7 read in two parts of which 2 were cached, three tokens: positions 8 and 9 are read."""
    row = {
        "prefill_steps": [0, 1],
        "prefill_tokens": [3, 2],
        "token_steps": [1, 2, 3],
        "cached_tokens": 2,
        "tokens_in": 7,
    }
    other = {
        "prefill_steps": [1],
        "prefill_tokens": [5],
        "token_steps": [1],
        "cached_tokens": 0,
        "tokens_in": 5,
    }
    did = events(table([row, other]), np.array([1.0, 2.0, 3.0, 4.0]))
    totals = np.stack([did.per_request(column) for column in did.amounts.T], axis=1)
    # seconds: 1 alone, 2 shared by two, 3 and 4 alone; prompt tokens; cached; decoded; positions
    assert totals.tolist() == [[1 + 1 + 3 + 4, 5, 2, 2, 8 + 9], [1, 5, 0, 0, 0]]


def test_several_tokens_of_an_iteration_share_its_seconds():
    """Speculative decoding: two tokens of one iteration are one sequence in it."""
    row = {
        "prefill_steps": [0],
        "prefill_tokens": [4],
        "token_steps": [0, 1, 1],
        "cached_tokens": 0,
        "tokens_in": 4,
    }
    did = events(table([row]), np.array([1.0, 2.0]))
    assert did.per_request(did.amounts[:, 0]).tolist() == [3.0]
    assert did.per_request(did.amounts[:, 3]).tolist() == [2.0]


def test_work_by_bytes_and_flops_adds_up_above_idle():
    """The third model shares what idle watts leave."""
    run = Simulated(3, seconds=40, response=RC)
    measured = run.measured()
    found = attribute(run.requests, run.iterations, run.ends, measured, Model(name="7b"))
    blocks_s = (run.end_s[-1] - run.start_s[0]) * LAW[0]
    assert found.work_j.sum() == pytest.approx(found.measured_j - blocks_s, rel=0.02)


def test_a_load_of_a_moment_has_no_model():
    """Null where there are fewer blocks than terms."""
    run = Simulated(0, seconds=1.5, response=RC)
    measured = run.measured()
    assert (
        attribute(run.requests, run.iterations, run.ends, Measured(measured.device_j, RC), None)
        is None
    )


def table(rows):
    """Requests as columns, of those that attribution reads."""
    return pa.table({name: [row[name] for row in rows] for name in rows[0]})
