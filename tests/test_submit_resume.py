"""resume sends what did not finish; cancel ends what waits or runs."""

import time

import pytest
from fake_slurm import FakeSlurm
from submissions import intents, plan, seeds
from submitit.core.utils import DelayedSubmission

from wattflow.errors import RefusedError, SlurmError
from wattflow.plan.points import Point
from wattflow.store.layout import SweepDir
from wattflow.submit import journal, resume, send, status

# --- resume and cancel ----------------------------------------------------------------------------


def queued(fake: FakeSlurm, sweep: SweepDir, state: str = "PENDING") -> None:
    """Let squeue tell of all tasks that were sent."""
    fake.queue(
        *(
            f"{sent.key(task)}|{state}|None|{sent.name}"
            for sent in journal.read(sweep)
            if sent.job_id
            for task in range(len(sent.tasks))
        )
    )


def finish(sweep: SweepDir, one: Point, status: str = "finished") -> None:
    attempt = sweep.claim_attempt(one.point_id)
    attempt.write_record(
        {
            "schema_version": 1,
            "point_id": one.point_id,
            "attempt": attempt.number,
            "status": status,  # type: ignore[typeddict-item]
            "started_ns": time.time_ns(),
            "job": {"job_id": "101_0", "array_task": "0", "restart": 0, "cluster": "site"},
        }
    )


def test_resume_sends_exactly_the_unfinished_points_that_neither_wait_nor_run(fake, tmp_path):
    """Of four points one is finished, one runs, one failed and one was lost: two are sent."""
    made = plan(tmp_path, *seeds(4))
    send.submit(made)
    done, _runs, failed, lost = made.points
    finish(made.sweep, done)
    finish(made.sweep, failed, "failed")
    name = intents(made.sweep)[0].name
    fake.queue(f"101_1|RUNNING|None|{name}", f"101_2|FAILED|NonZeroExitCode|{name}")
    sent = resume.resume(made.sweep)
    assert intents(made.sweep)[-1].tasks == [[failed.point_id], [lost.point_id]]
    assert (sent.points, sent.tried) == (2, 2)


def test_resume_sends_exactly_what_six_faults_left_in_an_sbatch_an_array_and_one(fake, tmp_path):
    """Two shapes of four points, one of each finished: six ids, two arrays and a collect job, whatever ended them."""
    wide = seeds(4, shards=2, cluster__gpus_per_node=2)
    made = plan(tmp_path, *seeds(4, cluster__gpus_per_node=2), *wide)
    send.submit(made)
    for one in (made.points[0], made.points[4]):
        finish(made.sweep, one)
    fake.accounting(
        "101_0|COMPLETED|None",
        "101_1|TIMEOUT|None",
        "101_2|PREEMPTED|None",
        "101_3|NODE_FAIL|None",
        "102_0|COMPLETED|None",
        "102_1|OUT_OF_MEMORY|None",
        "102_2|FAILED|None",
        "102_3|CANCELLED by 0|None",
    )
    before = len(fake.calls("sbatch"))
    assert resume.resume(made.sweep).points == 6
    assert len(fake.calls("sbatch")) - before == 3
    again = [sent.tasks for sent in intents(made.sweep)[2:]]
    left = [one.point_id for one in made.points]
    assert again == [[[i] for i in left[1:4]], [[i] for i in left[5:]]]


def test_resume_sends_nothing_when_slurm_does_not_answer(fake, tmp_path):
    """What waits or runs is not known then, so every point could be doubled."""
    made = plan(tmp_path, *seeds(2))
    send.submit(made)
    fake.silent()
    with pytest.raises(SlurmError, match="Unable to contact"):
        resume.resume(made.sweep)
    assert len(fake.calls("sbatch")) == 2


def test_resume_leaves_points_never_tried_to_submit(fake, tmp_path):
    """Neither verb does the other's work."""
    made = plan(tmp_path, *seeds(2))
    send.submit(made, only={made.points[0].point_id})
    assert resume.resume(made.sweep).points == 1


def test_resume_asks_anew_and_later_resumes_keep_it(fake, tmp_path):
    """The batch script has the new limit, partition, setup and python; so has the grid of points that are sent."""
    made = plan(tmp_path, *seeds(3))
    send.submit(made)
    done, runs, failed = made.points
    finish(made.sweep, done)
    finish(made.sweep, failed, "failed")
    fake.queue(f"101_1|RUNNING|None|{intents(made.sweep)[0].name}")
    settings = {
        "cluster.time_min": 10,
        "cluster.partition": "big",
        "cluster.setup": ["module load y"],
        "cluster.python": "python3.12",
    }
    dry = resume.resume(made.sweep, settings=settings, dry_run=True)
    assert [shape.cluster.time_min for shape in dry.shapes] == [10]
    assert made.sweep.point(failed.point_id).config().cluster.time_min == 60
    job = resume.resume(made.sweep, settings=settings).job_ids[0]
    script = fake.scripts()[job]
    for line in (
        "#SBATCH --time=10\n",
        "#SBATCH --partition=big\n",
        "\nmodule load y\n",
        "python3.12",
    ):
        assert line in script
    fake.queue()
    again = resume.resume(made.sweep)  # the point that ran was lost meanwhile
    limits = {
        i: made.sweep.point(i).config().cluster.time_min for i in (done.point_id, runs.point_id)
    }
    assert set(limits.values()) == {60}
    assert again.points == 2
    assert {
        f"#SBATCH --time={n}\n" in fake.scripts()[j]
        for j, n in zip(again.job_ids, (60, 10), strict=True)
    } == {True}


def test_resume_says_why_it_left_points(fake, tmp_path):
    """Those that wait or run, and those never tried; finished ones need no reason."""
    made = plan(tmp_path, *seeds(3))
    send.submit(made, only={p.point_id for p in made.points[:2]})
    finish(made.sweep, made.points[0])
    queued(fake, made.sweep, "RUNNING")
    waits, untried = resume.resume(made.sweep).left
    assert waits.startswith("1 points wait or run now")
    assert untried.startswith("1 points were never tried")
    finish(made.sweep, made.points[1])
    assert resume.resume(made.sweep, only={p.point_id for p in made.points[:2]}).left == []


def test_resume_of_a_point_that_is_not_there_is_refused(fake, tmp_path):
    """The message names it."""
    made = plan(tmp_path, *seeds(1))
    send.submit(made)
    with pytest.raises(RefusedError, match="0123456789ab: no such point"):
        resume.resume(made.sweep, only={"0123456789ab"})


def cut_journal(sweep: SweepDir, *keep: str) -> None:
    """Leave only these events: what a kill at that moment leaves."""
    lines = sweep.journal_path.read_text().splitlines(keepends=True)
    sweep.journal_path.write_text(
        "".join(line for line in lines if any(f'"event": "{event}"' in line for event in keep))
    )


def test_a_kill_between_sbatch_and_the_journal_is_mended_by_taking_the_job_back(fake, tmp_path):
    """The held job of that name may lack its pickles: it is cancelled, and its points are sent anew."""
    made = plan(tmp_path, *seeds(2))
    send.submit(made)
    queued(fake, made.sweep)
    cut_journal(made.sweep, "intent")
    assert resume.resume(made.sweep).points == 2
    assert fake.calls("scancel") == ["101", "102"]
    assert [sent.job_id for sent in intents(made.sweep)] == [None, "103"]


def test_a_kill_before_the_release_is_mended_by_the_release(fake, tmp_path):
    """A complete submission that is still held starts; nothing is sent twice."""
    made = plan(tmp_path, *seeds(2))
    send.submit(made)
    queued(fake, made.sweep)
    cut_journal(made.sweep, "intent", "submitted")
    assert resume.resume(made.sweep).points == 0
    assert fake.calls("scontrol") == ["release 101,102", "release 101", "release 102"]


def test_cancel_ends_the_tasks_of_the_chosen_points_in_one_call(fake, tmp_path):
    """Tasks 0 and 2 of the array: one scancel with a list of ranges."""
    made = plan(tmp_path, *seeds(4))
    send.submit(made)
    queued(fake, made.sweep)
    chosen = {made.points[i].point_id for i in (0, 1, 3)}
    assert resume.cancel(made.sweep, only=chosen) == ["101_0", "101_1", "101_3"]
    assert fake.calls("scancel") == ["101_[0-1,3]"]


def test_cancel_by_state_ends_what_waits_and_leaves_what_runs_and_the_collect_job(fake, tmp_path):
    """Task 0 runs, 1 and 2 wait, and so does the collect job, which a filter never means."""
    made = plan(tmp_path, *seeds(3))
    send.submit(made)
    name, collector = (sent.name for sent in journal.read(made.sweep))
    fake.queue(
        f"101_0|RUNNING|None|{name}",
        f"101_1|PENDING|None|{name}",
        f"101_2|PENDING|None|{name}",
        f"102|PENDING|Dependency|{collector}",
    )
    assert resume.cancel(made.sweep, states={"waiting"}, dry_run=True) == ["101_1", "101_2"]
    assert resume.cancel(made.sweep, states={"running"}) == ["101_0"]
    assert fake.calls("scancel") == ["101_[0]"]


def test_cancel_refuses_a_state_in_which_nothing_can_be_ended(fake, tmp_path):
    """A point that is done or failed has no task; the states that have one are named."""
    made = plan(tmp_path, *seeds(1))
    send.submit(made)
    with pytest.raises(RefusedError, match=r"failed.*running, waiting"):
        resume.cancel(made.sweep, states={"failed"})


def test_cancel_leaves_a_job_of_the_same_number_that_is_not_the_sweeps(fake, tmp_path):
    """After a new start of Slurm its numbers begin again: the job's name tells whose it is."""
    made = plan(tmp_path, *seeds(1))
    send.submit(made)
    fake.queue("101|RUNNING|None|somebody-elses-job", "999|RUNNING|None|other")
    assert resume.cancel(made.sweep) == []
    assert fake.calls("scancel") == []


def test_a_forced_point_runs_again_though_it_finished(fake, tmp_path):
    """The task is told up to which attempt nothing counts; without --only every point would run, so that is refused."""
    made = plan(tmp_path, *seeds(2))
    send.submit(made)
    for one in made.points:
        finish(made.sweep, one)
    assert resume.resume(made.sweep).points == 0
    with pytest.raises(RefusedError, match="--only"):
        resume.resume(made.sweep, force=True)
    chosen = made.points[1].point_id
    assert resume.resume(made.sweep, only={chosen}, force=True).points == 1
    sent = intents(made.sweep)[-1]
    loaded = DelayedSubmission.load(sent.folder / f"{sent.job_id}_submitted.pkl")
    assert loaded.function.arguments == (str(made.sweep.path), [chosen], {chosen: 1})


def test_a_sweep_of_another_version_is_read_and_not_sent_to(fake, tmp_path):
    """Its jobs name functions that have moved: submit and resume say so in one line, status reads it."""
    made = plan(tmp_path, *seeds(2))
    send.submit(made)
    text = made.sweep.journal_path.read_text()
    made.sweep.journal_path.write_text(text.replace('"journal_version": 2, ', ""))
    queued(fake, made.sweep)
    for again in (lambda: send.submit(made), lambda: resume.resume(made.sweep)):
        with pytest.raises(RefusedError, match="journal version 1, this one writes 2"):
            again()
    assert {row.state for row in status.states(made.sweep)} == {"waiting"}
    assert len(fake.calls("sbatch")) == 2
