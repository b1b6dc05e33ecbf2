"""A load of `workload.mode=closed` or `open` on one rank, through the calls of a started engine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wattflow.config.choices import Config
from wattflow.engine.ranks import Ranks
from wattflow.engine.serving import Feed, RequestTrace, serve
from wattflow.engine.vllm_iterations import Iteration
from wattflow.workload import arrivals


@dataclass(frozen=True)
class Calls:
    """What a load asks of an engine."""

    add: Callable[[int, int], None]  # a request by its number, of at most so many output tokens
    step: Callable[[], Iteration]
    unfinished: Callable[[], bool]  # whether anything is left to step for
    idle: Callable[[], None]  # called after a turn without an iteration


class Arrivals:
    """All requests of one load; every rank makes the same calls."""

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        count: int,
        calls: Calls,
        traces: list[RequestTrace],
    ) -> None:
        """`traces` gets an entry a request as it is sent."""
        wanted = arrivals.load(config)
        at_once = config.workload.concurrency if wanted.due_s is None else None
        ramp_s = config.workload.ramp_s
        self.most_tokens: Sequence[int] = wanted.tokens_out or [config.max_gen_len] * count
        self._traces, self._calls, self._ranks = traces, calls, ranks
        self._feed = Feed(count, wanted.due_s, at_once) if ranks.rank == 0 else None
        self._full = None if at_once is None else min(at_once, count)
        self._in_ramp = sum(due_s < ramp_s for due_s in wanted.due_s or ())
        self._begun = self._done = 0

    def begin(self) -> None:
        """Drive the load until as many have their first token as run at once, or all are sent that the ramp has."""
        serve(self, self._feed, self._ranks.broadcast, until=self._is_begun)

    def finish(self) -> None:
        """Drive the load to its end."""
        serve(self, self._feed, self._ranks.broadcast)

    def _is_begun(self) -> bool:
        if self._full is not None:
            return self._begun >= self._full
        return len(self._traces) >= self._in_ramp

    @property
    def in_work(self) -> int:
        """Requests that were sent and are not done; one at least while there is something to step for."""
        return max(len(self._traces) - self._done, int(self._calls.unfinished()))

    def send(self, number: int, due_ns: int) -> None:
        """Add one request."""
        self._traces.append(RequestTrace(due_ns, time.time_ns()))
        self._calls.add(number, self.most_tokens[number])

    def step(self) -> None:
        """Make one iteration."""
        row = self._calls.step()
        self._begun += row.first_tokens
        self._done += row.finished

    def idle(self) -> None:
        """Take note of a turn without an iteration."""
        self._calls.idle()

    def traces(self, rows: Sequence[Iteration]) -> tuple[RequestTrace, ...]:
        """Return what became of each request, by the iterations of the whole load."""
        for trace in self._traces:
            trace.end_ns = rows[trace.token_steps[-1]].end_ns if trace.token_steps else 0
        return tuple(self._traces)
