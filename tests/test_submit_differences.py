"""What a submit says of choices that points sent before have otherwise."""

from dataclasses import replace

from submissions import plan, seeds
from test_submit_resume import finish

from wattflow.submit import send
from wattflow.submit.differences import ignored


def with_parts(made, part, **values):
    """The same plan with other values of a part of its points."""
    points = [
        replace(p, config=replace(p.config, **{part: replace(getattr(p.config, part), **values)}))
        for p in made.points
    ]
    return replace(made, points=points)


def test_new_ways_of_asking_name_the_resume_that_takes_them(fake, tmp_path):
    """Each key with both values, and one command for all, ready for a shell."""
    made = plan(tmp_path, *seeds(2))
    send.submit(made)
    new = {"time_min": 10, "partition": "big", "setup": ["module load x"], "accounting": False}
    lines = ignored(with_parts(made, "cluster", **new), {p.point_id for p in made.points})
    assert "cluster.time_min=10 is ignored for points that were sent before: they keep 60." in lines
    assert lines[-1] == (
        f"`wattflow resume {made.sweep.path} cluster.partition=big cluster.time_min=10 "
        "'cluster.setup=['\"'\"'module load x'\"'\"']' cluster.accounting=false` "
        "sends those that have not finished with it."
    )


def test_another_checkpoint_or_meter_needs_another_sweep(fake, tmp_path):
    """No resume takes it."""
    made = plan(tmp_path, *seeds(1))
    send.submit(made)
    lines = ignored(with_parts(made, "power", poll_ms=10), {made.points[0].point_id})
    assert lines[0].startswith("power.poll_ms=10 is ignored for points that were sent before")
    assert "another sweep=NAME" in lines[1]
    assert not any("resume" in line for line in lines)


def test_finished_points_and_equal_plans_say_nothing(fake, tmp_path):
    """Nothing of theirs would be sent."""
    made = plan(tmp_path, *seeds(1))
    ids = {made.points[0].point_id}
    assert ignored(made, ids) == []  # no sweep yet
    send.submit(made)
    assert ignored(made, ids) == []
    finish(made.sweep, made.points[0])
    assert ignored(with_parts(made, "cluster", time_min=10), ids) == []


def test_a_submit_says_so(fake, tmp_path):
    """Also where it sends other points."""
    made = plan(tmp_path, *seeds(1))
    send.submit(made)
    more = with_parts(plan(tmp_path, *seeds(2)), "cluster", time_min=10)
    sent = send.submit(more)
    assert sent.points == 1
    assert any("cluster.time_min=10 is ignored" in line for line in sent.ignored)
