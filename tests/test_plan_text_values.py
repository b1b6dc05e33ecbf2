"""Overrides of keys that take text: what is typed stays as it is typed."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from wattflow.plan import grid
from wattflow.plan.text_values import as_text

ONE = ["n_prompts=8", "sweep.repeats=1", "engine=synthetic", "cluster=testcluster"]


@pytest.mark.parametrize(
    ("override", "quoted"),
    [
        ("model.revision=7e12345678", "model.revision='7e12345678'"),
        (
            "model.revision=1_000,x, 0123",
            "model.revision='1_000',x, 0123",
        ),  # Hydra reads 0123 as text
        ("sweep.name=1e5", "sweep.name='1e5'"),
        ("cluster.account=true", "cluster.account='true'"),
        ("cluster.account=null", "cluster.account=null"),
        ("cluster.account='1e5'", "cluster.account='1e5'"),
        ("cluster=1e5,local", "cluster='1e5',local"),
        ("model.revision=choice(1e5,2e5)", "model.revision=choice('1e5','2e5')"),
        ("model.revision=range(1,3)", "model.revision=range(1,3)"),
        ("cluster.setup=[1e5,'a,1']", "cluster.setup=['1e5','a,1']"),
        ("cluster.power_caps={a:1.10}", "cluster.power_caps={a:'1.10'}"),
        (
            "sweep.exclude=[{when:{shards:2},reason:1.0}]",
            "sweep.exclude=[{when:{shards:'2'},reason:'1.0'}]",
        ),
        ("shards=1,2", "shards=1,2"),
        ("no.such=1e5", "no.such=1e5"),
        ("shards", "shards"),
    ],
)
def test_numbers_in_texts_are_quoted(override, quoted):
    """For keys that take text alone; arguments of range() count."""
    assert as_text(override) == quoted


@given(st.from_regex(r"[-+]?[0-9_.]{1,6}([eE][-+]?[0-9]{1,4})?|inf|nan|TRUE|false", fullmatch=True))
def test_whatever_looks_like_a_number_is_the_text_that_was_typed(text):
    """Hydra's own parser, asked afterwards."""
    (override,) = OverridesParser.create().parse_overrides([as_text(f"model.revision={text}")])
    value = override.value()
    assert getattr(value, "text", value) == text


def test_revisions_that_look_like_numbers_are_two_points():
    """Both were infinity once, and so one point."""
    _, points, _ = grid.expand([*ONE, "model.revision=7e12345678,9e87654321"])
    assert [point.config.model.revision for point in points] == ["7e12345678", "9e87654321"]
    assert len({point.point_id for point in points}) == 2


@pytest.mark.parametrize("name", ["1e5", "007", "true", "1_000", "0x1F", "1.10"])
def test_a_sweep_is_named_as_it_is_typed(name):
    """sweep=1e5 made a folder 100000.0."""
    assert grid.plan([*ONE, f"sweep={name}"]).name == name
