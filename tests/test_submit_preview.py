"""What a submit will cost, as one line before it: hours, files and kWh worked out by hand."""

import pytest
from submissions import plan, point, seeds
from sweeps import Gpu, Made, choices, make_attempt, make_sweep

from wattflow.analysis.sweep import open_sweep
from wattflow.collect import collect
from wattflow.submit import send
from wattflow.submit.preview import Bill, preview

NODE = {"cluster__gpus_per_node": 4, "cluster__gpu_model": "h100", "cluster__time_min": 30}


def earlier(folder, **over):
    """A collected attempt of 60 s at 70 W, in another sweep of the folder."""
    done = choices(seed=9, cluster__launcher="slurm", cluster__name="site", **over)
    other = make_sweep(folder / "other", [done])
    make_attempt(other, done, Made([Gpu("GPU-1")]))
    collect.collect(other)


def test_a_plan_tells_what_collected_points_of_other_sweeps_took(tmp_path):
    """An attempt of 60 s in another sweep of the folder: two seeds are 2 GPU-minutes, two a task are 2 minutes."""
    earlier(tmp_path)
    made = plan(tmp_path, *seeds(2, cluster__points_per_task=2), point(model__name="unseen"))
    known, unknown = (row["expected"] for row in preview(made).rows)
    assert known["gpu_hours"] == pytest.approx(120.0 / 3600.0)
    assert known["longest_task_min"] == pytest.approx(2.0)
    assert (known["same"], known["shape"], known["unknown"], known["attempts"]) == (2, 0, 0, 1)
    assert (unknown["unknown"], unknown["longest_task_min"]) == (1, None)


@pytest.mark.parametrize(
    ("over", "bill", "expected"),
    [
        ({}, Bill("node-hours", 4.0, None), 8 / 60),  # 8 tasks of 30 min
        ({"cluster__bills": "gpu"}, Bill("GPU-hours", 4.0, None), 8 / 60),
        ({"cluster__side_by_side": True}, Bill("node-hours", 1.0, None), 2 / 60),  # 2 tasks of 4
        (
            {"cluster__side_by_side": True, "cluster__bills": "gpu"},
            Bill("GPU-hours", 4.0, None),
            8 / 60,
        ),
    ],
)
def test_hours_are_those_that_the_site_bills(over, bill, expected, tmp_path):
    """Eight points of one GPU, of 60 s each, on nodes of four: alone, and four at once."""
    made = plan(tmp_path, *seeds(8, **NODE, **over))
    assert preview(made).quote.bills == [bill]
    earlier(tmp_path, **NODE, **over)
    (found,) = preview(made).quote.bills
    assert found.expected == pytest.approx(expected)
    assert (found.unit, found.at_most) == (bill.unit, bill.at_most)


def test_a_control_of_neighbours_takes_each_slot_in_turn_and_then_all(tmp_path):
    """Two slots: a block of 4 points of 60 s is 2 alone and 2 at once, 3 minutes."""
    few = {**NODE, "cluster__gpus_per_node": 2, "cluster__side_by_side": True}
    made = plan(tmp_path, *(point(repeat=k, sweep__block="neighbours", **few) for k in range(4)))
    earlier(tmp_path, **few)
    (row,) = preview(made).rows
    assert row["expected"]["longest_task_min"] == pytest.approx(3.0)


def test_the_line_has_what_each_figure_rests_on(tmp_path):
    """kWh of finished points as predicted, of boards by their limit as a bound, and neither where nothing is known."""
    made = plan(tmp_path, *seeds(2, **NODE))
    unknown = preview(made).quote.words()
    assert unknown.startswith("cost: at most 1 node-hours billed, ")
    assert unknown.endswith("kWh unknown: no finished point is alike, no power limit known")
    caps = {"control__power_limit_w": 300, "cluster__power_caps": {"300": "wf_cap300"}}
    capped = preview(plan(tmp_path, *seeds(2, **caps, **NODE))).quote
    assert capped.energy_at_most_kwh == pytest.approx(0.3)  # 2 tasks x 0.5 h x 1 GPU x 300 W
    assert "at most 0.3 kWh of GPUs by time and power limits" in capped.words()
    earlier(tmp_path, **NODE)
    known = preview(made).quote
    assert "at most 1 node-hours billed (0.0333 expected)" in known.words()
    assert "kWh predicted for 2 of 2 points by finished ones" in known.words()
    (row,) = open_sweep(tmp_path / "other").points.to_dicts()
    assert known.energy.energy_kwh == pytest.approx(2 * row["job_energy_j"] / 3.6e6)
    assert "\n" not in known.words()


def test_points_of_this_machine_are_billed_nothing(tmp_path):
    """Files and kWh are said all the same."""
    found = preview(plan(tmp_path, point(cluster__launcher="local"))).quote
    assert found.bills == []
    assert found.words().startswith("cost: no hours billed, ")
    assert found.as_json()["files"] == found.footprint.files > 0


def test_submit_announces_what_it_is_about_to_send(fake, tmp_path):
    """Before the first sbatch, of points never tried alone; nothing where none is left."""
    quotes = []

    def announce(quote):
        assert not fake.calls("sbatch") or len(quotes) == 1
        quotes.append(quote)

    send.submit(plan(tmp_path, *seeds(2)), announce=announce)
    send.submit(plan(tmp_path, *seeds(3)), announce=announce)
    send.submit(plan(tmp_path, *seeds(3)), announce=announce)
    assert [quote.points for quote in quotes] == [2, 1]
