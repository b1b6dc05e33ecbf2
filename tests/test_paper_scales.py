"""How large the paper's grids are at each scale."""

import pytest

from wattflow.errors import RefusedError
from wattflow.paper.objects import chosen
from wattflow.paper.plans import parts
from wattflow.paper.scales import SCALES, grids


def counted(scale, *overrides):
    """How many points a scale sends, shared ones once."""
    return sum(len(part.missing) for part in parts(scale, overrides, chosen(None)))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Nothing was run."""
    monkeypatch.chdir(tmp_path)


def test_cpu_has_at_most_twelve_points():
    """Three minutes on two cores."""
    assert counted("cpu") == 11


def test_h200_has_at_most_thirty_points():
    """All of which two H200 hold."""
    assert counted("h200") == 27
    planned = [point for part in parts("h200", [], chosen(None)) for point in part.plan.points]
    assert [point.reason for point in planned if point.reason is not None] == []


def test_full_is_as_published():
    """4,096 prompts, fp16, temperature 0.8, top-p 0.95, the paper's loop, three repeats."""
    for part in parts("full", [], chosen(None)):
        for point in part.plan.points:
            of = point.config
            assert (of.n_prompts, of.precision, of.temperature) == (4096, "fp16", 0.8)
            assert (of.top_p, of.engine.name, of.sweep.repeats) == (0.95, "paper", 3)


def test_a_scale_that_is_none_is_refused():
    """With those there are."""
    with pytest.raises(RefusedError, match="--scale big: not one of full, h200, mini, cpu"):
        grids("big")
    assert {*SCALES} == {"full", "h200", "mini", "cpu"}
