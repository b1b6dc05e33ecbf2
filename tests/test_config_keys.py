"""What each key takes, in words."""

import pytest

from wattflow.config.identity import DEFAULTS
from wattflow.config.keys import from_text, kind_of, nearest, no_such_key, wrong_type


@pytest.mark.parametrize("key", DEFAULTS)
def test_every_key_has_a_type_and_says_what_it_takes(key):
    """Whatever key a person gets wrong, the message has its type and an example."""
    kind_of(key)
    example = f"such as {key}="
    assert example in wrong_type(key) or wrong_type(key).startswith(f"{key} has keys of its own")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("shards", "takes a whole number, such as shards=1, and shards=1,2 for two points."),
        ("power.idle_s", "takes a number of seconds, such as power.idle_s=5.0."),
        ("power.host", "takes true or false, such as power.host=true."),
        ("nodes", "takes a whole number, or null, such as nodes=4, and nodes=4,8 for two points."),
        ("cluster.time_min", "takes a whole number of minutes, such as cluster.time_min=60."),
        (
            "cluster.mem_gb_per_node",
            "takes a number of GB, or null, such as cluster.mem_gb_per_node=64.",
        ),
        (
            "control.power_limit_w",
            (
                "takes a whole number of watts, or null, such as control.power_limit_w=300, and "
                "control.power_limit_w=300,600 for two points."
            ),
        ),
        (
            "precision",
            "takes one of fp64, fp32, bf16, fp16, fp8, int8, int4, such as precision=bf16.",
        ),
        ("sweep.zip", "takes a list of lists of keys, such as sweep.zip=[[shards,batch_size]]."),
    ],
)
def test_types_in_words(key, words):
    """The type, null where it may be null, the values where only some are allowed, and an example."""
    assert wrong_type(key) == words


def test_a_part_of_the_choices_has_keys_of_its_own():
    """control=1 is meant for one of them."""
    assert wrong_type("control").startswith("control has keys of its own: control.power_limit_w,")


@pytest.mark.parametrize("key", ["batchsize", "model.dims.x", "shards.x", "", "power_caps.300"])
def test_a_key_that_there_is_not_has_no_type(key):
    """Nothing stands below a number."""
    with pytest.raises(KeyError):
        kind_of(key)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("batchsize", "batch_size"),
        ("shard", "shards"),
        ("dim", "model.dim"),
        ("model.dimension", "model.dim"),
        ("n_layer", "model.n_layers"),
        ("idle", "power.idle_s"),
        ("cluster.time_minutes", "cluster.time_min"),
        ("a.b", None),
        ("colour", None),
    ],
)
def test_the_nearest_key(written, meant):
    """A slip, a key without its part, a longer word; nothing where nothing is near."""
    assert nearest(written, list(DEFAULTS)) == meant


def test_a_key_that_there_is_not_names_the_nearest():
    """And the command that lists all."""
    assert no_such_key("batchsize") == (
        "no such key. Did you mean batch_size? `wattflow keys` lists keys, groups and their choices."
    )


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("model.revision", "7e12345678", "7e12345678"),
        ("model.revision", "null", None),
        ("model.name", "null", "null"),  # it must have one
        ("sweep.name", "1e5", "1e5"),
        ("shards", "2", 2),
        ("temperature", "1e-1", 0.1),
        ("power.host", "FALSE", False),
        ("cluster.sbatch_options.begin", "16:00", "16:00"),
    ],
)
def test_a_text_becomes_what_its_key_takes(key, text, value):
    """Text stays as it is written."""
    assert (from_text(key, text), type(from_text(key, text))) == (value, type(value))


@pytest.mark.parametrize(
    ("key", "text"), [("shards", "2h"), ("shards", "1e3"), ("power.host", "1")]
)
def test_a_text_of_another_type_is_none(key, text):
    """Whoever asks says which key it was."""
    with pytest.raises(ValueError, match=text):
        from_text(key, text)
