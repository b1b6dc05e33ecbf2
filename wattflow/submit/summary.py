"""Sum up the states of a sweep's points: why some did not finish, what was spent, what is left to run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wattflow.analysis.means import of_sum
from wattflow.nullable import known_sum
from wattflow.plan import estimate
from wattflow.store.layout import SweepDir
from wattflow.submit.status import Row, State


@dataclass(frozen=True)
class Cause:
    """Why some points did not finish: the reason of the first of them, for all with the same one."""

    state: State
    reason: str
    rows: list[Row]


def causes(rows: Iterable[Row]) -> list[Cause]:
    """The points that did not finish by state and reason, in their order; ids and tasks in a reason do not count."""
    found: dict[tuple[str, str], Cause] = {}
    for row in rows:
        if row.state not in ("failed", "interrupted", "unknown"):
            continue
        reason = row.reason or "no reason known"
        alike = reason.replace(row.point_id, "").replace(row.job or row.point_id, "")
        found.setdefault((row.state, alike), Cause(row.state, reason, [])).rows.append(row)
    return list(found.values())


@dataclass(frozen=True)
class Spent:
    """What a sweep took so far, and what it draws now."""

    energy_j: float | None  # of `points_known` points; null where none is known
    points_known: int
    points_unknown: int  # points that ran or run, and whose joules are not known
    power_w: float | None  # of `watched` running points; null where none is known
    watched: int
    running: int
    nodes_unheard: int  # nodes of those points that are in neither
    simulated: bool  # whether any of it is
    # k = 2; null where that of a point is not known
    energy_expanded_u_j: float | None = None
    power_expanded_u_w: float | None = None


def spent(rows: Iterable[Row]) -> list[Spent]:
    """Joules so far and watts now, by the rows; what was simulated apart, where anything was measured."""
    rows = list(rows)
    measured = [row for row in rows if not row.simulated]
    if all(row.energy_j is None and row.power_w is None for row in measured):
        return [_spent(rows)]
    simulated = [row for row in rows if row.simulated]
    return [_spent(some) for some in (measured, simulated) if some]


def _spent(rows: Sequence[Row]) -> Spent:
    known = [row for row in rows if row.energy_j is not None]
    watched = [row for row in rows if row.power_w is not None]
    return Spent(
        energy_j=known_sum(row.energy_j for row in known),
        energy_expanded_u_j=of_sum(row.energy_expanded_u_j for row in known),
        points_known=len(known),
        points_unknown=sum(row.attempts > 0 and row.energy_j is None for row in rows),
        power_w=known_sum(row.power_w for row in watched),
        power_expanded_u_w=of_sum(row.power_expanded_u_w for row in watched),
        watched=len(watched),
        running=sum(row.state == "running" for row in rows),
        nodes_unheard=sum(row.nodes_unheard for row in known),
        simulated=any(row.simulated for row in known),
    )


def left(sweep: SweepDir, rows: Iterable[Row]) -> estimate.Sum:
    """What the points that are neither done nor infeasible should take, by those done; one that runs counts whole."""
    rows = list(rows)
    to_do = [row for row in rows if row.state not in ("done", "infeasible")]
    if not to_do:
        return estimate.Past([]).sum([])
    points = {point.point_id: point for point in sweep.points()}
    past = estimate.Past(
        estimate.Finished(
            points[row.point_id].config(),
            row.seconds,
            row.energy_j,
            row.simulated,
            row.energy_expanded_u_j,
        )
        for row in rows
        if row.state == "done" and row.seconds
    )
    if not past.attempts:  # as with every choice; decoding those of very many takes its time
        return past.add_up([(0, None)] * len(to_do))
    return past.sum(points[row.point_id].config() for row in to_do)
