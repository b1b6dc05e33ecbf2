"""How the command line prints."""

import json
from pathlib import Path

from wattflow.cli import printing


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
