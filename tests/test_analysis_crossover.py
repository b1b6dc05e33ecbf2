"""Where a ratio crosses 1, on sweeps whose joules are known: one crossing, none, several, and what cannot be said."""

import polars as pl
import pytest
from sweeps import Gpu, Made, choices, constant, make_attempt, make_sweep
from test_analysis_controls import control_of

from wattflow import open_sweep
from wattflow.analysis.beside import MixedError
from wattflow.analysis.controls import METRICS, Bound
from wattflow.analysis.crossover import crossovers
from wattflow.collect.collect import collect
from wattflow.errors import RefusedError

BATCHES = (1, 8, 64, 256)
# what repeats of one arm scatter
SCATTER = (0.998, 1.0, 1.002)


def swept(folder, ratios, scatter=SCATTER, **over):
    """A sweep of bf16 and fp8 at some batches, all on one board at some 500 W: fp8 at these ratios to bf16."""
    made = []
    for batch, ratio in ratios.items():
        for precision, factor in (("bf16", 1.0), ("fp8", ratio)):
            for repeat, noise in enumerate(scatter):
                point = choices(batch_size=batch, precision=precision, repeat=repeat, **over)
                watts = 500.0 * factor * (noise if precision == "fp8" else 1 / noise)
                made.append((point, Gpu("GPU-a", constant(watts))))
    sweep = make_sweep(folder, [point for point, _ in made])
    for point, gpu in made:
        make_attempt(sweep, point, Made([gpu], batches=1, decode_s=12.0))
    collect(sweep)
    return open_sweep(sweep.path)


def only(opened, **options):
    (found,) = crossovers(opened.points, "precision", "batch_size", reference="bf16", **options)
    return found


def test_dearer_below_and_cheaper_above(tmp_path):
    """1.2 at 1 and 8, 0.8 at 64 and 256: it crosses between 8 and 64, at about the middle of their logarithms."""
    found = only(swept(tmp_path / "s", {1: 1.25, 8: 1.25, 64: 0.8, 256: 0.8}))
    assert [side for _, side in found.sides()] == [1, 1, -1, -1]
    (crossing,) = found.crossings
    assert (crossing.low, crossing.high, crossing.dearer_below) == (8, 64, True)
    assert crossing.estimate == pytest.approx((8 * 64) ** 0.5, rel=0.02)
    assert found.sentences() == [
        "fp8 against bf16: dearer at batch_size 1, 8; cheaper at batch_size 64, 256.",
        "It crosses between batch_size 8 and 64, at about 22.6: dearer below, cheaper above.",
    ]


def test_what_cannot_be_said_widens_the_crossing(tmp_path):
    """1.0 at 8: between 1 and 64, and of 8 nothing is said."""
    found = only(swept(tmp_path / "s", {1: 1.25, 8: 1.0005, 64: 0.8}))
    assert [side for _, side in found.sides()] == [1, 0, -1]
    (crossing,) = found.crossings
    assert (crossing.low, crossing.high) == (1, 64)
    assert 1 < crossing.estimate < 64
    assert "cannot be said at batch_size 8" in found.sentences()[0]


def test_a_control_of_neighbours_widens_the_ratios(tmp_path):
    """fp8 was measured beside others: refused without a control, and what that may change decides no side."""
    opened = swept(tmp_path / "s", {1: 1.25, 8: 1.1, 64: 0.8})
    beside = pl.col("precision") == "fp8"
    points = opened.points.with_columns(beside=beside, slots=pl.when(beside).then(2))
    question = (points, "precision", "batch_size")
    with pytest.raises(MixedError, match="grid=neighbours"):
        crossovers(*question, reference="bf16")
    (known,) = crossovers(*question, reference="bf16", controls=(control_of(points),))
    assert [side for _, side in known.sides()] == [1, 1, -1]
    much = control_of(points, bounds=dict.fromkeys(METRICS, Bound(1.1, 0.95, 1.15, 3)))
    (wide,) = crossovers(*question, reference="bf16", controls=(much,))
    assert [side for _, side in wide.sides()] == [1, 0, -1]
    assert (wide.crossings[0].low, wide.crossings[0].high) == (1, 64)


def test_no_crossing(tmp_path):
    """Cheaper at every batch."""
    found = only(swept(tmp_path / "s", dict.fromkeys(BATCHES, 0.7)))
    assert found.crossings == []
    assert found.sentences() == [
        "fp8 against bf16: cheaper at batch_size 1, 8, 64, 256.",
        "It crosses nowhere among these.",
    ]


def test_several_crossings(tmp_path):
    """Dearer, cheaper, dearer."""
    found = only(swept(tmp_path / "s", {1: 1.3, 8: 0.7, 64: 1.3}))
    assert [(one.low, one.high, one.dearer_below) for one in found.crossings] == [
        (1, 8, True),
        (8, 64, False),
    ]


def test_where_nothing_is_known_nothing_is_said(tmp_path):
    """Ratios within 0.1 % of 1, and one run a side."""
    found = only(swept(tmp_path / "s", {1: 1.001, 8: 0.999}))
    assert found.crossings == []
    assert found.sentences()[1] == "Whether it crosses cannot be said."
    found = only(swept(tmp_path / "t", {1: 1.3, 8: 0.7}, scatter=(1.0,)))
    assert found.sentences() == [
        "fp8 against bf16: cannot be said at batch_size 1, 8.",
        "Whether it crosses cannot be said.",
    ]


def test_one_side_known_is_no_crossing(tmp_path):
    """Cheaper at 64; of 8 nothing is said, so neither is it of a crossing."""
    found = only(swept(tmp_path / "s", {8: 1.001, 64: 0.7}))
    assert found.sentences()[1] == "Whether it crosses cannot be said."


def test_each_combination_of_the_others_has_its_own(tmp_path):
    """Two engines: one crosses, the other does not."""
    crossing = swept(tmp_path / "a", {1: 1.25, 64: 0.8}).points
    straight = swept(tmp_path / "b", {1: 0.8, 64: 0.8}, engine__name="fast").points
    points = crossing.vstack(straight.select(crossing.columns))
    found = crossovers(points, "precision", "batch_size", reference="bf16")
    assert {one.chosen["engine"]: len(one.crossings) for one in found} == {"paper": 1, "fast": 0}


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ("engine", "not a choice that is a number"),
        ("precision", "not a choice that is a number"),
        ("shards", "one value among the points that count"),
    ],
)
def test_what_nothing_can_cross_over_is_refused(tmp_path, over, message):
    """A text, the compared choice itself, and a choice with one value."""
    opened = swept(tmp_path / "s", {1: 1.25, 8: 0.8})
    with pytest.raises(RefusedError, match=message):
        crossovers(opened.points, "precision", over)


def test_a_batch_of_its_own_for_each_precision_is_refused(tmp_path):
    """bf16 at 1 and fp8 at 8 alone share no batch."""
    opened = swept(tmp_path / "s", {1: 1.25, 8: 0.8})
    apart = opened.points.filter((pl.col("precision") == "bf16") == (pl.col("batch_size") == 1))
    with pytest.raises(RefusedError, match="moves along with precision"):
        crossovers(apart, "precision", "batch_size")
