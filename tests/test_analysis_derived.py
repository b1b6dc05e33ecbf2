"""Choices that follow from others by a rule are recognised, and only these."""

import pytest
from sweeps import choices

from wattflow.analysis.derived import is_derived
from wattflow.store.columns import choice_values


def row(**over):
    """The choices of one point by column."""
    return choice_values(choices(**over))


@pytest.mark.parametrize(
    ("name", "over", "derived"),
    [
        ("nodes", {"shards": 4, "nodes": 1, "cluster__gpus_per_node": 4}, True),
        ("nodes", {"shards": 4, "nodes": 2, "cluster__gpus_per_node": 4}, False),
        ("max_seq_len", {"max_gen_len": 16, "max_seq_len": 528}, True),
        ("max_seq_len", {"max_gen_len": 16, "max_seq_len": 600}, False),
        ("stop", {"weights": "hf", "stop": "eos"}, True),
        ("stop", {"weights": "hf", "stop": "length"}, False),
        ("n_prompts", {"n_prompts": 64, "batch_size": 8}, True),  # wattflow ships 64
        ("n_prompts", {"n_prompts": 256, "batch_size": 256}, True),
        ("n_prompts", {"n_prompts": 8, "batch_size": 8}, False),
        ("dataset_cycle", {"n_prompts": 256, "dataset__cycle": True}, True),
        ("dataset_cycle", {"n_prompts": 8, "dataset__cycle": True}, False),
        ("n_prompts", {"n_prompts": 64, "dataset__path": "/dev/zero"}, False),  # never opened
        ("nodes", {"shards": 4, "nodes": 1, "cluster__gpus_per_node": 0}, False),
    ],
)
def test_what_a_rule_fills_in(name, over, derived):
    """A value is derived where nobody need have named it."""
    assert is_derived(name, row(dataset__name="alpaca", **over)) is derived
