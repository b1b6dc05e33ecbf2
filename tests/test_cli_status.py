"""The verb `status`: what it prints."""

from sent_sweeps import attempt, beats, measured, name_of, sent
from typer.testing import CliRunner

from wattflow.cli.app import app
from wattflow.submit import send


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
