"""Results as they were published: of other versions, and with rows that are twice there."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forgery import edit, make_original, said

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


def set_version(path, version):
    table = pq.read_table(path)
    pq.write_table(
        table.replace_schema_metadata({**table.schema.metadata, b"wattflow": version}), path
    )


def test_results_of_another_version_are_told(sweep):
    """The note names both versions, whether or not a figure differs."""
    set_version(sweep.points_path, b"0.0.9")
    verdict = verify(sweep.path)
    assert verdict.verified
    assert "made by wattflow 0.0.9" in verdict.notes[0]
    assert "results by wattflow 0.0.9" in said(verdict)


def test_columns_that_older_results_lack_are_named_and_not_compared(sweep):
    """Results from before a column was there pass, and the column is named."""
    table = pq.read_table(sweep.points_path)
    pq.write_table(table.drop_columns(["board_gain_u_j"]), sweep.points_path)
    verdict = verify(sweep.path)
    assert verdict.verified
    assert "made by an older wattflow" in verdict.notes[0]
    assert verdict.notes[0].endswith("Not compared: board_gain_u_j.")


def test_columns_of_a_later_version_are_named_and_not_compared(sweep):
    """A column that this version does not know is in a note."""
    table = pq.read_table(sweep.points_path)
    pq.write_table(table.append_column("colour", pa.nulls(table.num_rows)), sweep.points_path)
    verdict = verify(sweep.path)
    assert verdict.verified
    assert verdict.notes == ["columns unknown to this version, not compared: colour."]


def test_a_row_that_stands_twice(sweep):
    """A doubled row, and one of a point that the grid does not have, are problems."""
    edit(sweep.points_path, lambda rows: [*rows, rows[0], {**rows[1], "point_id": "f" * 12}])
    text = said(verify(sweep.path))
    assert "attempt 1: twice in the results." in text
    assert f"point {'f' * 12}, attempt 1: in the results and not in the grid." in text
