"""Arithmetic on values of which some are unknown."""

import pytest

from wattflow import nullable


@pytest.mark.parametrize(
    ("values", "shared"),
    [([], None), ([3, 3], 3), ([3, 4], None), ([None, None], None), ([3, None], None)],
)
def test_a_value_is_agreed_where_all_say_it(values, shared):
    """One value of all is returned; differing ones, unknown among them, are none."""
    assert nullable.agreed(values) == shared


def test_names_are_joined_once_and_in_order():
    """b, a, b and an unknown one are "a + b"; no name at all is null."""
    assert nullable.joined_names(["b", "a", None, "b"]) == "a + b"
    assert nullable.joined_names([None]) is None


@pytest.mark.parametrize(
    ("value", "by", "ratio"),
    [(6.0, 4.0, 1.5), (0.0, 4.0, 0.0), (6.0, 0.0, None), (None, 4.0, None), (6.0, None, None)],
)
def test_a_quotient_needs_both_and_a_denominator(value, by, ratio):
    """6 / 4 is 1.5 and 0 / 4 is 0; a missing part or a denominator of 0 makes null."""
    assert nullable.quotient(value, by) == ratio


def test_a_sum_is_complete_or_null():
    """1 + 2 is 3; with an unknown part, or no part, there is no sum."""
    assert nullable.complete_sum([1.0, 2.0]) == 3.0
    assert nullable.complete_sum([1.0, None]) is None
    assert nullable.complete_sum([]) is None


def test_independent_uncertainties_add_in_quadrature():
    """3 and 4 make 5; an unknown one makes the whole unknown."""
    assert nullable.quadrature([3.0, 4.0]) == 5.0
    assert nullable.quadrature([3.0, None]) is None


def test_a_known_sum_leaves_out_what_is_unknown():
    """1 + unknown + 2 is 3 of what is known; nothing known is null, and not 0."""
    assert nullable.known_sum([1, None, 2]) == 3
    assert nullable.known_sum([None]) is None


def test_a_maximum_is_complete_or_null():
    """Of 1 and 2 it is 2; with an unknown value, or no value, there is none."""
    assert nullable.complete(max, [1.0, 2.0]) == 2.0
    assert nullable.complete(max, [1.0, None]) is None
    assert nullable.complete(max, []) is None


@pytest.mark.parametrize(
    ("value", "expanded", "shown"),
    [
        (0.0686, 0.0027, "0.0686 ± 0.0027 J"),
        (0.06857, 0.00094, "0.06857 ± 0.00094 J"),
        (14678.2, 1023.0, "14,700 ± 1,000 J"),
        (1500.0, 120.4, "1,500 ± 120 J"),
        (70.0, 0.0996, "70.00 ± 0.10 J"),  # of which two digits are 0.10 and not 0.100
        (0.4, 12.3, "0 ± 12 J"),
        (1234.5, None, "1,234 J"),
        (0.012345, None, "0.0123 J"),
        (1.0, float("inf"), "1.00 J"),
        (None, 1.0, "-"),
    ],
)
def test_a_value_ends_where_its_doubt_does(value, expanded, shown):
    """Two digits of the uncertainty, and the value to the same place (GUM 7.2.6); none known, three digits."""
    assert nullable.with_doubt(value, expanded, "J") == shown


def test_what_was_simulated_is_marked():
    """`~` stands before the value."""
    assert nullable.with_doubt(1500.0, None, "J", "~") == "~1,500 J"
