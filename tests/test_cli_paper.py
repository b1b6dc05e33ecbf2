"""The verb of the paper: what it lists, sends and draws."""

import json

import pytest

from wattflow.cli.app import main
from wattflow.paper import plans


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Nothing was run."""
    monkeypatch.chdir(tmp_path)


def run(monkeypatch, *words):
    """Run the command line; its exit code."""
    monkeypatch.setattr("sys.argv", ["wattflow", "paper", *words])
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    return 0


def test_it_lists_objects_with_grid_points_and_hours(monkeypatch, capsys):
    """Table III on A100s whose profile offers no cap: nine settings, three repeats, none of which can run."""
    assert (
        run(monkeypatch, "--only", "table3", "--only", "table5", "cluster=example-a100", "--json")
        == 0
    )
    caps, shards = json.loads(capsys.readouterr().out)
    assert (caps["object"], caps["grid"], caps["points"]) == ("table3", "paper-caps", 0)
    assert caps["cannot_run"] == 27
    # 18 points of 8 GPUs and more, four to a task of 4 hours: arithmetic of the profile
    assert (shards["points"], shards["done"]) == (18, 0)
    assert shards["gpu_hours_at_most"] > 0
    assert shards["gpu_hours_expected"] is None


def test_a_dry_run_prints_ordinary_commands_and_writes_nothing(monkeypatch, capsys, tmp_path):
    """One a grid."""
    assert run(monkeypatch, "submit", "--scale", "cpu", "--only", "fig4", "--dry-run") == 0
    said = capsys.readouterr().err
    assert "fig9: wattflow submit grid=paper-scaling sweep.name=paper-cpu-scaling-local" in said
    assert "6 points to send" in said
    assert [*tmp_path.iterdir()] == []


def test_a_grid_whose_points_another_sends_has_nothing_missing(monkeypatch, capsys):
    """At scale cpu lengths and shards are points of the grids before: said so, and written all the same."""
    sent, submit = [], plans.submit
    monkeypatch.setattr(
        plans, "submit", lambda part, **how: sent.append(part.plan.name) or submit(part, **how)
    )
    assert run(monkeypatch, "submit", "--scale", "cpu", "--dry-run") == 0
    lines = capsys.readouterr().err.splitlines()
    for grid in ("lengths", "shards"):
        assert (
            f"sweep paper-cpu-{grid}-local: nothing is missing; a grid above may hold its points."
            in lines
        )
    assert not [line for line in lines if "points cannot run" in line]
    assert sent == [
        f"paper-cpu-{one}-local" for one in ("baseline", "scaling", "lengths", "shards")
    ]


def test_a_report_of_nothing_says_what_to_do(monkeypatch, capsys, tmp_path):
    """Its page is written, each claim open; stdout ends with its path."""
    assert run(monkeypatch, "report", "--scale", "mini", "--only", "table4", "--out", "drawn") == 0
    out, err = capsys.readouterr()
    assert "`wattflow paper submit --scale mini` sends it" in err
    assert out.splitlines()[-1] == "drawn/paper.html"
    assert (tmp_path / "drawn" / "table4.svg").is_file()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["draw"], "paper draw: not one of list, submit, report"),
        (["--scale", "big"], "--scale big: not one of full, h200, mini, cpu"),
        (["--only", "fig1"], "--only fig1: not one of fig2"),
        (["submit", "grid=demo"], "names its own grids and sweeps"),
        (["report", "model=tiny"], "paper report model=tiny: takes sweeps_dir=DIR alone"),
        (["report", "--scale", "big"], "--scale big: not one of"),
    ],
)
def test_bad_input_is_refused(monkeypatch, capsys, words, why):
    """One line on stderr, exit code 2."""
    assert run(monkeypatch, *words) == 2
    assert why in capsys.readouterr().err
