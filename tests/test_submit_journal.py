"""Whatever is submitted, claimed, finished, killed and resumed in whatever order: no point twice, none forgotten.

The model is small: a set of points, a journal that can lose its unwritten end, and a Slurm of held and released
tasks. What decides is wattflow's own code: the journal's reader, resume's choice and its mending.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wattflow.slurm import client
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import SCHEMA_VERSION, JobInfo
from wattflow.submit import journal, resume
from wattflow.submit.journal import Submission

POINTS = [f"{number:012x}" for number in range(4)]


class Task:
    """One task of Slurm's: its points, whether it is held, and whether its pickle lies where it looks."""

    def __init__(self, key: str, name: str, points: list[str]) -> None:
        self.key, self.name, self.points = key, name, points
        self.held, self.pickled = True, False
        self.left = list(points)
        self.requeued = False
        self.at: AttemptDir | None = None


class Journal(RuleBasedStateMachine):
    """Interleavings of two people's calls, each cut short at any step, with tasks that start and end."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="wattflow-model-")
        self.sweep = SweepDir(Path(self.folder.name) / "demo")
        self.sweep.make()
        self.tasks: dict[str, Task] = {}
        self.jobs = 100
        self.tried: set[str] = set()

    def teardown(self) -> None:
        """In the end one resume and one submit, not cut short, leave each point finished or in a task that can run."""
        self.resume(2, 6, mends=True)
        self.submit(2, 6)
        assert not [task.key for task in self.tasks.values() if task.held], "left behind, held"
        free = list(self.tasks.values())
        has = {p for task in free for p in [*task.left, *([task.at.point_id] if task.at else [])]}
        for point in POINTS:
            assert point in has or self.sweep.is_finished(point), point
        self.folder.cleanup()

    # --- what a person does -----------------------------------------------------------------------

    def send(self, chunks: list[list[str]], steps: int) -> None:
        """One array of tasks, cut short after so many of its steps: intent, sbatch, pickles, line, release, line."""
        name = f"demo-{self.jobs}-{time.time_ns()}"
        sent = Submission(name, "points", chunks, self.sweep.submitit / name, time.time_ns())
        if steps < 1:
            return
        journal.intend(self.sweep, sent)
        self.tried.update(point for chunk in chunks for point in chunk)
        if steps < 2:
            return
        self.jobs += 1
        sent.job_id = str(self.jobs)
        own = [Task(sent.key(k), name, chunk) for k, chunk in enumerate(chunks)]
        self.tasks |= {task.key: task for task in own}
        if steps < 3:
            return
        for task in own:
            task.pickled = True
        if steps < 4:
            return
        journal.write(self.sweep, "submitted", name, job_id=sent.job_id)
        if steps < 5:
            return
        self.release(sent.job_id)
        if steps < 6:
            return
        journal.write(self.sweep, "released", name)

    def _release_all(self, jobs: Sequence[str]) -> tuple[list[str], str]:
        for job in jobs:
            self.release(job)
        return [], ""

    def release(self, job: str) -> None:
        for task in self.tasks.values():
            if task.key.partition("_")[0] == job:
                assert task.pickled, "a task was let go without its pickle"
                task.held = False

    def words(self) -> dict[str, client.TaskState]:
        return {
            task.key: client.TaskState("PENDING" if task.held else "RUNNING", None, task.name)
            for task in self.tasks.values()
        }

    @rule(size=st.integers(1, 3), steps=st.integers(0, 6))
    def submit(self, size: int, steps: int) -> None:
        """Points that no submission holds and nobody tried."""
        held = journal.newest_task(journal.read(self.sweep))
        new = [p for p in POINTS if p not in held and not self.sweep.attempts(p)]
        if new:
            self.send([new[i : i + size] for i in range(0, len(new), size)], steps)

    @rule(size=st.integers(1, 3), steps=st.integers(0, 6), mends=st.booleans())
    def resume(self, size: int, steps: int, *, mends: bool) -> None:
        """What resume mends and what it picks; `mends` false is a death before its first step."""
        if not mends:
            return
        sents = journal.read(self.sweep)
        words = self.words()
        self.mend(sents, words)
        newest = journal.newest_task(sents)
        todo = [
            point
            for point in POINTS
            if resume._needs_another_try(self.sweep, point, newest, words, force=False)
        ]
        assert not [p for p in todo if self.sweep.is_finished(p)], "run again"
        if todo:
            self.send([todo[i : i + size] for i in range(0, len(todo), size)], steps)

    @rule(point=st.sampled_from(POINTS), how=st.sampled_from(["finished", "failed", "interrupted"]))
    def run_by_hand(self, point: str, how: str) -> None:
        """`wattflow run` leaves an attempt at a point that no submission holds; resume takes it up if need be."""
        held = journal.newest_task(journal.read(self.sweep))
        if point not in held and not self.sweep.attempts(point):
            task = Task("local:machine:1:1", "by hand", [point])
            task.at = self.sweep.claim_attempt(point)
            self.close(task, how)

    def mend(self, sents: list[Submission], words: dict[str, client.TaskState]) -> None:
        """`submit._mend`, with this model's scancel and release in the place of Slurm's."""
        before = client.cancel, client.release
        client.cancel = self.cancel  # type: ignore[assignment]
        client.release = self._release_all
        try:
            resume._mend(self.sweep, sents, words)
        finally:
            client.cancel, client.release = before

    def cancel(self, jobs: list[str]) -> None:
        for key in [key for key in self.tasks if key.partition("_")[0] in jobs]:
            self.end(self.tasks[key], "failed")

    @rule(cut=st.integers(1, 40))
    def crash_of_the_disk(self, cut: int) -> None:
        """A line that nobody acted on yet is cut: the half of an INTENT."""
        with self.sweep.journal_path.open("ab") as file:
            file.write(b'{"schema_version": 1, "time_ns": 1, "event": "intent"}'[:cut])

    # --- what the cluster does --------------------------------------------------------------------

    @precondition(lambda self: any(not task.held for task in self.tasks.values()))
    @rule(data=st.data())
    def a_task_goes_on(self, data: st.DataObject) -> None:
        """It takes its next point, finishes or fails the one it has, or ends."""
        free = sorted(task.key for task in self.tasks.values() if not task.held)
        task = self.tasks[data.draw(st.sampled_from(free))]
        if task.at is not None:
            self.close(task, data.draw(st.sampled_from(["finished", "failed", "interrupted"])))
        elif task.left:
            point = task.left.pop(0)
            busy = {other.at.point_id for other in self.tasks.values() if other.at is not None}
            if point not in busy and not self.sweep.is_finished(point):
                task.at = self.sweep.claim_attempt(point)
                self.say(task, "running")
        else:
            del self.tasks[task.key]

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), again=st.booleans())
    def a_task_is_killed(self, data: st.DataObject, *, again: bool) -> None:
        """A node is lost, without a word in the record; Slurm may put the task back into the queue."""
        task = self.tasks[data.draw(st.sampled_from(sorted(self.tasks)))]
        task.at = None
        if again:
            task.left = list(task.points)
            task.requeued = True
        else:
            del self.tasks[task.key]

    def end(self, task: Task, how: str) -> None:
        if task.at is not None:
            self.close(task, how)
        self.tasks.pop(task.key, None)

    def close(self, task: Task, how: str) -> None:
        self.say(task, how)
        task.at = None

    def say(self, task: Task, how: str) -> None:
        assert task.at is not None
        job: JobInfo = {"job_id": task.key, "array_task": None, "restart": 0, "cluster": "site"}
        task.at.write_record(
            {
                "schema_version": SCHEMA_VERSION,
                "point_id": task.at.point_id,
                "attempt": task.at.number,
                "status": how,  # type: ignore[typeddict-item]
                "started_ns": 1,
                "job": job,
            }
        )

    # --- what must hold ---------------------------------------------------------------------------

    @invariant()
    def no_point_runs_twice_at_once(self) -> None:
        """Of the tasks that may run, at most one is at a point or has it before it."""
        # a requeued task comes back to points that it had given up and that were sent anew: it steps aside there
        free = [task for task in self.tasks.values() if not task.held and not task.requeued]
        has = [p for task in free for p in [*task.left, *([task.at.point_id] if task.at else [])]]
        left = [point for point in has if not self.sweep.is_finished(point)]
        assert len(left) == len(set(left))

    @invariant()
    def no_point_is_finished_twice(self) -> None:
        """A point that finished is left alone."""
        for point in POINTS:
            records = [attempt.read_record() for attempt in self.sweep.attempts(point)]
            assert sum(r is not None and r["status"] == "finished" for r in records) <= 1

    @invariant()
    def none_is_forgotten(self) -> None:
        """Each point is finished, in a task that can run, or would be sent by a resume or a submit."""
        sents = journal.read(self.sweep)
        newest = journal.newest_task(sents)
        queued = {
            point
            for task in self.tasks.values()
            for point in [*task.left, task.at and task.at.point_id]
        }
        open_ = {point for sent in sents if sent.is_open for task in sent.tasks for point in task}
        for point in POINTS:
            attempts = self.sweep.attempts(point)
            assert (
                self.sweep.is_finished(point)
                or point in queued
                or point in open_
                or (point not in newest and not attempts)  # submit's to send
                or resume._needs_another_try(self.sweep, point, newest, self.words(), force=False)
                or any(t.key == newest[point][0].key(newest[point][1]) for t in self.tasks.values())
            ), point


TestJournal = Journal.TestCase
TestJournal.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
