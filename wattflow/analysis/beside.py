"""Rows of points that ran side by side on a node, and rows of points alone: what neighbours change is not known."""

from typing import TYPE_CHECKING

from wattflow.errors import RefusedError

if TYPE_CHECKING:  # it is slow to load
    import polars as pl


class MixedError(RefusedError):
    """Points measured side by side with others would be compared with points measured alone."""


def is_mixed(rows: "pl.DataFrame") -> bool:
    """Return whether some of the points ran beside others, and some alone; those of earlier versions all did."""
    return rows["beside"].fill_null(value=False).n_unique() > 1
