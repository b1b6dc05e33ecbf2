"""The choices of a point: what is hashed, what is filled in, what is refused."""

import pytest

from wattflow.config import checks, identity
from wattflow.config import choices as config_choices
from wattflow.errors import RefusedError


def choices(**changed):
    """Resolved default choices with named keys changed; dots are written as double underscores."""
    values = {key.replace("__", "."): value for key, value in changed.items()}
    return config_choices.resolve(config_choices.with_leaves(config_choices.Config(), values))


# Ids that stand on people's disks. One that changes makes every sweep run again: raise ID_VERSION and say so in the
# changelog, or mend the change.
@pytest.mark.parametrize(
    ("changed", "point_id"),
    [
        ({}, "acc078b351ba"),
        ({"shards": 4}, "a3b73d149286"),
        ({"model__name": "llama-7b", "precision": "fp16", "repeat": 2}, "317c4aa378e9"),
    ],
)
def test_point_ids_never_change(changed, point_id):
    """The ids of these choices are those that stand on people's disks."""
    assert identity.point_id(choices(**changed)) == point_id


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cluster__partition", "gpu"),
        ("cluster__time_min", 5),
        ("power__poll_ms", 10),
        ("sweep__repeats", 7),
        ("sweeps_dir", "/elsewhere"),
        ("model__path", "/models/7b"),
        ("dataset__path", "/data/a.json"),
    ],
)
def test_where_and_how_a_point_runs_is_no_part_of_its_id(key, value):
    """Paths, partition, limits and the way power is watched leave the id alone."""
    assert identity.point_id(choices(**{key: value})) == identity.point_id(choices())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shards", 2),
        ("repeat", 1),
        ("seed", 1),
        ("precision", "fp16"),
        ("weights", "hf"),
        ("model__revision", "v2"),
        ("model__dim", 8192),
        ("dataset__name", "gsm8k"),
        ("dataset__template", "plain"),
        ("engine__threads_per_rank", 2),
        ("cluster__gpu_model", "h100"),
        ("temperature", 0.0),
    ],
)
def test_what_changes_the_measurement_changes_the_id(key, value):
    """Every choice that may change a joule is hashed."""
    assert identity.point_id(choices(**{key: value})) != identity.point_id(choices())


def test_a_key_at_its_default_leaves_the_id_alone():
    """A new key with a default does not change the ids of old points: only differences are hashed."""
    without = config_choices.to_dict(choices())
    del without["top_p"]
    assert identity.point_id(config_choices.from_dict(without)) == identity.point_id(choices())


def test_nodes_follow_from_shards_and_gpus_per_node():
    """Five ranks on nodes of two GPUs take three nodes."""
    assert choices(shards=5, cluster__gpus_per_node=2).nodes == 3


def test_dummy_weights_make_every_token_and_real_ones_stop():
    """The stop rule follows from the weights where it is not given."""
    assert choices().stop == "length"
    assert choices(weights="hf").stop == "eos"
    assert choices(weights="hf", stop="length").stop == "length"


def test_room_for_a_prompt_of_512_tokens():
    """The default of max_seq_len leaves 512 tokens for the prompt."""
    assert choices(max_gen_len=100).max_seq_len == 612


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("precision", "fp8", "fp64, fp32, bf16, fp16"),
        ("batch_size", 0, "at least 1"),
        ("top_p", 0.0, "above 0"),
        ("dataset__on_bad", "ignore", "error, skip, truncate"),
    ],
)
def test_a_wrong_value_is_refused_with_the_right_ones(key, value, told):
    """The message lists what is allowed."""
    with pytest.raises(RefusedError, match=told):
        checks.check(choices(**{key: value}))


def test_choices_survive_the_way_through_json():
    """A point read back from disk is the point that was written."""
    import json

    made = choices(
        model__rope_scaling=config_choices.RopeScaling(factor=4.0),
        sweep__exclude=[config_choices.Exclude({"shards": 2}, "too slow")],
        cluster__power_caps={"300": "cap300"},
    )
    written = json.dumps(config_choices.to_dict(made))
    assert config_choices.from_dict(json.loads(written)) == made


def test_llama_3_1_s_rope_is_hashed_whole():
    """The id that this point had on people's disks: all four numbers, those at their defaults too."""
    made = choices(model__name="llama-3.1-8b", model__rope_scaling=config_choices.RopeScaling())
    assert identity.hashed(made) == {
        "model.name": "llama-3.1-8b",
        "model.rope_scaling.factor": 8.0,
        "model.rope_scaling.low_freq_factor": 1.0,
        "model.rope_scaling.high_freq_factor": 4.0,
        "model.rope_scaling.original_max_position": 8192,
        "max_seq_len": 768,
        "nodes": 1,
        "stop": "length",
    }
