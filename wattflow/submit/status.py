"""Report each point's state: read records, then query Slurm once (one squeue, at most one sacct).

    wattflow status sweeps/shards
    wattflow logs sweeps/shards POINT

A point is done when a finished attempt lies on disk, whatever Slurm says; Slurm only explains why one is not. No
answer from Slurm makes a point unknown, never finished.
"""

import contextlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, cast, get_args

import pyarrow as pa

from wattflow import process
from wattflow.analysis.expanded import sensors_expanded
from wattflow.analysis.means import of_sum
from wattflow.errors import DamagedError, RefusedError, SlurmError
from wattflow.nullable import complete, complete_sum
from wattflow.slurm import client
from wattflow.store import heartbeat, rank_errors
from wattflow.store.columns import REASONS
from wattflow.store.faults import full_disk
from wattflow.store.grid import GridPoint
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import Record
from wattflow.store.tables import read_columns
from wattflow.submit import advice, journal
from wattflow.submit.journal import Submission
from wattflow.submit.last_words import last_words

State = Literal[
    "done", "running", "waiting", "failed", "interrupted", "unknown", "untried", "infeasible"
]

_FILES_GONE = "its files were removed; its row is kept as it was collected"
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
    more_time_min: int | None = None  # what that asks for, where the point ran out of time
    seconds: float | None = None  # of its finished attempts, the mean
    energy_j: float | None = None  # of its finished attempts, or so far of the one that runs
    energy_expanded_u_j: float | None = None  # k = 2; null where it is not known
    power_w: float | None = None  # of the attempt that runs, now
    power_expanded_u_w: float | None = None
    nodes_unheard: int = 0  # nodes of the attempt that runs whose watts and joules are not in these
    simulated: bool = False  # arithmetic, not measured
    doubt: str | None = (
        None  # why it counts in no figure though it is done; null also before it is collected
    )


@dataclass(frozen=True)
class _Answers:
    """Slurm's answers by task, and why a task without one is unknown; null where it is gone for good."""

    by_task: dict[str, client.TaskState]
    trouble: str | None


@dataclass(frozen=True)
class _Findings:
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
        submission, task = self.at
        return self.record if submission.made(self.record, task) else None


def states(sweep: SweepDir, only: Collection[str] | None = None) -> list[Row]:
    """One row a point (of `only`), in the order in which points are run. Slurm is queried at most once in 30 s."""
    points = sweep.points()
    chosen = {point.point_id: point for point in points if only is None or point.point_id in only}
    newest = journal.newest_task(journal.read(sweep))
    on_disk = sweep.points_on_disk()
    collected = _collected(sweep)
    done = [
        collected[point_id]
        if point_id in on_disk
        else replace(collected[point_id], reason=_FILES_GONE)
        for point_id in chosen
        if point_id in collected
    ]
    known = {row.point_id for row in done}
    left = [
        _look(sweep, point_id, newest.get(point_id), point_id in on_disk)
        for point_id in chosen
        if point_id not in known
    ]
    wanted = {
        findings.at
        for findings in left
        if findings.at is not None
        and not findings.is_done
        and chosen[findings.point_id].reason is None
    }
    accounting = bool(chosen) and points[0].config().cluster.accounting
    answers = _ask(sweep, wanted, accounting)
    rows = {row.point_id: row for row in done}
    rows |= {
        findings.point_id: _row(sweep, findings, chosen[findings.point_id], answers)
        for findings in left
    }
    return [rows[point_id] for point_id in chosen]


def _collected(sweep: SweepDir) -> dict[str, Row]:
    """The rows of the points that the collector saw finished: one file instead of thousands of records."""
    columns = ["point_id", "attempt", "status", "job_id", "attempt_s", "job_energy_j", "simulated"]
    columns += ["counts", "reasons"]
    newer = ["job_energy_expanded_u_j"]
    try:
        table = read_columns(sweep.points_path, columns, newer)
        rows = zip(*(table[name].to_pylist() for name in (*columns, *newer)), strict=True)
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return {}
    attempts: Counter[str] = Counter()
    finished: dict[
        str, list[tuple[str | None, float | None, float | None, bool, float | None]]
    ] = {}
    doubts: dict[str, str | None] = {}
    for point_id, attempt, how, job, *took, counts, reasons, expanded_u_j in rows:
        attempts[point_id] += attempt is not None
        if how == "finished" or counts:
            codes = [code for code in reasons or () if code in REASONS and REASONS[code].withheld]
            known = counts or doubts.get(point_id, "") is None
            doubts[point_id] = None if known else ", ".join(codes) or "not valid"
        if how == "finished":
            finished.setdefault(point_id, []).append((job, *took, expanded_u_j))
    return {
        point_id: Row(
            point_id,
            "done",
            attempts[point_id],
            job=tries[-1][0],
            seconds=complete(fmean, [seconds for _, seconds, *_ in tries]),
            energy_j=complete_sum(energy_j for _, _, energy_j, *_ in tries),
            energy_expanded_u_j=of_sum(tried[4] for tried in tries),
            simulated=bool(tries[-1][3]),
            doubt=doubts[point_id],
        )
        for point_id, tries in finished.items()
    }


def _look(
    sweep: SweepDir, point_id: str, at: tuple[Submission, int] | None, exists: bool
) -> _Findings:
    """What lies on disk of one point."""
    attempts = sweep.attempts(point_id) if exists else []
    record, damage = decisive_record(attempts)
    return _Findings(point_id, attempts, record, damage, at)


def decisive_record(attempts: Sequence[AttemptDir]) -> tuple[Record | None, str | None]:
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


def _ask(sweep: SweepDir, tasks: Iterable[tuple[Submission, int]], accounting: bool) -> _Answers:
    """Query Slurm for these tasks; the accounting for those that the queue no longer knows."""
    by_task: dict[str, client.TaskState] = {}
    keys: dict[str, Submission] = {}
    for submission, task in tasks:
        if not submission.is_local:
            keys[submission.key(task)] = submission
        elif (alive := process.lives(str(submission.job_id))) is not None:
            by_task[submission.key(task)] = client.TaskState("RUNNING" if alive else "GONE")
    if not keys:
        return _Answers(by_task, None)
    try:
        by_task |= _in_queue(sweep, keys)
        gone = [key for key, submission in keys.items() if submission.job_id and key not in by_task]
        if gone and not accounting:
            return _Answers(by_task, "its job left the queue, and this site keeps no accounting")
        if gone:
            known = client.cached_ended(sorted({str(keys[key].job_id) for key in gone}))
            by_task |= _of_tasks({key: keys[key] for key in gone}, known)
    except SlurmError as error:
        return _Answers(by_task, str(error))
    return _Answers(by_task, None)


def _in_queue(sweep: SweepDir, keys: dict[str, Submission]) -> dict[str, client.TaskState]:
    """The queue's answers for tasks; a submission that was cut short is found by its name."""
    owner = process.user_name(sweep.path.stat().st_uid)
    queue = client.cached_queue(owner)
    by_name = {answer.name: answer for answer in queue.values() if not answer.is_over}
    cut_short = {key: submission.name for key, submission in keys.items() if not submission.job_id}
    found = {key: by_name[name] for key, name in cut_short.items() if name in by_name}
    return found | _of_tasks(
        {k: submission for k, submission in keys.items() if submission.job_id}, queue
    )


def _of_tasks(
    keys: dict[str, Submission], answers: dict[str, client.TaskState]
) -> dict[str, client.TaskState]:
    """The answers for some tasks, among many.

    Where an array ended before any of its tasks began, as when it is cancelled, Slurm lists 123 and not 123_4.
    """
    found = {}
    for key, submission in keys.items():
        answer = answers.get(key) or answers.get(str(submission.job_id))
        if answer is not None:
            found[key] = answer
    return found


def _row(sweep: SweepDir, findings: _Findings, point: GridPoint, answers: _Answers) -> Row:
    """A point's row, with the log and the command where it came to grief."""
    attempts = len(findings.attempts)
    if findings.is_done and findings.record is not None:
        return _done(findings.point_id, attempts, findings.record)
    if point.reason is not None:
        return Row(findings.point_id, "infeasible", attempts, point.reason)
    state, reason = (
        _never_sent(findings) if findings.at is None else _sent(findings, *findings.at, answers)
    )
    at = findings.at
    job = at[0].key(at[1]) if at is not None and at[0].job_id is not None else None
    row = Row(findings.point_id, state, attempts, findings.damage or reason, job)
    if state == "running":
        return _watched(row, findings.attempts)
    if state not in ("failed", "interrupted", "unknown"):
        return row
    answer = answers.by_task.get(at[0].key(at[1])) if at is not None else None
    more_min = advice.more_time_min(point, row.reason, answer)
    again = advice.rerun(sweep, findings.point_id, findings.record, more_min)
    return replace(row, log=_decisive_log(findings), rerun=again, more_time_min=more_min)


def _done(point_id: str, attempts: int, record: Record) -> Row:
    """The row of a point by the record of its newest finished attempt, with what its sidecars recorded."""
    job = record.get("job")
    row = Row(point_id, "done", attempts, job=job and job.get("job_id"))
    with contextlib.suppress(AttributeError, KeyError, TypeError):  # a foreign record's
        nodes = record["nodes"]
        row = replace(
            row,
            seconds=(cast(int, record["ended_ns"]) - record["started_ns"]) / 1e9,
            energy_j=complete_sum(node.get("energy_j") for node in nodes),
            energy_expanded_u_j=of_sum(_node_expanded_u_j(record, node) for node in nodes),
            simulated=any(node["source"] == "simulated" for node in nodes),
        )
    return row


def _node_expanded_u_j(record: Record, node: Mapping[str, Any]) -> float | None:
    """Return the expanded uncertainty by the sensors of one node's joules since its attempt started."""
    seconds = (cast(int, record["ended_ns"]) - record["started_ns"]) / 1e9
    ranks = [rank for rank in record.get("ranks", []) if rank["node"] == node["node"]]
    boards = len({rank["gpu_uuid"] for rank in ranks})
    return sensors_expanded(node["source"], node.get("energy_j"), seconds, boards)


def _decisive_log(findings: _Findings) -> Path | None:
    """The log that most likely says why: that of the rank which failed first."""
    if findings.at is None:
        return findings.attempts[-1].logs if findings.attempts else None
    submission, task = findings.at
    own = findings.own_record
    log = submission.log_path(task, (own.get("error_rank") if own else None) or 0)
    return log if log.is_file() else None


def _sent(
    findings: _Findings, submission: Submission, task: int, answers: _Answers
) -> tuple[State, str | None]:
    """The state of a point that was sent and has no finished attempt, and why it is so."""
    key = submission.key(task)
    answer = answers.by_task.get(key)
    own = findings.own_record
    if answer is not None and answer.is_queued:
        return "waiting", answer.reason
    if own is not None and own["status"] != "running":
        return _by_record(own, answer)
    if answer is None:
        return _without_answer(submission, key, answers.trouble)
    if answer.is_over:
        return _gone(answer, key, findings)
    if own is not None or len(submission.tasks[task]) == 1:
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
        energy_expanded_u_j=sensors_expanded(
            beat.source, beat.energy_j, beat.seconds, beat.devices
        ),
        power_expanded_u_w=sensors_expanded(beat.source, beat.power_w, 1.0, beat.devices),
        nodes_unheard=(beat.nodes or 1) - 1,
        simulated=beat.source == "simulated",
    )


def _by_record(record: Record, answer: client.TaskState | None = None) -> tuple[State, str | None]:
    if record["status"] != "interrupted":
        return "failed", record.get("error")
    # Slurm ends the other ranks by SIGTERM; a task that was warned of its time limit (SIGUSR2) ends itself
    ended_by_slurm = "(SIGTERM)" in str(record.get("error"))
    if ended_by_slurm and answer is not None and answer.state in _BROKE:
        return (
            "failed",
            f"its task ended as {answer.state}, as when a rank is killed: {record.get('error')}",
        )
    return "interrupted", record.get("error")


def _never_sent(findings: _Findings) -> tuple[State, str | None]:
    """The state of a point that no submission holds: untried, or tried by `wattflow run`."""
    if not findings.attempts:
        return "untried", None
    if findings.record is None:
        return "failed", "its attempt left no record"
    if findings.record["status"] == "running":
        return _measuring(findings.record)
    return _by_record(findings.record)


def _measuring(record: Record) -> tuple[State, str | None]:
    """The state of an attempt without a job that did not end: that of the process which measures a command."""
    alive = process.lives(record["measure"].get("process", "")) if "measure" in record else None
    if alive is None:
        return "unknown", "its attempt was made without a job that could be asked"
    return ("running", None) if alive else ("failed", "its process is gone")


def _without_answer(
    submission: Submission, key: str, trouble: str | None
) -> tuple[State, str | None]:
    """The state of a point that was sent, where Slurm says nothing of its task."""
    if submission.job_id is None and trouble is None:
        return "untried", "its submission was cut short; `wattflow resume` sends it"
    return "unknown", trouble or f"neither squeue nor sacct knows task {key}"


def _gone(answer: client.TaskState, key: str, findings: _Findings) -> tuple[State, str | None]:
    """The state of a point whose task ended before its attempt did: Slurm's answer, and a rank's error."""
    reason = (
        "its process is gone" if answer.state == "GONE" else f"task {key} ended as {answer.state}"
    )
    if answer.reason and answer.state != "CANCELLED":  # there it is why the task had not begun
        reason += f" ({answer.reason})"
    error = rank_errors.first(findings.attempts[-1]) if findings.own_record is not None else None
    if error is not None:
        reason += f": {error.error}"
    elif findings.attempts and (full := full_disk(findings.attempts[-1].path)) is not None:
        reason += f"; {full}, so that it could not say why"
    elif answer.reason == "NonZeroExitCode" and (log := _decisive_log(findings)) is not None:
        reason += f": {words}" if (words := last_words(log)) is not None else ""
    return ("interrupted" if answer.state == "CANCELLED" else "failed"), reason


def check_states(answers: Iterable[str]) -> None:
    """Raise RefusedError for a name that is no state."""
    known = get_args(State)
    for answer in answers:
        if answer not in known:
            raise RefusedError(
                f"--state {answer}: no state of a point. They are {', '.join(known)}."
            )


def counts(rows: Iterable[Row]) -> dict[State, int]:
    """How many points are in each state, in the order of State; states without points are left out."""
    by_state = Counter(row.state for row in rows)
    return {state: by_state[state] for state in get_args(State) if by_state[state]}


def exit_code(rows: Iterable[Row]) -> int:
    """5 when Slurm left points unknown, else 4 while points wait or run, else 3 when some are not done, else 0."""
    found = set(counts(rows))
    if "unknown" in found:
        return 5
    if found & {"waiting", "running"}:
        return 4
    return 3 if found & {"failed", "interrupted", "untried"} else 0
