"""Points beside others and points alone are never compared."""

import polars as pl
import pytest

from wattflow.analysis.beside import MixedError, is_mixed
from wattflow.analysis.cheapest import cheapest
from wattflow.analysis.comparisons import arms


def rows(*beside):
    return pl.DataFrame({"beside": pl.Series(beside, dtype=pl.Boolean)})


def test_rows_of_before_ran_alone():
    """Null is alone: only a row beside others makes a mixture with it."""
    assert not is_mixed(rows(None, False))
    assert not is_mixed(rows(True, True))
    assert is_mixed(rows(None, True))


def test_neither_a_comparison_nor_the_cheapest_setting_mixes_them(tmp_path):
    """Batch 2 alone against batch 4 beside others: no ratio and no cheapest; batch 4 alone too, and there is one."""
    from test_analysis_comparisons import compared

    points = compared(tmp_path, ["GPU-a", "GPU-b", "GPU-c"]).points
    assert [one.why_not for one in cheapest(points)] == [None]
    mixed = points.with_columns(beside=pl.col("batch_size") == 4)
    with pytest.raises(MixedError, match="3 of these 6"):
        arms(mixed, "batch_size", "energy_per_token_j")
    (none,) = cheapest(mixed)
    assert "side by side" in str(none.why_not)
    assert len(arms(points.with_columns(beside=True), "batch_size", "tokens_per_s")) == 2
