"""The deadlines of polls, gaps between samples, and instants by both clocks."""

from wattflow.power.meter import Beat, Gaps, Moment, middle

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


def test_a_slow_call_is_placed_in_its_middle():
    """A value whose call took from 100 to 200 ns belongs to 150 ns, by both clocks."""
    assert middle(Moment(100, 10), Moment(200, 110)) == Moment(150, 60)


def test_samples_further_apart_than_allowed_have_a_gap():
    """100 ms are allowed: 0, 100 and 201 ms; the first sample of all has nothing before it."""
    gaps = Gaps(100 * MS)
    assert [gaps.before(at * MS) for at in (0, 100, 201, 260)] == [False, False, True, False]


def test_an_earlier_sidecar_s_last_sample_counts():
    """A trace that goes on 5 s after its last sample begins with a gap."""
    assert Gaps(100 * MS, last_ns=1_000 * MS).before(6_000 * MS)


def test_what_was_lost_is_a_gap_once():
    """A sensor that failed in between marks the next sample, however soon it comes."""
    gaps = Gaps(100 * MS, last_ns=0)
    gaps.lost = True
    assert gaps.before(10 * MS)
    assert not gaps.before(20 * MS)
