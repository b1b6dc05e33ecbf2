"""Settings as positions on axes, and coordinates in which near ones are alike."""

import numpy as np
import pytest

from wattflow.search.space import Axis, Space


def test_values_that_span_much_are_spaced_by_their_logarithms():
    """1, 2, 4, 8 are equally far apart; 300, 400, 500 W are by their watts."""
    assert Axis("batch_size", (1, 2, 4, 8)).places() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert Axis("cap", (300, 400, 500)).places() == pytest.approx([0, 0.5, 1])


def test_what_was_not_asked_lies_beyond_the_largest_value():
    """A board as it is found is nearer to its highest cap than to its lowest."""
    places = Axis("cap", (300, 400, 500, None)).places()
    assert places[3] > places[2] > places[1] > places[0]


def test_words_truths_and_a_single_number_are_no_numbers():
    """Between such values there is no middle."""
    assert not Axis("precision", ("bf16", "fp8")).is_numeric
    assert not Axis("eager", (False, True)).is_numeric
    assert not Axis("cap", (300, None)).is_numeric
    assert Axis("precision", ("bf16", "fp8")).places().tolist() == [0.0, 1.0]


def test_a_space_orders_the_values_of_each_axis_and_keeps_each_setting_once():
    """Null is last; true is not 1; the order of settings is that of the rows."""
    rows = [(8, "b"), (2, "a"), (8, "b"), (None, "a")]
    space = Space.of(["n", "kind"], rows)
    assert space.axes[0].values == (2, 8, None)
    assert [space.values(k) for k in range(3)] == [
        {"n": 8, "kind": "b"},
        {"n": 2, "kind": "a"},
        {"n": None, "kind": "a"},
    ]
    assert len(Space.of(["flag"], [(True,), (1,)]).settings) == 2


def test_coordinates_are_a_row_a_setting():
    """A hole in the grid is no setting."""
    space = Space.of(["n", "m"], [(1, 1), (1, 2), (2, 1)])
    assert space.numeric == (True, True)
    assert np.array_equal(space.coordinates, [[0, 0], [0, 1], [1, 0]])
