"""The #### rule, on transcripts whose results are known."""

import pytest

from wattflow.workload.scoring import is_correct, result_of

TRANSCRIPTS = [
    ("38 loaves take 38 * 450 = 17,100 grams.\n#### 7,900", "7900"),
    ("#### 18", "18"),
    ("She has $18 left.\n#### $18.", "18"),
    ("It falls by 4 degrees.\n#### -4", "-4"),
    ("#### 2.50", "2.50"),
    # what follows a first answer is another question that the model made up
    ("#### 5\n\nQuestion: ...\n#### 9", "5"),
    ("The answer is 18.", None),
    ("####", None),
    ("#### none", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "result"), TRANSCRIPTS)
def test_the_number_after_the_first_mark(text, result):
    """Without commas, dollar and last full stop; null where there is none."""
    assert result_of(text) == result


@pytest.mark.parametrize(
    ("text", "reference", "right"),
    [
        ("#### 7,900", "7900", True),
        ("#### 7900", "7,900", True),
        ("#### 7901", "7900", False),
        ("#### 18.0", "18", False),
        ("18", "18", False),
    ],
)
def test_a_match_is_exact(text, reference, right):
    """No rounding, and a right number without the mark is wrong."""
    assert is_correct(text, reference) is right
