"""The charts of figures and tables."""

import json

import pytest
from paper_sweeps import table_three

from wattflow.analysis.figures import svg
from wattflow.paper.cells import cells
from wattflow.paper.drawing import Drawn, chart
from wattflow.paper.objects import OBJECTS
from wattflow.paper.results import found


def rows_of(drawn):
    """All rows of data in a chart."""
    return [row for rows in json.loads(drawn.to_json())["datasets"].values() for row in rows]


def test_table_three_has_ours_beside_the_published(tmp_path):
    """Bars of ours and diamonds of the paper's at the same heights, the x axis with both names."""
    table_three(tmp_path)
    ((one,), _) = found("full", tmp_path)
    of = OBJECTS["table3"]
    drawn = chart(of, [Drawn(one.gpu, cells(of, one))])
    rows = rows_of(drawn)
    first = next(row for row in rows if row["series"] == "150" and row["x"] == "512\n512")
    assert (first["mean"], first["published"]) == (pytest.approx(21.70), 21.70)
    assert {row["tag"] for row in rows} >= {"exact", "text", None}
    assert "Table III" in svg(drawn)


def test_nothing_here_is_drawn_as_gaps():
    """Each object draws without any point of ours, and says that no bar has a number where so."""
    for of in OBJECTS.values():
        drawn = chart(of, [Drawn("nothing here", cells(of, None))])
        assert {row["mean"] for row in rows_of(drawn)} == {None}
    text = svg(chart(OBJECTS["fig2"], [Drawn("nothing here", cells(OBJECTS["fig2"], None))]))
    assert "no bar of the published figure has a number" in text
