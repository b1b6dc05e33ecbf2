"""The columns that are quotients of two others."""

import numpy as np
import pytest
from collection import one
from sweeps import Gpu, Made

from wattflow.collect.ratios import RATIOS, ratios
from wattflow.store.columns import POINT, REASONS


def test_ratios_carry_the_uncertainty(tmp_path):
    """u of the joules, over 200 tokens and over 8.5 s."""
    row = one(tmp_path, Made([Gpu("GPU-a", lambda s: 70 + 30 * np.sin(s))]))[2]
    assert row["energy_per_token_u_j"] == pytest.approx(row["energy_u_j"] / 200)
    assert row["power_u_w"] == pytest.approx(row["energy_u_j"] / 8.5)
    assert row["energy_u_j"] > 0
    assert row["energy_per_response_u_j"] == pytest.approx(row["energy_u_j"] / 8)
    assert row["energy_per_computed_token_u_j"] == pytest.approx(row["energy_u_j"] / 480)


def test_a_ratio_is_known_where_both_its_parts_are():
    """700 J over 10 s are 70 W and over 200 tokens 3.5 J; over 0 words and an unknown counter they are nothing."""
    sums = dict.fromkeys(name for ratio in RATIOS for name in (ratio.numerator, ratio.denominator))
    sums |= {"energy_j": 700.0, "duration_s": 10.0, "tokens_kept": 200, "words": 0}
    found = ratios(sums)
    known = {name: value for name, value in found.items() if value is not None}
    assert known == {
        "tokens_per_s": 20.0,
        "words_per_s": 0.0,
        "power_w": 70.0,
        "energy_per_token_j": 3.5,
    }
    assert found["energy_per_word_j"] is None
    assert found["counter_ratio"] is None


def test_ratios_are_columns_of_columns():
    """Each ratio and both its parts are declared columns, and no ratio is formed of ratios."""
    names = {name for ratio in RATIOS for name in ratio[:3]}
    assert names <= set(POINT.names)
    assert not {r.column for r in RATIOS} & {
        n for r in RATIOS for n in (r.numerator, r.denominator)
    }
    assert {ratio.check for ratio in RATIOS} - {None} <= set(REASONS)
