"""What became of each point, told from disk first; and that no answer never reads as an end."""

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm
from sweeps import Gpu, Made, choices, make_attempt, make_sweep
from typer.testing import CliRunner

from wattflow.cli.app import app
from wattflow.collect import collect
from wattflow.config import identity
from wattflow.errors import RefusedError
from wattflow.plan.points import Plan, Point
from wattflow.slurm import client
from wattflow.store.files import write_json
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import SCHEMA_VERSION, JobInfo, Record
from wattflow.submit import journal, logs, select, send, status


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


def make_plan(folder: Path, count: int, **over: Any) -> Plan:
    settings = {"cluster__launcher": "slurm", "cluster__name": "site", **over}
    made = [choices(seed=seed, **settings) for seed in range(count)]
    points = [Point(identity.point_id(one), one, None) for one in made]
    return Plan("demo", SweepDir(folder / "demo"), [], points, 0)


def sent(folder: Path, count: int, **over: Any) -> Plan:
    """A plan of `count` points, submitted as job 101 with collector 102."""
    made = make_plan(folder, count, **over)
    send.submit(made)
    return made


def attempt(
    made: Plan, number: int, state: str, job: str | None = "101_0", **over: Any
) -> AttemptDir:
    """An attempt at the plan's point of that number."""
    point_id = made.points[number].point_id
    one = made.sweep.claim_attempt(point_id)
    info: JobInfo = {"job_id": job, "array_task": None, "restart": 0, "cluster": "site"}
    record: Record = {
        "schema_version": SCHEMA_VERSION,
        "point_id": point_id,
        "attempt": one.number,
        "status": state,  # type: ignore[typeddict-item]
        "error": None,
        "error_rank": None,
        "started_ns": time.time_ns(),
        "job": info,
    }
    one.write_record({**record, **over})  # type: ignore[typeddict-item]
    return one


def only(made: Plan, number: int = 0) -> status.Row:
    return status.states(made.sweep)[number]


def name_of(made: Plan) -> str:
    return journal.read(made.sweep)[0].name


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


def test_the_command_that_tries_again_is_understood(fake, tmp_path):
    """What status tells a person to type sends that point alone."""
    made = sent(tmp_path, 2)
    send.keep(made)
    attempt(made, 1, "failed", "101_1", error="boom")
    fake.queue(f"101_0|RUNNING|None|{name_of(made)}")
    words = shlex.split(str(only(made, 1).rerun))
    done = CliRunner().invoke(app, [*words[1:], "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "1 points to send" in done.output


def test_a_rank_that_failed_while_rank_0_was_killed_tells_why(fake, tmp_path):
    """The record says running; the rank's own error file has the cause, and the earliest one counts."""
    made = sent(tmp_path, 1)
    one = attempt(made, 0, "running", "101")
    write_json(one.error_path(2), {"time_ns": 2, "error": "connection lost"})
    write_json(one.error_path(1), {"time_ns": 1, "error": "out of memory"})
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
    made.points[0] = Point(point.point_id, point.choices, "needs 99 GiB of 80")
    send.submit(made)
    assert (only(made).state, only(made).reason) == ("infeasible", "needs 99 GiB of 80")
    assert status.exit_code(status.states(made.sweep)) == 0


def test_points_that_failed_for_one_cause_are_told_once(fake, tmp_path):
    """Three tasks out of time and one of memory: two causes, with the ids, one log each and one command each."""
    made = sent(tmp_path, 4)
    fake.accounting("101_0|OUT_OF_MEMORY|None", "101_[1-3]|TIMEOUT|None")
    rows = status.states(made.sweep)
    ids = [row.point_id for row in rows]
    found = [(c.state, c.reason, [r.point_id for r in c.rows]) for c in status.causes(rows)]
    assert found == [
        ("failed", "task 101_0 ended as OUT_OF_MEMORY", ids[:1]),
        ("failed", "task 101_1 ended as TIMEOUT", ids[1:]),
    ]
    told = CliRunner().invoke(app, ["status", str(made.sweep.path)]).stderr
    assert told.endswith(
        f"{ids[0]} failed: task 101_0 ended as OUT_OF_MEMORY\n"
        f"  again  wattflow resume {made.sweep.path} --only {ids[0]}\n"
        f"3 points failed: task 101_1 ended as TIMEOUT\n"
        f"  points {' '.join(ids[1:])}\n"
        f"  again  wattflow resume {made.sweep.path} --state failed\n"
    )


def test_resume_by_state_sends_the_points_in_that_state(fake, tmp_path):
    """One point failed and one was cancelled: --state failed sends the first; a word that is no state is refused."""
    made = sent(tmp_path, 2)
    fake.accounting("101_0|FAILED|None", "101_1|CANCELLED by 0|None")
    words = ["resume", str(made.sweep.path), "--state"]
    assert CliRunner().invoke(app, [*words, "failed"]).exit_code == 0
    again = journal.read(made.sweep)[2]
    assert again.tasks == [[made.points[0].point_id]]
    refused = CliRunner().invoke(app, [*words, "broken"])
    assert isinstance(refused.exception, RefusedError)
    assert "no state of a point" in str(refused.exception)


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


def test_logs_are_those_of_the_newest_task_and_attempt_and_of_one_rank_if_asked(fake, tmp_path):
    """What each rank printed, then the attempt's own; rank 1 is not rank 11."""
    made = sent(tmp_path, 1)
    folder = journal.read(made.sweep)[0].folder
    for rank in (0, 1, 11):
        (folder / f"101_{rank}_log.err").write_text(f"rank {rank}")
    one = attempt(made, 0, "failed", "101")
    one.error_path(1).write_text("{}")
    point_id = made.points[0].point_id
    assert len(logs.logs(made.sweep, point_id)) == 4
    of_one = logs.logs(made.sweep, point_id, rank=1)
    assert [log.path.name for log in of_one] == ["101_1_log.err", "error-rank1.json"] or [
        log.path.name for log in of_one
    ] == ["error-rank1.json", "101_1_log.err"]
    with pytest.raises(RefusedError, match="no log of rank 5"):
        logs.logs(made.sweep, point_id, rank=5)


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        (["batch_size=8"], [0]),
        (["batch_size=8,16"], [0, 1]),
        (["model=tiny", "shards=2"], [2]),
        (["stop=length", "power.idle_s=5"], [0, 1, 2]),
        (["model.path=null"], [0, 1, 2]),
        (["batch_size=9"], []),
    ],
)
def test_points_are_chosen_by_their_choices(words, chosen, tmp_path):
    """Every word must hold, a word holds for any of its values, and a group stands for its name."""
    points = [
        choices(batch_size=8),
        choices(batch_size=16),
        choices(batch_size=32, shards=2, cluster__gpus_per_node=2),
    ]
    sweep = make_sweep(tmp_path / "s", points)
    assert select.choose(sweep, words, None) == {identity.point_id(points[i]) for i in chosen}


def test_points_are_chosen_by_id_and_by_choices_together(tmp_path):
    """Without a filter there is no choice; with both, both must hold; an id of another sweep is refused."""
    points = [choices(seed=1), choices(seed=2)]
    sweep = make_sweep(tmp_path / "s", points)
    ids = [identity.point_id(point) for point in points]
    assert select.choose(sweep, [], None) is None
    assert select.choose(sweep, [], [ids[0]]) == {ids[0]}
    assert select.choose(sweep, ["seed=1,2"], [ids[1]]) == {ids[1]}
    with pytest.raises(RefusedError, match="0123456789ab: no such point"):
        select.choose(sweep, [], ["0123456789ab"])


@pytest.mark.parametrize("word", ["batchsize=8", "batch_size", "=8"])
def test_a_filter_that_names_no_choice_is_refused(word, tmp_path):
    """A slip must not read as a filter that nothing meets, nor as none."""
    sweep = make_sweep(tmp_path / "s", [choices()])
    with pytest.raises(RefusedError, match="wattflow keys"):
        select.choose(sweep, [word], None)


def test_status_shows_the_chosen_points_alone(fake, tmp_path):
    """--only and key=value narrow the table; the sums and the exit code stay those of the sweep."""
    made = sent(tmp_path, 2)
    send.keep(made)
    fake.queue(f"101_0|RUNNING|None|{name_of(made)}", f"101_1|PENDING|None|{name_of(made)}")
    done = CliRunner().invoke(app, ["status", str(made.sweep.path), "seed=1"])
    assert made.points[1].point_id in done.stdout
    assert made.points[0].point_id not in done.stdout
    assert "1 running, 1 waiting" in done.stderr
    assert done.exit_code == 4


def test_cancel_takes_the_filters_of_status(fake, tmp_path):
    """Of four waiting points those of seed 1 and 2 are ended."""
    made = sent(tmp_path, 4)
    send.keep(made)
    fake.queue(*(f"101_{i}|PENDING|None|{name_of(made)}" for i in range(4)))
    words = ["cancel", str(made.sweep.path), "seed=1,2", "--state", "waiting"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == ["101_1", "101_2"]
    assert fake.calls("scancel") == ["101_[1-2]"]


def test_following_a_log_shows_what_is_added_until_the_attempt_ends(fake, tmp_path):
    """First what is there, then each new line, those of a new file too; the closed record ends it."""
    made = sent(tmp_path, 1)
    log = journal.read(made.sweep)[0].folder / "101_0_log.out"
    log.write_text("one\ntw")
    one = attempt(made, 0, "running", "101")
    fake.queue(f"101|RUNNING|None|{name_of(made)}")
    steps = logs.follow(made.sweep, made.points[0].point_id)
    assert next(steps) == logs.Log(log, "one\n")
    with log.open("a") as file:
        file.write("o\nthree")
    assert next(steps) == logs.Log(log, "two\n")
    told = one.sidecar_log_path("node1")
    told.write_text("from the sidecar\n")
    assert next(steps) == logs.Log(told, "from the sidecar\n")
    record = one.read_record()
    assert record is not None
    one.write_record({**record, "status": "failed", "error": "boom"})
    assert list(steps) == [logs.Log(log, "three")]


def test_following_the_log_of_a_point_that_ended_shows_it_once(fake, tmp_path):
    """There is nothing to wait for; one without a log is refused as without --follow."""
    made = sent(tmp_path, 2)
    attempt(made, 0, "finished", "101_0").sidecar_log_path("node1").write_text("all\n")
    ids = [point.point_id for point in made.points]
    assert [log.text for log in logs.follow(made.sweep, ids[0])] == ["all\n"]
    fake.accounting("101_1|FAILED|None")
    with pytest.raises(RefusedError, match="no log"):
        list(logs.follow(made.sweep, ids[1]))


def test_ctrl_c_ends_following_without_a_traceback(fake, tmp_path):
    """The exit code is 130, as of any command that was interrupted, and the run goes on."""
    made = sent(tmp_path, 1)
    send.keep(made)
    attempt(made, 0, "running", "101").sidecar_log_path("node1").write_text("a line\n")
    fake.queue(f"101|RUNNING|None|{name_of(made)}")
    words = ["logs", str(made.sweep.path), made.points[0].point_id, "-f"]
    with subprocess.Popen(
        [sys.executable, "-m", "wattflow.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "a line\n"
        following.send_signal(signal.SIGINT)
        _, err = following.communicate(timeout=30)
    assert following.returncode == 130
    assert "Traceback" not in err


def measured(
    made: Plan,
    number: int,
    energy_j: float | None,
    seconds: float,
    source: str = "nvml_buffer",
) -> AttemptDir:
    """A finished attempt whose sidecar told joules."""
    node = {"node": "node1", "source": source, "energy_j": energy_j}
    start_ns = 1_760_000_000_000_000_000
    times = {"started_ns": start_ns, "ended_ns": start_ns + round(seconds * 1e9)}
    return attempt(made, number, "finished", f"101_{number}", nodes=[node], **times)


def beats(one: AttemptDir, **told: Any) -> None:
    """A heartbeat of a running attempt."""
    write_json(one.path / "heartbeat.json", {"by": "local:elsewhere:1:1", "beat": 1, **told})


def test_energy_so_far_is_that_of_finished_and_running_attempts(fake, tmp_path):
    """3,000 J and 1,000 J so far are 4,000 J; the failed point's are not known, and the waiting one has none."""
    made = sent(tmp_path, 4)
    measured(made, 0, 3000.0, 30.0)
    beats(attempt(made, 1, "running", "101_1"), energy_j=1000.0, power_w=250.0, nodes=1)
    attempt(made, 2, "failed", "101_2", error="boom")
    fake.queue(f"101_1|RUNNING|None|{name_of(made)}", f"101_3|PENDING|None|{name_of(made)}")
    rows = status.states(made.sweep)
    assert status.spent(rows) == [status.Spent(4000.0, 2, 1, 250.0, 1, 1, 0, False)]


def test_simulated_joules_so_far_are_not_added_to_measured_ones(fake, tmp_path):
    """3,000 J measured and 1,000 J simulated are two sums; a point that told none stands with the measured ones."""
    made = sent(tmp_path, 3)
    measured(made, 0, 3000.0, 30.0)
    measured(made, 1, 1000.0, 10.0, source="simulated")
    attempt(made, 2, "failed", "101_2", error="boom")
    assert status.spent(status.states(made.sweep)) == [
        status.Spent(3000.0, 1, 1, None, 0, 0, 0, False),
        status.Spent(1000.0, 1, 0, None, 0, 0, 0, True),
    ]


def test_joules_that_a_sidecar_did_not_tell_are_not_zero(fake, tmp_path):
    """Without any joules the sum is null."""
    made = sent(tmp_path, 1)
    measured(made, 0, None, 30.0)
    (told,) = status.spent(status.states(made.sweep))
    assert told.energy_j is None


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


def test_what_is_left_is_the_mean_of_what_finished(fake, tmp_path):
    """Two of four seeds took 1,800 s at 3.6 MJ each: the others should take 1 GPU-hour and 2 kWh."""
    made = sent(tmp_path, 4)
    for number in (0, 1):
        measured(made, number, 3.6e6, 1800.0)
    fake.queue(*(f"101_{i}|PENDING|None|{name_of(made)}" for i in (2, 3)))
    left = status.left(made.sweep, status.states(made.sweep))
    assert (left.gpu_hours, left.energy_kwh) == (1.0, 2.0)
    assert (left.same, left.shape, left.unknown, left.attempts) == (2, 0, 0, 2)


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
    assert status.left(sweep, status.states(sweep)).gpu_hours == pytest.approx(60.0 / 3600.0)


def test_status_says_energy_power_and_what_is_left_with_their_source(fake, tmp_path):
    """Beside the table on stderr: figures, what they are of, and that the rest is an estimate."""
    made = sent(tmp_path, 3)
    send.keep(made)
    measured(made, 0, 3.6e6, 1800.0)
    one = attempt(made, 1, "running", "101_1")
    beats(one, energy_j=1000.0, power_w=250.0, nodes=1)
    fake.queue(f"101_1|RUNNING|None|{name_of(made)}", f"101_2|PENDING|None|{name_of(made)}")
    told = CliRunner().invoke(app, ["status", str(made.sweep.path)]).stderr
    assert "energy so far: 3,601,000 J (1 kWh) of 2 points\n" in told
    assert "power now: 250 W of 1 of 1 running points\n" in told
    assert (
        "left, an estimate: 1 GPU-hours and 2 kWh for 2 points; 2 by the mean of the same" in told
    )


def test_an_estimate_from_simulated_joules_is_marked(fake, tmp_path):
    """So are the joules so far."""
    made = sent(tmp_path, 2)
    send.keep(made)
    node = {"node": "node1", "source": "simulated", "energy_j": 3.6e6}
    times = {"started_ns": 1_000_000_000, "ended_ns": 2_000_000_000}
    attempt(made, 0, "finished", "101_0", nodes=[node], **times)
    fake.queue(f"101_1|PENDING|None|{name_of(made)}")
    told = CliRunner().invoke(app, ["status", str(made.sweep.path)]).stderr
    assert "~3,600,000 J (~1 kWh)" in told
    assert "and ~1 kWh for 1 points" in told


def test_status_says_that_nothing_is_known_before_the_first_point_finished(fake, tmp_path):
    """No number is made up."""
    made = sent(tmp_path, 2)
    send.keep(made)
    fake.queue(*(f"101_{i}|PENDING|None|{name_of(made)}" for i in (0, 1)))
    told = CliRunner().invoke(app, ["status", str(made.sweep.path)]).stderr
    assert "left: 2 points, for how long is unknown: no point has finished" in told
    assert "energy" not in told


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
    start = time.monotonic()
    rows = status.states(made.sweep)
    took_s = time.monotonic() - start
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
