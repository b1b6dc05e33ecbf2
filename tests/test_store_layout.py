"""The directory of a sweep: which attempts finished."""

import shutil

import pytest
from sweeps import Gpu, Made, choices, id_of, make_attempt, make_sweep

from wattflow.collect.collect import collect
from wattflow.store.columns import PHASE, POINT
from wattflow.store.kept import Kept
from wattflow.store.tables import read_table


@pytest.fixture
def sweep(tmp_path):
    """A point with attempts 1 (failed), 2 (finished) and 3 (interrupted)."""
    made = make_sweep(tmp_path, [choices()])
    for status in ("failed", "finished", "interrupted"):
        make_attempt(made, choices(), Made([Gpu("GPU-a")], batches=1, status=status))
    return made


def test_only_the_attempt_whose_record_says_so_is_finished(sweep):
    """The second of three."""
    attempts = sweep.attempts(id_of(choices()))
    assert [attempt.is_finished() for attempt in attempts] == [False, True, False]


@pytest.mark.parametrize(("after", "finished"), [(0, True), (1, True), (2, False), (3, False)])
def test_a_point_is_finished_by_an_attempt_above_a_number(sweep, after, finished):
    """A point that is run again is finished once a later attempt is."""
    assert sweep.is_finished(id_of(choices()), after) is finished


@pytest.mark.parametrize("data", [b"", b"{}", b'{"status": "finished"}', b"[" * 100_000])
def test_a_corrupt_record_counts_as_unfinished(sweep, data):
    """Whatever it says: it may not be this attempt's."""
    sweep.attempts(id_of(choices()))[1].record_path.write_bytes(data)
    assert not sweep.is_finished(id_of(choices()))


def test_a_point_without_attempts_is_unfinished(sweep):
    """An id that nothing ran."""
    assert not sweep.is_finished("0" * 12)


def test_a_number_of_a_pruned_attempt_is_not_given_twice(sweep):
    """Though its files and the results were removed: pruned/ has its row."""
    collect(sweep)
    results = Kept(read_table(sweep.points_path, POINT), read_table(sweep.phases_path, PHASE))
    point_id = id_of(choices())
    Kept.read(sweep).with_attempts([(point_id, 2)], results).write(sweep)
    shutil.rmtree(sweep.path / "points")
    shutil.rmtree(sweep.results)
    assert sweep.is_finished(point_id)
    assert sweep.claim_attempt(point_id).number == 3
