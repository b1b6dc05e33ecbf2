"""Raw traces are held to the copies that were collected of them."""

import os
import re
import shutil

import pyarrow.parquet as pq
import pytest
from forgery import add_watts, edit, first_trace, make_original, said, set_cell

from wattflow.collect.collect import collect
from wattflow.publish.verify import verify
from wattflow.store.layout import SweepDir


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The sweep, its bundle, and that unpacked; nobody writes there."""
    return make_original(tmp_path_factory.mktemp("original"))


@pytest.fixture
def sweep(original, tmp_path):
    """A copy of the sweep, to be changed."""
    shutil.copytree(original / "s", tmp_path / "s")
    return SweepDir(tmp_path / "s")


def test_a_sample_in_no_window_is_found_by_its_copy(sweep):
    """A sample after the last batch changes no joule of the window, and is not what was collected."""
    edit(first_trace(sweep.path), add_watts(3.0, at_s=11.65))
    verdict = verify(sweep.path)
    assert not verdict.verified
    assert "is not its copy in results/traces: power_w of row" in said(verdict)


def test_a_value_that_is_no_number_equals_its_copy(sweep):
    """GPM told NaN for a rate at its first reading on an H100; as collected it is no difference, as changed it is."""
    trace = first_trace(sweep.path)
    edit(trace, set_cell("dram_activity_pct", float("nan"), row=3))
    os.utime(trace.parents[1] / "record.json")
    collect(sweep)
    assert verify(sweep.path).verified
    edit(trace, set_cell("dram_activity_pct", 50.0, row=3))
    assert re.search(r"dram_activity_pct of row \d+ is 50.0, was nan", said(verify(sweep.path)))


def test_a_reading_more_or_less_than_its_copy(sweep):
    """A raw trace that lost a row after the window has 1 reading less than its copy."""
    path = first_trace(sweep.path)
    rows = pq.read_metadata(path).num_rows
    edit(path, lambda rows: rows[:-1])
    assert f"has {rows - 1} rows, its copy in results/traces {rows}." in said(verify(sweep.path))


def test_a_copy_that_is_gone(sweep):
    """GPUs whose file in results/traces is cut have no copy; where the folder is gone, a note says so."""
    for path in sweep.traces.glob("*.parquet"):
        path.write_bytes(b"PAR1")
    assert "has no copy in results/traces" in said(verify(sweep.path))
    shutil.rmtree(sweep.traces)
    verdict = verify(sweep.path)
    assert verdict.verified
    assert "no second copy to be held against" in verdict.notes[0]
