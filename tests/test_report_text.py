"""How values read as text."""

import pytest

from wattflow.analysis.axes import heading
from wattflow.analysis.statistics import BreakEven, Ratio
from wattflow.report.text import (
    break_even,
    change,
    choice,
    count_of,
    interval,
    listed,
    mark,
    markdown,
    number,
    plain,
    span,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.01234, "0.0123"),
        (1.1, "1.10"),
        (85.66, "85.7"),
        (99.98, "100"),
        (12345.6, "12,346"),
    ],
)
def test_numbers_read_well(value, text):
    """Three digits, or all before the point with commas."""
    assert number(value) == text


def test_what_was_simulated_is_marked():
    """The mark stands before a number, also before 0, and before nothing where there is no number."""
    assert [number(1.1, mark(True)), number(0, mark(True)), number(None, mark(True))] == [
        "~1.10",
        "~0",
        "-",
    ]
    assert number(1.1, mark(None)) == "1.10"


def test_null_is_a_dash_and_headings_have_blanks():
    """As tables show them."""
    assert [plain(None), plain(0), plain("x")] == ["-", "0", "x"]
    assert heading("max_gen_len") == "max gen len"


def test_a_command_reads_as_it_was_typed():
    """A measured command is kept as JSON, every other choice as it is."""
    assert choice("command", '["python", "my run.py"]') == "python 'my run.py'"
    assert (choice("command", None), choice("shards", 2)) == ("-", "2")


def test_intervals():
    """Both ends, or none."""
    assert interval(0.5, 1.25, ".2f") == "0.50 to 1.25"
    assert interval(0.5, 1.25, ".3g", "~") == "~0.5 to ~1.25"
    assert interval(None, None, ".2f") == "-"


def test_a_break_even_or_why_there_is_none():
    """100 W with and without an interval; a reference has neither number nor reason."""
    assert break_even(BreakEven(100.0, 90.0, 110.0, None), "~") == "~100 (~90.0 to ~110)"
    assert break_even(BreakEven(100.0, None, None, None)) == "100"
    assert (
        break_even(BreakEven(None, None, None, "both take the same time"))
        == "both take the same time"
    )
    assert break_even(None) == "-"


def test_a_ratio_as_a_change():
    """0.8 is -20 %."""
    one = Ratio(0.8, 0.75, 0.85, "paired", 2, established=True, why_not=None)
    assert change(one) == "-20.00 (-25.00 to -15.00)"
    assert change(Ratio(1.25, None, None, "one board", 1, False, "one repeat each")) == "+25.00"


def test_sentences():
    """Counts, ranges and lists as a sentence has them."""
    assert [count_of(1, "run"), count_of(2, "run")] == ["1 run", "2 runs"]
    assert [span([3.0, 1.0]), span([2]), span([])] == ["1 to 3", "2", "an unknown number of"]
    assert [listed(["a"]), listed(["a", "b", "c"]), listed([])] == ["a", "a, b and c", "unknown"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("llama-7b", "llama-7b"),
        ("energy_j", "energy_j"),
        ("a|b", r"a\|b"),
        ("**bold** <b>", r"\*\*bold\*\* \<b\>"),
        ("[x](http://y)", r"\[x\](http://y)"),
        ("_x_", r"\_x\_"),
        ("two\n\n# lines", "two # lines"),
    ],
)
def test_names_in_markdown_show_as_they_are(text, shown):
    """Signs of Markdown are escaped, and no name begins a line or a cell of its own."""
    assert markdown(text) == shown
