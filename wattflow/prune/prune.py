"""Give disk back: remove files of attempts whose rows are collected, and keep those rows.

    wattflow prune SWEEP                       what could be removed, and what that costs
    wattflow prune SWEEP --traces --apply      remove it

    locks -> nothing runs, all is collected -> rows safe in pruned/ -> files removed -> results say so

Only files of settled points are removed: those with an attempt that counts. Record and folder of every attempt stay, so
that no number is given twice. Killed at any moment, it leaves a sweep that every verb reads; run again, it goes on.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from wattflow import process
from wattflow.collect.collect import collect, collect_lock, files_gone
from wattflow.collect.copies import CopiedAttempts, drop_copies, last_copies
from wattflow.errors import DamagedError, RefusedError
from wattflow.store import heartbeat
from wattflow.store.columns import PHASE, POINT
from wattflow.store.files import changed_ns, is_temporary
from wattflow.store.kept import Kept, Key
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.packed import FOLDER
from wattflow.store.packing import drop, loose_files, pack, packed_files
from wattflow.store.removal import File, all_below, files_below, folders_below, remove
from wattflow.store.tables import read_columns, read_table
from wattflow.submit import journal
from wattflow.submit.lock import submit_lock
from wattflow.submit.send import live_tasks

KINDS = {
    "copies": "results/traces, the second copy of each trace; figures can still be recomputed",
    "traces": "raw traces of attempts that count; their figures are kept and can no longer be recomputed",
    "superseded": "all but the records of attempts that do not count, where another one of their point does",
    "logs": "logs of attempts that count, and pickles and logs of jobs that have ended",
    "leftovers": "temporary files of writers that were killed",
    "loose": "files of settled points that lie alone; they are put into archives, and nothing is lost",
}
_KEEPS_ROWS = ("traces", "superseded")
_STAYS = {"record.json", "heartbeat.json"}  # of every attempt
_OLD_S = 3600.0  # a writer that lives has touched its temporary file since
_SILENT_S = 120.0  # an attempt of another machine whose heartbeat is older has ended


@dataclass(frozen=True)
class Part:
    """The files of one kind."""

    kind: str
    files: list[File]

    @property
    def size_bytes(self) -> int:
        """What their removal frees."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True)
class Pruning:
    """What is removed, or would be."""

    sweep: SweepDir
    parts: list[Part]
    newly_kept: set[Key]  # attempts whose rows are kept from now on
    counting: int  # attempts that count
    recomputable: int  # of these, attempts whose figures can be recomputed afterwards
    last_copies: int = (
        0  # attempts whose raw traces somebody removed: files with copies of them stay
    )

    @property
    def files(self) -> int:
        """How many files are removed."""
        return sum(len(part.files) for part in self.parts)

    @property
    def size_bytes(self) -> int:
        """What their removal frees."""
        return sum(part.size_bytes for part in self.parts)


def prune(sweep: SweepDir, kinds: Collection[str], *, apply: bool = False) -> Pruning:
    """Return what files of some kinds there are to remove, or remove them.

    RefusedError, and nothing is removed, where points wait or run or are not collected, or where another process
    submits or collects; SlurmError where Slurm does not say what runs.
    """
    ordered = [kind for kind in KINDS if kind in kinds]
    sweep.require_owner()
    if not apply:
        return _look(sweep, ordered)
    with submit_lock(sweep) as held:
        with collect_lock(sweep):
            found = _look(sweep, ordered)
            if not found.files:
                if journal.unfinished_prune(sweep):
                    journal.note_prune(sweep, ordered, (0, 0))
                return found
            held.check()
            if found.newly_kept:
                kept = Kept.read(sweep)
                kept.with_attempts(found.newly_kept, _results(sweep)).write(sweep)
            journal.note_prune(sweep, ordered)
            for part in found.parts:
                if part.kind == "copies":
                    drop_copies([sweep.path.joinpath(*file.parts) for file in part.files])
                elif part.kind == "loose":
                    pack(sweep, {file.parts[1]: None for file in part.files})
                else:
                    remove(sweep.path, part.files, _may_go)
                    drop(sweep, {file.parts for file in part.files})
        collect(sweep)
        journal.note_prune(sweep, ordered, (found.files, found.size_bytes))
    return found


def _look(sweep: SweepDir, kinds: Sequence[str]) -> Pruning:
    """Find what there is to remove; RefusedError where something runs or is not collected."""
    submissions = journal.read(sweep)
    _refuse_live(sweep, submissions)
    points = sweep.points()
    counting = _refuse_uncollected(sweep, [point.point_id for point in points])
    kept = Kept.read(sweep).keys
    parts = {kind: Part(kind, []) for kind in kinds}
    newly_kept: set[Key] = set()
    for point_id, number in counting.items():
        for attempt in sweep.attempts(point_id):
            going = set()
            for kind, file in _of_attempt(sweep, attempt, counts=attempt.number == number):
                if kind in parts:
                    parts[kind].files.append(file)
                    going.add(file.parts)
                    if kind in _KEEPS_ROWS:
                        newly_kept.add((attempt.point_id, attempt.number))
            if "loose" in parts:
                alone = [file for file in loose_files(sweep, attempt) if file.parts not in going]
                parts["loose"].files.extend(replace(file, size_bytes=0) for file in alone)
    last: set[Key] = set()
    if "copies" in parts:
        last = _add_copies(sweep, parts["copies"].files, kept | newly_kept)
    if "logs" in parts:
        parts["logs"].files.extend(_of_jobs(sweep, submissions, counting))
    if "leftovers" in parts:
        parts["leftovers"].files.extend(_leftovers(sweep, [point.point_id for point in points]))
    gone = kept | newly_kept | files_gone(sweep)
    return Pruning(
        sweep,
        list(parts.values()),
        newly_kept - kept,
        len(counting),
        sum((point_id, number) not in gone for point_id, number in counting.items()),
        len(last),
    )


def _results(sweep: SweepDir) -> Kept:
    return Kept(read_table(sweep.points_path, POINT), read_table(sweep.phases_path, PHASE))


# --- what stands in the way -----------------------------------------------------------------------


def _refuse_live(sweep: SweepDir, submissions: Sequence[journal.Submission]) -> None:
    """Raise RefusedError where a task of the sweep's points waits or runs."""
    sent = [one for one in submissions if one.kind == "points" and not one.refused]
    if not sent:
        return
    live = live_tasks(sent)
    there = [
        one.key(task) for one in sent for task in range(len(one.tasks)) if one.key(task) in live
    ]
    if there:
        raise RefusedError(
            f"{sweep.path}: {len(there)} tasks wait or run, such as {there[0]}. Prune when they have ended; `wattflow "
            f"status {sweep.path}` shows them."
        )


def _refuse_uncollected(sweep: SweepDir, point_ids: Sequence[str]) -> dict[str, int]:
    """Return the attempt that counts of each point that has one; RefusedError where an attempt runs or has no row."""
    names = ["point_id", "attempt", "record_stamp_ns", "counts"]
    try:
        table = read_columns(sweep.points_path, names)
    except FileNotFoundError:
        raise RefusedError(
            f"{sweep.path}: no results yet. `wattflow collect {sweep.path}` first: what is removed is in no row else."
        ) from None
    rows = list(zip(*(table[name].to_pylist() for name in names), strict=True))
    stamps = {(point_id, number): stamp_ns for point_id, number, stamp_ns, _ in rows}
    there = sweep.points_on_disk()
    for point_id in point_ids:
        for attempt in sweep.attempts(point_id) if point_id in there else ():
            _refuse_running(attempt)
            key = (point_id, attempt.number)
            if key not in stamps or stamps[key] != _stamp_ns(attempt):
                raise RefusedError(
                    f"point {point_id}, attempt {attempt.number} is not collected, or has changed since. `wattflow "
                    f"collect {sweep.path}`, then prune."
                )
    return {point_id: number for point_id, number, _, counts in rows if counts and number}


def _stamp_ns(attempt: AttemptDir) -> int | None:
    """Return when an attempt's record was written; null without one, or where it cannot be read."""
    try:
        attempt.read_record()
        return changed_ns(attempt.record_path)
    except (FileNotFoundError, DamagedError):
        return None


def _refuse_running(attempt: AttemptDir) -> None:
    """Raise RefusedError where the process behind an attempt lives, or may live on another machine."""
    beat = heartbeat.read(attempt)
    if beat is None:
        return
    alive = process.lives(beat.by)
    if alive is None:
        alive = heartbeat.silence_s(attempt) < _SILENT_S
    if alive:
        raise RefusedError(
            f"point {attempt.point_id}, attempt {attempt.number} runs ({beat.by}). Prune when it has ended."
        )


# --- what can go ----------------------------------------------------------------------------------


def _of_attempt(
    sweep: SweepDir, attempt: AttemptDir, *, counts: bool
) -> Iterator[tuple[str, File]]:
    """Yield the files of an attempt at a settled point with their kinds."""
    parts = attempt.path.relative_to(sweep.path).parts
    alone = list(all_below(sweep.path, parts))
    both = {file.parts for file in alone}
    files = alone + [file for file in packed_files(sweep, attempt) if file.parts not in both]
    if counts:
        for kind, folder in (("traces", "traces"), ("logs", "logs")):
            for file in files:
                if file.parts[len(parts)] == folder:
                    yield kind, file
        return
    for file in files:
        inside = file.parts[len(parts) :]
        # a node's part of a measured command is joined to the record whenever that is read
        part = len(inside) == 2 and inside[0] == "timings" and inside[1].endswith(".json")
        if not (inside[0] in _STAYS or part or is_temporary(inside[-1])):
            yield "superseded", file


def _may_go(folder: tuple[str, ...]) -> bool:
    """Return whether a folder may be removed once it is empty: one of a job, or one inside an attempt's."""
    return len(folder) > {"points": 3, "submitit": 1}.get(folder[0] if folder else "", len(folder))


def _add_copies(sweep: SweepDir, files: list[File], kept: set[Key]) -> set[Key]:
    """Add the files of copies that can go; return the attempts, but kept ones, whose last traces the others have."""
    last: set[Key] = set()
    for file in _copies(sweep):
        lost = last_copies(sweep, sweep.path.joinpath(*file.parts)) - kept
        last |= lost
        if not lost:
            files.append(file)
    return last


def _copies(sweep: SweepDir) -> Iterator[File]:
    """Yield the files of copies that still hold some."""
    for file in files_below(
        sweep.path, ("results", "traces"), lambda name: name.endswith(".parquet")
    ):
        held = CopiedAttempts.read(sweep.path.joinpath(*file.parts))
        if held.attempts - held.pruned:
            yield file


def _of_jobs(
    sweep: SweepDir, submissions: Sequence[journal.Submission], settled: Collection[str]
) -> Iterator[File]:
    """Yield the pickles and logs of jobs that have ended, and all of whose points are settled."""
    for submission in submissions:
        if submission.folder.parent != sweep.submitit:
            continue  # a line of another's making: only what submitit keeps is a job's
        if all(point_id in settled for task in submission.tasks for point_id in task):
            yield from all_below(sweep.path, submission.folder.relative_to(sweep.path).parts)


def _leftovers(sweep: SweepDir, point_ids: Sequence[str]) -> Iterator[File]:
    """Yield the temporary files in all folders of a sweep, but those of a writer that may live."""
    folders: list[tuple[str, ...]] = [
        (),
        ("results",),
        ("results", "traces"),
        ("pruned",),
        (FOLDER,),
    ]
    for point_id in point_ids:
        at = ("points", point_id)
        for attempt in folders_below(sweep.path, at):
            inside = folders_below(sweep.path, (*at, attempt))
            folders += [(*at, attempt), *((*at, attempt, name) for name in inside)]
    for folder in folders:
        for file in files_below(sweep.path, folder, is_temporary):
            if time.time() - file.changed_s > _OLD_S:
                yield file
