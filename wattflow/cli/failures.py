"""Say why points did not finish, and what tries them again."""

import shlex
from collections.abc import Callable, Iterable
from typing import Any

from wattflow.cli.printing import shown, talk
from wattflow.submit import summary
from wattflow.submit.advice import asking_for

_SOME = 4  # points of one cause that are named


def say_failures(sweep: Any, rows: Iterable[Any], say: Callable[[str], None] = talk) -> None:
    """Why points did not finish, for each cause once: its log, and the command that tries them again."""
    for cause in summary.causes(rows):
        first, count = cause.rows[0], len(cause.rows)
        who = first.point_id if count == 1 else f"{count} points"
        say(f"{who} {cause.state}: {cause.reason}")
        if count > 1:
            more = f" and {count - _SOME} more" if count > _SOME else ""
            say(f"  points {' '.join(row.point_id for row in cause.rows[:_SOME])}{more}")
        if first.log is not None:
            say(f"  log    {shown(first.log)}{' (the first of them)' if count > 1 else ''}")
        alone = first.rerun if count == 1 else None
        more = asking_for(max(row.more_time_min or 0 for row in cause.rows) or None)
        say(f"  again  {alone or f'wattflow resume {_quoted(sweep)} --state {cause.state}{more}'}")


def _quoted(sweep: Any) -> str:
    return shlex.quote(shown(sweep.path))
