"""What results say of attempts whose files are gone: finished stays finished, and no number is given twice."""

import shutil

import pytest
from submissions import intents, plan, seeds
from sweeps import Gpu, Made, make_attempt

from wattflow.collect.collect import collect
from wattflow.config.choices import to_dict
from wattflow.errors import RefusedError
from wattflow.store.collected import CollectedAttempt, read_collected
from wattflow.submit import resume, send
from wattflow.submit.status import states


@pytest.fixture
def made(fake, tmp_path):
    """Three points, all sent: the first finished at its second attempt, the second failed; then rm -r points."""
    made = plan(tmp_path, *seeds(3))
    send.submit(made)
    for point, status in zip(
        (made.points[i] for i in (0, 0, 1)), ("failed", "finished", "failed"), strict=True
    ):
        make_attempt(made.sweep, to_dict(point.config), Made([Gpu("GPU-a")], status=status))
    collect(made.sweep)
    shutil.rmtree(made.sweep.path / "points")
    return made


def ids(made):
    return [point.point_id for point in made.points]


def test_a_finished_row_whose_files_are_gone_is_done_and_says_so(made):
    """Before and after the next collection; the failed point and the one never tried are what they were."""
    for _ in range(2):
        rows = states(made.sweep)
        assert [row.state for row in rows] == ["done", "unknown", "unknown"]
        assert rows[0].reason == "its files were removed; its row is kept as it was collected"
        assert rows[0].attempts == 2
        collect(made.sweep)


def test_resume_sends_what_did_not_finish_and_new_attempts_get_new_numbers(made):
    """The finished point is left alone unless forced, the failed one is sent; numbers go on from those in the rows."""
    first, second, third = ids(made)
    sent = resume.resume(made.sweep)
    assert intents(made.sweep)[-1].tasks == [[second], [third]]
    assert sent.points == 2
    assert made.sweep.claim_attempt(first).number == 3
    assert made.sweep.claim_attempt(second).number == 2
    assert made.sweep.claim_attempt(third).number == 1


def test_a_forced_point_runs_above_all_numbers_that_it_had(made):
    """Up to attempt 2 it counts as finished; an attempt above does not exist yet."""
    first = ids(made)[0]
    resume.resume(made.sweep, only={first}, force=True)
    assert intents(made.sweep)[-1].tasks == [[first]]
    assert made.sweep.is_finished(first)
    assert not made.sweep.is_finished(first, after=2)


def test_a_submit_does_not_send_them_as_never_tried(made, tmp_path):
    """Points of `wattflow run` have no line in the journal: their rows say that they were tried."""
    made.sweep.journal_path.unlink()
    sent = send.submit(plan(tmp_path, *seeds(3)), dry_run=True)
    assert (sent.points, sent.tried) == (1, 2)


def test_both_rows_stay_when_a_new_attempt_is_collected(made):
    """Attempts 1, 2 and 3 of one point: none in another's place, and the newest counts."""
    first = made.points[0]
    make_attempt(made.sweep, to_dict(first.config), Made([Gpu("GPU-a")], started_s=500.0))
    collect(made.sweep)
    found = read_collected(made.sweep.points_path)[first.point_id]
    assert found == [CollectedAttempt(n, n > 1) for n in (1, 2, 3)]


def test_a_record_that_is_there_says_more_than_results(fake, tmp_path):
    """A damaged record is unfinished, whatever results were made of it once."""
    made = plan(tmp_path, *seeds(1))
    send.submit(made)
    attempt = make_attempt(made.sweep, to_dict(made.points[0].config), Made([Gpu("GPU-a")]))
    collect(made.sweep)
    assert made.sweep.is_finished(attempt.point_id)
    attempt.record_path.write_text("{")
    assert not made.sweep.is_finished(attempt.point_id)
    attempt.record_path.unlink()
    assert made.sweep.is_finished(attempt.point_id)


def test_damaged_results_say_nothing(made):
    """No number and no end is taken from a file that is none."""
    made.sweep.points_path.write_text("none")
    assert read_collected(made.sweep.points_path) == {}
    assert not made.sweep.is_finished(ids(made)[0])
    with pytest.raises(RefusedError):
        made.sweep.claim_attempt("../elsewhere")
