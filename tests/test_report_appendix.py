"""The artifact description of a sweep."""

import hashlib
import json
import shlex

import pytest
from sweeps import demo

import wattflow
from wattflow.cli.app import main
from wattflow.collect.collect import collect
from wattflow.report.appendix import appendix, commands, files


def described(
    tmp_path, words='["model=tiny", "dataset.path=/home/me/a.json", "cluster.account=abc"]'
):
    """A collected demo that was submitted by these words."""
    sweep = demo(tmp_path / "s")
    sweep.sweep_yaml.write_text(f'# The submits.\n- time: "now"\n  words: {words}\n')
    collect(sweep)
    return sweep


def test_it_has_hardware_software_commands_and_hashes(tmp_path):
    """Eight points of ten count; the hash is that of the file."""
    sweep = described(tmp_path)
    text = appendix(wattflow.open_sweep(sweep.path))
    assert "- devices: NVIDIA H100 80GB HBM3" in text
    assert "torch 2.13.0" in text
    assert "points that count: 8 of 10; attempts: 9" in text
    assert "SIMULATED" in text
    assert hashlib.sha256(sweep.points_path.read_bytes()).hexdigest() in text
    assert next(files(sweep)).name == "grid.parquet"


def test_paths_and_accounts_are_left_out(tmp_path):
    """A submit stands as it was, but for what names a place or an account; nor are nodes or jobs named."""
    sweep = described(tmp_path)
    assert [*commands(sweep)] == ["wattflow submit model=tiny dataset.path=... cluster.account=..."]
    text = appendix(wattflow.open_sweep(sweep.path))
    assert "/home/me" not in text
    assert "node1" not in text


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("cluster=hpc7", "cluster=..."),
        ("+cluster.sbatch_options={mail-user: me@site}", "+cluster.sbatch_options=..."),
        ("cluster.sbatch_options.nodelist=n[1-3]", "cluster.sbatch_options.nodelist=..."),
        ("cluster.python=/home/me/bin/python", "cluster.python=..."),
        ("workload.trace=~/trace.csv", "workload.trace=..."),
        ("model.path=a,b", "model.path=..."),
        *(
            (as_it_is, as_it_is)
            for as_it_is in (
                "cluster=local",
                "cluster.time_min=30",
                "~engine",
                "cluster.gpu_type=h100",
                "dataset.name=org/set",
                "batch_size=1,2,4",
                "cluster.pack=true",
            )
        ),
    ],
)
def test_nothing_of_the_site_is_shown(override, shown, tmp_path):
    """What a profile has as text names the site, its people or its nodes; figures and boards do not."""
    sweep = demo(tmp_path / "s")
    sweep.sweep_yaml.write_text(f"- time: now\n  words: {json.dumps([override])}\n")
    assert [*commands(sweep)] == [shlex.join(["wattflow", "submit", shown])]


def test_what_others_wrote_is_escaped(tmp_path):
    """A model's name with Markdown in it shows as it is."""
    sweep = described(tmp_path, '["model.name=a*b*"]')
    text = appendix(wattflow.open_sweep(sweep.path))
    assert "    wattflow submit 'model.name=a*b*'" in text


def test_the_verb_prints_it(tmp_path, monkeypatch, capsys):
    """As Markdown on stdout."""
    sweep = described(tmp_path)
    monkeypatch.setattr("sys.argv", ["wattflow", "appendix", str(sweep.path)])
    try:
        main()
    except SystemExit as end:
        code = end.code
    assert not code
    assert capsys.readouterr().out.startswith("# Artifact description: s\n")
