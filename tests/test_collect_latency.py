"""Times of requests from the moment at which each was meant to be sent, by iterations whose edges are known."""

import numpy as np
import pyarrow as pa
import pytest
from sweeps import Gpu, Made, choices, constant, make_attempt, make_sweep

import wattflow
from wattflow.collect.collect import collect
from wattflow.collect.latency import is_saturated, request_times
from wattflow.store.schema import ITERATION, REQUEST, SCHEMA_VERSION, SPAN
from wattflow.store.tables import read_table, write_table

S = 10**9
STEP_S = 0.1


def iterations(count, start_ns=0, node="n1", stalls=()):
    """Iterations of 0.1 s, but for `stalls` by number; each keeps a token."""
    rows, at_ns = [], start_ns
    for number in range(count):
        took_ns = round(dict(stalls).get(number, STEP_S) * S)
        row = dict.fromkeys(ITERATION.names, 0)
        row |= {
            "node": node,
            "iteration": number,
            "start_ns": at_ns,
            "end_ns": at_ns + took_ns,
            "tokens_kept": 1,
        }
        rows.append(row)
        at_ns += took_ns
    return rows


def request(number, due_ns, first_step, tokens=5, *, sent_ns=None, steps=None):
    """A request that is read in one iteration and then gets a token in each, or in those given."""
    steps = steps or list(range(first_step, first_step + tokens))
    blank = dict.fromkeys(REQUEST.names)
    return blank | {
        "prompt": number,
        "batch": 0,
        "tokens_in": 7,
        "tokens_kept": tokens,
        "stop_reason": "length",
        "due_ns": due_ns,
        "sent_ns": due_ns if sent_ns is None else sent_ns,
        "cached_tokens": 0,
        "prefill_steps": [first_step],
        "prefill_tokens": [7],
        "token_steps": steps,
    }


def table(rows, schema):
    made = pa.Table.from_pylist(rows, schema=schema)
    return made.replace_schema_metadata({"schema_version": str(SCHEMA_VERSION)})


def test_times_run_from_the_intended_sending():
    """Due at 0.05 s, sent 0.15 s late, read from 0.2 s, first token at 0.3 s, five tokens of 0.1 s each."""
    times = request_times(
        table([request(0, round(0.05 * S), 2, sent_ns=round(0.2 * S))], REQUEST),
        table(iterations(9), ITERATION),
    )
    assert times.queue_s == pytest.approx([0.15])
    assert times.ttft_s == pytest.approx([0.25])
    assert times.e2e_s == pytest.approx([0.65])
    assert times.tpot_s == pytest.approx([0.1])
    assert times.gaps_s[0] == pytest.approx([0.1] * 4)


def test_a_stall_is_between_tokens_and_a_single_token_has_no_time_per_token():
    """An iteration of 0.5 s in the middle of a request; the other has one token."""
    times = request_times(
        table([request(0, 0, 0), request(1, 0, 1, tokens=1)], REQUEST),
        table(iterations(9, stalls={2: 0.5}), ITERATION),
    )
    assert times.gaps_s[0] == pytest.approx([0.1, 0.5, 0.1, 0.1])
    assert times.slowest_s == pytest.approx([np.percentile([0.1, 0.5, 0.1, 0.1], 99), 0.0])
    assert np.isnan(times.tpot_s).tolist() == [False, True]


def test_several_tokens_of_one_iteration_come_at_once():
    """Speculative decoding: two tokens, then one, then two: gaps of 0."""
    times = request_times(
        table([request(0, 0, 0, steps=[0, 0, 1, 2, 2])], REQUEST), table(iterations(9), ITERATION)
    )
    assert times.gaps_s[0] == pytest.approx([0.0, 0.1, 0.1, 0.0])


def queue(rate_per_s, served_per_s, count=200):
    """Arrivals and ends of a server that takes one request after another."""
    due = np.arange(count) * round(S / rate_per_s)
    end, free = [], 0
    for at in due:
        free = max(free, at) + round(S / served_per_s)
        end.append(free)
    return due, np.array(end)


def test_saturation_is_a_queue_that_grows():
    """Ten a second against twelve served is steady; against eight the queue grows by a fifth of all that came."""
    for served, grew in ((12, False), (8, True)):
        due, end = queue(10, served)
        assert is_saturated(due, end, due) is grew


def test_a_few_requests_saturate_nothing():
    """Below five in the system nothing is said."""
    due, end = queue(10, 5, count=9)
    assert not is_saturated(due, end, due)


def collected(tmp_path, requests, steps, **load):
    """The row of an attempt of 100 W, one iteration each 0.1 s from the window's start."""
    point = choices(workload={"mode": "open", "rate_per_s": 1.0, **load})
    point["engine"]["name"] = "vllm"
    sweep = make_sweep(tmp_path / "s", [point])
    attempt = make_attempt(sweep, point, Made([Gpu("GPU-a", constant(100.0))]))
    node = attempt.read_record()["ranks"][0]["node"]
    spans = read_table(attempt.spans_path(node), SPAN).to_pylist()
    start = min(row["start_ns"] for row in spans if row["phase"] == "prefill")
    write_table(attempt.iterations_path(node), table(iterations(steps, start, node), ITERATION))
    for row in requests:
        row |= {"due_ns": start + row["due_ns"], "sent_ns": start + row["sent_ns"]}
        row["end_ns"] = start + round((row["token_steps"][-1] + 1) * STEP_S * S)
    write_table(attempt.requests_path, table(requests, REQUEST))
    collect(sweep)
    (row,) = wattflow.open_sweep(sweep.path).attempts.to_dicts()
    return row


def test_joules_of_a_good_request_are_all_joules_over_the_good_ones(tmp_path):
    """After a ramp of 1 s three requests, one of which waited: 100 W from 1 s to 3 s, two good ones, 100 J each."""
    rows = [
        request(0, 0, 0),
        request(1, 1 * S, 10),
        request(2, round(1.1 * S), 20),
        request(3, round(2.2 * S), 25),
    ]
    row = collected(tmp_path, rows, 30, ramp_s=1.0, slo={"ttft_s": 0.5, "itl_s": 0.2})
    assert (row["load_requests"], row["load_tokens_in"], row["good_requests"]) == (3, 21, 2)
    assert row["full_s"] == pytest.approx(2.0)
    assert row["energy_per_good_request_j"] == pytest.approx(100.0, rel=5e-3)
    assert row["goodput_per_s"] == pytest.approx(1.0)
    assert row["ttft_p50_s"] == pytest.approx(0.4)
    assert row["ttft_p99_s"] == pytest.approx(np.percentile([0.1, 0.4, 1.0], 99))
    assert row["itl_p99_s"] == pytest.approx(0.1)
    assert row["saturated"] is False


def test_without_targets_no_request_is_good_or_bad(tmp_path):
    """Null, and so are the joules of one."""
    row = collected(tmp_path, [request(0, 0, 0), request(1, S, 10)], 20, ramp_s=0.5)
    assert (row["good_requests"], row["energy_per_good_request_j"]) == (None, None)
    assert row["ttft_p50_s"] == pytest.approx(0.1)


def test_a_ramp_longer_than_the_load_leaves_nothing(tmp_path):
    """And the row says so."""
    row = collected(tmp_path, [request(0, 0, 0)], 20, ramp_s=60.0)
    assert (row["load_requests"], row["full_s"]) == (None, None)
    assert "never_full" in row["reasons"]


def test_a_growing_queue_is_remarked(tmp_path):
    """Forty requests in two seconds, each of ten iterations, one after another: the row is valid and says saturated."""
    rows = [request(k, round(k * 0.05 * S), 10 * k, tokens=10) for k in range(20)]
    row = collected(tmp_path, rows, 220, ramp_s=0.0)
    assert row["saturated"] is True
    assert "saturated" in row["reasons"]
    assert row["valid"]
