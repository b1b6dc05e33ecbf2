"""Requests that come while others are in work: which are sent before each iteration, and the loop around `step`.

    rank 0   |decide|broadcast| step |decide|broadcast| step |decide|broadcast: idle|  sleep  |decide ...
    others          |broadcast| step |      |broadcast| step |      |broadcast: idle|broadcast ...

Every rank has to call `step` equally often with the same requests, so rank 0 alone reads the clock: before each step it
broadcasts which requests it sends. Where nothing is in work it says so, and nobody steps: other ranks wait in the
broadcast for the next decision. Nothing here knows vLLM.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from wattflow.store.sources import SECOND_NS

LONGEST_WAIT_S = 0.05  # of one idle turn, so that signals are seen and a watchdog hears of it


@dataclass
class RequestTrace:
    """What became of one request on a rank; the clock is that of its node."""

    due_ns: int = 0  # when it was meant to be sent
    sent_ns: int = 0  # when it was: a loop that is late sends late
    end_ns: int = 0
    cached_tokens: int = 0  # of the prompt, that the prefix cache had
    prefill_steps: list[int] = field(default_factory=list)  # iterations that read of its prompt
    prefill_tokens: list[int] = field(default_factory=list)  # and how much of it each
    token_steps: list[int] = field(default_factory=list)  # the iteration that brought each token


@dataclass(frozen=True)
class Turn:
    """What rank 0 decides before an iteration."""

    send: tuple[int, ...]  # numbers of requests
    due_ns: tuple[int, ...]  # when each was meant to be sent
    wait_s: float = 0.0  # without an iteration: nothing is in work
    is_last: bool = False  # all requests are done

    @classmethod
    def of(cls, fields: list[Any]) -> "Turn":
        """Return the turn that `as_json` made a list of."""
        send, due_ns, wait_s, is_last = fields
        return cls(tuple(send), tuple(due_ns), wait_s, is_last)

    def as_json(self) -> list[Any]:
        """Return it as a list, which is short: it travels before every iteration."""
        return [self.send, self.due_ns, self.wait_s, self.is_last]


class Feed:
    """Decides which requests are sent: by a clock, or so many at a time."""

    def __init__(self, count: int, due_s: Sequence[float] | None, at_once: int | None) -> None:
        """`due_s` are rising times since the start; without them `at_once` requests are kept in work."""
        if (due_s is None) == (at_once is None):
            raise ValueError("requests come by a clock or so many at a time")
        if due_s is not None and len(due_s) != count:
            raise ValueError(f"{count} requests and {len(due_s)} times")
        self._count, self._at_once = count, at_once
        self._due_ns = None if due_s is None else [round(s * SECOND_NS) for s in due_s]
        self._next = 0
        self._start_ns: int | None = None

    def turn(self, now_ns: int, in_work: int) -> Turn:
        """Return the next turn, with so many requests in work; the first call starts the clock."""
        if self._start_ns is None:
            self._start_ns = now_ns
        first = self._next
        self._next = last = self._until(now_ns, in_work)
        if last > first:
            return Turn(tuple(range(first, last)), self._due(first, last, now_ns))
        if in_work:
            return Turn((), ())
        if last == self._count:
            return Turn((), (), is_last=True)
        assert self._due_ns is not None  # so many at a time leave no gap
        wait_s = (self._start_ns + self._due_ns[last] - now_ns) / SECOND_NS
        return Turn((), (), wait_s=min(wait_s, LONGEST_WAIT_S))

    def _until(self, now_ns: int, in_work: int) -> int:
        """Return the number of the first request that is not sent yet."""
        if self._at_once is not None:
            return min(self._count, self._next + max(0, self._at_once - in_work))
        assert self._due_ns is not None
        assert self._start_ns is not None
        found = self._next
        while found < self._count and self._start_ns + self._due_ns[found] <= now_ns:
            found += 1
        return found

    def _due(self, first: int, last: int, now_ns: int) -> tuple[int, ...]:
        if self._due_ns is None:
            return (now_ns,) * (last - first)
        assert self._start_ns is not None
        return tuple(self._start_ns + due for due in self._due_ns[first:last])


class Steps(Protocol):
    """The engine that a load is driven through."""

    def send(self, number: int, due_ns: int) -> None:
        """Add one request."""

    def step(self) -> None:
        """Make one iteration."""

    @property
    def in_work(self) -> int:
        """Requests that were sent and are not done."""

    def idle(self) -> None:
        """Take note that a turn passed without an iteration."""


def serve(
    steps: Steps,
    feed: Feed | None,
    broadcast: Callable[[Any], Any],
    *,
    until: Callable[[], bool] = lambda: False,
    clock_ns: Callable[[], int] = time.time_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Drive the load until it is done, or `until` is true on every rank after an iteration; whether it is done.

    `feed` is rank 0's alone, and null on others.
    """
    while True:
        decided = None if feed is None else feed.turn(clock_ns(), steps.in_work).as_json()
        turn = Turn.of(broadcast(decided))
        if turn.is_last:
            return True
        if turn.wait_s > 0:
            steps.idle()
            if feed is not None:
                sleep(turn.wait_s)
            continue
        for number, due_ns in zip(turn.send, turn.due_ns, strict=True):
            steps.send(number, due_ns)
        steps.step()
        if until():
            return False
