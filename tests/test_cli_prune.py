"""The verb `prune`: a dry run by default, and what it says."""

import json

import pytest
from sweeps import Gpu, Made, choices, make_attempt, make_sweep

from wattflow.cli.app import main
from wattflow.collect.collect import collect


@pytest.fixture
def sweep(tmp_path):
    """A point with an attempt, collected."""
    sweep = make_sweep(tmp_path / "s", [choices()])
    make_attempt(sweep, choices(), Made([Gpu("GPU-a")]))
    collect(sweep)
    return sweep


def verb(capsys, *words):
    """What `wattflow prune` printed, and its exit code."""
    code = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["wattflow", "prune", *map(str, words)])
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, *capsys.readouterr()


def test_a_dry_run_lists_all_kinds(sweep, capsys):
    """A line a kind with files and bytes, then what stays verifiable if all went."""
    code, out, talk = verb(capsys, sweep.path)
    assert code == 0
    head, *rows = [line.split("\t") for line in out.splitlines()]
    assert head[:3] == ["kind", "files", "bytes"]
    assert [row[:2] for row in rows] == [
        ["copies", "1"],
        ["traces", "1"],
        ["superseded", "0"],
        ["logs", "0"],
        ["leftovers", "0"],
        ["loose", "3"],
    ]
    assert "sweep s: 5 files, " in talk
    assert "of 1 points that count, `wattflow verify` can recompute 0; 1 are kept" in talk
    assert "Nothing was changed." in talk


def test_what_goes_has_to_be_named(sweep, capsys):
    """--apply alone is exit code 2 and removes nothing."""
    code, _, talk = verb(capsys, sweep.path, "--apply")
    assert code == 2
    assert "--copies, --traces, --superseded, --logs, --leftovers, --loose" in talk
    assert len(list(sweep.path.glob("points/*/*/traces/*"))) == 1


def test_paths_and_json_are_on_stdout(sweep, capsys):
    """--files has a path a line; --json the same counts as the table, before and after."""
    (trace,) = sweep.path.glob("points/*/*/traces/*")
    assert verb(capsys, sweep.path, "--traces", "--files")[1].strip() == str(trace)
    size = trace.stat().st_size
    said = {
        "kinds": {"traces": {"files": 1, "bytes": size}},
        "counting": 1,
        "recomputable": 0,
        "last_copies": 0,
    }
    for words, applied in ((("--json",), False), (("--json", "--apply"), True)):
        code, out, _ = verb(capsys, sweep.path, "--traces", *words)
        assert (code, json.loads(out)) == (0, said | {"applied": applied})
    assert not trace.exists()
