"""SQL over the results of sweeps: DuckDB reads the tables that it is given and nothing else.

wattflow query "select model, min(energy_per_token_j) from points where counts group by model" sweeps/*
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import polars as pl
import pyarrow as pa

from wattflow.errors import RefusedError

INSTALL = "python -m pip install 'wattflow[query]'"
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",  # no files, no network, no further extensions
    "python_enable_replacements": "false",  # a table's name is never a variable of this program
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "allow_community_extensions": "false",
    "memory_limit": "4GB",
}


def query(statement: str, tables: Mapping[str, pl.DataFrame | pl.LazyFrame]) -> pl.DataFrame:
    """Return the rows that one SELECT finds in some tables; lazy ones are read only where the statement names them.

    RefusedError without DuckDB, for more or other than one statement that reads, and for what DuckDB cannot run.
    """
    try:
        import duckdb  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        raise RefusedError(f"SQL needs DuckDB: {INSTALL}") from error
    with duckdb.connect(":memory:", config=_SETTINGS) as connection:
        connection.execute("set lock_configuration = true")
        try:
            _refuse_other_than_select(connection, statement)
            for name, table in tables.items():
                if isinstance(table, pl.DataFrame):
                    connection.register(name, table.to_arrow())
            for name, table in tables.items():
                if isinstance(table, pl.LazyFrame) and _names(connection, statement, name):
                    connection.register(name, table.collect().to_arrow())
            found = connection.sql(statement).to_arrow_table()
        except duckdb.Error as error:
            raise RefusedError(f"the query cannot run: {_first(error)}{_tables(tables)}") from error
    return _frame(found)


def _refuse_other_than_select(connection: Any, statement: str) -> None:
    """Raise RefusedError unless a statement is one SELECT."""
    import duckdb  # noqa: PLC0415 (an extra)

    statements = connection.extract_statements(statement)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise RefusedError(
            "the query is not one SELECT: results are read, never changed. Write one statement that begins with "
            "select, with, from, describe or summarize."
        )


def _names(connection: Any, statement: str, table: str) -> bool:
    """Return whether a statement reads a table; DuckDB may need the table's columns to say so, and then it does."""
    import duckdb  # noqa: PLC0415 (an extra)

    try:
        return table in {name.lower() for name in connection.get_table_names(statement)}
    except duckdb.Error:
        return True


def _first(error: Exception) -> str:
    """Return DuckDB's message without the drawing of the statement below it."""
    return str(error).split("\n\nLINE")[0].replace("\n", " ")


def _tables(tables: Mapping[str, object]) -> str:
    return f" The tables are {', '.join(tables)}; docs/results.md has their columns."


def _frame(table: pa.Table) -> pl.DataFrame:
    """Return what DuckDB found as columns of plain values; a name that comes again has its number behind it."""
    seen: Counter[str] = Counter()
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        seen[name] += 1
        own = name if seen[name] == 1 else f"{name}_{seen[name]}"
        try:
            columns.append(_column(column).alias(own))
        except (ValueError, ArithmeticError, pa.ArrowException) as error:
            raise RefusedError(
                f"column {own}: its values cannot be shown ({error}). Cast it, such as {name}::varchar."
            ) from error
    return pl.DataFrame(columns)


def _column(column: pa.ChunkedArray) -> pl.Series:
    """Return a column as numbers, texts, times and lists of these; of other kinds as text.

    DuckDB's sums of whole numbers are decimals, which become whole numbers where they fit 64 bits.
    """
    kind = column.type
    numbers = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)
    # raises for times without end; numbers have none, and of all readings there are millions
    values = [] if any(is_kind(kind) for is_kind in numbers) else column.to_pylist()
    if pa.types.is_decimal(kind):
        whole = kind.scale == 0 and all(value is None or abs(value) < 2**63 for value in values)
        number = int if whole else float
        plain = pl.Int64 if whole else pl.Float64
        return pl.Series(
            [None if value is None else number(value) for value in values], dtype=plain
        )
    as_text = (pa.types.is_interval, pa.types.is_union, pa.types.is_map, pa.types.is_binary)
    if any(is_kind(kind) for is_kind in (*as_text, pa.types.is_large_binary)):
        return pl.Series(
            [None if value is None else str(value) for value in values], dtype=pl.String
        )
    found = pl.from_arrow(column)
    assert isinstance(found, pl.Series)
    return found
