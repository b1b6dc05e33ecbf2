"""Attempts that several sweeps hold are counted once."""

from datetime import UTC, datetime

import polars as pl

from wattflow.analysis import copies


def attempts(*rows):
    """Attempts of (point_id, attempt, second of the start)."""
    return pl.DataFrame(
        [
            {
                "point_id": point,
                "attempt": attempt,
                "started": None
                if second is None
                else datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC),
            }
            for point, attempt, second in rows
        ],
        schema={
            "point_id": pl.String,
            "attempt": pl.Int64,
            "started": pl.Datetime("us", "UTC"),
        },
    )


def test_what_began_at_once_at_one_point_is_one_attempt():
    """Another start is another attempt, and so is one that never began; the first sweep keeps its own."""
    earlier = copies.Earlier()
    first = attempts(("p", 1, 10), ("p", 2, 20), ("q", None, None))
    assert earlier.copies(first).is_empty()
    earlier.add("a", first)
    second = attempts(("p", 1, 10), ("p", 2, 21), ("q", None, None))
    found = earlier.copies(second)
    assert found.rows() == [("p", 1, "a")]
    assert copies.without(second, found).rows() == second[1:].rows()
    assert copies.note(found) == ["1 attempts are those of a: a copy; they are counted there alone"]
    assert copies.note(earlier.copies(attempts())) == []


def test_rows_keep_their_order_and_lazy_tables_stay_lazy():
    """Also of tables that say no more of an attempt than its point and number."""
    earlier = copies.Earlier()
    earlier.add("a", attempts(("p", 1, 10)))
    found = earlier.copies(attempts(("p", 1, 10)))
    rows = pl.DataFrame(
        {"point_id": ["z", "p", "b"], "attempt": [1, 1, 2]}, schema_overrides={"attempt": pl.Int32}
    )
    assert copies.without(rows, found)["point_id"].to_list() == ["z", "b"]
    assert copies.without(rows.lazy(), found).collect()["point_id"].to_list() == ["z", "b"]
