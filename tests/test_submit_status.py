"""States of points: records on disk first, then Slurm."""

import json
import time

import pytest
from sent_sweeps import attempt, beats, make_plan, name_of, only, sent
from sweeps import Gpu, Made, choices, make_attempt, make_sweep

from wattflow.collect import collect
from wattflow.plan.points import Point
from wattflow.slurm import client
from wattflow.store import rank_errors
from wattflow.store.rank_errors import RankError
from wattflow.submit import journal, send, status, summary


def test_points_never_sent_are_untried(tmp_path):
    """A grid without a submission asks nothing of Slurm."""
    made = make_plan(tmp_path, 2)
    made.sweep.make()
    send._write_grid(made, set())
    assert [row.state for row in status.states(made.sweep)] == ["untried", "untried"]


def test_a_finished_attempt_is_done_whatever_slurm_says(fake, tmp_path):
    """The job's state is FAILED; the attempt on disk is whole. Slurm is not even asked."""
    made = sent(tmp_path, 1)
    attempt(made, 0, "finished", "101")
    fake.queue(f"101|FAILED|NonZeroExitCode|{name_of(made)}")
    assert only(made).state == "done"
    assert fake.calls("squeue") == []


def test_a_finished_attempt_stays_done_when_a_later_one_fails(fake, tmp_path):
    """Any finished attempt will do."""
    made = sent(tmp_path, 1)
    attempt(made, 0, "finished", "101")
    attempt(made, 0, "failed", "101")
    assert (only(made).state, only(made).attempts) == ("done", 2)


@pytest.mark.parametrize(
    ("word", "state", "reason"),
    [
        ("PENDING|Resources", "waiting", "Resources"),
        ("REQUEUED|None", "waiting", None),
        ("RUNNING|None", "running", None),
        ("COMPLETING|None", "running", None),
        ("TIMEOUT|TimeLimit", "failed", "task 101 ended as TIMEOUT (TimeLimit)"),
        ("NODE_FAIL|None", "failed", "task 101 ended as NODE_FAIL"),
        ("OUT_OF_MEMORY|OutOfMemory", "failed", "task 101 ended as OUT_OF_MEMORY (OutOfMemory)"),
        ("PREEMPTED|None", "failed", "task 101 ended as PREEMPTED"),
        ("CANCELLED|None", "interrupted", "task 101 ended as CANCELLED"),
    ],
)
def test_slurms_word_tells_why_an_attempt_that_says_running_is_not_done(
    word, state, reason, fake, tmp_path
):
    """The record was never closed; the queue knows the task."""
    made = sent(tmp_path, 1)
    attempt(made, 0, "running", "101")
    fake.queue(f"101|{word}|{name_of(made)}")
    row = only(made)
    assert (row.state, row.reason, row.job) == (state, reason, "101")


def test_a_requeued_task_waits_though_its_last_attempt_failed(fake, tmp_path):
    """What is in the queue will run again."""
    made = sent(tmp_path, 1)
    attempt(made, 0, "failed", "101", error="boom")
    fake.queue(f"101|PENDING|BeginTime|{name_of(made)}")
    assert only(made).state == "waiting"


def test_a_failed_attempt_tells_its_reason_log_and_the_command_that_tries_again(fake, tmp_path):
    """The log is that of the rank which failed first."""
    made = sent(tmp_path, 2, shards=4, cluster__gpus_per_node=4)
    attempt(made, 1, "failed", "101_1", error="the checkpoint ends early", error_rank=3)
    log = journal.read(made.sweep)[0].folder / "101_1_3_log.err"
    log.write_text("Traceback")
    fake.queue(f"101_0|RUNNING|None|{name_of(made)}")
    row = only(made, 1)
    assert (row.state, row.reason, row.log) == ("failed", "the checkpoint ends early", log)
    assert row.rerun == f"wattflow resume {made.sweep.path} --only {row.point_id}"


def test_a_rank_that_failed_while_rank_0_was_killed_tells_why(fake, tmp_path):
    """The record says running; the rank's own error file has the cause, and the earliest one counts."""
    made = sent(tmp_path, 1)
    one = attempt(made, 0, "running", "101")
    rank_errors.write(one, RankError(2, 2, interrupted=False, error="connection lost"))
    rank_errors.write(one, RankError(1, 1, interrupted=False, error="out of memory"))
    fake.queue(f"101|FAILED|None|{name_of(made)}")
    assert only(made).reason == "task 101 ended as FAILED: out of memory"


def test_an_empty_queue_asks_the_accounting_once(fake, tmp_path):
    """Tasks that the queue forgot are looked up together."""
    made = sent(tmp_path, 3)
    fake.queue()
    fake.accounting("101_0|TIMEOUT|None", "101_[1-2]|CANCELLED by 0|None")
    assert [row.state for row in status.states(made.sweep)] == [
        "failed",
        "interrupted",
        "interrupted",
    ]
    assert (len(fake.calls("squeue")), len(fake.calls("sacct"))) == (1, 1)


@pytest.mark.parametrize("who", ["squeue", "sacct"])
def test_an_array_that_ended_before_it_began_is_told_by_its_own_number(who, fake, tmp_path):
    """Slurm has one record of it then, 101, and none of 101_0 and 101_1: both points were interrupted."""
    made = sent(tmp_path, 2)
    if who == "squeue":
        fake.queue(f"101|CANCELLED|None|{name_of(made)}")
    else:
        fake.accounting("101|CANCELLED by 0|None")
    assert [row.state for row in status.states(made.sweep)] == ["interrupted", "interrupted"]


def test_a_queue_that_does_not_answer_makes_points_unknown_and_never_ended(fake, tmp_path):
    """What is done on disk stays done; the exit code says that Slurm did not answer."""
    made = sent(tmp_path, 3)
    attempt(made, 0, "finished")
    attempt(made, 1, "failed", "101_1", error="boom")
    fake.silent()
    rows = status.states(made.sweep)
    assert [row.state for row in rows] == ["done", "failed", "unknown"]
    assert "Unable to contact" in str(rows[2].reason)
    assert status.exit_code(rows) == 5


def test_without_accounting_a_task_that_left_the_queue_is_unknown(fake, tmp_path):
    """No sacct is called; points finished on disk are finished."""
    made = sent(tmp_path, 2, cluster__accounting=False)
    attempt(made, 0, "finished")
    fake.queue()
    assert [row.state for row in status.states(made.sweep)] == ["done", "unknown"]
    assert fake.calls("sacct") == []


def test_answers_are_kept_for_half_a_minute_in_a_private_folder(fake, tmp_path):
    """A second look within 30 s asks nobody, and a new submit drops what was kept."""
    made = sent(tmp_path, 1)
    fake.queue(f"101|PENDING|None|{name_of(made)}")
    assert only(made).state == only(made).state == "waiting"
    assert len(fake.calls("squeue")) == 1
    assert client.cache_folder().stat().st_mode & 0o777 == 0o700
    send.submit(make_plan(tmp_path, 2))
    only(made)
    assert len(fake.calls("squeue")) == 2


def test_a_failed_answer_is_not_kept(fake, tmp_path):
    """As soon as Slurm answers again, its word counts."""
    made = sent(tmp_path, 1)
    fake.silent()
    assert only(made).state == "unknown"
    (fake.folder / "silent").unlink()
    fake.queue(f"101|RUNNING|None|{name_of(made)}")
    assert only(made).state == "running"


def test_a_packed_task_tells_its_points_apart(fake, tmp_path):
    """One is done, one runs, and one waits for both."""
    made = sent(tmp_path, 3, cluster__points_per_task=3)
    attempt(made, 0, "finished", "101")
    attempt(made, 1, "running", "101")
    fake.queue(f"101|RUNNING|None|{name_of(made)}")
    assert [row.state for row in status.states(made.sweep)] == ["done", "running", "waiting"]


def test_a_submission_that_was_cut_short_says_what_to_do(fake, tmp_path):
    """The journal has the intent alone and the queue knows no job of that name."""
    made = sent(tmp_path, 1)
    lines = made.sweep.journal_path.read_text().splitlines(keepends=True)
    made.sweep.journal_path.write_text(lines[0])
    fake.queue()
    assert (only(made).state, only(made).reason) == (
        "untried",
        "its submission was cut short; `wattflow resume` sends it",
    )


def test_a_job_that_was_accepted_without_an_answer_is_found_by_its_name(fake, tmp_path):
    """The intent's name is in the queue, so the point waits."""
    made = sent(tmp_path, 1)
    lines = made.sweep.journal_path.read_text().splitlines(keepends=True)
    made.sweep.journal_path.write_text(lines[0])
    fake.queue(f"101|PENDING|JobHeldUser|{name_of(made)}")
    assert only(made).state == "waiting"


def test_a_damaged_record_is_named_and_costs_that_attempt_alone(fake, tmp_path):
    """The reason names the file; the other point is told as ever."""
    made = sent(tmp_path, 2)
    one = attempt(made, 0, "running", "101_0")
    one.record_path.write_text("{")
    attempt(made, 1, "finished", "101_1")
    fake.queue(f"101_0|FAILED|None|{name_of(made)}")
    rows = status.states(made.sweep)
    assert [row.state for row in rows] == ["failed", "done"]
    assert str(one.record_path) in str(rows[0].reason)


def test_infeasible_points_keep_their_reason(fake, tmp_path):
    """They are neither failed nor waiting."""
    made = make_plan(tmp_path, 1)
    point = made.points[0]
    made.points[0] = Point(point.point_id, point.config, "needs 99 GiB of 80")
    send.submit(made)
    assert (only(made).state, only(made).reason) == ("infeasible", "needs 99 GiB of 80")
    assert status.exit_code(status.states(made.sweep)) == 0


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["done", "infeasible"], 0),
        (["done", "failed"], 3),
        (["interrupted"], 3),
        (["untried", "done"], 3),
        (["failed", "waiting"], 4),
        (["running"], 4),
        (["failed", "running", "unknown"], 5),
    ],
)
def test_exit_codes_put_silence_before_work_before_failure(states, code):
    """5 before 4 before 3 before 0."""
    rows = [status.Row(str(i), state, 0) for i, state in enumerate(states)]
    assert status.exit_code(rows) == code


def test_counts_follow_the_order_of_states():
    """States without points are left out."""
    rows = [status.Row(str(i), state, 0) for i, state in enumerate(["failed", "done", "done"])]
    assert list(status.counts(rows).items()) == [("done", 2), ("failed", 1)]


def test_a_running_job_of_two_nodes_tells_those_of_its_first(fake, tmp_path):
    """The heartbeat is rank 0's; the other node is said to be missing."""
    made = sent(tmp_path, 1, shards=4, cluster__gpus_per_node=2)
    one = attempt(made, 0, "running", "101")
    beats(
        one, phase="batches", done=1, of=4, energy_j=10.0, power_w=5.0, nodes=2, source="simulated"
    )
    fake.queue(f"101|RUNNING|None|{name_of(made)}")
    row = only(made)
    assert (row.reason, row.power_w, row.nodes_unheard) == ("batches, 1 of 4 batches", 5.0, 1)
    assert row.simulated


def test_a_heartbeat_with_foreign_values_tells_no_watts(fake, tmp_path):
    """A damaged file costs the figures, not the status."""
    made = sent(tmp_path, 1)
    beats(attempt(made, 0, "running", "101"), energy_j="much", power_w=[1])
    fake.queue(f"101|RUNNING|None|{name_of(made)}")
    assert (only(made).state, only(made).power_w) == ("running", None)


def test_collected_points_tell_the_same(tmp_path):
    """From results/ as from the record: one attempt of 60 s at 70 W in all of its phases."""
    points = [choices(seed=1), choices(seed=2)]
    sweep = make_sweep(tmp_path / "s", points)
    made = Made([Gpu("GPU-1")])
    make_attempt(sweep, points[0], made)
    collect.collect(sweep)
    row = status.states(sweep)[0]
    assert row.seconds == pytest.approx(60.0)
    assert row.energy_j == pytest.approx(70.0 * (made.before_s + made.window_s), rel=0.01)
    assert summary.left(sweep, status.states(sweep)).gpu_hours == pytest.approx(60.0 / 3600.0)


def test_thousands_of_points_are_told_with_two_questions_in_seconds(fake, tmp_path):
    """1 squeue, 1 sacct; half of the points finished on disk, the rest known to Slurm alone."""
    count = 2000
    made = make_plan(tmp_path, count)
    made.sweep.make()
    send._write_grid(made, set())
    ids = [point.point_id for point in made.points]
    one = journal.Submission(
        "demo-1", "points", [[i] for i in ids], made.sweep.submitit / "demo-1", 0
    )
    journal.intend(made.sweep, one)
    journal.write(made.sweep, "submitted", one.name, job_id="101")
    for number in range(count // 2):
        attempt(made, number, "finished", f"101_{number}")
    fake.queue(*(f"101_{i}|PENDING|None|demo-1" for i in range(count // 2, count - 10)))
    fake.accounting(f"101_[{count - 10}-{count - 1}]|CANCELLED|None")
    start = time.process_time()
    rows = status.states(made.sweep)
    took_s = time.process_time() - start
    assert status.counts(rows) == {
        "done": count // 2,
        "waiting": count // 2 - 10,
        "interrupted": 10,
    }
    assert (len(fake.calls("squeue")), len(fake.calls("sacct"))) == (1, 1)
    assert took_s < 5.0, json.dumps(took_s)


@pytest.mark.parametrize(("told", "state"), [("SIGTERM", "failed"), ("SIGUSR2", "interrupted")])
def test_an_interrupted_attempt_of_a_failed_task_is_told_by_who_ended_it(
    told, state, fake, tmp_path
):
    """Slurm ends the ranks beside a killed one by SIGTERM, a failure; at SIGUSR2 a task ends itself."""
    made = sent(tmp_path, 1)
    attempt(made, 0, "interrupted", "101", error=f"the job was told to end ({told}).")
    fake.queue(f"101|FAILED|NonZeroExitCode|{name_of(made)}")
    assert only(made).state == state


def test_a_task_that_failed_without_a_word_to_slurm_is_explained_by_its_log(fake, tmp_path):
    """Slurm says NonZeroExitCode; the log's last sentence stands behind it."""
    made = sent(tmp_path, 1)
    log = journal.read(made.sweep)[0].log_path(0)
    log.write_text("ModuleNotFoundError: No module named 'torch'\nsrun: error: exit code 1\n")
    fake.queue(f"{log.name.split('_')[0]}|FAILED|NonZeroExitCode|{name_of(made)}")
    row = only(made)
    assert row.state == "failed"
    assert str(row.reason).endswith("ModuleNotFoundError: No module named 'torch'")
