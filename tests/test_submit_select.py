"""Points chosen by their choices, ids and states."""

import pytest
from sweeps import choices, id_of, make_sweep

from wattflow.errors import RefusedError
from wattflow.submit import select


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        (["batch_size=8"], [0]),
        (["batch_size=8,16"], [0, 1]),
        (["model=tiny", "shards=2"], [2]),
        (["stop=length", "power.idle_s=5"], [0, 1, 2]),
        (["model.path=null"], [0, 1, 2]),
        (["batch_size=9"], []),
    ],
)
def test_points_are_chosen_by_their_choices(words, chosen, tmp_path):
    """Every word must hold, a word holds for any of its values, and a group stands for its name."""
    points = [
        choices(batch_size=8),
        choices(batch_size=16),
        choices(batch_size=32, shards=2, cluster__gpus_per_node=2),
    ]
    sweep = make_sweep(tmp_path / "s", points)
    assert select.choose(sweep, words, None) == {id_of(points[i]) for i in chosen}


def test_points_are_chosen_by_id_and_by_choices_together(tmp_path):
    """Without a filter there is no choice; with both, both must hold; an id of another sweep is refused."""
    points = [choices(seed=1), choices(seed=2)]
    sweep = make_sweep(tmp_path / "s", points)
    ids = [id_of(point) for point in points]
    assert select.choose(sweep, [], None) is None
    assert select.choose(sweep, [], [ids[0]]) == {ids[0]}
    assert select.choose(sweep, ["seed=1,2"], [ids[1]]) == {ids[1]}
    with pytest.raises(RefusedError, match="0123456789ab: no such point"):
        select.choose(sweep, [], ["0123456789ab"])


@pytest.mark.parametrize("word", ["batchsize=8", "batch_size", "=8"])
def test_a_filter_that_names_no_choice_is_refused(word, tmp_path):
    """A slip must not read as a filter that nothing meets, nor as none."""
    sweep = make_sweep(tmp_path / "s", [choices()])
    with pytest.raises(RefusedError, match="wattflow keys"):
        select.choose(sweep, [word], None)


def test_words_of_cluster_are_new_settings_and_others_filters():
    """What a sweep keeps stays a filter."""
    words = ["cluster.time_min=10", "batch_size=8", "cluster=site", "cluster.gpu_model=h100"]
    filters, settings = select.split_settings(words)
    assert settings == ["cluster.time_min=10"]
    assert filters == words[1:]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("batch_size=999", "batch_size=999: no point of .* has it"),
        ("model.path=/new", "model.path=/new: .* does not mix checkpoints, prompts or meters"),
        ("power.meter=dcgm", "power.meter=dcgm: .*sweep=NAME"),
        ("sweep.hang_s=5", "sweep.hang_s=5: .*keep theirs"),
    ],
)
def test_a_filter_that_no_point_meets_is_refused_by_name(tmp_path, word, message):
    """A new value was meant: it would be ignored without a word."""
    sweep = make_sweep(tmp_path / "s", [choices(batch_size=8), choices(batch_size=16)])
    with pytest.raises(RefusedError, match=message):
        select.refuse_idle_filters(sweep, [word])
    select.refuse_idle_filters(sweep, ["power.idle_s=5", "model.path=null", "batch_size=8,9"])
