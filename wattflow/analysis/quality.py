"""How many answers of a point are right, and the joules of each right one, with the energy of earlier tries in them.

Answers are held against the reference results of the prompts' file by the #### rule (workload/scoring.py). The prompts
are drawn anew and count only where their hash is that of the record. The interval of the share that is right is
Wilson's (1927), at 95 %; that of joules per right answer follows from it. No right answer has no such joules: null.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wattflow.analysis.sweep import Sweep
from wattflow.errors import RefusedError
from wattflow.nullable import complete_sum
from wattflow.store.files import has_own
from wattflow.store.tables import read_columns
from wattflow.workload import confined_tokenizer, prompts
from wattflow.workload.scoring import is_correct

_Z = 1.959964  # of the normal distribution, 95 % two-sided
DUMMY = "dummy weights: the text means nothing"
NONE_RIGHT = "no answer is right"


@dataclass(frozen=True)
class Quality:
    """The right answers of one point; null values have their reason."""

    point_id: str
    answers: int
    right: int | None
    share: float | None
    share_low: float | None
    share_high: float | None
    tries: int  # attempts whose energy is counted, that of the answers among them
    energy_j: float | None
    per_right_j: float | None
    per_right_low_j: float | None
    per_right_high_j: float | None
    simulated: bool
    reason: str | None


def wilson(right: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of n by Wilson's score; its ends are 0 and 1 where all are wrong or right."""
    share, z2 = right / n, _Z**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (0.0 if right == 0 else middle - half), (1.0 if right == n else middle + half)


def of_sweep(sweep: Sweep) -> list[Quality]:
    """Return the quality of each point that counts, in the sweep's order.

    RefusedError where no point counts, or where the prompts' file cannot be read or holds no reference results.
    """
    rows = [row for row in sweep.points.to_dicts() if row["counts"]]
    if not rows:
        raise RefusedError(
            f"{sweep.directory.path}: no point counts, so that there are no answers."
        )
    attempts: dict[str, list[dict[str, Any]]] = {}
    for row in sweep.attempts.to_dicts():
        attempts.setdefault(row["point_id"], []).append(row)
    return [_of_point(sweep, row, attempts[row["point_id"]]) for row in rows]


def _of_point(
    sweep: Sweep, row: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]]
) -> Quality:
    point_id = str(row["point_id"])
    attempt = sweep.directory.attempt(point_id, int(row["attempt"]))
    if not has_own(attempt.requests_path):
        return of_answers(row, attempts, [], "the answers are gone: their file was removed")
    read = read_columns(attempt.requests_path, ["prompt", "text"]).to_pylist()
    if any(one["text"] is None for one in read):
        return of_answers(row, attempts, [], DUMMY)
    config = sweep.directory.point(point_id).config()
    drawn = prompts.load(config, confined_tokenizer.load(config.model, config.weights))
    if drawn.info["sha256"] != row["prompts_sha256"]:
        return of_answers(row, attempts, [], "the prompts' file is another one than that which ran")
    marks = [
        None
        if (reference := drawn.answers[one["prompt"]]) is None
        else is_correct(one["text"], reference)
        for one in read
    ]
    known = [mark for mark in marks if mark is not None]
    return of_answers(
        row, attempts, known, None if known else "the prompts have no reference results"
    )


def of_answers(
    row: Mapping[str, Any],
    attempts: Iterable[Mapping[str, Any]],
    marks: Sequence[bool],
    reason: str | None,
) -> Quality:
    """Return the quality of a point's marked answers; the energy of all its attempts, the unfinished ones too."""
    spent = [one["energy_j"] or one["unfinished_energy_j"] for one in attempts]
    energy_j = complete_sum(spent)
    n, right = len(marks), sum(marks)
    low, high = wilson(right, n) if n else (None, None)
    if reason is None and not right:
        reason = NONE_RIGHT
    if reason is None and energy_j is None:
        reason = "the energy of an earlier try is unknown"
    per_right = None if reason is not None or energy_j is None else energy_j / right
    return Quality(
        point_id=str(row["point_id"]),
        answers=n,
        right=right if n else None,
        share=right / n if n else None,
        share_low=low,
        share_high=high,
        tries=len(spent),
        energy_j=energy_j,
        per_right_j=per_right,
        per_right_low_j=None if per_right is None or not high else per_right * right / n / high,
        per_right_high_j=None if per_right is None or not low else per_right * right / n / low,
        simulated=bool(row["simulated"]),
        reason=reason,
    )
