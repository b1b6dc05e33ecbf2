"""A sweep keeps its axes: further values are added, further choices are refused."""

import pytest

from wattflow.errors import RefusedError
from wattflow.plan.grid import plan
from wattflow.submit import send
from wattflow.submit.same_axes import check_axes

FIRST = ["batch_size=4,8", "precision=bf16"]


@pytest.fixture
def kept(tmp_path):
    """A function that plans words in one sweep, and a sweep of FIRST there."""

    def planned(*words):
        return plan([f"sweeps_dir={tmp_path}", "sweep=s", "sweep.repeats=1", *words])

    send.keep(planned(*FIRST))
    return planned


@pytest.mark.parametrize(
    "words",
    [
        FIRST,
        ["batch_size=4"],
        ["batch_size=16"],
        ["batch_size=4,8,16,32"],
        ["batch_size=16", "cluster.time_min=10", "power.idle_s=1"],
        ["batch_size=16", "repeat=0,1,2"],
    ],
)
def test_further_values_of_the_same_axes_are_added(kept, words):
    """Fewer, further and all values; a time limit, the meter's settings and repeats are no axes."""
    check_axes(kept(*words))


@pytest.mark.parametrize(
    ("words", "asked", "further"),
    [
        (["precision=bf16,fp32"], "precision", "precision"),
        (["batch_size=4,8", "precision=fp32"], "batch_size", "precision"),
        (["batch_size=16", "shards=2", "temperature=0.5"], "nothing", "shards, temperature"),
        (["model=llama-7b", "batch_size=4,8"], "batch_size", "model"),
    ],
)
def test_other_axes_are_refused_by_name(kept, words, asked, further):
    """Also where all points of the new submit agree in the choice that is not the sweep's."""
    words = [*words, *(["precision=bf16"] if not any("precision" in w for w in words) else [])]
    with pytest.raises(RefusedError) as refused:
        check_axes(kept(*words))
    assert f"its points vary in batch_size, these in {asked};" in str(refused.value)
    assert f"vary in {further}, too" in str(refused.value)


def test_a_submit_of_other_axes_writes_nothing(kept):
    """Neither grid nor sweep.yaml change, with and without a dry run."""
    made = kept("precision=bf16,fp32")
    before = (made.sweep.grid_path.read_bytes(), made.sweep.sweep_yaml.read_bytes())
    for dry_run in (True, False):
        with pytest.raises(RefusedError, match="Name a sweep of their own with sweep=NAME"):
            send.submit(made, dry_run=dry_run)
    with pytest.raises(RefusedError):
        send.keep(made)
    assert before == (made.sweep.grid_path.read_bytes(), made.sweep.sweep_yaml.read_bytes())


def test_one_combination_may_get_a_first_axis(tmp_path):
    """Batch 4, then 8, are an axis; then precision is another."""

    def planned(*words):
        return plan([f"sweeps_dir={tmp_path}", "sweep=s", "sweep.repeats=1", *words])

    send.keep(planned("batch_size=4"))
    with pytest.raises(RefusedError, match="vary in nothing, these in nothing"):
        send.keep(planned("batch_size=8", "precision=fp32"))
    send.keep(planned("batch_size=8"))
    with pytest.raises(RefusedError, match="vary in batch_size"):
        send.keep(planned("batch_size=8", "precision=fp32"))
