"""`wattflow explain` and `wattflow resolve`, as they are called."""

import json

import pytest
from collection import one
from sweeps import Gpu, Made

from wattflow.cli.app import main


def called(monkeypatch, capsys, *words):
    """What a call prints on stdout."""
    monkeypatch.setattr("sys.argv", ["wattflow", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return capsys.readouterr().out


def test_explain_prints_a_budget(tmp_path, monkeypatch, capsys):
    """A line an input, then combined and expanded; --json has the same."""
    sweep, _, row = one(tmp_path, Made([Gpu("GPU-a")]))
    out = called(monkeypatch, capsys, "explain", sweep.path, row["point_id"][:6])
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[0] for line in lines[1:]] == [
        *("sampling", "edges", "response", "aliasing", "missing", "ticks"),
        *("gain", "offset", "gain with offset"),
        *("combined, k = 1", "expanded, k = 2"),
    ]
    assert lines[-1][1] == f"{row['energy_expanded_u_j']:.4g}"
    found = json.loads(
        called(monkeypatch, capsys, "explain", sweep.path, row["point_id"], "--json")
    )
    assert found["energy_expanded_u_j"] == row["energy_expanded_u_j"]
    assert len(found["inputs"]) == 9


def test_resolve_prints_what_can_be_established(monkeypatch, capsys):
    """The issue's own call, and a line each for the usual numbers of boards and repeats."""
    words = ["--watts", 300, 150, "--boards", 1, "--repeats", 3]
    out = called(monkeypatch, capsys, "resolve", *words, "--json")
    (line,) = json.loads(out)
    assert line["smallest_difference"] == pytest.approx(0.046, abs=0.002)
    table = called(monkeypatch, capsys, "resolve", "--watts", 300, 150).splitlines()
    assert [line.split("\t")[:2] for line in table[1:]] == [
        ["1", "1"],
        ["1", "3"],
        ["1", "10"],
        ["3", "3"],
        ["8", "3"],
    ]
    assert table[1].endswith("none can be")


@pytest.mark.parametrize(("name", "begins"), [("a.svg", "<svg"), ("a.html", "<!DOCTYPE html>")])
def test_resolve_draws_its_figure(tmp_path, monkeypatch, capsys, name, begins):
    """For all watts, with published savings, as SVG or as a page that opens offline."""
    path = tmp_path / name
    assert called(monkeypatch, capsys, "resolve", "--draw", path).strip() == str(path)
    text = path.read_text()
    assert text.lstrip().startswith(begins)
    assert "LLaMA-65B, cap of 175 W" in text
    assert 'src="http' not in text


def test_resolve_refuses_a_figure_of_another_kind(tmp_path, monkeypatch):
    """A name that is neither ends with 2, and nothing is written."""
    monkeypatch.setattr("sys.argv", ["wattflow", "resolve", "--draw", str(tmp_path / "a.png")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert not list(tmp_path.iterdir())
