"""What can still be held to the row of an attempt whose files `wattflow prune` removed.

Its joules cannot be recomputed. What its record and other files say still can; its ratios and sums must agree with each
other, and the row with the copy that `prune` laid aside.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from wattflow.collect.quantities import PhaseEnergy
from wattflow.collect.ratios import RATIOS
from wattflow.collect.row import self_checks
from wattflow.publish.verdict import AttemptCheck, Difference
from wattflow.store.kept import with_mark

Row = Mapping[str, Any]

# what depends on all files of an attempt, so that it is another once some are gone
_OF_ALL_FILES = {"counts", "valid", "reasons", "error"}
_PHASE = [field.name for field in dataclasses.fields(PhaseEnergy)]


def compare_left(check: AttemptCheck, published: Row, left: Row, columns: Collection[str]) -> None:
    """Compare the columns of a kept row that come out of what is left of its attempt."""
    for column in columns:
        if left[column] is not None and column not in _OF_ALL_FILES:
            check.compare(Difference("points", column, published[column], left[column]))


def compare_copy(check: AttemptCheck, published: Row, copy: Row, columns: Collection[str]) -> None:
    """Compare a kept row with its copy in pruned/."""
    for column in columns:
        values = published[column], copy[column]
        if column == "reasons":
            values = with_mark(published[column]), with_mark(copy[column])
        if column != "counts":
            check.compare(Difference("pruned", column, *values))


def compare_sums(check: AttemptCheck, published: Row, phases: Sequence[Row]) -> None:
    """Find ratios and sums of a kept row that do not hold, and that its reasons do not name."""
    reasons = published["reasons"] or ()
    if "in_pieces" in reasons:  # whose other phases are in other rows
        return
    parts = [PhaseEnergy(**{name: row[name] for name in _PHASE}) for row in phases]
    # those of a command on several nodes are sums of rates
    rates = [ratio.column for ratio in RATIOS] if published["command"] is not None else []
    failed = self_checks(dict(published), parts, rates)
    check.problems += [
        f"its numbers contradict each other: {code}." for code in failed if code not in reasons
    ]
