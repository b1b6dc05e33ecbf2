"""From a grid to a report on this machine, with every part real: ranks over gloo, the sidecar, Parquet, the report."""

import json
from pathlib import Path

import polars as pl
import pytest
from local_runs import SMALL, call

import wattflow

pytest_plugins = ("fake_nvml.fixtures",)


@pytest.fixture(scope="module")
def flown(tmp_path_factory):
    """A sweep over shards 1 and 2, submitted from the command line and waited for."""
    where = tmp_path_factory.mktemp("flow")
    done = call(
        "submit", *SMALL, "shards=1,2", "sweep=flow", "sweep.repeats=1", "--wait", cwd=where
    )
    return where, done


def test_submit_and_wait_ends_with_the_table(flown):
    """The closing table has the throughput, the watts and where they came from; simulated ones carry `~`."""
    _, done = flown
    head, *rows = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    assert {"tokens/s", "words/s", "responses/s", "W", "J/token", "J/response", "source"} <= set(
        head
    )
    assert len(rows) == 2
    for row in rows:
        cells = dict(zip(head, row, strict=True))
        if "simulated" in cells["source"]:
            assert cells["W"].startswith("~")
            assert cells["J/token"].startswith("~")
        assert not cells["tokens/s"].startswith("~")
        assert cells["words/s"] == "-"  # dummy weights: their text means nothing
    assert "2 done" in done.stderr


def test_every_prompt_is_answered_the_last_short_batch_too(flown):
    """Six prompts in batches of four are two batches, and each prompt keeps its eight tokens."""
    where, _ = flown
    points = wattflow.open_sweep(where / "sweeps" / "flow").points
    assert points["counts"].to_list() == [True, True]
    assert points["responses"].to_list() == [6, 6]
    assert points["tokens_kept"].to_list() == [48, 48]


def test_numbers_of_a_row_agree_with_each_other(flown):
    """energy = power x time, J/token x tokens = energy, rate x time = tokens, and the phases make up the window."""
    where, _ = flown
    for row in wattflow.open_sweep(where / "sweeps" / "flow").points.to_dicts():
        assert row["energy_j"] == pytest.approx(row["power_w"] * row["duration_s"], rel=1e-6)
        assert row["energy_j"] == pytest.approx(row["energy_per_token_j"] * 48, rel=1e-9)
        assert row["tokens_per_s"] * row["duration_s"] == pytest.approx(48, rel=1e-9)
        parts = row["prefill_energy_j"] + row["decode_energy_j"] + row["other_energy_j"]
        assert parts == pytest.approx(row["energy_j"], rel=1e-9)
        assert row["valid"], row["reasons"]


def test_each_row_says_how_near_the_limit_it_was(flown):
    """Two shards read half the bytes of one in as many steps; shares are the least time over what was taken."""
    where, _ = flown
    points = wattflow.open_sweep(where / "sweeps" / "flow").points.sort("shards").to_dicts()
    assert points[0]["step_bytes"] == pytest.approx(2 * points[1]["step_bytes"])
    assert points[0]["decode_steps"] == points[1]["decode_steps"] > 0
    for row in points:
        least_s = row["decode_steps"] * max(
            row["step_bytes"] / row["copy_bytes_per_s"],
            row["step_flops"] / row["product_flops_per_s"],
        )
        assert row["decode_roofline_share"] == pytest.approx(least_s / row["decode_s"])
        assert row["prefill_roofline_share"] > 0
        assert row["ceilings_source"].endswith("in fp32, after the batches")


def test_shards_do_not_change_the_prompts_or_the_joules_counted(flown):
    """Both points saw the same prompts; two ranks on one host's meter are billed once."""
    where, _ = flown
    points = wattflow.open_sweep(where / "sweeps" / "flow").points.sort("shards")
    assert points["prompts_sha256"].n_unique() == 1
    simulated = points.filter(pl.col("power_source") == "simulated")
    for row in simulated.to_dicts():
        # the joules are the node's window, the seconds rank 0's: they differ by the ranks' own edges
        assert 40.0 <= row["power_w"] <= 121.0


def test_an_attempt_leaves_few_private_files(flown):
    """At most three files, one a node and one a GPU; nobody else may read them."""
    where, _ = flown
    for attempt in (where / "sweeps" / "flow" / "points").glob("*/attempt-1"):
        files = [path for path in attempt.rglob("*") if path.is_file()]
        assert len(files) <= 3 + 1 + 1, files
        assert all(path.stat().st_mode & 0o077 == 0 for path in attempt.rglob("*"))
        record = json.loads((attempt / "record.json").read_text())
        assert record["status"] == "finished"
        assert record["prompts"]["count"] == 6


def test_status_resume_and_a_second_submit_have_nothing_to_do(flown):
    """What is finished is not done twice."""
    where, _ = flown
    assert call("status", "flow", cwd=where).stdout.count("\tdone\t") == 2
    assert call("resume", "flow", cwd=where).stdout == ""
    again = call("submit", *SMALL, "shards=1,2", "sweep=flow", "sweep.repeats=1", cwd=where)
    assert again.stdout == ""
    assert "0 points sent" in again.stderr


def test_report_is_one_file(flown):
    """The report holds its scripts and names no other host."""
    where, _ = flown
    path = Path(call("report", "flow", cwd=where).stdout.strip())
    text = path.read_text()
    assert path == where / "sweeps" / "flow" / "results" / "report.html"
    assert 'src="http' not in text
    assert "vega" in text.lower()


def test_run_is_a_hydra_application_that_leaves_only_the_sweep(tmp_path):
    """`run -m` measures each point in this process's terminal and leaves neither outputs/ nor multirun/."""
    done = call(
        "run", "-m", "engine=synthetic", *SMALL, "batch_size=2,3", "sweep=here", cwd=tmp_path
    )
    assert [path.name for path in tmp_path.iterdir()] == ["sweeps"]
    assert len([line for line in done.stdout.splitlines() if "\t" in line]) == 3
    assert "multirun.yaml" not in {path.name for path in tmp_path.rglob("*")}


def test_caps_on_an_own_node_from_the_grid_to_the_table(tmp_path, nvml_path, monkeypatch):
    """Two caps run in turn, each in force in its rows alone; `caps` keeps them apart; the board is put back."""
    board = tmp_path / "board"
    board.mkdir()
    monkeypatch.setenv("FAKE_NVML_STATE", str(board))
    monkeypatch.setenv("FAKE_NVML_GPUS", "1")
    monkeypatch.setenv("FAKE_NVML_CURVE", "constant:310")
    monkeypatch.setenv("FAKE_NVML_REASONS", "0")
    asked = [
        "control.power_limit_w=600,300",
        f"control.journal_dir={tmp_path / 'journals'}",
        "engine=synthetic",
        "power.meter=nvml",
        "shards=1",
        "engine.synthetic_ms_per_token=20",  # a window of many of the buffer's samples, which are 20 ms apart
    ]
    call("submit", *SMALL, *asked, "sweep=caps", "sweep.repeats=1", "--wait", cwd=tmp_path)
    points = wattflow.open_sweep(tmp_path / "sweeps" / "caps").points
    limits = dict(points.select("control_power_limit_w", "power_limit_w").iter_rows())
    assert limits == {600: 600.0, 300: 300.0}
    bound = dict(points.select("control_power_limit_w", "cap_bound").iter_rows())
    assert bound == {600: False, 300: True}
    assert points["counts"].all()
    assert [path.read_text() for path in board.iterdir()] == ["700000 0\n"]
    table = call("caps", "caps", "--reference", "600", cwd=tmp_path)
    head, first, second = [line.split("\t") for line in table.stdout.splitlines()]
    assert head[:4] == ["cap, W", "n", "boards", "bound"]
    assert (first[0], second[0]) == ("600", "300")
    assert first[4] == "reference"
    assert "least energy" in table.stderr
    call("caps", "caps", "--reference", "500", cwd=tmp_path, code=2)
