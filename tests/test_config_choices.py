"""The choices of a point: what is filled in, how a part is changed, and the way through JSON."""

import json

import pytest
from sweeps import resolved

from wattflow.config import choices as config_choices
from wattflow.errors import RefusedError


def test_nodes_follow_from_shards_and_gpus_per_node():
    """Five ranks on nodes of two GPUs take three nodes."""
    assert resolved(shards=5, cluster__gpus_per_node=2).nodes == 3
    assert resolved(shards=2, pipeline=3, cluster__gpus_per_node=2).nodes == 3


def test_dummy_weights_make_every_token_and_real_ones_stop():
    """The stop rule follows from the weights where it is not given."""
    assert resolved().stop == "length"
    assert resolved(weights="hf").stop == "eos"
    assert resolved(weights="hf", stop="length").stop == "length"


def test_room_for_a_prompt_of_512_tokens():
    """The default of max_seq_len leaves 512 tokens for the prompt."""
    assert resolved(max_gen_len=100).max_seq_len == 612


def test_choices_survive_the_way_through_json():
    """A point read back from disk is the point that was written."""
    made = resolved(
        model__rope_scaling=config_choices.RopeScaling(factor=4.0),
        sweep__exclude=[config_choices.Exclude({"shards": 2}, "too slow")],
        cluster__power_caps={"300": "cap300"},
    )
    written = json.dumps(config_choices.to_dict(made))
    assert config_choices.from_dict(json.loads(written)) == made


@pytest.mark.parametrize(
    ("records", "changed", "n_prompts", "cycle"),
    [
        (64, {}, 64, False),  # shipped: all of them
        (64, {"batch_size": 8}, 64, False),
        (64, {"batch_size": 512}, 512, True),  # a whole batch at least
        (64, {"batch_size": 512, "dataset__cycle": False}, 64, False),
        (64, {"n_prompts": 100}, 100, True),
        (64, {"n_prompts": 64}, 64, False),
        (1319, {"dataset__path": "a.json"}, 1319, False),  # a file: all of it, and nothing twice
        (1319, {"dataset__path": "a.json", "batch_size": 4096}, 1319, False),
        (1319, {"dataset__path": "a.json", "n_prompts": 4000}, 4000, False),  # refused later
        (9, {"dataset__path": "a.json", "dataset__cycle": True, "batch_size": 16}, 16, True),
        (52_000, {"dataset__path": "a.json"}, 4096, False),  # at most 4,096
    ],
)
def test_prompts_follow_from_the_file(records, changed, n_prompts, cycle):
    """All records, at most 4,096; only what wattflow ships is repeated without a word."""
    config = resolved(records, **changed)
    assert (config.n_prompts, config.dataset.cycle) == (n_prompts, cycle)


def test_a_changed_leaf_leaves_other_parts_shared():
    """Points share what they have in common: the new choices hold the same model, and the old ones are as before."""
    before = resolved()
    after = config_choices.with_leaves(before, {"power.idle_s": 1.0, "shards": 2})
    assert (after.power.idle_s, after.shards) == (1.0, 2)
    assert (before.power.idle_s, before.shards) == (5.0, 1)
    assert after.model is before.model


def test_a_leaf_of_a_mapping_is_changed_in_a_copy():
    """One power cap more; the profile that other points share keeps those that it had."""
    before = resolved(cluster__power_caps={"300": "a"})
    after = config_choices.with_leaves(before, {"cluster.power_caps.400": "b"})
    assert after.cluster.power_caps == {"300": "a", "400": "b"}
    assert before.cluster.power_caps == {"300": "a"}


def test_nothing_is_set_below_null():
    """tiny has no rope scaling whose factor could be another."""
    with pytest.raises(RefusedError, match=r"model\.rope_scaling is null here"):
        config_choices.with_leaves(resolved(), {"model.rope_scaling.factor": 2.0})
