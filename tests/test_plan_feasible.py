"""Which points cannot run, and why."""

import pytest
from sweeps import resolved

from wattflow.config.choices import Exclude
from wattflow.errors import RefusedError
from wattflow.plan import feasible, grid

ONE = ["n_prompts=8", "sweep.repeats=1"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty directory, as a person does who installed the package."""
    monkeypatch.chdir(tmp_path)


def test_excluded_points_stay_listed_with_their_reason():
    """An exclude rule marks points; it does not hide them."""
    rule = "sweep.exclude=[{when:{shards:2,batch_size:'> 8'},reason:too slow}]"
    _, points, _ = grid.expand([*ONE, rule, "shards=1,2", "batch_size=8,16"])
    assert [point.reason for point in points] == [None, None, None, "excluded: too slow"]


def test_shards_that_do_not_divide_are_left_out_with_those_that_do():
    """40 heads cannot be cut into 16: the reason lists what can."""
    _, points, _ = grid.expand(
        [*ONE, "model=llama-13b", "shards=16", "cluster.gpus_per_node=16", "sweep.repeats=1"]
    )
    assert "40" in points[0].reason
    assert "8" in points[0].reason


def test_points_too_big_for_the_gpu_are_left_out_with_the_figures():
    """A 65B model does not fit one GPU of 80 GiB."""
    _, points, _ = grid.expand(
        [*ONE, "model=llama-65b", "cluster.gpu_memory_gib=80", "sweep.repeats=1"]
    )
    assert "GiB" in points[0].reason


def test_ranks_that_do_not_fill_nodes_evenly_are_left_out():
    """Three shards on two nodes would leave one node with one rank more."""
    _, points, _ = grid.expand([*ONE, "shards=4", "nodes=3", "engine=synthetic"])
    assert "evenly" in points[0].reason


@pytest.mark.parametrize(
    ("when", "matches"),
    [
        ({"shards": 2}, True),
        ({"shards": 3}, False),
        ({"shards": [1, 2]}, True),
        ({"shards": "> 1"}, True),
        ({"shards": "> 2"}, False),
        ({"shards": "<= 2", "precision": "bf16"}, True),
        ({"shards": 2, "precision": "fp32"}, False),
        ({"model": "???"}, True),  # a group stands for its name
        ({"control.power_limit_w": "> 1"}, False),  # null is no number
        ({}, False),
    ],
)
def test_a_rule_matches_where_all_of_its_keys_do(when, matches):
    """A value, a list of values or a comparison each."""
    config = resolved(shards=2, sweep__exclude=[Exclude(when, "too slow")])
    assert feasible.excluded(config) == ("excluded: too slow" if matches else None)


@pytest.mark.parametrize(
    ("when", "typed"),
    [
        ({"shards": "2"}, {"shards": 2}),
        ({"shards": ["1", "2"], "temperature": "0"}, {"shards": [1, 2], "temperature": 0.0}),
        ({"shards": "> 1e3"}, {"shards": "> 1e3"}),
        ({"model.revision": "7e12345678"}, {"model.revision": "7e12345678"}),
        ({"model": "123", "power.host": "true"}, {"model": "123", "power.host": True}),
        ({"control.power_limit_w": None}, {"control.power_limit_w": None}),
    ],
)
def test_what_a_rule_wants_has_the_type_of_its_key(when, typed):
    """Files and overrides hold texts: a revision stays one, a number becomes one."""
    assert feasible.typed_rule(Exclude(when, "x")).when == typed


def test_a_comparison_may_have_an_exponent():
    """It was never true before."""
    config = resolved(max_gen_len=2000, sweep__exclude=[Exclude({"max_gen_len": "> 1e3"}, "long")])
    assert feasible.excluded(config) == "excluded: long"


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ({"shard": "2"}, "shard: no such key. Did you mean shards?"),
        ({"shard": None}, "shard: no such key. Did you mean shards?"),
        ({"control": "2"}, "control has keys of its own"),
        ({"shards": "two"}, "sweep.exclude: shards: two: takes a whole number"),
        ({"shards": "> two"}, "sweep.exclude: shards: > two: takes a whole number"),
        ({"model.name": "> b"}, "sweep.exclude: model.name: > b: takes text"),
    ],
)
def test_a_rule_that_would_never_match_is_refused(when, message):
    """An unknown key, a value of another type, an order of texts."""
    with pytest.raises(RefusedError, match=message):
        feasible.typed_rule(Exclude(when, "x"))


def test_more_ranks_on_a_node_than_it_has_gpus():
    """Eight shards on one node of four GPUs: named with both numbers."""
    why = feasible.why_not(resolved(shards=8, nodes=1, cluster__gpus_per_node=4))
    assert why == "8 shards on 1 nodes are 8 ranks a node, and cluster ??? has 4 GPUs a node"
