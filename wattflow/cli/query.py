"""The verb that asks SQL of results."""

import io
import json
from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from wattflow.analysis.sweep import Sweeps
from wattflow.cli.arguments import AsJson, SweepArguments, check_folder_of
from wattflow.cli.opened import opened
from wattflow.cli.printing import print_json, print_table, print_text, talk
from wattflow.errors import RefusedError
from wattflow.store.files import write_atomic

FORMATS = (".csv", ".json", ".parquet")


def query(
    statement: Annotated[
        str, typer.Argument(metavar="SELECT", help="An SQL statement that reads.")
    ],
    sweeps: SweepArguments,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write FILE.csv, FILE.json or FILE.parquet."),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Ask SQL of the results of one or more sweeps.

    Tables: points, attempts, phases, traces; of several sweeps each begins with the column `sweep`. An attempt that a
    copy of a sweep holds too is there once.
    """
    if out is not None and out.suffix not in FORMATS:
        raise RefusedError(f"--out {out}: a name that ends in {', '.join(FORMATS)}.")
    if out is not None:
        check_folder_of("--out", out)
    results = opened(sweeps)
    found = results.sql(statement)
    if isinstance(results, Sweeps):
        for note in results.notes:
            talk(note)
    if out is not None:
        write_atomic(out, _written(found, out.suffix))
        print_text(out)
    elif as_json:
        print_json(_without_nan(found).to_dicts())
    else:
        numbers = [i for i, kind in enumerate(found.dtypes) if kind.is_numeric()]
        print_table(found.columns, found.rows(), numbers=numbers)


def _written(table: pl.DataFrame, suffix: str) -> bytes:
    """Return a table as the bytes of a file; CSV has no lists, which stand there as JSON."""
    if suffix == ".json":
        rows = _without_nan(table).to_dicts()
        return (json.dumps(rows, indent=1, default=str) + "\n").encode()
    buffer = io.BytesIO()
    if suffix == ".parquet":
        table.write_parquet(buffer)
    else:
        nested = [name for name, kind in table.schema.items() if kind.is_nested()]
        as_text = [
            pl.Series(
                name,
                [None if v is None else json.dumps(v, default=str) for v in table[name].to_list()],
                pl.String,
            )
            for name in nested
        ]
        table.with_columns(as_text).write_csv(buffer)
    return buffer.getvalue()


def _without_nan(table: pl.DataFrame) -> pl.DataFrame:
    """Return a table for JSON, which has no number that is none or endless: null there."""
    numbers = pl.col(pl.Float64, pl.Float32)
    return table.with_columns(
        pl.when(numbers.is_finite()).then(numbers).otherwise(None).name.keep()
    )
