"""The list of figures and tables."""

import pytest

from wattflow.errors import RefusedError
from wattflow.paper.objects import OBJECTS, chosen
from wattflow.plan.hydra import group_files


def test_figures_2_to_9_and_tables_2_to_5():
    """Twelve objects; Figure 1 is borrowed and Table I names the hardware."""
    assert [*OBJECTS] == [*(f"fig{n}" for n in range(2, 10)), *(f"table{n}" for n in range(2, 6))]


def test_each_grid_is_a_file():
    """What an object needs lies in conf/grid/."""
    assert {one.grid for one in OBJECTS.values()} <= {*group_files("grid")}


def test_objects_are_chosen_by_name():
    """In the paper's order; a name that is none is refused with those there are."""
    assert [one.name for one in chosen(["table3", "fig4"])] == ["fig4", "table3"]
    assert len(chosen(None)) == 12
    with pytest.raises(RefusedError, match=r"--only fig1: not one of fig2"):
        chosen(["fig1"])
