"""SQL over the results of sweeps: DuckDB reads the tables that it is given and nothing else.

wattflow query "select model, min(energy_per_token_j) from points where counts group by model" sweeps/*
"""

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
            named = _read_by(connection, statement)
            for name, table in tables.items():
                if isinstance(table, pl.DataFrame):
                    connection.register(name, table.to_arrow())
                elif name in named:
                    connection.register(name, table.collect().to_arrow())
            found = connection.sql(statement).to_arrow_table()
        except duckdb.Error as error:
            raise RefusedError(f"the query cannot run: {_first(error)}{_tables(tables)}") from error
    return _frame(found)


def _read_by(connection: Any, statement: str) -> set[str]:
    """Return the names of the tables that a statement reads; RefusedError unless it is one SELECT."""
    import duckdb  # noqa: PLC0415 (an extra)

    statements = connection.extract_statements(statement)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise RefusedError(
            "the query is not one SELECT: results are read, never changed. Write one statement that begins with "
            "select, with, from, describe or summarize."
        )
    return {name.lower() for name in connection.get_table_names(statement)}


def _first(error: Exception) -> str:
    """Return DuckDB's message without the drawing of the statement below it."""
    return str(error).split("\n\nLINE")[0].replace("\n", " ")


def _tables(tables: Mapping[str, object]) -> str:
    return f" The tables are {', '.join(tables)}; docs/results.md has their columns."


def _frame(table: pa.Table) -> pl.DataFrame:
    """Return a table with plain numbers: DuckDB's sums of whole numbers are decimals, which JSON would have as text."""
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    plain = [
        pl.col(name).cast(pl.Float64 if kind.scale else pl.Int64)
        for name, kind in frame.schema.items()
        if isinstance(kind, pl.Decimal)
    ]
    return frame.with_columns(plain)
