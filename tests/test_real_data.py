"""Real prompts and LLaMA's own tokenizer, from a folder named by WATTFLOW_DATA; the project itself ships neither."""

import math
import os
from pathlib import Path

import pytest

from wattflow.config.choices import Config, Dataset, Model
from wattflow.workload import prompts as workload_prompts
from wattflow.workload import tokenizer

FOLDER = os.environ.get("WATTFLOW_DATA")
FILES = {"alpaca": ("alpaca_en_demo.json", 999), "gsm8k": ("gsm8k_test.jsonl", 1319)}

pytestmark = pytest.mark.skipif(
    FOLDER is None,
    reason="WATTFLOW_DATA names no folder with alpaca_en_demo.json, gsm8k_test.jsonl and llama2_tokenizer.model",
)


@pytest.fixture(scope="module")
def llama():
    """LLaMA-7B's choices with its tokenizer's file."""
    return Model(
        name="llama-7b",
        tokenizer="sentencepiece",
        tokenizer_path=str(Path(FOLDER) / "llama2_tokenizer.model"),
    )


@pytest.fixture(scope="module", params=FILES)
def prompts(request, llama):
    """All records of one file, drawn by seed."""
    name, count = FILES[request.param]
    chosen = Config(
        model=llama,
        dataset=Dataset(name=request.param, format=request.param, path=str(Path(FOLDER) / name)),
        n_prompts=count,
        max_seq_len=1024,
    )
    return workload_prompts.load(chosen, tokenizer.load(llama, "meta"))


def expected_count(prompts):
    """999 for Alpaca's file, whose records have no results, and 1319 for GSM8K's."""
    return 999 if prompts.answers[0] is None else 1319


def test_all_records(prompts):
    """Each record is drawn once, none is skipped or truncated."""
    count = expected_count(prompts)
    assert sorted(prompts.indices) == list(range(count))
    assert (prompts.info["count"], prompts.info["skipped"], prompts.info["truncated"]) == (
        count,
        0,
        0,
    )


def test_lengths_in_info(prompts):
    """PromptInfo holds the lengths of the tokens that are sent."""
    lengths = sorted(map(len, prompts.tokens))
    middle = len(lengths) // 2
    assert prompts.info["tokens_min"] == lengths[0]
    assert prompts.info["tokens_max"] == lengths[-1]
    assert prompts.info["tokens_p50"] == lengths[middle]  # both counts are odd
    assert prompts.info["tokens_mean"] == pytest.approx(sum(lengths) / len(lengths))
    assert lengths[0] < prompts.info["tokens_p50"] < prompts.info["tokens_p95"] < lengths[-1]


def test_round_trip(prompts, llama):
    """LLaMA's tokenizer gives BOS (1) first and the whole text back."""
    text = tokenizer.load(llama, "meta")
    assert all(tokens[0] == 1 for tokens in prompts.tokens)
    assert [text.decode(tokens) for tokens in prompts.tokens] == prompts.texts


def test_gsm8k_results(llama):
    """Every GSM8K record has a reference result that is a number."""
    entries = workload_prompts.read(Path(FOLDER) / "gsm8k_test.jsonl", "gsm8k")
    assert len(entries) == 1319
    assert all(math.isfinite(float(entry.answer)) for entry in entries)


def test_llama_vocabulary(llama):
    """LLaMA's file has 32,000 tokens, BOS 1 and EOS 2, and pads with EOS since it has no padding token."""
    text = tokenizer.load(llama, "meta")
    assert (text.vocab_size, text.bos_id, text.eos_id, text.pad_id) == (32000, 1, 2, 2)
    assert text.encode("Hello world") == [1, 15043, 3186]
