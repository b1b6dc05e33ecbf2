"""The table of requests that an attempt's answers make."""

import pytest

from wattflow.config.choices import Config
from wattflow.engine.protocol import Generated
from wattflow.run.answers import Answers
from wattflow.workload import prompts as workload_prompts
from wattflow.workload import tokenizer

WORK = {
    "decode_steps": 3,
    "decode_rows": 6,
    "decode_positions": 30.0,
    "prefills": 1,
    "prefill_tokens": 9,
    "prefill_squares": 41,
}


def answers(weights="hf", engine="paper", work=None):
    """Batches 1 and 2, of two and one answers, of a point whose batch 0 another attempt answered."""
    config = Config(weights=weights, batch_size=2, n_prompts=5)
    config.engine.name, config.dataset.name, config.dataset.on_bad = engine, "alpaca", "truncate"
    config.max_seq_len = 512
    text = tokenizer.load(config.model, "dummy")  # bytes
    made = Answers(config, text, workload_prompts.load(config, text), 1)
    words = [text.encode(one)[1:] for one in ("two words", "one", "")]
    made.add(Generated(words[:2], ["eos", "length"], 0, 0, work))
    made.add(Generated(words[2:], ["eos"], 0, 0, work))
    return made


def test_prompts_are_numbered_over_all_batches_of_the_point():
    """Batch 1 of two prompts each holds prompts 2 and 3, batch 2 prompt 4; words are those of str.split."""
    rows = answers().table().to_pylist()
    assert [(row["batch"], row["prompt"]) for row in rows] == [(1, 2), (1, 3), (2, 4)]
    assert [row["words"] for row in rows] == [2, 1, 0]
    assert [row["tokens_kept"] for row in rows] == [9, 3, 0]
    assert [row["stop_reason"] for row in rows] == ["eos", "length", "eos"]
    assert rows[0]["text"] == "two words"


@pytest.mark.parametrize(("weights", "engine"), [("dummy", "paper"), ("hf", "synthetic")])
def test_text_of_no_model_has_no_words(weights, engine):
    """Random weights and the synthetic engine make tokens that mean nothing; their number still counts."""
    rows = answers(weights, engine).table().to_pylist()
    assert [(row["words"], row["text"]) for row in rows] == [(None, None)] * 3
    assert [row["tokens_kept"] for row in rows] == [9, 3, 0]


def test_work_is_summed_over_batches_and_unknown_without_reports():
    """Two batches of three decode steps make six; an engine that reports none leaves null."""
    assert answers(work=WORK).work() == {key: 2 * value for key, value in WORK.items()}
    assert answers().work() is None
    assert (answers().first_batch, answers().batches) == (1, 2)
