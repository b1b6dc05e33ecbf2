"""columns.csv declares every column of every table once: Arrow's type, unit, boundary and meaning."""

import pyarrow as pa
import pytest

from wattflow.store.columns import COST, CROSSCHECK, PHASE, POINT
from wattflow.store.schema import GRID, READS, REQUEST, SPAN, TRACE, columns_of, fields

TABLES = {
    "points": POINT,
    "phases": PHASE,
    "cost": COST,
    "crosscheck": CROSSCHECK,
    "trace": TRACE,
    "spans": SPAN,
    "requests": REQUEST,
    "grid": GRID,
    "reads": READS,
}
tables = pytest.mark.parametrize("table", TABLES)


@tables
def test_a_table_has_its_declared_columns_once(table):
    """Names in the file's order, none twice, each with a meaning that is a sentence."""
    declared = columns_of(table)
    names = [column.name for column in declared]
    assert names
    assert len(names) == len(set(names))
    assert [name for name in TABLES[table].names if name in names] == names
    assert all(column.meaning.endswith(".") for column in declared)


@tables
def test_a_unit_stands_in_the_name(table):
    """A name that ends in a unit of physics has that unit in the file."""
    endings = {"_j": "J", "_w": "W", "_ns": "ns", "_mhz": "MHz", "_pct": "%", "_bytes": "bytes", "_kwh": "kWh",
               "_mj": "mJ", "_us": "us"}  # fmt: skip
    for column in columns_of(table):
        for ending, unit in endings.items():
            if column.name.endswith(ending):
                assert column.unit.startswith(unit) or column.unit.endswith("/kWh"), column


@tables
def test_energy_and_power_have_a_boundary_and_nothing_else_has(table):
    """What is in J, W or kWh, also per something, says what it is of."""
    for column in columns_of(table):
        energy = column.unit.partition("/")[0] in ("J", "mJ", "W", "kWh")
        assert (
            column.boundary in ("devices", "device", "host", "node", "accelerators", "site")
        ) == energy, column
        assert energy or not column.boundary


def test_columns_that_every_row_has_are_not_null():
    """Of a trace the time, the sensor and the gap's flag are never null; power is, in most rows."""
    required = [field.name for field in TRACE if not field.nullable]
    assert required == ["time_ns", "source", "gap"]
    assert TRACE.field("time_ns").type == pa.int64()
    assert TRACE.field("throttle_reasons").type == pa.uint64()


def test_results_carry_unit_and_meaning_and_raw_tables_do_not():
    """Whoever opens a table of results has its units; readings, which are many and small files, have names alone."""
    about = POINT.field("energy_per_token_j").metadata
    assert about == {b"unit": b"J/token", b"meaning": b"energy_j / tokens_kept."}
    assert all(field.metadata for table in (POINT, PHASE, COST, CROSSCHECK) for field in table)
    assert not any(field.metadata for field in fields("trace"))


def test_no_such_table():
    """A table that is not declared has no columns."""
    assert columns_of("nonsense") == []
