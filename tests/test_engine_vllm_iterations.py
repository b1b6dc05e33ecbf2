"""The probe on a scheduler: chunks of a prompt, recomputed requests, and launches that overlap."""

from types import SimpleNamespace as Some

import pytest

from wattflow.engine.vllm_iterations import Iteration, Probe


class Scripted:
    """A scheduler that returns what a test wrote down."""

    def __init__(self, *outputs):
        self.outputs = list(outputs)

    def schedule(self, throttle_prefills=False):
        return self.outputs.pop(0)

    def update_from_output(self, scheduled, output):
        return {0: Some(outputs=output)}


def scheduled(counts, new=(), cached=(), preempted=None):
    """One iteration: tokens by request, (name, prompt tokens, computed) of new ones, (name, computed) of others."""
    return Some(
        num_scheduled_tokens=counts,
        scheduled_new_reqs=[
            Some(req_id=name, prompt_token_ids=[0] * length, num_computed_tokens=computed)
            for name, length, computed in new
        ],
        scheduled_cached_reqs=Some(
            req_ids=[name for name, _ in cached],
            num_computed_tokens=[computed for _, computed in cached],
        ),
        preempted_req_ids=preempted,
    )


def brought(name, tokens, reason=None):
    """What came back for one request."""
    return Some(request_id=name, new_token_ids=tokens, finish_reason=reason)


def test_a_prompt_in_chunks_is_prefill_until_its_end():
    """Ten prompt tokens in chunks of 6 and 4; a decoding row beside the second."""
    scheduler = Scripted(
        scheduled({"a": 6, "b": 2}, [("a", 10, 0), ("b", 2, 0)]),
        scheduled({"a": 4, "b": 1}, cached=[("a", 6), ("b", 2)]),
    )
    probe = Probe(scheduler)
    first = probe.row = Iteration(1)
    scheduler.schedule()
    scheduler.update_from_output(None, [brought("a", []), brought("b", [7])])
    second = probe.row = Iteration(2)
    scheduler.schedule(False)
    scheduler.update_from_output(None, [brought("a", [1]), brought("b", [8], "length")])
    assert (first.prefill_tokens, first.decode_tokens, first.first_tokens) == (8, 0, 1)
    assert (second.prefill_tokens, second.decode_tokens, second.first_tokens) == (4, 1, 1)
    assert (second.positions, second.prefill_squares, second.finished) == (3, 16, 1)


def test_a_request_that_lost_its_cache_is_computed_anew():
    """Its prompt counts as prefill once more and what it had made as decode; its first token came long ago."""
    scheduler = Scripted(
        scheduled({"a": 4}, [("a", 4, 0)]),
        scheduled({}, preempted={"a"}),
        scheduled({"a": 6}, cached=[("a", 0)]),
    )
    probe = Probe(scheduler)
    scheduler.schedule()
    scheduler.update_from_output(None, [brought("a", [1])])
    lost = probe.row = Iteration(1)
    scheduler.schedule()
    again = probe.row = Iteration(2)
    scheduler.schedule()
    scheduler.update_from_output(None, [brought("a", [2])])
    assert lost.preempted == 1
    assert (again.prefill_tokens, again.decode_tokens, again.first_tokens) == (4, 2, 0)


def test_a_scheduler_of_another_make_is_not_wrapped():
    """Without the calls there is nothing to count."""
    with pytest.raises(AttributeError):
        Probe(object())
