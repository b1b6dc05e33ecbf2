"""Errors: what they are beside wattflow's own, and the exit codes that they become."""

import pytest

from wattflow import errors


@pytest.mark.parametrize(
    ("kind", "also", "exit_code"),
    [
        (errors.RefusedError, ValueError, 2),
        (errors.DamagedError, errors.WattflowError, 1),
        (errors.PowerError, RuntimeError, 1),
        (errors.EngineError, RuntimeError, 1),
        (errors.SlurmError, RuntimeError, 1),
    ],
)
def test_an_error_has_a_builtin_kind_and_an_exit_code(kind, also, exit_code):
    """A bad setting is a ValueError refused with 2; what fails while working is a RuntimeError and ends with 1."""
    error = kind("what, where, what next")
    assert isinstance(error, also)
    assert isinstance(error, errors.WattflowError)
    assert error.exit_code == exit_code


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\x1b[0m\x07\x9b", "a?b?[0m??"),
        ("\u202eabc\u2066\u200b\u200d\ufeff", "?abc????"),
        ("\ufe0f\u034f\u3164\u2800\U000e0101", "?????"),
        ("Übung 模型 ± ½ 🙂 é", "Übung 模型 ± ½ 🙂 é"),
        ("\udcff", "?"),
    ],
)
def test_what_is_not_seen_is_a_question_mark(text, shown):
    """Controls, marks of direction, letters of no width and bytes that were no text; letters of any language stay."""
    assert errors.printable(text) == shown
