"""What `verify` found: each published value that does not come out again, and how it is put into words."""

import dataclasses
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wattflow import __version__
from wattflow.errors import printable

TOLERANCE = 1e-9  # relative; numbers that are no floats must be equal
Key = tuple[str, int | None]  # point_id, attempt

_SETS = {"reasons", "boards", "node_names"}


# --- values ---------------------------------------------------------------------------------------


def same(published: Any, recomputed: Any) -> tuple[bool, float | None]:
    """Return whether two values are equal, floats within the tolerance, and how far two floats differ by the larger."""
    if not isinstance(published, float) or not isinstance(recomputed, float | int):
        return type(published) is type(recomputed) and published == recomputed, None
    if published == recomputed or (math.isnan(published) and math.isnan(recomputed)):
        return True, 0.0
    relative = abs(published - recomputed) / max(abs(published), abs(recomputed))
    relative = relative if math.isfinite(relative) else math.inf
    return relative <= TOLERANCE, relative


# --- what was found -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One published value that does not come out again."""

    where: str  # the table or file
    what: str  # the column; of a phase, the phase and the column
    published: Any
    recomputed: Any
    relative: float | None = None  # difference over the larger; null for what is no number
    device: str | None = None  # of a phase


@dataclass
class AttemptCheck:
    """What became of one attempt, or of a point without one."""

    point_id: str
    attempt: int | None
    status: str
    counts: bool
    simulated: bool
    damaged: bool = False  # not whole when it was collected, so it has no figures to compare
    kept: bool = False  # `wattflow prune` removed files of it: what they gave cannot be recomputed
    figures: int = 0  # values compared, nulls aside
    largest: float = 0.0  # the largest relative difference, those within the tolerance too
    energy_j: float | None = None  # published
    recomputed_j: float | None = None
    gpus: int | None = None
    samples: int | None = None
    samples_expected: int | None = None
    coverage: float | None = None
    differences: list[Difference] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def compare(self, one: Difference) -> None:
        """Count a pair of values, unless both are null, and keep it where they differ."""
        published, recomputed = one.published, one.recomputed
        if one.what in _SETS and isinstance(published, list) and isinstance(recomputed, list):
            published, recomputed = sorted(published), sorted(recomputed)
        equal, relative = same(published, recomputed)
        self.figures += not (published is None and recomputed is None)
        self.largest = max(self.largest, relative or 0.0)
        if not equal:
            self.differences.append(dataclasses.replace(one, relative=relative))

    @property
    def ok(self) -> bool:
        """Whether everything of it came out again."""
        return not (self.differences or self.problems)


@dataclass
class Verdict:
    """What was checked, and what was found."""

    path: Path
    kind: str  # sweep, measurement; `bundle of a ...`
    sha256: str | None  # of a bundle's file
    made_by: str  # the wattflow that wrote the results
    attempts: list[AttemptCheck] = field(default_factory=list)
    hashed_files: int | None = None  # of a bundle
    wrong_files: list[str] = field(default_factory=list)
    points: int = 0
    right_ids: int = 0  # point_ids that are the hash of their choices
    withheld_ids: int = 0  # of commands, which a bundle withholds
    problems: list[str] = field(default_factory=list)  # of the whole
    notes: list[str] = field(default_factory=list)  # what was not checked, and why

    @property
    def kept(self) -> int:
        """How many attempts that count have figures which cannot be recomputed any more."""
        return sum(one.kept and one.counts for one in self.attempts)

    @property
    def verified(self) -> bool:
        """Whether every figure that is not kept follows from the traces, and nothing else was found wrong."""
        return not (self.wrong_files or self.problems) and all(one.ok for one in self.attempts)


def named(key: Key) -> str:
    """Return a point, or an attempt at it, in words."""
    return f"point {key[0]}" + (f", attempt {key[1]}" if key[1] is not None else "")


# --- for a person ---------------------------------------------------------------------------------

HEADINGS = (
    "point_id",
    "attempt",
    "J",
    "J again",
    "GPUs",
    "samples",
    "covered",
    "values",
    "verdict",
)
_MOST_LINES, _MOST_LINES_IN_ALL = 8, 40  # differences that are listed one by one


def table(verdict: Verdict) -> list[list[Any]]:
    """Return a row an attempt, or a point without one, under HEADINGS."""
    return [
        [
            _safe(one.point_id),
            one.attempt,
            _joules(one.energy_j, one),
            _joules(one.recomputed_j, one),
            one.gpus,
            None if one.samples is None else f"{one.samples}/{one.samples_expected}",
            None if one.coverage is None else f"{100 * one.coverage:.2f} %",
            one.figures,
            _short(one),
        ]
        for one in verdict.attempts
    ]


def _joules(energy_j: float | None, one: AttemptCheck) -> str | None:
    return None if energy_j is None else f"{'~' if one.simulated else ''}{energy_j:.7g}"


def _short(one: AttemptCheck) -> str:
    """Return the verdict on one attempt in a cell: what differs most, by how much, and how much else does."""
    if one.damaged:
        return "damaged, does not count"
    if one.ok and one.kept:
        return "kept, not recomputable" + ("" if one.counts else f", {one.status}, does not count")
    if one.ok:
        return "ok" if one.counts or one.attempt is None else f"ok, {one.status}, does not count"
    more = len(one.problems) + len(one.differences) - 1
    if one.problems:
        text = _safe(one.problems[0])
    else:
        by_size = sorted(one.differences, key=lambda d: -(d.relative or 0.0))
        joules = [d for d in by_size if (d.where, d.what) == ("points", "energy_j")]
        text = _sentence(dataclasses.replace((joules or by_size)[0], device=None))
    return f"DIFFERS: {text}" + (f" (and {more} more)" if more else "")


def _sentence(one: Difference) -> str:
    by = "" if one.relative is None else f", {one.relative:.2g} of it"
    where = "" if one.where in ("points", "phases") else f"{one.where}: "
    device = "" if one.device is None else f" of {_safe(one.device)}"
    values = f"{_value(one.published)}, recomputed {_value(one.recomputed)}"
    return f"{where}{_safe(one.what)}{device} {values}{by}"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.10g}"
    return "null" if value is None else _safe(str(value))


def _safe(text: str, most: int = 200) -> str:
    """Return a text of somebody else's, for a terminal: nothing that is no printable letter, and not for ever."""
    return printable(text[:most])


def lines(verdict: Verdict) -> list[str]:
    """Return what was found, in words, the verdict last."""
    out: list[str] = []
    for one in verdict.attempts:
        texts = [*one.problems, *map(_sentence, one.differences)]
        out += [f"{named((one.point_id, one.attempt))}: {text}" for text in texts[:_MOST_LINES]]
        if len(texts) > _MOST_LINES:
            more = len(texts) - _MOST_LINES
            out.append(f"{named((one.point_id, one.attempt))}: and {more} more, which --json has")
    if len(out) > _MOST_LINES_IN_ALL:
        out = [*out[:_MOST_LINES_IN_ALL], "and further ones, which --json has"]
    out += [f"file {line}" for line in verdict.wrong_files[:_MOST_LINES_IN_ALL]]
    out += verdict.problems[:_MOST_LINES_IN_ALL]
    out += [f"note: {line}" for line in verdict.notes[:_MOST_LINES_IN_ALL]]
    return [*(_safe(line, 1000) for line in out), *_summary(verdict)]


def _summary(verdict: Verdict) -> list[str]:
    """Return the last lines: what was held against what, and the verdict."""
    attempts = verdict.attempts
    values = sum(one.figures for one in attempts)
    differ = sum(len(one.differences) for one in attempts)
    largest = max((one.largest for one in attempts), default=0.0)
    samples = sum(one.samples or 0 for one in attempts)
    expected = sum(one.samples_expected or 0 for one in attempts)
    least = min((one.coverage for one in attempts if one.coverage is not None), default=None)
    covered = "" if least is None else f"; at least {100 * least:.2f} % of each window is covered"
    out = [f"{verdict.kind} {verdict.path}, results by wattflow {_safe(verdict.made_by)}"]
    if verdict.sha256 is not None:
        out.append(f"sha256   {verdict.sha256}")
    if verdict.hashed_files is not None:
        wrong = len(verdict.wrong_files)
        out.append(f"files    {verdict.hashed_files} in sha256sums, {wrong} not as packed")
    withheld = (
        f", {verdict.withheld_ids} of commands that are withheld" if verdict.withheld_ids else ""
    )
    out += [
        f"config   {verdict.right_ids} of {verdict.points} point_ids are the hash of their choices{withheld}",
        f"traces   {samples:,} power samples in the windows, {expected:,} by the sensors' periods{covered}",
        f"values   {values:,} recomputed, {differ} differ; the largest by {largest:.2g} of it, allowed {TOLERANCE:g}",
    ]
    if verdict.verified and verdict.kept:
        counting = sum(one.counts for one in attempts)
        kept = (
            f"verified in part: {verdict.kept} of {counting} points that count are kept, not recomputable: their "
            "traces were pruned, and their rows are as they were collected. All other figures follow from the traces."
        )
        return [*out, kept]
    if verdict.verified:
        return [*out, "verified: every published figure follows from the traces."]
    bad = sum(not one.ok for one in attempts)
    others = len(verdict.wrong_files) + len(verdict.problems)
    parts = [f"{bad} of {len(attempts)} attempts"] if bad or not others else []
    things = "1 thing" if others == 1 else f"{others} things"
    parts += [f"{things} beside the attempts"] if others else []
    return [*out, f"NOT VERIFIED: not as published: {' and '.join(parts)}; see above."]


def as_json(verdict: Verdict) -> dict[str, Any]:
    """Return all of a verdict as JSON's types; what is no number there, such as NaN, as text."""
    document: dict[str, Any] = _plain(asdict(verdict))
    for one, plain in zip(verdict.attempts, document["attempts"], strict=True):
        plain["ok"] = one.ok
    about = {
        "verified": verdict.verified,
        "kept": verdict.kept,
        "tolerance": TOLERANCE,
        "checked_by": __version__,
    }
    return {**about, **document}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if (
        value is None
        or isinstance(value, str | int)
        or (isinstance(value, float) and math.isfinite(value))
    ):
        return value
    return str(value)
