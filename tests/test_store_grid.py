"""grid.parquet, written and read: the points of a sweep in order, one of them alone, and what is none."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sweeps import choices

from wattflow.config.choices import Config, Power
from wattflow.errors import DamagedError, RefusedError
from wattflow.store.grid import GridPoint, read_grid, read_point, write_grid
from wattflow.store.layout import SweepDir


def points(count):
    """Points 000000000000, 000000000001 ... of as many seeds; each third one cannot run."""
    reasons = (None, None, "too big")
    return [
        GridPoint(f"{i:012x}", i, reasons[i % 3], json.dumps(choices(seed=i))) for i in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_what_is_written_is_read(tmp_path, count):
    """All points come back as they were written, in order."""
    write_grid(tmp_path / "grid.parquet", points(count))
    assert read_grid(tmp_path / "grid.parquet") == points(count)


def test_points_are_read_in_the_order_of_their_positions(tmp_path):
    """A file whose rows lie the other way round gives the same list."""
    write_grid(tmp_path / "grid.parquet", points(3)[::-1])
    assert [point.position for point in read_grid(tmp_path / "grid.parquet")] == [0, 1, 2]


def test_one_point_is_read_from_the_group_of_rows_that_holds_it(tmp_path):
    """2,001 points are three groups; the first and last row of each are found, and no other text is decoded."""
    path = tmp_path / "grid.parquet"
    write_grid(path, [GridPoint(f"{i:012x}", i, None, str(i)) for i in range(2001)])
    assert [pq.read_metadata(path).row_group(g).num_rows for g in range(3)] == [1000, 1000, 1]
    for i in (0, 999, 1000, 1999, 2000):
        assert read_point(path, f"{i:012x}") == GridPoint(f"{i:012x}", i, None, str(i))


def test_a_point_that_the_sweep_lacks_is_refused(tmp_path):
    """The message names the point and the sweep."""
    write_grid(tmp_path / "grid.parquet", points(2))
    with pytest.raises(RefusedError, match=f"ffffffffffff: no such point in {tmp_path}"):
        SweepDir(tmp_path).point("ffffffffffff")


def test_choices_are_decoded_and_typed():
    """Seed 2 is read back as a number among the defaults of a configuration."""
    point = points(3)[2]
    assert point.choices()["seed"] == 2
    assert point.config().seed == 2
    assert point.config().power == Power()
    assert point.command() is None


def test_the_choices_of_an_older_sweep_have_defaults_for_later_keys():
    """Written before `control`, `cluster.cost` and `sweep.on_interrupt` were keys."""
    older = choices()
    del older["control"], older["cluster"]["cost"], older["sweep"]["on_interrupt"]
    assert GridPoint("0" * 12, 0, None, json.dumps(older)).config() == points(1)[0].config()


def test_a_measured_command_has_its_meter_and_place_alone():
    """`measure` writes no model; the typed form has a default for it, and the command stands beside."""
    written = {
        "measure": {"command": ["sleep", "1"]},
        "power": {"meter": "rapl"},
        "cluster": {"name": "local", "accounting": True, "group_readable": False},
    }
    point = GridPoint("0" * 12, 0, None, json.dumps(written))
    assert point.command() == ["sleep", "1"]
    assert point.config().power.meter == "rapl"
    assert point.config().cluster.name == "local"
    assert point.config().model == Config().model


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[1]", "null", '{"model": 1}', '{"model": {"name": "x", "colour": 2}}'),
        *('{"sweep": {"exclude": 1}}', '{"cluster": []}', '{"hue": 1}', "[" * 100_000),
    ],
    ids=lambda text: text[:20],
)
def test_what_are_no_choices_is_said_with_the_point(text):
    """A text that is no JSON object, or holds keys that this version does not have."""
    with pytest.raises(DamagedError, match=r"point 0{12}: its choices are none"):
        GridPoint("0" * 12, 0, None, text).config()


def test_a_grid_whose_position_is_null_is_damaged(tmp_path):
    """Nothing says when such a point is run."""
    path = tmp_path / "grid.parquet"
    write_grid(path, points(2))
    table = pq.read_table(path)
    fields = [field.with_nullable(True) for field in table.schema]
    table = table.cast(pa.schema(fields, table.schema.metadata))
    at = table.schema.get_field_index("position")
    pq.write_table(table.set_column(at, fields[at], pa.array([0, None], pa.int32())), path)
    with pytest.raises(DamagedError, match="column position has nulls"):
        read_grid(path)


def test_a_cut_grid_is_damaged(tmp_path):
    """Half a file has no points, and no point."""
    path = tmp_path / "grid.parquet"
    write_grid(path, points(2))
    path.write_bytes(path.read_bytes()[:-200])
    for read in (read_grid, lambda path: read_point(path, "0" * 12)):
        with pytest.raises(DamagedError, match="not a Parquet file"):
            read(path)


def test_a_grid_that_names_a_point_twice_is_damaged(tmp_path):
    """Whatever else the rows say: no plan writes it, and each row would be worked through again."""
    first = points(2)[0]
    write_grid(tmp_path / "grid.parquet", [*points(2), first])
    with pytest.raises(DamagedError, match="names point '000000000000' twice"):
        read_grid(tmp_path / "grid.parquet")
