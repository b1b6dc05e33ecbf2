"""The command line as a whole: its verbs, their groups, and what --help costs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call
from typer.testing import CliRunner

from wattflow import __version__
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


def test_help_and_plan_load_no_heavy_library(tmp_path):
    """--help and plan leave torch, pynvml, altair and polars on the disk."""
    for words in (["--help"], ["plan", "grid=demo"]):
        code = (
            f"import sys; sys.argv = ['wattflow', *{words!r}]\n"
            "from wattflow.cli.app import main\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
            "print([m for m in ('torch', 'pynvml', 'altair', 'polars') if m in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "[]"


def test_every_verb_has_help(tmp_path):
    """Each verb explains itself, and the list of verbs is that of the design."""
    verbs = {
        "plan",
        "submit",
        "run",
        "status",
        "resume",
        "cancel",
        "logs",
        "collect",
        "report",
        "doctor",
        "keys",
    }
    told = call("--help", cwd=tmp_path).stdout
    for verb in verbs:
        assert verb in told
        assert "Usage" in call(verb, "--help", cwd=tmp_path).stdout


def test_wattflow_debug_shows_the_traceback(tmp_path):
    """The traceback is there for who asks for it."""
    done = call("plan", "batchsize=8", cwd=tmp_path, WATTFLOW_DEBUG="1")
    assert "Traceback" in done.stderr


def test_installed_wheel_finds_its_conf(tmp_path):
    """conf/ is found from an installed wheel, where no checkout is."""
    root = Path(__file__).parent.parent
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "-q",
            "-w",
            str(tmp_path / "dist"),
            str(root),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "zipfile", "-e", str(wheel), str(tmp_path / "site")], check=True
    )
    where = tmp_path / "empty"
    where.mkdir()
    done = call("plan", "grid=demo", cwd=where, PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    code = "import wattflow.plan.conf as g; print(*g.conf_dirs())"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(tmp_path / "site" / "wattflow" / "conf")


def test_version_is_one_line_on_stdout(tmp_path):
    """`wattflow --version` prints the package's version alone, so that a script can read it."""
    done = call("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")
