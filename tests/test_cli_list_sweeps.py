"""The verb `list`: a line a sweep, damaged ones too."""

import json

import pytest
from sweeps import choices, demo, make_sweep

from wattflow.cli.app import main
from wattflow.collect.collect import collect
from wattflow.store.layout import SweepDir
from wattflow.store.notes import add


def verb(capsys, *words):
    """What `wattflow list` printed, and its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["wattflow", "list", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code or 0, *capsys.readouterr()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sweep that ran, one below a folder that nobody tried, and four that are damaged."""
    path = tmp_path_factory.mktemp("sweeps")
    collect(demo(path / "ran"))
    make_sweep(path / "of" / "mine", [choices(batch_size=b) for b in (2, 4)])
    for name, data in (("empty", b""), ("odd", b"PAR1" + b"x" * 40), ("text", b"no table")):
        (path / name).mkdir()
        (path / name / "grid.parquet").write_bytes(data)
    (path / "gone" / "points").mkdir(parents=True)
    (path / "gone" / "journal.jsonl").write_text("")
    (path / "notes").mkdir()
    return path


def test_every_sweep_has_a_line(folder, capsys):
    """In order, with what varies and kWh; whatever is wrong with one, the others are there."""
    code, out, talk = verb(capsys, folder)
    assert code == 0
    head, *lines = [line.split("\t") for line in out.splitlines()]
    assert head == ["sweep", "state", "points", "varies", "kWh", "when"]
    assert [line[:2] for line in lines] == [
        ["empty", "damaged"],
        ["gone", "damaged"],
        ["odd", "damaged"],
        ["of/mine", "untried"],
        ["ran", "failed"],
        ["text", "damaged"],
    ]
    assert lines[3][2:5] == ["2 untried", "batch_size", "-"]
    assert lines[4][2] == "8 done, 1 failed, 1 infeasible"
    assert lines[4][4].startswith("~")
    assert all(f"{name}: " in talk for name in ("empty", "gone", "odd", "text"))


def test_the_same_as_json(folder, capsys):
    """Counts by state, keys that vary and the problem of each; a sweep may be named itself."""
    code, out, _ = verb(capsys, folder, "--json")
    found = {entry["sweep"]: entry for entry in json.loads(out)}
    assert (code, len(found)) == (0, 6)
    assert found["of/mine"]["counts"] == {"untried": 2}
    assert found["of/mine"]["varies"] == ["batch_size"]
    assert found["odd"]["problem"]
    _, out, _ = verb(capsys, folder / "of" / "mine", "--json")
    assert [entry["sweep"] for entry in json.loads(out)] == ["mine"]


def test_a_folder_without_sweeps_is_refused(tmp_path, capsys):
    """Exit code 2 and the folder, also of one that is not there."""
    for path in (tmp_path, tmp_path / "none"):
        code, out, talk = verb(capsys, path)
        assert (code, out) == (2, "")
        assert str(path) in talk


def test_tags_and_the_newest_note_are_shown_and_found(tmp_path, capsys):
    """Columns that nobody used are not there."""
    for name in ("a", "b"):
        make_sweep(tmp_path / "sweeps" / name, [choices()])
    _, before, _ = verb(capsys, tmp_path)
    assert before.splitlines()[0].split("\t")[-1] == "when"
    add(SweepDir(tmp_path / "sweeps" / "b"), ["paper"], "after the new driver")
    heading, _, tagged = [line.split("\t") for line in verb(capsys, tmp_path)[1].splitlines()]
    assert heading[-2:] == ["tags", "note"]
    assert tagged[-2:] == ["paper", "after the new driver"]
    found = verb(capsys, tmp_path, "--tag", "paper")[1].splitlines()
    assert [line.split("\t")[0] for line in found[1:]] == ["sweeps/b"]
