"""The verb `status`: what it prints."""

import pytest
from sent_sweeps import attempt, beats, measured, name_of, sent
from sweeps import Gpu, Made, choices, constant, make_attempt, make_sweep
from typer.testing import CliRunner

from wattflow.cli.app import app
from wattflow.collect.collect import collect
from wattflow.energy.boards import METERED
from wattflow.nullable import NO_DOUBT, with_doubt
from wattflow.submit import send


def test_status_shows_the_chosen_points_alone(fake, tmp_path):
    """--only and key=value narrow the table; the sums and the exit code stay those of the sweep."""
    made = sent(tmp_path, 2)
    send.keep(made)
    fake.queue(f"101_0|RUNNING|None|{name_of(made)}", f"101_1|PENDING|None|{name_of(made)}")
    done = CliRunner().invoke(app, ["status", str(made.sweep.path), "seed=1"])
    assert made.points[1].point_id in done.stdout
    assert made.points[0].point_id not in done.stdout
    assert "1 running, 1 waiting" in done.stdout
    assert done.exit_code == 4


def test_status_says_energy_power_and_what_is_left_with_their_source(fake, tmp_path):
    """Below the table: figures, what they are of, and that the rest is an estimate."""
    made = sent(tmp_path, 3)
    send.keep(made)
    measured(made, 0, 3.6e6, 1800.0)
    one = attempt(made, 1, "running", "101_1")
    beats(one, energy_j=1000.0, power_w=250.0, nodes=1)
    fake.queue(f"101_1|RUNNING|None|{name_of(made)}", f"101_2|PENDING|None|{name_of(made)}")
    printed = CliRunner().invoke(app, ["status", str(made.sweep.path)]).stdout
    assert "energy so far: 3,601,000 J (1.00 kWh) of 2 points\n" in printed
    assert "power now: 250 W of 1 of 1 running points\n" in printed
    assert (
        "left, an estimate: 1 GPU-hours and 2.00 kWh for 2 points; 2 by the mean of the same"
        in printed
    )


def test_status_says_what_joules_and_watts_may_be_off(fake, tmp_path):
    """1 kWh by one board at 2 kW for 30 min, and 500 W of a running one: gain and offset of their sensors, k = 2."""
    made = sent(tmp_path, 2)
    send.keep(made)
    node = {"node": "n1", "source": "nvml_buffer", "energy_j": 3.6e6}
    ranks = [{"node": "n1", "gpu_uuid": "GPU-a", "rank": rank} for rank in range(2)]
    times = {"started_ns": 0, "ended_ns": 1_800_000_000_000}
    attempt(made, 0, "finished", "101_0", nodes=[node], ranks=ranks, **times)
    beat = {"energy_j": 5000.0, "power_w": 500.0, "seconds": 10.0, "devices": 1}
    beats(attempt(made, 1, "running", "101_1"), source="nvml_buffer", nodes=1, **beat)
    fake.queue(f"101_1|RUNNING|None|{name_of(made)}")
    text = CliRunner().invoke(app, ["status", str(made.sweep.path)]).stdout
    both_j = sum(
        2 * METERED.relative_u(watts) * energy_j for watts, energy_j in ((2000, 3.6e6), (500, 5000))
    )
    assert f"energy so far: {with_doubt(3.605e6, both_j, 'J')} (" in text
    assert f"power now: {with_doubt(500.0, 1000 * METERED.relative_u(500), 'W')} of 1 of 1" in text


@pytest.mark.parametrize(("source", "said"), [("rapl", True), ("simulated", False)])
def test_status_says_why_joules_have_no_doubt(fake, tmp_path, source, said):
    """Nobody states RAPL's gain; what was simulated has a mark of its own."""
    made = sent(tmp_path, 2)
    send.keep(made)
    beat = {"energy_j": 5000.0, "power_w": 500.0, "seconds": 10.0, "devices": 1}
    beats(attempt(made, 1, "running", "101_1"), source=source, nodes=1, **beat)
    fake.queue(f"101_1|RUNNING|None|{name_of(made)}")
    done = CliRunner().invoke(app, ["status", str(made.sweep.path)])
    assert "energy so far:" in done.stdout
    assert (NO_DOUBT in done.stderr) == said


def test_an_estimate_from_simulated_joules_is_marked(fake, tmp_path):
    """So are the joules so far."""
    made = sent(tmp_path, 2)
    send.keep(made)
    node = {"node": "node1", "source": "simulated", "energy_j": 3.6e6}
    times = {"started_ns": 1_000_000_000, "ended_ns": 2_000_000_000}
    attempt(made, 0, "finished", "101_0", nodes=[node], **times)
    fake.queue(f"101_1|PENDING|None|{name_of(made)}")
    printed = CliRunner().invoke(app, ["status", str(made.sweep.path)]).stdout
    assert "~3,600,000 J (~1.00 kWh)" in printed
    assert "and ~1.00 kWh for 1 points" in printed


def test_status_says_that_nothing_is_known_before_the_first_point_finished(fake, tmp_path):
    """No number is made up."""
    made = sent(tmp_path, 2)
    send.keep(made)
    fake.queue(*(f"101_{i}|PENDING|None|{name_of(made)}" for i in (0, 1)))
    printed = CliRunner().invoke(app, ["status", str(made.sweep.path)]).stdout
    assert "left: 2 points, for how long is unknown: no point has finished" in printed
    assert "energy" not in printed


def test_status_shows_points_by_what_varies(fake, tmp_path):
    """The choices of each point stand beside its state, and those alone that vary."""
    made = sent(tmp_path, 2)
    send.keep(made)
    fake.queue(*(f"101_{i}|PENDING|None|{name_of(made)}" for i in (0, 1)))
    out = CliRunner().invoke(app, ["status", str(made.sweep.path)]).stdout
    lines = {line.split("\t")[0]: line.split("\t")[2] for line in out.splitlines()[1:3]}
    assert lines == {point.point_id: f"seed={point.config.seed}" for point in made.points}


def test_done_hides_no_point_that_does_not_count(tmp_path):
    """A finished point without joules is done, and it is said that it counts in no figure, and why."""
    points = [choices(batch_size=size) for size in (2, 4)]
    made = [
        Made([Gpu("GPU-a", constant(100.0))]),
        Made([Gpu("GPU-a", constant(100.0))], limit_w=300),
    ]
    points[1]["control"]["power_limit_w"] = 200
    sweep = make_sweep(tmp_path / "s", points)
    for point, one in zip(points, made, strict=True):
        make_attempt(sweep, point, one)
    collect(sweep)
    out = CliRunner().invoke(app, ["status", str(sweep.path)]).stdout
    assert "2 done\n" in out
    assert "of the done points 1 do not count: 1: not_applied\n" in out
