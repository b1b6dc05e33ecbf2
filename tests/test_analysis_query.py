"""SQL reads the tables that it is given: one SELECT, no file, no network, no other variable."""

import polars as pl
import pytest

from wattflow.analysis.query import query
from wattflow.errors import RefusedError

TABLES = {
    "points": pl.DataFrame({"model": ["a", "a", "b"], "energy_j": [1.0, 2.0, 4.0], "n": [1, 2, 3]}),
    "traces": pl.LazyFrame({"power_w": [100.0, 300.0]}),
}


@pytest.mark.parametrize(
    ("statement", "rows"),
    [
        (
            "select model, sum(energy_j) j from points group by 1 order by 1",
            [("a", 3.0), ("b", 4.0)],
        ),
        ("from points select max(n)", [(3,)]),
        ("with b as (select * from points where model = 'b') select energy_j from b", [(4.0,)]),
        ("SELECT avg(power_w) FROM Traces", [(200.0,)]),
        ("select sum(n) from points", [(6,)]),  # a plain number, no decimal
    ],
)
def test_a_select_finds_its_rows(statement, rows):
    """Known sums, by any case of the tables' names."""
    assert query(statement, TABLES).rows() == rows


@pytest.mark.parametrize(
    ("statement", "columns"),
    [
        ("select 1 a, 2 a, 3 a", {"a": [1], "a_2": [2], "a_3": [3]}),
        ("select p.n, q.n from points p join points q using (n) limit 1", {"n": [1], "n_2": [1]}),
        ("select sum(9223372036854775807) s from range(10)", {"s": [9223372036854775807 * 10.0]}),
        ("select 1.25::decimal(10,2) d", {"d": [1.25]}),
        ("select union_value(num := 2) u", {"u": ["2"]}),
        ("select [1, 2] l", {"l": [[1, 2]]}),
        ("select 'x'::blob b", {"b": ["b'x'"]}),
    ],
)
def test_what_duckdb_finds_is_shown_in_plain_values(statement, columns):
    """Names that come again are numbered, sums beyond 64 bits are floats, other kinds are text."""
    assert query(statement, TABLES).to_dict(as_series=False) == columns


def test_an_interval_is_text():
    """As Arrow writes it."""
    (text,) = query("select interval 1 day i", TABLES)["i"].to_list()
    assert isinstance(text, str)


def test_a_time_without_end_is_refused_by_its_column():
    """No value of Python's has it; the message says what to do."""
    with pytest.raises(RefusedError, match=r"column t.*::varchar"):
        query("select timestamp 'infinity' t", TABLES)


def test_readings_are_read_only_where_they_are_asked_for():
    """A lazy table that cannot be read stops no query that does not name it."""

    absent = {**TABLES, "traces": pl.scan_parquet("absent.parquet")}
    assert query("select count(*) from points", absent).rows() == [(3,)]
    with pytest.raises(FileNotFoundError):
        query("select * from traces", absent)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("select 1; select 2", "not one SELECT"),
        ("drop table points", "not one SELECT"),
        ("copy points to '{place}'", "not one SELECT"),
        ("attach '{place}'", "not one SELECT"),
        ("install httpfs", "not one SELECT"),
        ("set enable_external_access = true", "not one SELECT"),
        ("", "not one SELECT"),
        ("select * from read_csv('{secret}')", "file system operations are disabled"),
        ("select * from read_text('{secret}')", "file system operations are disabled"),
        ("select * from '{secret}'", "file system operations are disabled"),
        ("select * from glob('/*')", "file system operations are disabled"),
        ("select * from TABLES", "does not exist"),  # a variable of this module
        ("select getenv('HOME')", "does not exist"),
        ("select wrong from points", "wrong"),
        ("select '", "unterminated"),
    ],
)
def test_what_does_not_read_the_tables_is_refused(statement, said, tmp_path):
    """One line that says why; no file is made or read."""
    secret = tmp_path / "secret.csv"
    secret.write_text("password\nhunter2\n")
    place = tmp_path / "place"
    with pytest.raises(RefusedError, match=said) as refused:
        query(statement.format(place=place, secret=secret), TABLES)
    assert "\n" not in str(refused.value)
    assert not place.exists()
