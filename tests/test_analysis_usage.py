"""What sweeps took, by where it went: against kilowatt-hours worked out by hand."""

import json
import shutil

import pytest
from sweeps import Gpu, Made, choices, constant, demo, make_attempt, make_sweep

from wattflow.analysis.sweep import open_sweep
from wattflow.analysis.usage import usage
from wattflow.cli.app import main
from wattflow.collect.collect import collect
from wattflow.errors import RefusedError

# at 360 W a second is 1e-4 kWh: idle, load and warm-up 1 s each, a window of 8.5 s, 2 s idle after it
POWER = constant(360.0)
PARTS = {"load": 1e-4, "warmup": 1e-4, "idle": 3e-4, "counting": 8.5e-4}


def attempt(**over):
    return Made([Gpu("GPU-a", POWER)], **{"idle_after_s": 2.0, "after_s": 2.2, **over})


def a_sweep(path, *attempts, point=None):
    """A collected sweep of one point with these attempts."""
    point = point or choices()
    sweep = make_sweep(path, [point])
    for made in attempts:
        make_attempt(sweep, point, made)
    collect(sweep)
    return sweep


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["wattflow", "usage", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


def test_where_the_energy_went(tmp_path):
    """1 s each of load and warm-up, 3 s of idling and a window of 8.5 s at 360 W; GPU-hours by the attempt's 60 s."""
    a_sweep(tmp_path / "s", attempt())
    (row,) = usage([tmp_path]).rows
    assert (row.sweep, row.boundary, row.simulated) == ("s", "gpu", False)
    assert (row.attempts, row.unknown, row.failed) == (1, 0, 0)
    for kind, kwh in PARTS.items():
        assert row.kwh[kind] == pytest.approx(kwh, rel=1e-3), kind
    assert row.kwh["failed"] == row.kwh["not_counting"] == row.kwh["running"] == 0.0
    assert row.total_kwh == pytest.approx(13.5e-4, rel=1e-3)
    assert row.gpu_hours == pytest.approx(60 / 3600)


def test_a_copy_of_a_sweep_is_counted_once(tmp_path):
    """13.5e-4 kWh of one sweep and its copy, which ran once; what began later at the same point is another attempt."""
    sweep = a_sweep(tmp_path / "a", attempt())
    shutil.copytree(sweep.path, tmp_path / "b")
    found = usage([tmp_path])
    assert [row.sweep for row in found.rows] == ["a"]
    assert found.rows[0].total_kwh == pytest.approx(13.5e-4, rel=1e-3)
    assert found.notes == ["b: 1 attempts are those of a: a copy; they are counted there alone"]
    a_sweep(tmp_path / "c", attempt(started_s=600.0))
    assert [row.sweep for row in usage([tmp_path]).rows] == ["a", "c"]


def test_failures_have_their_own_column(tmp_path):
    """A failed attempt's trace of 13.8 s is 13.8e-4 kWh of failure beside the good one's work."""
    a_sweep(tmp_path / "s", attempt(status="failed"), attempt(started_s=60.0))
    (row,) = usage([tmp_path / "s"]).rows
    assert (row.attempts, row.failed) == (2, 1)
    assert row.kwh["failed"] == pytest.approx(13.8e-4, rel=2e-3)
    assert row.kwh["counting"] == pytest.approx(8.5e-4, rel=1e-3)


def test_an_attempt_that_was_superseded(tmp_path):
    """Of two good attempts the newer one counts; the window of the other is work that does not."""
    a_sweep(tmp_path / "s", attempt(), attempt(started_s=60.0))
    (row,) = usage([tmp_path]).rows
    assert row.kwh["not_counting"] == pytest.approx(8.5e-4, rel=1e-3)
    assert row.kwh["load"] == pytest.approx(2e-4, rel=1e-3)


def test_a_point_in_pieces_is_billed_once(tmp_path):
    """A cut attempt whose batch was kept, and the one that went on: its row holds both windows, the bill each once."""
    point = choices()
    sweep = make_sweep(tmp_path / "s", [point])
    pieces = [{"attempt": n, "first_batch": 0, "batches": 1} for n in (1, 2)]
    for n, status in enumerate(("interrupted", "finished"), 1):
        made = attempt(status=status, batches=1, started_s=60.0 * n)
        one = make_attempt(sweep, point, made)
        one.write_record({**one.read_record(), "pieces": pieces[:n]})
    collect(sweep)
    told = open_sweep(sweep.path).attempts.to_dicts()[1]
    assert told["pieces"] == 2
    assert told["energy_j"] == pytest.approx(2 * 4 * 360.0, rel=1e-3)
    (row,) = usage([tmp_path]).rows
    assert row.kwh["not_counting"] == pytest.approx(4e-4, rel=1e-3)
    # 0.1 s before, 3 s of idle, load and warm-up, the batch of 4 s, 2.2 s after it
    assert row.kwh["failed"] == pytest.approx(9.3e-4, rel=3e-3)
    assert row.total_kwh == pytest.approx((9.3 + 4 + 5) * 1e-4, rel=3e-3)


def test_a_lost_attempt_is_a_failure_and_the_newest_one_runs(tmp_path):
    """Two records that say running: the first was superseded and so is lost, the second is at work."""
    a_sweep(tmp_path / "s", attempt(status="running"), attempt(status="running", started_s=60.0))
    (row,) = usage([tmp_path]).rows
    assert (row.attempts, row.failed) == (2, 1)
    assert row.kwh["failed"] == pytest.approx(13.8e-4, rel=2e-3)
    assert row.kwh["running"] == pytest.approx(13.8e-4, rel=2e-3)


def test_what_is_not_known_is_counted_and_no_zero(tmp_path):
    """A failed attempt without a trace is unknown: its kWh are null, and no total is made of nothing."""
    point = choices()
    sweep = make_sweep(tmp_path / "s", [point])
    one = make_attempt(sweep, point, attempt(status="failed"))
    one.trace_path("node1", "GPU-a").unlink()
    collect(sweep)
    (row,) = usage([tmp_path]).rows
    assert (row.attempts, row.failed, row.unknown) == (1, 1, 1)
    assert row.kwh["failed"] is None
    assert row.total_kwh is None


def test_simulated_and_measured_are_never_added(tmp_path, monkeypatch, capsys):
    """A measured and a simulated sweep have a total each, and the simulated one carries a ~."""
    a_sweep(tmp_path / "a", attempt())
    a_sweep(tmp_path / "b", attempt(started_s=600.0))
    collect(demo(tmp_path / "c"))
    found = usage([tmp_path])
    assert [row.sweep for row in found.rows] == ["a", "b", "c"]
    assert [(t.boundary, t.simulated, t.attempts) for t in found.totals] == [
        ("gpu", False, 2),
        ("host", True, 9),
    ]
    assert found.totals[0].total_kwh == pytest.approx(27e-4, rel=1e-3)
    assert run(monkeypatch, tmp_path) == 0
    shown = capsys.readouterr()
    head, *rows = [line.split("\t") for line in shown.out.splitlines()]
    kwh = head.index("kWh")
    assert [row[kwh].startswith("~") for row in rows] == [False, False, True, False, True]
    assert rows[3][:2] == ["all", "gpu"]
    assert "~ marks" in shown.err


def test_a_sweep_that_was_not_collected_is_named(tmp_path, monkeypatch, capsys):
    """Its joules are not in the table, and a note says what to do; so it is with attempts newer than the results."""
    make_sweep(tmp_path / "raw", [choices()])
    point = choices()
    sweep = a_sweep(tmp_path / "s", attempt(), point=point)
    make_attempt(sweep, point, attempt(started_s=60.0))
    assert run(monkeypatch, tmp_path) == 0
    shown = capsys.readouterr()
    assert "raw: " in shown.err
    assert "no results yet" in shown.err
    assert "s: 1 attempts are newer than its results" in shown.err


def test_a_load_that_was_shared_is_named(tmp_path):
    """No sidecar saw it, so no row can hold it: a note says so."""
    point = choices()
    sweep = make_sweep(tmp_path / "s", [point])
    one = make_attempt(sweep, point, attempt())
    one.write_record({**one.read_record(), "load_shared": True})
    collect(sweep)
    assert usage([tmp_path]).notes == ["s: 1 attempts shared loads, which were not measured"]


def test_no_sweep_there(tmp_path):
    """A folder without sweeps is refused."""
    with pytest.raises(RefusedError, match="no sweep, and none in it"):
        usage([tmp_path])


def test_a_sweep_named_twice_counts_once(tmp_path):
    """A folder and a sweep in it are one sweep."""
    a_sweep(tmp_path / "s", attempt())
    assert len(usage([tmp_path, tmp_path / "s"]).rows) == 1


def test_a_table_of_prices_that_is_gone_costs_no_joules(tmp_path):
    """The kWh are told all the same, without a price, and a note names the table."""
    path = str(tmp_path / "gone.csv")
    told = {"price_path": path, "currency": "EUR", "price_source": "tariff"}
    point = choices(**{f"cluster__cost__{key}": value for key, value in told.items()})
    a_sweep(tmp_path / "s", attempt(), point=point)
    found = usage([tmp_path])
    (row,) = found.rows
    assert row.total_kwh == pytest.approx(13.5e-4, rel=1e-3)
    assert row.price is None
    (note,) = found.notes
    assert note.startswith(f"s: without price and carbon, {path}: ")


def test_declared_factors_are_in_it(tmp_path, monkeypatch, capsys):
    """13.5e-4 kWh at 400 g are 0.54 g; JSON has the rows, totals and notes."""
    cost = {"carbon_g_per_kwh": 400.0, "carbon_source": "grid"}
    point = choices(**{f"cluster__cost__{key}": value for key, value in cost.items()})
    a_sweep(tmp_path / "s", attempt(), point=point)
    assert run(monkeypatch, tmp_path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sweeps"][0]["carbon_g"] == pytest.approx(0.54, rel=1e-3)
    assert told["sweeps"][0]["carbon_source"] == "grid"
    assert told["sweeps"][0]["price"] is None
    assert told["sweeps"][0]["total_kwh"] == pytest.approx(13.5e-4, rel=1e-3)
    assert (told["totals"], told["notes"]) == ([], [])
    assert run(monkeypatch, tmp_path) == 0
    assert "carbon by grid" in capsys.readouterr().err


def test_sweeps_of_one_name_are_named_by_their_paths(tmp_path, monkeypatch):
    """Two called `demo` are distinguished; a third is called by its name."""
    monkeypatch.chdir(tmp_path)
    for i, place in enumerate(("mine/demo", "theirs/demo", "mine/other")):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        a_sweep(tmp_path / place, attempt(started_s=600.0 * i))
    found = usage([tmp_path / "mine", tmp_path / "theirs"])
    assert {row.sweep for row in found.rows} == {"mine/demo", "theirs/demo", "other"}
