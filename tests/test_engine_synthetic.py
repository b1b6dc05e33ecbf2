"""The synthetic engine."""

import engine_ranks as tools

from wattflow.config.choices import Engine
from wattflow.engine.build import build


def test_the_synthetic_engine_takes_the_time_it_is_told():
    """Five tokens at 20 ms: one step in prefill and four in decode; tokens count up from the prompt's sum."""
    import time

    engine = Engine(name="synthetic", synthetic_ms_per_token=20.0)
    chosen = tools.choices(tools.tiny(), engine=engine, max_gen_len=5, max_seq_len=8, stop="eos")
    made = build(chosen, tools.ALONE, eos_ids=(14,), pad_id=0)
    made.load()
    start = time.monotonic()
    made.prefill([[1, 2, 3], [10, 1, 1, 1, 1]])
    middle = time.monotonic()
    answer = made.decode()
    end = time.monotonic()
    assert middle - start >= 0.02
    assert end - middle >= 0.08
    assert answer.tokens == [[6, 7, 8, 9, 10], []]
    assert answer.stop_reasons == ["length", "eos"]
    assert (answer.prefill_tokens_computed, answer.decode_tokens_computed) == (8, 8)
