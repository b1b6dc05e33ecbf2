"""What the paper printed, as data: each number with its tag, and the one mean that does not fit."""

import pytest

from wattflow.paper.objects import OBJECTS
from wattflow.paper.published import TAGS, of_cell, of_object, published, slips


def test_each_row_has_a_known_tag_and_a_value_unless_no_bar_could_be_read():
    """Null values are those of bars, and no others."""
    assert {one.tag for one in published()} == {*TAGS}
    assert all((one.value is None) == (one.tag == "bar_not_readable") for one in published())


def test_every_object_has_published_rows():
    """Each figure and table has a row, be it the one that says that no bar can be read."""
    assert {one.object for one in published()} == {*OBJECTS}


def test_table_three_is_whole():
    """Eighteen printed cells: three lengths, two caps, time, energy and rate."""
    exact = [one for one in of_object("table3") if one.tag == "exact"]
    assert len(exact) == len({(one.metric, one.series, one.x) for one in exact}) == 18
    (cell,) = of_cell("table3", "time", None, "150", "512")
    assert (cell.value, cell.gpu, cell.unit) == (21.70, "A100", "%")


def test_the_text_slips_once():
    """It says 19.49 % more time at 150 W, where its table's mean is 19.56; 6.7 and 23.21 fit."""
    (slip,) = slips("table3")
    assert (slip.metric, slip.series, slip.text) == ("time", "150", 19.49)
    assert slip.cells == pytest.approx(19.56)


def test_a_number_of_the_text_is_that_of_all_its_cells():
    """300 W on 8 GPUs stands in the text without a batch; on 16 no bar has a number."""
    assert [one.value for one in of_cell("fig4", "power_w", "gsm8k", "128", "8")] == [300.0]
    (none,) = of_cell("fig4", "power_w", "gsm8k", "128", "16")
    assert (none.value, none.tag) == (None, "bar_not_readable")
    (both,) = of_cell("fig6", "energy_per_token_j", "alpaca", "64", "8")
    assert (both.value, both.to, both.tag) == (3.0, 4.0, "text")
