"""Why points failed, said once for each cause."""

import shlex
from pathlib import Path

from sent_sweeps import attempt, name_of, only, sent
from typer.testing import CliRunner

from wattflow.cli.app import app
from wattflow.cli.failures import say_failures
from wattflow.store.layout import SweepDir
from wattflow.submit import send, status, summary


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


def test_points_that_failed_for_one_cause_are_told_once(fake, tmp_path):
    """Three tasks out of time and one of memory: two causes, with the ids, one log each and one command each."""
    made = sent(tmp_path, 4)
    fake.accounting("101_0|OUT_OF_MEMORY|None", "101_[1-3]|TIMEOUT|None")
    rows = status.states(made.sweep)
    ids = [row.point_id for row in rows]
    found = [(c.state, c.reason, [r.point_id for r in c.rows]) for c in summary.causes(rows)]
    assert found == [
        ("failed", "task 101_0 ended as OUT_OF_MEMORY", ids[:1]),
        ("failed", "task 101_1 ended as TIMEOUT", ids[1:]),
    ]
    twice = 2 * made.points[1].config.cluster.time_min
    assert rows[1].rerun.endswith(f" --only {ids[1]} cluster.time_min={twice}")  # in --json too
    told = CliRunner().invoke(app, ["status", str(made.sweep.path)]).stdout
    assert told.endswith(
        f"{ids[0]} failed: task 101_0 ended as OUT_OF_MEMORY\n"
        f"  again  wattflow resume {made.sweep.path} --only {ids[0]}\n"
        f"3 points failed: task 101_1 ended as TIMEOUT\n"
        f"  points {' '.join(ids[1:])}\n"
        f"  again  wattflow resume {made.sweep.path} --state failed cluster.time_min={twice}\n"
    )


def test_a_point_that_met_its_time_limit_is_given_twice_as_much(capsys):
    """The same limit would end it for ever."""
    why = "the job was near its time limit of 10 min, cluster.time_min (SIGUSR2)."
    again = "wattflow resume s --only 0123456789ab cluster.time_min=20"
    row = status.Row("0123456789ab", "interrupted", 1, why, rerun=again, more_time_min=20)
    say_failures(SweepDir(Path("s")), [row])
    said = capsys.readouterr().err
    assert "again  wattflow resume s --only 0123456789ab cluster.time_min=20\n" in said
