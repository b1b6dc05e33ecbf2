"""`wattflow crossover`: the table, the sentences, JSON, and simulated joules that establish nothing."""

import json

import pytest
from test_analysis_controls import control_of
from test_analysis_crossover import swept

from wattflow.analysis import controls
from wattflow.analysis.crossover import crossovers
from wattflow.cli.app import main


def run(monkeypatch, *words):
    """The exit code of a verb."""
    monkeypatch.setattr("sys.argv", ["wattflow", "crossover", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_it_prints_the_ratios_and_the_crossing(tmp_path, capsys, monkeypatch):
    """A row a batch, and the batch where it crosses on stdout."""
    opened = swept(tmp_path / "s", {8: 1.25, 64: 0.8})
    assert run(monkeypatch, str(opened.directory.path), "--reference", "bf16") in (None, 0)
    out = capsys.readouterr().out
    assert "1.2500" in out
    assert "0.8000" in out
    assert "It crosses between batch_size 8 and 64, at about 22.6: dearer below" in out


def test_as_json(tmp_path, capsys, monkeypatch):
    """Arms, crossings and sentences."""
    opened = swept(tmp_path / "s", {8: 1.25, 64: 0.8})
    words = [str(opened.directory.path), "--reference", "bf16", "--json"]
    assert run(monkeypatch, *words) in (None, 0)
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["precision"], found["against"]) == ("fp8", "bf16")
    assert [arm["established"] for arm in found["arms"]] == [True, True]
    assert found["crossings"][0]["low"] == 8


def test_the_controls_beside_a_sweep_are_read(tmp_path, monkeypatch):
    """The same that `compare` reads: those in the folder of the sweep."""
    opened, given = swept(tmp_path / "s", {8: 1.25, 64: 0.8}), []
    own = control_of(opened.points)
    controls.keep(opened.directory, [own])
    real = crossovers

    def seen(*words, **options):
        given.append(options["controls"])
        return real(*words, **options)

    monkeypatch.setattr("wattflow.cli.crossover.crossovers", seen)
    assert run(monkeypatch, str(opened.directory.path), "--reference", "bf16") in (None, 0)
    assert given == [[own]]
