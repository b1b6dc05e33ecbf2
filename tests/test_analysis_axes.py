"""What varies: once, for reports, comparisons, papers and plans."""

import polars as pl
from sweeps import choices

from wattflow.analysis.axes import axes_of, choice_columns, is_measured, varying
from wattflow.store.columns import choice_values


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
