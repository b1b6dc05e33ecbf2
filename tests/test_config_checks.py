"""Values that a choice may not have."""

import pytest
from sweeps import resolved

from wattflow.config import checks
from wattflow.config.choices import Config, Cost, Engine, Workload
from wattflow.errors import RefusedError


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("precision", "int2", "fp64, fp32, bf16, fp16, fp8, int8, int4"),
        ("batch_size", 0, "at least 1"),
        ("top_p", 0.0, "above 0"),
        ("dataset__on_bad", "ignore", "error, skip, truncate"),
        ("temperature", float("nan"), "temperature=nan: must be a finite number"),
        ("power__idle_s", float("inf"), "power.idle_s=inf: must be a finite number"),
        ("seed", 2**63, "less than 2\\^63"),
        ("seed", -1, "at least 0"),
    ],
)
def test_a_wrong_value_is_refused_with_the_right_ones(key, value, told):
    """The message lists what is allowed."""
    with pytest.raises(RefusedError, match=told):
        checks.check(resolved(**{key: value}))


def test_the_values_that_a_key_may_have_are_listed_as_they_are_typed():
    """null among them; none for a key that takes any value of its type."""
    assert checks.allowed("stop") == ("eos", "length", "null")
    assert checks.allowed("shards") == ()


@pytest.mark.parametrize(
    "over",
    [
        {"cluster__sbatch_options": {"gpu-freq": "low"}},
        {"cluster__srun_options": ["--cpu-freq=low"]},
        {"cluster__srun_options": ["--gpu-freq", "low"]},
    ],
)
def test_clocks_by_options_of_a_site_are_refused(over):
    """They are no column of results; control.sm_clock_mhz is, and other options pass."""
    with pytest.raises(RefusedError, match="by control\\.sm_clock_mhz"):
        checks.check(resolved(**over))
    checks.check(resolved(cluster__sbatch_options={"exclusive": ""}))


@pytest.mark.parametrize(
    "over",
    [
        {"pue": 0.5, "pue_source": "x"},
        {"pue": float("nan"), "pue_source": "x"},
        {"carbon_g_per_kwh": -1.0, "carbon_source": "x"},
        {"carbon_g_per_kwh": 400_000.0, "carbon_source": "x"},
        {"price_per_kwh": float("inf"), "price_source": "x", "currency": "EUR"},
    ],
)
def test_factors_that_there_cannot_be(over):
    """A facility that takes less than its computers, carbon below 0 or in mg, and what is no number."""
    with pytest.raises(RefusedError, match="not between"):
        checks.check_cost(Cost(**over))
    checks.check_cost(Cost(price_per_kwh=-0.1, price_source="x", currency="EUR"))


@pytest.mark.parametrize(
    ("load", "engine", "why"),
    [
        ({"mode": "closed"}, "vllm", "how many requests at a time"),
        ({"mode": "open"}, "vllm", "workload.rate_per_s=N, or a file"),
        ({"mode": "open", "rate_per_s": 1.0}, "fast", "no scheduler that refills"),
        ({"mode": "static", "rate_per_s": 1.0}, "vllm", "does not use it; it is for open"),
        ({"mode": "open", "rate_per_s": 1.0, "concurrency": 2}, "vllm", "it is for closed"),
        ({"mode": "offline", "trace": "a.csv"}, "vllm", "it is for closed and open"),
        ({"mode": "open", "trace": "a.csv", "burstiness": 0.5}, "vllm", "no arrivals are drawn"),
    ],
)
def test_loads_that_do_not_fit_their_mode(load, engine, why):
    """Nothing that is asked for is passed over in silence."""
    config = Config(engine=Engine(name=engine), workload=Workload(**load))
    assert why in (checks.why_not_engine(config) or "")


def test_a_load_that_fits_its_mode():
    """Closed by concurrency, open by a rate or a trace."""
    for load in ({"mode": "closed", "concurrency": 8}, {"mode": "open", "trace": "a.csv"}):
        assert (
            checks.why_not_engine(Config(engine=Engine(name="vllm"), workload=Workload(**load)))
            is None
        )


def test_a_vllm_takes_a_whole_batch_and_offline_no_more():
    """max_num_seqs below the batch, or above it where the scheduler refills up to it, is refused before it is sent."""

    def why(**over):
        return checks.why_not_engine(resolved(engine__name="vllm", batch_size=8, **over))

    assert "below batch_size=8" in why(engine__vllm__max_num_seqs=4)
    assert "offline fills" in why(engine__vllm__max_num_seqs=16, workload__mode="offline")
    assert why(engine__vllm__max_num_seqs=16) is None
    assert why(engine__vllm__max_num_seqs=8, workload__mode="offline") is None
