"""The values that ranks pass to each other."""

import json
from dataclasses import asdict

from wattflow.run.continuation import ANEW, Continuation
from wattflow.run.place import Claim, TaskEnds


def test_a_claim_is_the_same_on_all_ranks():
    """It travels as JSON: the partial attempts and the prompts that it continues come out as they went in."""
    part = {"attempt": 1, "first_batch": 0, "batches": 4}
    for continuation in (Continuation([part], "abc"), ANEW):
        claim = Claim(2, continuation)
        assert Claim.from_json(json.loads(json.dumps(asdict(claim)))) == claim
    assert Continuation([part, part], "abc").batches == 8


def test_a_point_alone_is_both_ends_of_its_task():
    """By default it is the first and the last."""
    assert TaskEnds() == TaskEnds(first=True, last=True)
