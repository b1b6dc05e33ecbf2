"""The identity of a point: which choices are hashed, and ids that stand on people's disks."""

from dataclasses import replace

import pytest
from sweeps import resolved

from wattflow.config import choices as config_choices
from wattflow.config import identity


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
    assert identity.point_id(resolved(**changed)) == point_id


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
    assert identity.point_id(resolved(**{key: value})) == identity.point_id(resolved())


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
    assert identity.point_id(resolved(**{key: value})) != identity.point_id(resolved())


def test_a_key_at_its_default_leaves_the_id_alone():
    """A new key with a default does not change the ids of old points: only differences are hashed."""
    without = config_choices.to_dict(resolved())
    del without["top_p"]
    assert identity.point_id(config_choices.from_dict(without)) == identity.point_id(resolved())


def test_llama_3_1_s_rope_is_hashed_whole():
    """The id that this point had on people's disks: all four numbers, those at their defaults too."""
    made = resolved(model__name="llama-3.1-8b", model__rope_scaling=config_choices.RopeScaling())
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


@pytest.mark.parametrize(
    ("records", "changed", "hashed"),
    [
        (5000, {}, None),  # 4,096 of them, with which ids were always compared
        (4096, {"dataset__path": "/data/a.json"}, None),
        (1319, {"dataset__path": "/data/a.json"}, {"n_prompts": 1319}),
        (64, {}, {"n_prompts": 64}),
        (64, {"n_prompts": 64}, {"n_prompts": 64}),
        (64, {"n_prompts": 8}, {"n_prompts": 8}),
        (64, {"batch_size": 256}, {"n_prompts": 256, "batch_size": 256, "dataset.cycle": True}),
        (64, {"n_prompts": 4096}, {"dataset.cycle": True}),
        (64, {"n_prompts": 4096, "dataset__cycle": True}, {"dataset.cycle": True}),
    ],
)
def test_prompts_are_hashed_as_they_were_when_they_had_to_be_said(records, changed, hashed):
    """What follows from the file is resolved first: the same work has the id that it had when it was spelt out."""
    usual = {"nodes": 1, "max_seq_len": 768, "stop": "length"}
    assert identity.hashed(resolved(records, **changed)) == {**usual, **(hashed or {})}


def test_a_measured_command_has_an_id_of_its_words():
    """Two measurements of one command are attempts at one point; another word is another point."""
    one = identity.command_id(["sleep", "1"])
    assert one == identity.command_id(["sleep", "1"])
    assert one != identity.command_id(["sleep", "2"])


def test_a_trace_counts_by_its_files_name_and_targets_do_not():
    """Another folder is the same load, another file another one; an SLO judges requests and changes none."""

    def load(**more):
        workload = config_choices.Workload(mode="open", **more)
        return identity.point_id(replace(config_choices.Config(), workload=workload))

    first = load(trace="/data/a.csv")
    assert (
        first
        == load(trace="/elsewhere/a.csv")
        == load(trace="a.csv", slo=config_choices.Slo(ttft_s=1.0))
    )
    assert first != load(trace="/data/b.csv")
    assert first != load(rate_per_s=1.0)
