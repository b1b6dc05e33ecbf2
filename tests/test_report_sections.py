"""What the sections of a report show, as values."""

import pytest
from sweeps import Gpu, Made, choices, collected, constant, demo

import wattflow
from wattflow.analysis.means import Energy
from wattflow.collect.collect import collect
from wattflow.energy.boards import METERED
from wattflow.report import interactive, sections
from wattflow.report.page import texts_of_sweep


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Four settings of two repeats on simulated watts, a failed point and an infeasible one."""
    directory = demo(tmp_path_factory.mktemp("sweeps") / "demo")
    collect(directory)
    return wattflow.open_sweep(directory.path)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Batches of 4 at 100 W and of 8 at 200 W: 850 and 1,700 J, 200 tokens each."""
    points = [choices(batch_size=size) for size in (4, 8)]
    made = [Made([Gpu("GPU-a", constant(watts))]) for watts in (100.0, 200.0)]
    return collected(tmp_path_factory.mktemp("sweeps") / "s", made, points)


def test_the_figures_of_a_sweep(measured):
    """2 of 2 points count, 400 tokens, 2,550 J; the larger batch costs twice as much a token in the same time."""
    found = sections.figures(measured)
    assert (found.cards.counting, found.cards.feasible, found.cards.attempts) == (2, 2, 2)
    assert found.cards.tokens == 400
    # 850 J at 100 W and 1,700 J at 200 W, on one board: what its sensor is off adds up
    u_j = 2 * sum(
        METERED.relative_u(watts) * energy_j for watts, energy_j in ((100, 850), (200, 1700))
    )
    assert found.cards.energies == [
        Energy(
            pytest.approx(2550.0), "gpu", simulated=False, expanded_u_j=pytest.approx(u_j, rel=1e-4)
        )
    ]
    assert found.axes == ["batch_size"]
    assert [one.means["energy_per_token_j"].mean for one in found.results] == pytest.approx(
        [4.25, 8.5]
    )
    ((comparison,), (arm,)) = found.comparisons, found.comparisons[0].arms
    assert (comparison.by, arm.value, arm.against) == ("batch_size", 8, 4)
    assert arm.ratio.ratio == pytest.approx(2.0)
    assert (found.caps, found.boards, found.simulated) == ([], [], False)
    assert found.use[0].means["gpu_activity_pct"].mean == 90.0


def test_points_that_do_not_count_are_in_no_figure(simulated):
    """8 of 9 feasible points count; the failed and the infeasible one are settings without a mean."""
    found = sections.figures(simulated)
    assert (found.cards.counting, found.cards.feasible, found.cards.attempts) == (8, 9, 9)
    assert [one.n for one in found.results] == [2, 2, 2, 2, 0, 0]
    assert found.simulated


def test_about(measured, simulated):
    """A counter was read beside the watts of the GPUs; simulated watts have none, and nothing to check."""
    found = sections.about(measured.points)
    assert list(found.sensors) == ["nvml_buffer"]
    assert found.boundaries == ["gpu"]
    assert found.counter_ratios == (2, pytest.approx(1.0, rel=1e-3), pytest.approx(1.0, rel=1e-3))
    found = sections.about(simulated.points)
    assert (found.counter_ratios, found.simulated, found.unchecked, found.no_words) == (
        None,
        True,
        False,
        True,
    )


def test_failures_and_remarks(simulated):
    """Each point without a number has its reasons and what happened; what is doubtful of others is counted."""
    failed, infeasible = sections.failures(simulated.points)
    assert (failed.status, failed.reasons, failed.what) == (
        "failed",
        ["failed"],
        "the checkpoint ends early",
    )
    assert infeasible.what == "shards=4 does not divide n_heads=6"
    assert ("dummy_text", 8) in [
        (one.code, one.points) for one in sections.remarks(simulated.points)
    ]


def test_where_the_numbers_come_from(simulated):
    """Versions, drivers and nodes, each once."""
    found = sections.provenance(simulated.attempts)
    assert found["versions"] == "wattflow 0.1.0, torch 2.13.0"
    assert (found["nodes"], found["driver"]) == ("node1", "580.159.04")


def test_nothing_was_cross_checked(measured):
    """A sweep that was held against no meter of its site has no rows."""
    assert sections.crosscheck(measured) == []


def nulls(tmp_path, **over):
    """A sweep of two settings, `over`, each of two repeats, at 400 and 300 W."""
    points = [
        choices(repeat=k, **{name: values[i] for name, values in over.items()})
        for i in range(2)
        for k in range(2)
    ]
    caps = [point["control"]["power_limit_w"] for point in points]
    made = [Made([Gpu("GPU-a", constant(float(c or 400)))], limit_w=c) for c in caps]
    return collected(tmp_path / "s", made, points)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("control__power_limit_w", (None, 300)),
        ("model__revision", (None, "v2")),
        ("cluster__gpu_model", ("h100", None)),
    ],
)
def test_a_null_in_any_axis_has_a_report(tmp_path, name, values):
    """A choice that was not made is compared and drawn as any other."""
    sweep = nulls(tmp_path, **{name: values})
    found = sections.figures(sweep)
    assert [one.n for one in found.results] == [2, 2]
    assert len(found.comparisons[0].arms) == 1
    (axis,) = interactive.charts(found)["axes"]
    assert axis["values"] == [*(str(value) for value in values if value is not None), "null"]


def test_what_is_confounded_is_said_in_the_report(tmp_path):
    """A batch size that moves with the caps is named; with a temperature, too, nothing is compared."""
    named = nulls(tmp_path / "one", control__power_limit_w=(None, 300), batch_size=(2, 4))
    page = "".join(map(" ".join, texts_of_sweep(named).values()))
    assert "of control_power_limit_w together with batch_size 2 against 4" in page
    assert (
        "At 300 W other choices move along, and are in the change: batch_size 4 against 2." in page
    )
    refused = nulls(
        tmp_path / "two",
        control__power_limit_w=(None, 300),
        batch_size=(2, 4),
        temperature=(0.5, 0.8),
    )
    page = texts_of_sweep(refused)
    assert sum("Not compared." in text for text in page["comparisons"]) == 3
    assert "batch_size, temperature move along with it" in " ".join(page["caps"])
