"""The deadlines of polls."""

from wattflow.power.meter import Beat

MS = 1_000_000


def test_a_poll_that_comes_late_is_counted_and_the_next_one_is_not_put_off():
    """Each 50 ms, taken at 0, 54 and 106 ms: 4 ms are in time, 6 ms are late, and the next deadline is 150 ms."""
    beat = Beat(50 * MS, 0)
    assert [beat.take(at * MS) for at in (0, 54, 106)] == [True, True, True]
    assert beat.late == 1
    assert beat.next_ns == 150 * MS


def test_deadlines_that_were_missed_are_passed_over():
    """After 230 ms of silence one poll is due, late once, and not five."""
    beat = Beat(50 * MS, 0)
    assert beat.take(230 * MS)
    assert not beat.take(231 * MS)
    assert (beat.late, beat.next_ns) == (1, 250 * MS)


def test_nothing_is_due_before_its_time():
    """At 49 ms the poll of 50 ms is not."""
    beat = Beat(50 * MS, 50 * MS)
    assert not beat.take(49 * MS)
    assert beat.late == 0
