"""Attempts that several sweeps hold, as after `cp -r`: one attempt is counted once, in the first of them."""

from collections.abc import Mapping
from typing import TypeVar

import polars as pl

_Frame = TypeVar("_Frame", pl.DataFrame, pl.LazyFrame)

# what no two attempts share, but those of copies
_ATTEMPT: Mapping[str, pl.DataType] = {
    "point_id": pl.String(),
    "attempt": pl.Int64(),
    "started": pl.Datetime("us", "UTC"),
}


class Earlier:
    """The attempts of the sweeps that came before."""

    def __init__(self) -> None:
        self._seen = pl.DataFrame(schema={**_ATTEMPT, "sweep": pl.String()})

    def copies(self, attempts: pl.DataFrame) -> pl.DataFrame:
        """Return which attempts of a sweep are those of one before it: point_id, attempt, and that one's name."""
        own = _keys(attempts)
        return self._seen.join(own, on=[*_ATTEMPT], how="semi").drop("started")

    def add(self, name: str, attempts: pl.DataFrame) -> None:
        """Let a sweep's attempts be those of one before."""
        named = _keys(attempts).with_columns(sweep=pl.lit(name))
        self._seen = pl.concat([self._seen, named])


def _keys(attempts: pl.DataFrame) -> pl.DataFrame:
    kinds = (pl.col(column).cast(kind) for column, kind in _ATTEMPT.items())
    return attempts.drop_nulls("started").select(*kinds)


def without(frame: _Frame, copies: pl.DataFrame) -> _Frame:
    """Return the rows of a table that are of no copied attempt."""
    if copies.is_empty():
        return frame
    lazy = copies.lazy().select(pl.col("point_id"), pl.col("attempt"))
    types = frame.lazy().collect_schema()
    same = lazy.with_columns(pl.col("attempt").cast(types["attempt"])).unique()
    if isinstance(frame, pl.LazyFrame):
        return frame.join(same, on=["point_id", "attempt"], how="anti", maintain_order="left")
    return frame.join(same.collect(), on=["point_id", "attempt"], how="anti", maintain_order="left")


def note(copies: pl.DataFrame) -> list[str]:
    """Return a line that says where copied attempts are counted; none where there are none."""
    if copies.is_empty():
        return []
    there = ", ".join(copies["sweep"].unique(maintain_order=True))
    count = copies.select("point_id", "attempt").n_unique()
    return [f"{count} attempts are those of {there}: a copy; they are counted there alone"]
