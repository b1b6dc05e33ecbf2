"""What varies: once, for reports, comparisons, papers and plans."""

import polars as pl
from sweeps import choices

from wattflow.analysis import axes
from wattflow.analysis.axes import (
    axes_of,
    choice_columns,
    is_measured,
    moving,
    shown_axes,
    varying,
)
from wattflow.store.columns import CHOICE_KEYS, choice_values


def points(*over):
    """The choices of some points by column."""
    return choice_columns([choice_values(choices(**one)) for one in over])


def test_choices_that_vary_are_axes_in_the_order_in_which_one_names_them():
    """Shards before batch sizes, whatever the order of the rows; what is alike in all points is none."""
    of = points({"batch_size": 4, "shards": 2}, {"batch_size": 8, "shards": 1})
    assert varying(of) == ["shards"]  # from which the batch size follows here
    grid = points(*({"batch_size": b, "shards": s} for b in (4, 8) for s in (2, 1)))
    assert varying(grid) == ["shards", "batch_size"]


def test_what_follows_is_no_axis():
    """The sequence length that each generation length brings is none; a third length on its own makes it one."""
    two = [{"max_gen_len": n, "max_seq_len": 512 + n} for n in (8, 16)]
    assert varying(points(*two)) == ["max_gen_len"]
    assert varying(points(*two, {"max_gen_len": 16, "max_seq_len": 999})) == [
        "max_gen_len",
        "max_seq_len",
    ]


def test_repeats_and_how_a_point_was_watched_are_no_axes():
    """Neither repeats, nor the meter's settings, nor a site's setup lines."""
    of = points({}, {"repeat": 1}, {"power__poll_ms": 20}, {"cluster__setup": ["module load x"]})
    assert varying(of) == []
    assert axes_of(of) == ["model"]


def test_profiles_are_an_axis():
    """Two site profiles are told apart by name; the GPU that each names follows from that."""
    of = points(
        *({"cluster__name": n, "cluster__gpu_model": g} for n, g in (("a", "x"), ("b", "y")))
    )
    assert varying(of) == ["cluster"]


def test_beside_a_choice():
    """Beside shards, nodes that follow from them are no axis, batch sizes are."""
    of = points(*({"shards": s, "nodes": s, "batch_size": b} for s in (1, 2) for b in (4, 8)))
    assert varying(of, "shards") == ["batch_size"]
    assert varying(of, "batch_size") == ["shards"]


def test_null_is_a_value():
    """Boards as found and a cap are two settings."""
    of = points({"control__power_limit_w": None}, {"control__power_limit_w": 300})
    assert varying(of) == ["control_power_limit_w"]


def test_frames_and_rows_are_read_alike():
    """A polars frame of the same columns has the same axes."""
    grid = points(*({"batch_size": b, "shards": s} for b in (4, 8) for s in (1, 2)))
    assert varying(pl.DataFrame(grid, strict=False)) == varying(grid) == ["shards", "batch_size"]


def test_a_measured_command_names_its_row():
    """What `measure` made has a command and no choices of a grid."""
    of = choice_columns([{"command": '["true"]'}])
    assert is_measured(of)
    assert axes_of(of) == ["command"]
    assert not is_measured(points({}))


def test_what_somebody_moved_along_is_shown():
    """A batch size that goes with each precision is an axis of tables; nodes that go with shards are none."""
    zipped = points({"precision": "bf16", "batch_size": 64}, {"precision": "fp32", "batch_size": 8})
    assert moving(zipped) == shown_axes(zipped) == ["batch_size", "precision"]
    derived = points(
        {"shards": 1, "nodes": 1, "cluster__gpus_per_node": 4},
        {"shards": 8, "nodes": 2, "cluster__gpus_per_node": 4},
    )
    assert moving(derived) == ["shards"]
    own = points({"shards": 1, "nodes": 1}, {"shards": 8, "nodes": 3})
    assert moving(own) == ["shards", "nodes"]


def test_what_a_model_or_a_dataset_brings_is_not_moved():
    """Layers of a model, a checkpoint's path and the length of a prompt file; a chat template is a choice."""
    of = points(
        {"model__name": "a", "model__dim": 64, "model__path": "/a", "model__chat": False},
        {"model__name": "b", "model__dim": 128, "model__path": "/b", "model__chat": True},
    )
    assert moving(of) == ["model", "model_chat"]
    files = [("x", "/x", 700), ("y", "/y", 900)]
    of = points(*({"dataset__name": n, "dataset__path": p, "n_prompts": k} for n, p, k in files))
    assert moving(of) == ["dataset"]
    shipped = points(
        *({"dataset__name": n, "n_prompts": k} for n, k in (("alpaca", 8), ("gsm8k", 16)))
    )
    assert moving(shipped) == ["dataset", "n_prompts"]


def test_a_point_that_never_counts_moves_nothing():
    """An infeasible point with a length of its own makes no column of that."""
    of = points({"batch_size": 4}, {"batch_size": 8}, {"batch_size": 999, "max_gen_len": 99})
    assert shown_axes({**of, "counts": [True, True, False]}) == ["batch_size"]
    assert shown_axes(of) == ["batch_size", "max_gen_len"]


def test_how_a_point_was_asked_for_moves_nothing():
    """A time limit, an account and a partition's quality of service change no joule."""
    over = {"cluster__time_min": 10, "cluster__account": "x", "cluster__qos": "long"}
    assert moving(points({}, over)) == varying(points({}, over)) == []


def test_columns_of_many_points_hold_what_all_share_once():
    """The same values as a row a point has, and the same choices move; nothing of no points."""
    points = [
        choices(batch_size=size, seed=seed, model__rope_theta=theta)
        for size, theta in ((4, 1e4), (8, 1e4), (8, 5e5))
        for seed in (0, 1)
    ]
    columns = axes.columns_of(iter(points))
    rows = [choice_values(point) for point in points]
    for name in CHOICE_KEYS:
        assert list(columns[name]) == [row[name] for row in rows], name
    assert axes.moving(columns) == axes.moving(axes.choice_columns(rows))
    assert "batch_size" in axes.moving(columns)
    held = [name for name, column in columns.items() if not isinstance(column, axes.Repeated)]
    assert sorted(held) == ["batch_size", "model_rope_theta", "seed"]
    assert axes.columns_of([]) == {name: axes.Repeated(None, 0) for name in ("counts", "command")}
