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
