"""Follow a sweep until it ends, with a progress bar."""

import sys
import time
from typing import Any, Self

from wattflow.cli.printing import cell, talk
from wattflow.store.files import read_own
from wattflow.submit import status as stage


def follow_sweep(sweep: Any) -> None:
    """Show progress until no point waits or runs, collect, and print the closing table."""
    wait_for(sweep)
    finish(sweep)


def wait_for(sweep: Any) -> None:
    """Show progress until no point waits or runs."""
    with Follower() as follower:
        while True:
            rows = stage.states(sweep)
            follower.show(stage.counts(rows), _last_line(sweep))
            if stage.exit_code(rows) not in (4, 5):
                break
            time.sleep(1.0)


def finish(sweep: Any) -> None:
    """Collect the sweep, print its closing table and name what failed; WattflowError where some points did."""
    from wattflow.cli.closing import close  # noqa: PLC0415 - polars is slow to import: only once points have ended

    close(sweep)


def _last_line(sweep: Any) -> str:
    """What the newest local job said last; empty where points run under Slurm."""
    logs = sorted(sweep.submitit.glob("*/local_0_log.out"), key=lambda path: path.stat().st_mtime)
    lines = read_own(logs[-1]).decode(errors="replace").splitlines() if logs else []
    return lines[-1] if lines else ""


class Follower:
    """Progress on stderr: a bar on a terminal, a line a change elsewhere."""

    def __init__(self) -> None:
        self._shown = ""
        self._bar: Any = None

    def __enter__(self) -> Self:
        """Start the bar, on a terminal."""
        if sys.stderr.isatty():
            from rich.console import Console  # noqa: PLC0415 - slow to import, for a terminal alone
            from rich.progress import (  # noqa: PLC0415
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
            )

            doing = TextColumn("{task.description}", markup=False)
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), doing)
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the bar."""
        if self._bar is not None:
            self._bar.stop()

    def show(self, counts: dict[Any, int], doing: str) -> None:
        """Show how many points are in each state, and what the running one does."""
        summary = ", ".join(f"{n} {state}" for state, n in counts.items())
        if self._bar is not None:
            can_run = sum(counts.values()) - counts.get("infeasible", 0)
            self._bar.update(
                self._task,
                completed=counts.get("done", 0),
                total=can_run,
                description=cell(f"{summary}  {doing}"),
            )
        elif summary != self._shown:
            talk(summary)
        self._shown = summary
