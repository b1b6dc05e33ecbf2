"""From words to points: Hydra's grammar, types, zips, repeats, exclusions, and what may not be submitted."""

import random

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from wattflow.config.choices import resolve
from wattflow.config.identity import point_id
from wattflow.errors import RefusedError
from wattflow.plan import grid, hydra

ONE = ["n_prompts=8", "sweep.repeats=1"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty directory, as a person does who installed the package."""
    monkeypatch.chdir(tmp_path)


def leaves(words, *keys):
    """The values of some keys of each point, in the grid's order."""
    _, points, _ = grid.expand(words)
    return [tuple(getattr(point.config, key) for key in keys) for point in points]


def test_lists_multiply_with_the_last_one_fastest():
    """Two lists make their product in the order in which Hydra makes it."""
    assert leaves([*ONE, "shards=1,2", "batch_size=8,16"], "shards", "batch_size") == [
        (1, 8),
        (1, 16),
        (2, 8),
        (2, 16),
    ]


def test_ranges_and_choices_are_hydras():
    """range() and choice() expand as in any Hydra application."""
    assert leaves([*ONE, "batch_size=range(8,33,8)"], "batch_size") == [(8,), (16,), (24,), (32,)]
    assert leaves([*ONE, "temperature=choice(0,0.5)"], "temperature") == [(0.0,), (0.5,)]


def test_globs_name_config_groups():
    """A glob over a group takes every file of the group that matches."""
    _, points, _ = grid.expand([*ONE, "model=glob(llama-3-*)"])
    assert {point.config.model.name for point in points} == {"llama-3-8b", "llama-3-70b"}


def test_a_grid_file_is_an_ordinary_multirun_file():
    """hydra.sweeper.params of a file in conf/grid make the axes, its other keys the fixed choices."""
    _, points, _ = grid.expand(["grid=demo"])
    assert len(points) == 8
    assert {p.config.max_gen_len for p in points} == {32}
    assert {(p.config.shards, p.config.batch_size) for p in points} == {
        (1, 4),
        (1, 8),
        (2, 4),
        (2, 8),
    }


def test_words_win_over_the_grid_file():
    """A key given on the command line replaces the axis of the file."""
    _, points, _ = grid.expand(["grid=demo", "shards=1", "sweep.repeats=1"])
    assert [p.config.shards for p in points] == [1, 1]


def test_repeats_are_points_of_their_own():
    """Three repeats of one combination are three points, alike but for `repeat`."""
    _, points, _ = grid.expand(["n_prompts=8"])
    assert [p.config.repeat for p in points] == [0, 1, 2]
    assert len({p.point_id for p in points}) == 3


def test_zipped_lists_advance_together():
    """A zip block pairs its keys' values instead of multiplying them."""
    words = [*ONE, "sweep.zip=[[shards,batch_size]]", "shards=1,2,4", "batch_size=64,32,16"]
    assert leaves(words, "shards", "batch_size") == [(1, 64), (2, 32), (4, 16)]


def test_zipped_groups_and_values_advance_together():
    """A group and a plain key can be zipped."""
    words = [*ONE, "sweep.zip=[[model,shards]]", "model=llama-7b,llama-65b", "shards=1,8"]
    _, points, _ = grid.expand(words)
    assert [(p.config.model.name, p.config.shards) for p in points] == [
        ("llama-7b", 1),
        ("llama-65b", 8),
    ]


def test_zipped_lists_of_different_lengths_are_refused():
    """Nothing is guessed about lists that do not pair up."""
    with pytest.raises(RefusedError, match="different lengths"):
        grid.expand([*ONE, "sweep.zip=[[shards,batch_size]]", "shards=1,2", "batch_size=1,2,3"])


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
    ("word", "told"),
    [
        ("batchsize=8", "batchsize"),
        ("batch_size=many", "many"),
        (
            "model=llama-8x",
            "'model/llama-8x'. Available options in 'model': llama-13b, llama-2-70b",
        ),
        ("precision=fp7", "fp64, fp32, bf16, fp16"),
        ("model.dimension=3", "dimension"),
        ("shards=1,x", "x"),
        ("+new=1", "added"),
        ("~shards", "removed"),
        ("hydra.run.dir=/tmp/x", "sweep=NAME"),
        ("sweep.repeats=1,2", "one value"),
        ("batch_size=", "batch_size"),
        ("shards=(1", "shards"),
    ],
)
def test_a_wrong_word_is_refused_in_one_line(word, told):
    """Key, group, type or value: the message names it and holds no line break."""
    with pytest.raises(RefusedError) as caught:
        grid.expand([*ONE, word])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "word",
    [
        "dataset.name=${oc.env:HOME}",
        "model.name='${now:%Y}'",
        "engine._target_=os.system",
        "dataset.name=`touch sentinel`",
        "dataset.name='a;touch sentinel'",
        "sweep='../out'",
        "sweep=a/../../out",
        "model=../../secrets",
        "dataset.name='a\nb'",
        "model.name='$(touch sentinel)',${x}",
    ],
)
def test_values_that_could_run_or_escape_are_refused(word, tmp_path):
    """Nothing is evaluated, nothing is written."""
    with pytest.raises(RefusedError):
        grid.plan([*ONE, word])
    assert list(tmp_path.iterdir()) == []


def test_the_order_of_runs_is_shuffled_by_the_seed():
    """The same seed gives the same order, another seed another; the points are the same."""
    words = ["n_prompts=8", "shards=1,2", "batch_size=8,16"]
    first, again = grid.plan(words), grid.plan(words)
    other = grid.plan([*words, "sweep.seed=1"])
    ids = [point.point_id for point in first.points]
    assert ids == [point.point_id for point in again.points]
    assert ids != [point.point_id for point in other.points]
    assert sorted(ids) == sorted(point.point_id for point in other.points)


def test_combinations_that_come_to_one_point_are_run_once():
    """An explicit default and the default are one point."""
    _, points, duplicates = grid.expand([*ONE, "max_gen_len=32", "max_seq_len=null,544"])
    assert (len(points), duplicates) == (1, 1)


@pytest.mark.parametrize("key", ["constraint", "partition"])
def test_one_point_in_two_places_is_refused(key):
    """Where a point runs is no part of it: the second place would not be measured, and the words tell how caps are."""
    with pytest.raises(
        RefusedError, match=rf"cluster.{key}=cap300,cap400: .*control.power_limit_w"
    ):
        grid.expand([*ONE, "cluster=testcluster", f"cluster.{key}=cap300,cap400"])


def test_a_sites_own_conf_is_found_first(tmp_path):
    """./conf adds profiles and replaces files of the same name; the rest still comes from the package."""
    (tmp_path / "conf" / "cluster").mkdir(parents=True)
    (tmp_path / "conf" / "cluster" / "mysite.yaml").write_text("name: mysite\npartition: gpu\n")
    (tmp_path / "conf" / "cluster" / "local.yaml").write_text(
        "name: local\nlauncher: local\ngpus_per_node: 3\ngpu_model: own\n"
    )
    _, points, _ = grid.expand([*ONE, "cluster=mysite,local"])
    assert points[0].config.cluster.partition == "gpu"
    assert points[1].config.cluster.gpus_per_node == 3


@pytest.mark.parametrize(
    "text",
    [
        "shards: {1: 2",  # no YAML
        b"\xff\xfe\x00",  # no text
        "- 1\n- 2\n",  # a list
        "defaults: 7\n",
        "defaults:\n  - mine\n",  # names itself
        "# @package _global_\nhydra: null\n",
        "# @package _global_\nhydra:\n  sweeper: null\nnonsense: 1\n",
    ],
)
def test_a_damaged_config_is_refused_in_one_line(text, tmp_path):
    """The fuzzer found these: whatever Hydra and its YAML make of them, it is one line."""
    (tmp_path / "conf" / "grid").mkdir(parents=True)
    path = tmp_path / "conf" / "grid" / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RefusedError) as caught:
        grid.expand([*ONE, "grid=mine"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["sweep.repeats=999999999999"],
        ["seed=range(1,1000000000)"],
        ["seed=range(1,90000)", "batch_size=1,2"],
    ],
)
def test_more_points_than_memory_holds_are_refused_at_once(words):
    """Found by the fuzzer, which such words had killed: at most 100,000 points."""
    with pytest.raises(RefusedError, match="at most 100,000"):
        grid.expand([*ONE, *words])


def test_a_folder_of_ones_own_hides_no_shipped_config(tmp_path):
    """With a ./conf that holds one profile, shipped models are still listed, listed in words and globbed."""
    (tmp_path / "conf" / "cluster").mkdir(parents=True)
    (tmp_path / "conf" / "cluster" / "mine.yaml").write_text("name: mine\nlauncher: local\n")
    assert {"mine", "local"} <= set(hydra.group_files("cluster"))
    assert "llama-7b" in hydra.group_files("model")
    for words in ("model=llama-7b,llama-13b", "model=glob([llama-7*,llama-13*])"):
        _, points, _ = grid.expand([*ONE, "cluster=mine", words])
        assert {point.config.model.name for point in points} == {"llama-7b", "llama-13b"}


def test_expansion_equals_hydras_composition():
    """Points made by setting plain values are those that Hydra composes one by one (20 sampled)."""
    words = [
        "n_prompts=8",
        "model=tiny,llama-7b",
        "dataset=alpaca,gsm8k",
        "shards=1,2",
        "batch_size=range(1,9)",
        "temperature=0,0.7",
        "repeat=range(3)",
    ]
    _, points, _ = grid.expand(words)
    assert len(points) == 2 * 2 * 2 * 8 * 2 * 3
    for point in random.Random(0).sample(points, 20):
        c = point.config
        single = ["n_prompts=8", f"model={c.model.name}", f"dataset={c.dataset.name}"]
        single += [
            f"{key}={getattr(c, key)}" for key in ("shards", "batch_size", "temperature", "repeat")
        ]
        hydra.register()
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(hydra.conf_dirs()[0]), version_base="1.3"):
            composed = hydra.typed(compose("wattflow", single))
        assert point_id(resolve(composed)) == point.point_id
        assert resolve(composed) == c
