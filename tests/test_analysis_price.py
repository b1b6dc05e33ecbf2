"""What a request costs by a load's model, worked out by hand."""

import polars as pl
import pytest

from wattflow.analysis.price import Lengths, own_joules, prices
from wattflow.errors import RefusedError

ROW = {
    "point_id": "a" * 12,
    "counts": True,
    "simulated": False,
    "power_model": "linear-1",
    "power_model_held_out": 0.02,
    "input_token_j": 0.1,
    "input_token_half_width_j": 0.01,
    "cached_token_j": 0.02,
    "cached_token_half_width_j": None,
    "output_token_j": 1.5,
    "output_token_half_width_j": 0.1,
    "decode_token_j": 1.0,
    "position_j": 0.01,
    "requests_energy_j": 900.0,
    "requests_idle_energy_j": 100.0,
    "tokens_own_energy_j": 500.0,
    "workload_mode": "open",
    "workload_rate_per_s": 2.0,
    "workload_concurrency": None,
    "batch_size": 8,
    "precision": "bf16",
    "repeat": 0,
}


def test_own_joules_are_prompt_cache_tokens_and_positions():
    """Ten in, four of them cached, three out: 0.6 + 0.08 + 2 x 1.0 + (11 + 12) x 0.01 J."""
    assert own_joules(ROW, Lengths(10, 3, 4)) == pytest.approx(0.6 + 0.08 + 2.0 + 0.23)


def test_constant_watts_are_shared_in_proportion():
    """500 of the load's 1,000 J are tokens' own, so that a request costs twice its own."""
    (found,) = prices(pl.DataFrame([ROW]), Lengths(10, 1))
    assert found.own_request_j == pytest.approx(1.0)
    assert found.request_j == pytest.approx(2.0)
    assert found.load["workload_rate_per_s"] == 2.0


def test_what_the_model_cannot_tell_is_null():
    """Without the term of output tokens no request has a price; a load without a model is refused."""
    (found,) = prices(pl.DataFrame([{**ROW, "decode_token_j": None}], strict=False), Lengths(10, 3))
    assert (found.own_request_j, found.request_j) == (None, None)
    with pytest.raises(RefusedError, match="no load with a power model"):
        prices(
            pl.DataFrame(
                [{**ROW, "power_model": None}], schema_overrides={"power_model": pl.String}
            )
        )
