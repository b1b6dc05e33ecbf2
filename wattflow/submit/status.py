"""What became of each point: records on disk first, then one squeue and at most one sacct.

    wattflow status sweeps/shards
    wattflow logs sweeps/shards POINT

A point is done when a finished attempt lies on disk, whatever Slurm says; Slurm's word only tells why one is not. No
answer from Slurm makes a point unknown, never finished.
"""

import contextlib
import pwd
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal, cast, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from wattflow import process
from wattflow.errors import DamagedError, RefusedError, SlurmError
from wattflow.plan import estimate
from wattflow.slurm import client
from wattflow.store import heartbeat
from wattflow.store.files import read_json
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import Record
from wattflow.submit import journal
from wattflow.submit.journal import Submission

State = Literal[
    "done", "running", "waiting", "failed", "interrupted", "unknown", "untried", "infeasible"
]

_BROKE = {"FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}


@dataclass(frozen=True)
class Row:
    """One point's state. `log` and `rerun` are there where a person has something to look at or to do."""

    point_id: str
    state: State
    attempts: int
    reason: str | None = None
    job: str | None = None  # Slurm's name of the task that holds it: 123_4
    log: Path | None = None
    rerun: str | None = None  # the command that tries the point once more
    seconds: float | None = None  # of its finished attempts, the mean
    energy_j: float | None = None  # of its finished attempts, or so far of the one that runs
    power_w: float | None = None  # of the attempt that runs, now
    nodes_unheard: int = 0  # nodes of the attempt that runs whose watts and joules are not in these
    simulated: bool = False  # arithmetic, not measured


@dataclass(frozen=True)
class _Words:
    """Slurm's words by task, and why a task that is not among them is unknown; null where it is gone for good."""

    by_task: dict[str, client.TaskState]
    trouble: str | None


@dataclass(frozen=True)
class _Traces:
    """What a point left behind."""

    point_id: str
    attempts: list[AttemptDir]
    record: Record | None  # of the newest finished attempt, else of the newest
    damage: str | None  # what is wrong with the newest attempt's record
    at: tuple[Submission, int] | None  # the newest submission that holds the point, and its task

    @property
    def is_done(self) -> bool:
        """Whether an attempt finished."""
        return self.record is not None and self.record["status"] == "finished"

    @property
    def own_record(self) -> Record | None:
        """The record, if its attempt was made by the newest task."""
        if self.record is None or self.at is None:
            return None
        sent, task = self.at
        return self.record if sent.made(self.record, task) else None


def states(sweep: SweepDir, only: Collection[str] | None = None) -> list[Row]:
    """One row a point (of `only`), in the order in which points are run. Slurm is asked at most once in 30 s."""
    points = sweep.points()
    reasons = {
        point.point_id: point.reason for point in points if only is None or point.point_id in only
    }
    newest = journal.newest_task(journal.read(sweep))
    on_disk = sweep.points_on_disk()
    collected = _collected(sweep)
    done = [
        collected[point_id] for point_id in reasons if point_id in collected and point_id in on_disk
    ]
    known = {row.point_id for row in done}
    left = [
        _look(sweep, point_id, newest.get(point_id), point_id in on_disk)
        for point_id in reasons
        if point_id not in known
    ]
    wanted = {
        traces.at
        for traces in left
        if traces.at is not None and not traces.is_done and reasons[traces.point_id] is None
    }
    accounting = bool(reasons) and points[0].config().cluster.accounting
    words = _words(sweep, wanted, accounting)
    rows = {row.point_id: row for row in done}
    rows |= {
        traces.point_id: _row(sweep, traces, reasons[traces.point_id], words) for traces in left
    }
    return [rows[point_id] for point_id in reasons]


def _collected(sweep: SweepDir) -> dict[str, Row]:
    """The rows of the points that the collector saw finished: one file instead of thousands of records."""
    columns = ["point_id", "attempt", "status", "job_id", "attempt_s", "job_energy_j", "simulated"]
    try:
        with pq.ParquetFile(sweep.points_path) as file:
            table = file.read(columns=columns, use_threads=False)
        told = zip(*(table[name].to_pylist() for name in columns), strict=True)
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return {}
    attempts: Counter[str] = Counter()
    finished: dict[str, list[tuple[str | None, float | None, float | None, bool]]] = {}
    for point_id, attempt, how, job, *took in told:
        attempts[point_id] += attempt is not None
        if how == "finished":
            finished.setdefault(point_id, []).append((job, *took))
    return {
        point_id: Row(
            point_id,
            "done",
            attempts[point_id],
            job=tries[-1][0],
            seconds=_over(fmean, [seconds for _, seconds, _, _ in tries]),
            energy_j=_over(sum, [energy_j for _, _, energy_j, _ in tries]),
            simulated=bool(tries[-1][3]),
        )
        for point_id, tries in finished.items()
    }


def _over(what: Callable[[list[float]], float], values: list[float | None]) -> float | None:
    """The sum or mean of values; null where one of them is not known."""
    known = [value for value in values if value is not None]
    return what(known) if known and len(known) == len(values) else None


def _look(
    sweep: SweepDir, point_id: str, at: tuple[Submission, int] | None, exists: bool
) -> _Traces:
    """What lies on disk of one point."""
    attempts = sweep.attempts(point_id) if exists else []
    record, damage = telling_record(attempts)
    return _Traces(point_id, attempts, record, damage, at)


def telling_record(attempts: Sequence[AttemptDir]) -> tuple[Record | None, str | None]:
    """The newest finished record, else the newest one; and what is wrong with the newest attempt's, if damaged."""
    newest: Record | None = None
    damage: str | None = None
    for attempt in reversed(attempts):
        try:
            record = attempt.read_record()
        except DamagedError as error:
            damage = damage or (str(error) if newest is None else None)
            continue
        if record is None:
            continue
        if record["status"] == "finished":
            return record, None
        newest = newest or record
    return newest, damage


def _words(sweep: SweepDir, tasks: Iterable[tuple[Submission, int]], accounting: bool) -> _Words:
    """Slurm's words on these tasks; the accounting is asked for those that the queue no longer knows."""
    by_task: dict[str, client.TaskState] = {}
    keys: dict[str, Submission] = {}
    for sent, task in tasks:
        if not sent.is_local:
            keys[sent.key(task)] = sent
        elif (alive := process.lives(str(sent.job_id))) is not None:
            by_task[sent.key(task)] = client.TaskState("RUNNING" if alive else "GONE")
    if not keys:
        return _Words(by_task, None)
    try:
        by_task |= _in_queue(sweep, keys)
        gone = [key for key, sent in keys.items() if sent.job_id and key not in by_task]
        if gone and not accounting:
            return _Words(by_task, "its job left the queue, and this site keeps no accounting")
        if gone:
            known = client.cached_ended(sorted({str(keys[key].job_id) for key in gone}))
            by_task |= _of_tasks({key: keys[key] for key in gone}, known)
    except SlurmError as error:
        return _Words(by_task, str(error))
    return _Words(by_task, None)


def _in_queue(sweep: SweepDir, keys: dict[str, Submission]) -> dict[str, client.TaskState]:
    """The queue's words on tasks; a submission that was cut short is found by its name."""
    owner = pwd.getpwuid(sweep.path.stat().st_uid).pw_name
    queue = client.cached_queue(owner)
    by_name = {word.name: word for word in queue.values() if not word.is_over}
    cut_short = {key: sent.name for key, sent in keys.items() if not sent.job_id}
    found = {key: by_name[name] for key, name in cut_short.items() if name in by_name}
    return found | _of_tasks({k: sent for k, sent in keys.items() if sent.job_id}, queue)


def _of_tasks(
    keys: dict[str, Submission], words: dict[str, client.TaskState]
) -> dict[str, client.TaskState]:
    """The words on tasks, among many words.

    Where an array ended before any of its tasks began, as when it is cancelled, Slurm tells of 123 and not of 123_4.
    """
    found = {}
    for key, sent in keys.items():
        word = words.get(key) or words.get(str(sent.job_id))
        if word is not None:
            found[key] = word
    return found


def _row(sweep: SweepDir, traces: _Traces, infeasible: str | None, words: _Words) -> Row:
    """A point's row, with the log and the command where it came to grief."""
    attempts = len(traces.attempts)
    if traces.is_done and traces.record is not None:
        return _done(traces.point_id, attempts, traces.record)
    if infeasible is not None:
        return Row(traces.point_id, "infeasible", attempts, infeasible)
    state, reason = _never_sent(traces) if traces.at is None else _sent(traces, *traces.at, words)
    at = traces.at
    job = at[0].key(at[1]) if at is not None and at[0].job_id is not None else None
    row = Row(traces.point_id, state, attempts, traces.damage or reason, job)
    if state == "running":
        return _watched(row, traces.attempts)
    if state not in ("failed", "interrupted", "unknown"):
        return row
    rerun = f"wattflow resume {shlex.quote(str(sweep.path))} --only {traces.point_id}"
    return replace(row, log=_telling_log(traces), rerun=rerun)


def _done(point_id: str, attempts: int, record: Record) -> Row:
    """The row of a point by the record of its newest finished attempt, with what its sidecars told of it."""
    job = record.get("job")
    row = Row(point_id, "done", attempts, job=job and job.get("job_id"))
    with contextlib.suppress(AttributeError, KeyError, TypeError):  # a foreign record's
        nodes = record["nodes"]
        row = replace(
            row,
            seconds=(cast(int, record["ended_ns"]) - record["started_ns"]) / 1e9,
            energy_j=_over(sum, [node.get("energy_j") for node in nodes]),
            simulated=any(node["source"] == "simulated" for node in nodes),
        )
    return row


def _telling_log(traces: _Traces) -> Path | None:
    """The log that most likely says why: that of the rank which failed first."""
    if traces.at is None:
        return traces.attempts[-1].logs if traces.attempts else None
    sent, task = traces.at
    own = traces.own_record
    log = sent.log_path(task, (own.get("error_rank") if own else None) or 0)
    return log if log.is_file() else None


def _sent(traces: _Traces, sent: Submission, task: int, words: _Words) -> tuple[State, str | None]:
    """The state of a point that was sent and has no finished attempt, and why it is so."""
    key = sent.key(task)
    word = words.by_task.get(key)
    own = traces.own_record
    if word is not None and word.is_queued:
        return "waiting", word.reason
    if own is not None and own["status"] != "running":
        return _by_record(own, word)
    if word is None:
        return _without_word(sent, key, words.trouble)
    if word.is_over:
        return _gone(word, key, traces)
    if own is not None or len(sent.tasks[task]) == 1:
        return "running", None
    return "waiting", f"for other points of task {key}"


def _watched(row: Row, attempts: Sequence[AttemptDir]) -> Row:
    """A running point's row with how far its newest attempt is, by its heartbeat: some 20 s old at most.

    The heartbeat is rank 0's, and holds the watts of rank 0's node alone.
    """
    beat = heartbeat.read(attempts[-1]) if attempts else None
    if beat is None:
        return row
    progress = None if beat.phase is None else f"{beat.phase}, {beat.done} of {beat.of} batches"
    return replace(
        row,
        reason=row.reason or progress,
        energy_j=beat.energy_j,
        power_w=beat.power_w,
        nodes_unheard=(beat.nodes or 1) - 1,
        simulated=beat.source == "simulated",
    )


def _by_record(record: Record, word: client.TaskState | None = None) -> tuple[State, str | None]:
    if record["status"] != "interrupted":
        return "failed", record.get("error")
    # Slurm ends the other ranks by SIGTERM; a task that was told of its time limit (SIGUSR2) ends itself
    ended_by_slurm = "(SIGTERM)" in str(record.get("error"))
    if ended_by_slurm and word is not None and word.state in _BROKE:
        return (
            "failed",
            f"its task ended as {word.state}, as when a rank is killed: {record.get('error')}",
        )
    return "interrupted", record.get("error")


def _never_sent(traces: _Traces) -> tuple[State, str | None]:
    """The state of a point that no submission holds: untried, or tried by `wattflow run`."""
    if not traces.attempts:
        return "untried", None
    if traces.record is None:
        return "failed", "its attempt left no record"
    if traces.record["status"] == "running":
        return "unknown", "its attempt was made without a job that could be asked"
    return _by_record(traces.record)


def _without_word(sent: Submission, key: str, trouble: str | None) -> tuple[State, str | None]:
    """The state of a point that was sent, where Slurm says nothing of its task."""
    if sent.job_id is None and trouble is None:
        return "untried", "its submission was cut short; `wattflow resume` sends it"
    return "unknown", trouble or f"neither squeue nor sacct knows task {key}"


def _gone(word: client.TaskState, key: str, traces: _Traces) -> tuple[State, str | None]:
    """The state of a point whose task ended before its attempt did: Slurm's word, and what a rank said."""
    told = "its process is gone" if word.state == "GONE" else f"task {key} ended as {word.state}"
    if word.reason and word.state != "CANCELLED":  # there it is why the task had not begun
        told += f" ({word.reason})"
    error = _first_error(traces.attempts[-1]) if traces.own_record is not None else None
    if error is not None:
        told += f": {error}"
    return ("interrupted" if word.state == "CANCELLED" else "failed"), told


def _first_error(attempt: AttemptDir) -> str | None:
    """What the first rank to fail said, where rank 0 had no time to put it into the record."""
    errors = []
    for path in attempt.logs.glob("error-rank*.json"):
        with contextlib.suppress(DamagedError, KeyError, TypeError):
            told = read_json(path)
            errors.append((int(told["time_ns"]), str(told["error"])))
    return min(errors)[1] if errors else None


def check_states(words: Iterable[str]) -> None:
    """RefusedError for a word that is no state."""
    known = get_args(State)
    for word in words:
        if word not in known:
            raise RefusedError(f"--state {word}: no state of a point. They are {', '.join(known)}.")


def counts(rows: Iterable[Row]) -> dict[State, int]:
    """How many points are in each state, in the order of State; states without points are left out."""
    by_state = Counter(row.state for row in rows)
    return {state: by_state[state] for state in get_args(State) if by_state[state]}


@dataclass(frozen=True)
class Cause:
    """Why some points did not finish: what the first of them tells, of all that tell the same."""

    state: State
    reason: str
    rows: list[Row]


def causes(rows: Iterable[Row]) -> list[Cause]:
    """The points that did not finish by state and reason, in their order; ids and tasks in a reason tell none apart."""
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

    energy_j: float | None  # of `told` points; null where none told any
    told: int
    untold: int  # points that ran or run, and whose joules are not known
    power_w: float | None  # of `watched` running points; null where none tells any
    watched: int
    running: int
    nodes_unheard: int  # nodes of those points that are in neither
    simulated: bool  # whether any of it is


def spent(rows: Iterable[Row]) -> list[Spent]:
    """Joules so far and watts now, as the rows tell them; what was simulated apart, where anything was measured."""
    rows = list(rows)
    measured = [row for row in rows if not row.simulated]
    if all(row.energy_j is None and row.power_w is None for row in measured):
        return [_spent(rows)]
    simulated = [row for row in rows if row.simulated]
    return [_spent(some) for some in (measured, simulated) if some]


def _spent(rows: Sequence[Row]) -> Spent:
    told = [row for row in rows if row.energy_j is not None]
    watched = [row for row in rows if row.power_w is not None]
    return Spent(
        energy_j=_over(sum, [row.energy_j for row in told]),
        told=len(told),
        untold=sum(row.attempts > 0 and row.energy_j is None for row in rows),
        power_w=_over(sum, [row.power_w for row in watched]),
        watched=len(watched),
        running=sum(row.state == "running" for row in rows),
        nodes_unheard=sum(row.nodes_unheard for row in told),
        simulated=any(row.simulated for row in told),
    )


def left(sweep: SweepDir, rows: Iterable[Row]) -> estimate.Sum:
    """What the points that are neither done nor infeasible should take, by those done; one that runs counts whole."""
    rows = list(rows)
    to_do = [row for row in rows if row.state not in ("done", "infeasible")]
    if not to_do:
        return estimate.Past([]).sum([])
    choices = {point.point_id: point.choices() for point in sweep.points()}
    past = estimate.Past(
        estimate.Seen(choices[row.point_id], row.seconds, row.energy_j, row.simulated)
        for row in rows
        if row.state == "done" and row.seconds
    )
    return past.sum(choices[row.point_id] for row in to_do)


def exit_code(rows: Iterable[Row]) -> int:
    """5 when Slurm left points unknown, else 4 while points wait or run, else 3 when some are not done, else 0."""
    found = set(counts(rows))
    if "unknown" in found:
        return 5
    if found & {"waiting", "running"}:
        return 4
    return 3 if found & {"failed", "interrupted", "untried"} else 0
