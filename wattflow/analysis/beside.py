"""Rows of points that ran side by side on a node, and rows of points alone: what neighbours change is not known."""

import polars as pl

from wattflow.errors import RefusedError


class MixedError(RefusedError):
    """Points measured side by side with others would be compared with points measured alone."""


def is_mixed(rows: pl.DataFrame) -> bool:
    """Return whether some of the points ran beside others, and some alone; those of earlier versions all did."""
    return rows["beside"].fill_null(value=False).n_unique() > 1


def refuse_mixed(rows: pl.DataFrame, by: str) -> None:
    """Raise MixedError where points that are compared by a choice did not all run alone, or all beside others."""
    if is_mixed(rows):
        beside = int(rows["beside"].sum())
        raise MixedError(
            f"{by}: {beside} of these {len(rows)} points were measured side by side with others on their node, the "
            "rest alone, and what neighbours change is not known here. `wattflow submit grid=neighbours` measures it; "
            "or run them alike: `wattflow resume --force --only POINT` with cluster.side_by_side=true or false."
        )
