"""The command line as a whole: its verbs, their groups, and what --help costs."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from wattflow.cli.app import VERBS, app, command

GROUPS = ["Sweep", "Results", "This machine", "Publish"]


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_a_verb_has_one_line_of_help(verb):
    """What `wattflow --help` says of a verb is the first line of what `wattflow VERB --help` says."""
    assert command(verb).help.splitlines()[0] == verb.help
    assert verb.group in GROUPS


def test_help_lists_all_verbs_by_group():
    """The groups stand in the order in which one needs them, and each verb in its own."""
    page = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100"}).stdout
    places = [page.index(f" {group} ─") for group in GROUPS]
    assert places == sorted(places)
    for verb in VERBS.values():
        start = places[GROUPS.index(verb.group)]
        end = [*places, len(page)][GROUPS.index(verb.group) + 1]
        assert f"│ {verb.name} " in page[start:end]


def test_help_imports_no_verb():
    """--help is written from the table alone: no module of a verb is loaded."""
    code = (
        "import sys\n"
        "from wattflow.cli.app import VERBS, app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "modules = {f'wattflow.cli.{v.module}' for v in VERBS.values()}\n"
        "print(sorted(modules & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_an_unknown_verb_is_refused_with_the_nearest():
    """`wattflow submitt` exits with 2 and one line that names `submit`."""
    done = subprocess.run(
        [sys.executable, "-m", "wattflow", "submitt"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "wattflow: submitt: no such verb. Did you mean `wattflow submit`? `wattflow --help` lists them.\n"
    )


def test_the_package_runs_as_a_module():
    """`python -m wattflow --version` is the same command line."""
    done = subprocess.run(
        [sys.executable, "-m", "wattflow", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().replace(".", "").isdecimal()
