"""Which requests are sent before each iteration, over a scripted engine and a clock that the test winds."""

import json

import pytest

from wattflow.engine.serving import LONGEST_WAIT_S, Feed, Turn, serve
from wattflow.workload.arrivals import drawn

S = 10**9


class Clock:
    """Time that passes by sleeping and stepping alone."""

    def __init__(self):
        self.now_ns = 100 * S

    def __call__(self):
        return self.now_ns

    def sleep(self, seconds):
        self.now_ns += round(seconds * S)


class Scripted:
    """Each iteration takes 0.1 s and each request ten of them; `stalls` has longer ones by number."""

    def __init__(self, clock, steps=10, stalls=()):
        self.clock, self.left, self.need = clock, {}, steps
        self.sent, self.ended, self.made, self.idles = {}, {}, [], 0
        self.stalls = dict(stalls)

    @property
    def in_work(self):
        return len(self.left)

    def send(self, number, due_ns):
        self.sent[number] = (due_ns, self.clock.now_ns)
        self.left[number] = self.need

    def step(self):
        assert self.left, "stepped with nothing in work"
        self.clock.sleep(self.stalls.get(len(self.made), 0.1))
        self.made.append(sorted(self.left))
        for number in list(self.left):
            self.left[number] -= 1
            if not self.left[number]:
                del self.left[number]
                self.ended[number] = self.clock.now_ns

    def idle(self):
        self.idles += 1


def drive(feed, engine, clock, **more):
    return serve(
        engine, feed, lambda v: json.loads(json.dumps(v)), clock_ns=clock, sleep=clock.sleep, **more
    )


def test_requests_are_sent_when_they_are_due_and_not_before():
    """Three by a clock, with a gap in which nobody steps: none early, each at the next iteration at the latest."""
    clock = Clock()
    engine = Scripted(clock)
    assert drive(Feed(3, [0.0, 0.55, 9.0], None), engine, clock)
    late = [(sent - due) / S for due, sent in engine.sent.values()]
    assert all(0 <= one <= 0.1 for one in late)
    assert [due - 100 * S for due, _ in engine.sent.values()] == [0, round(0.55 * S), 9 * S]
    assert engine.idles >= (9.0 - 1.7) / LONGEST_WAIT_S - 1
    assert len(engine.made) == 16 + 10


def test_so_many_are_kept_in_work():
    """Closed: never more than two, two as long as there are enough, the next one as soon as one ends."""
    clock = Clock()
    engine = Scripted(clock)
    drive(Feed(7, None, 2), engine, clock)
    assert [len(row) for row in engine.made] == [2] * 30 + [1] * 10
    assert list(engine.sent) == list(range(7))
    assert engine.idles == 0


def test_fewer_requests_than_run_at_once():
    """All are sent, and the load ends."""
    clock = Clock()
    engine = Scripted(clock)
    assert drive(Feed(2, None, 8), engine, clock)
    assert sorted(engine.ended) == [0, 1]


def test_a_stall_delays_the_sending_and_not_the_intended_time():
    """An iteration of 2 s: requests due in it are sent after it, with their own due times."""
    clock = Clock()
    engine = Scripted(clock, stalls={3: 2.0})
    drive(Feed(3, [0.0, 0.5, 1.5], None), engine, clock)
    assert [round((sent - due) / S, 6) for due, sent in engine.sent.values()] == [0.0, 1.8, 0.8]


def test_it_can_stop_between_phases_and_go_on():
    """The ramp ends after the iteration in which its last request was sent; nothing is lost or sent twice."""
    clock = Clock()
    engine, feed = Scripted(clock), Feed(4, [0.0, 0.2, 0.4, 3.0], None)
    assert not drive(feed, engine, clock, until=lambda: len(engine.sent) >= 2)
    assert len(engine.sent) == 2
    assert drive(feed, engine, clock)
    assert sorted(engine.ended) == [0, 1, 2, 3]


def test_all_ranks_make_the_same_steps():
    """What rank 0 broadcasts is all that another rank needs to make the same iterations."""
    clock, said = Clock(), []

    def tell(value):
        said.append(json.dumps(value))
        return json.loads(said[-1])

    first = Scripted(clock)
    serve(
        first,
        Feed(6, drawn(6, 2.0, 1.0, 5).tolist(), None),
        tell,
        clock_ns=clock,
        sleep=clock.sleep,
    )
    replies = iter(said)
    other_clock = Clock()
    other = Scripted(other_clock)

    def never(_):
        raise AssertionError("another rank waits in the broadcast, not by its clock")

    serve(other, None, lambda _: json.loads(next(replies)), clock_ns=never, sleep=never)
    assert other.made == first.made
    assert next(replies, None) is None


def test_a_turn_travels_as_a_list():
    """And comes back as it was."""
    turn = Turn((3, 4), (5, 6), 0.0, is_last=False)
    assert Turn.of(json.loads(json.dumps(turn.as_json()))) == turn


@pytest.mark.parametrize("wrong", [(1, [0.0], 2), (1, None, None), (2, [0.0], None)])
def test_a_load_is_by_a_clock_or_so_many_at_a_time(wrong):
    """One of both, and a time for each request."""
    with pytest.raises(ValueError, match="requests"):
        Feed(*wrong)
