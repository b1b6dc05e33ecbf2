"""How the command line prints."""

import ast
import json
import sys
from pathlib import Path

import pytest
from sweeps import choices, make_sweep
from typer.testing import CliRunner

from wattflow.cli import printing
from wattflow.cli.app import app
from wattflow.cli.follow import Follower

# words of rich's markup, OSC 52, a C1 control, the end of a line and of its direction, a byte that was no text
HOSTILE = "[/dev/nvidia0] [enforce fail at a.cpp] \x1b]52;c;eA==\x07 \x9b2J \u202e \u2066 \u200b \x7f \udcff"
PLAIN = "[/dev/nvidia0] [enforce fail at a.cpp] ?]52;c;eA==? ?2J ? ? ? ? ?"


def test_a_table_into_a_pipe_is_tab_separated(capsys):
    """A script can cut it: a line a row, cells parted by tabs, `-` for what is null."""
    printing.print_table(["point_id", "n"], [["ab", 1], [None, 2]], numbers=[1])
    assert capsys.readouterr().out == "point_id\tn\nab\t1\n-\t2\n"


def test_people_are_talked_to_on_stderr(capsys):
    """What is no data never mixes with it."""
    printing.talk("2 points sent")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "2 points sent\n")


def test_json_has_paths_as_text(capsys):
    """A value that JSON does not know, such as a path, is written as text."""
    printing.print_json({"log": Path("a/b"), "n": 1})
    assert json.loads(capsys.readouterr().out) == {"log": "a/b", "n": 1}


def test_a_path_is_shown_as_a_person_types_it(tmp_path, monkeypatch):
    """Below the working folder it is relative, elsewhere whole."""
    monkeypatch.chdir(tmp_path)
    assert printing.shown(tmp_path / "sweeps" / "demo") == "sweeps/demo"
    assert printing.shown(tmp_path.parent) == str(tmp_path.parent)


@pytest.mark.parametrize("terminal", [True, False])
def test_texts_of_others_are_printed_as_they_are_and_do_nothing(capsys, monkeypatch, terminal):
    """Brackets are no markup, what is no printable letter is `?`: in a table, in talk and in a text, also in a pipe."""
    monkeypatch.setenv("TERM", "dumb")  # no bold heading
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    printing.print_table([HOSTILE], [[HOSTILE], [f"a\tb\r\n{HOSTILE}"]])
    printing.print_text(HOSTILE)
    printing.talk(HOSTILE)
    out, err = capsys.readouterr()
    lines = [line.rstrip() for line in (out + err).splitlines()]
    assert lines == [PLAIN, PLAIN, f"a b {PLAIN}", PLAIN, PLAIN]


def test_lines_tabs_and_progress_of_a_log_stay_readable(capsys):
    """Lines and tabs stay, colours go, and what a progress bar drew over itself stands line below line."""
    printing.print_text("a\tb\n\x1b[1;31mred\x1b[0m\r\n 1 %\r 2 %", end="")
    assert capsys.readouterr().out == "a\tb\nred\n 1 %\n 2 %"


def test_a_progress_bar_takes_no_markup(capsys, monkeypatch):
    """What the newest local job said stands beside the bar as it is."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Follower() as follower:
        follower.show({"done": 1}, HOSTILE)
    assert PLAIN in capsys.readouterr().err


def test_status_and_logs_print_what_a_program_said(tmp_path):
    """The reason of a failed point and its log hold markup and controls: both verbs show them, and go on."""
    point = choices()
    made = make_sweep(tmp_path / "s", [point])
    attempt = made.claim_attempt(made.points()[0].point_id)
    attempt.logs.mkdir(exist_ok=True)
    (attempt.logs / "rank0.log").write_text(HOSTILE.replace("\udcff", "") + "\n")
    about = {"attempt": 1, "point_id": attempt.point_id, "schema_version": 1, "choices": point}
    times = {"started_ns": 1_000_000_000, "ended_ns": 2_000_000_000}
    attempt.write_record(
        {
            **about,
            **times,
            "status": "failed",
            "error": HOSTILE[:-2],
            "error_rank": None,
            "job": None,
            "ranks": [],
            "nodes": [],
        }
    )
    shown = CliRunner().invoke(app, ["status", str(made.path)])
    assert shown.exit_code == 3, shown
    assert PLAIN[:-2] in " ".join(shown.stdout.split())
    shown = CliRunner().invoke(app, ["logs", str(made.path), attempt.point_id])
    assert shown.exit_code == 0, shown
    assert PLAIN[:-2] in shown.stdout


def test_no_verb_prints_past_the_door():
    """Of the command line's modules `printing` alone calls print, or makes a console that takes markup."""
    folder = Path(printing.__file__).parent
    for path in sorted(folder.glob("*.py")):
        calls = [
            node.func
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
        ]
        prints = [one for one in calls if isinstance(one, ast.Name) and one.id == "print"]
        assert bool(prints) == (path.name == "printing.py"), path
