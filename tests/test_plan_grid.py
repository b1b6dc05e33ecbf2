"""From overrides to points: lists, grid files, zips, repeats, order, prompts."""

import random
from dataclasses import replace

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


@pytest.mark.parametrize(
    ("override", "way"),
    [
        (
            "model.path=/x/c,/y/c",
            r"model\.revision=A,B with sweep\.zip=\[\[model\.path,model\.revision\]\]",
        ),
        (
            "dataset.path={0}/a/p.jsonl,{0}/b/p.jsonl",
            r"dataset\.name=A,B with sweep\.zip=\[\[dataset\.path,dataset\.name",
        ),
        ("cluster.time_min=1,2", "a sweep of its own, with sweep=NAME"),
        ("power.meter=simulated,rapl", "a sweep of its own"),
        ("power=simulated,rapl", "a sweep of its own"),
    ],
)
def test_lists_over_what_is_no_part_of_a_point_are_refused(override, way, tmp_path):
    """They would come to one point, and the second value would never run."""
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.jsonl").write_text('{"prompt": "one line"}\n' * 8)
    words = [*ONE, override.format(tmp_path)]
    words += ["dataset.format=jsonl"] if override.startswith("dataset") else []
    key = override.partition("=")[0]
    with pytest.raises(RefusedError, match=rf"^{key}[.=].* so that both are one point\. .*{way}"):
        grid.expand(words)


def test_two_files_with_two_names_are_two_points(tmp_path):
    """As the refusal says."""
    for name in "ab":
        (tmp_path / name).write_text('{"prompt": "one line"}\n' * 8)
    paths = f"dataset.path={tmp_path}/a,{tmp_path}/b"
    names = ["dataset.name=one,two", "sweep.zip=[[dataset.path,dataset.name]]"]
    _, points, _ = grid.expand([*ONE, "dataset.format=jsonl", paths, *names])
    assert [point.config.dataset.name for point in points] == ["one", "two"]


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
        composed = replace(composed, weights="dummy")  # no checkpoint is named
        assert point_id(resolve(composed, lambda _: 64)) == point.point_id
        assert resolve(composed, lambda _: 64) == c


FITTING = {  # a shipped grid: a shipped profile whose GPUs it is for, or this machine
    "demo": "local",
    "shards": "local",
    "paper-scaling": "example-v100",
    "power-caps": "local",  # whose jobs set caps themselves
    "neighbours": "example-v100",  # of four slots a node
    "precision": "local",
    "dummy-weights": "local",
    "paper-baseline": "example-a100",
    "paper-caps": "local",
    "paper-lengths": "local",
    "paper-shards": "example-a100",
    "question-caps": "local",
    "question-clocks": "local",
    "question-families": "local",
    "question-quality": "local",
    "question-shards": "local",
}


def test_every_shipped_grid_has_a_profile_that_it_is_planned_for():
    """A new grid is given one below."""
    assert set(FITTING) == set(hydra.group_files("grid"))


@pytest.mark.parametrize("name", FITTING)
@pytest.mark.parametrize("dataset", ["alpaca", "gsm8k"])
def test_every_shipped_grid_is_planned_with_the_shipped_prompts(name, dataset):
    """A newcomer names the grid, and has no file of prompts yet."""
    repeats = 8 if name == "neighbours" else 1  # each slot once alone, once beside the others
    overrides = [f"grid={name}", f"cluster={FITTING[name]}", f"sweep.repeats={repeats}"]
    overrides += [f"dataset={dataset}"] * (name != "paper-scaling")
    planned = grid.plan(overrides)
    assert planned.feasible
    assert all((point.config.n_prompts or 0) >= 8 for point in planned.points)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=llama-7b", "shards=1,2,4"],
        ["grid=paper-scaling", "cluster=example-v100"],
        ["shards=1,2", "batch_size=1,100"],
    ],
)
def test_the_first_natural_commands_are_planned(overrides):
    """No path, no n_prompts: each point takes the 64 shipped prompts, or a whole batch of them, repeated."""
    planned = grid.plan(overrides)
    for config in (point.config for point in planned.points):
        assert config.n_prompts == max(64, config.batch_size)
        assert config.dataset.cycle is (config.batch_size > 64)


def test_a_plan_says_which_prompts_its_points_take():
    """Of how many there are, and in how many points they are repeated."""
    shipped = grid.plan(["batch_size=8,100,200", "sweep.repeats=1"])
    (note,) = shipped.notes
    assert note == (
        "dataset alpaca: 64 to 200 prompts a point, repeated in 2 points (dataset.cycle), of 64 that wattflow ships; "
        "dataset.path=FILE names a file of your own."
    )


def test_all_records_of_a_file_are_taken_and_none_twice(tmp_path):
    """Five lines are five prompts; six are refused, as before."""
    file = tmp_path / "five.jsonl"
    file.write_text('{"prompt": "one line"}\n' * 5)
    own = [f"dataset.path={file}", "dataset.name=five", "dataset.format=jsonl", "sweep.repeats=1"]
    planned = grid.plan(own)
    assert [point.config.n_prompts for point in planned.points] == [5]
    assert planned.notes == [f"dataset five: 5 prompts a point, of 5 in {file}."]
    with pytest.raises(RefusedError, match="n_prompts=6, but dataset five has 5 records"):
        grid.plan([*own, "n_prompts=6"])


def test_points_share_the_parts_that_they_have_in_common():
    """A thousand points of one model hold it once, also where n_prompts decides whether prompts are repeated."""
    _, points, _ = grid.expand(["seed=range(0,20)", "n_prompts=8,100", "sweep.repeats=1"])
    assert len({id(point.config.model) for point in points}) == 1
    assert len({id(point.config.dataset) for point in points}) == 2
