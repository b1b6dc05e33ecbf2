"""Arguments and options that several verbs share."""

import pytest

from wattflow.cli.app import VERBS, command

CHANGES = ["submit", "resume", "cancel", "bundle", "calibrate"]
TABLES = [
    "plan",
    "status",
    "compare",
    "caps",
    "cost",
    "usage",
    "crosscheck",
    "tune",
    "doctor",
    "verify",
]


def options(verb):
    """All spellings of a verb's options."""
    return {name for parameter in command(VERBS[verb]).params for name in parameter.opts}


@pytest.mark.parametrize("verb", CHANGES)
def test_what_changes_something_has_a_dry_run(verb):
    """-n and --dry-run show what would be done."""
    assert {"-n", "--dry-run"} <= options(verb)


@pytest.mark.parametrize("verb", TABLES)
def test_what_prints_a_table_can_print_json(verb):
    """--json stands beside each table."""
    assert "--json" in options(verb)


@pytest.mark.parametrize("verb", ["status", "resume", "cancel"])
def test_points_are_chosen_alike(verb):
    """The verbs that choose points take the same filters: --state, --only, and KEY=VALUE."""
    assert {"--state", "--only", "filters"} <= options(verb)
