"""The phases of one attempt on one rank: idle, load, one uncounted batch, all batches, idle once more."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from wattflow.engine import reference
from wattflow.engine.protocol import Engine, Generated
from wattflow.engine.ranks import Ranks
from wattflow.run.place import Progress, Report
from wattflow.run.signals import Signals
from wattflow.run.spans import SpanLog

_STEPS = 64  # of an engine, between two looks at signals that several ranks take together
_REPORT_S = 5.0


@dataclass(frozen=True)
class Batches:
    """The prompts of a point in batches, the last one as short as it is; those before `first` are answered already."""

    prompts: list[list[int]]  # token ids
    size: int
    first: int
    at_once: int | None = None  # of the warm-up, where an engine works on fewer than a batch

    @property
    def count(self) -> int:
        """All batches, those that are answered already too."""
        return math.ceil(len(self.prompts) / self.size)

    @property
    def warm_up(self) -> list[list[int]]:
        """The prompts of the uncounted batch."""
        return self.prompts[: self.at_once or self.size]

    def __getitem__(self, number: int) -> list[list[int]]:
        """The prompts of one batch."""
        return self.prompts[number * self.size : (number + 1) * self.size]


class EdgeClock:
    """Reads the time at edges that all ranks take together, and learns there whether one of them was signalled."""

    def __init__(self, engine: Engine, ranks: Ranks, signals: Signals) -> None:
        """Wait at each edge for this engine's device and for all ranks."""
        self._engine, self._ranks, self._signals = engine, ranks, signals
        self._interrupted = False

    def read(self) -> int:
        """Unix ns once this rank's device has no queued work and every rank has come here."""
        self._engine.synchronize()
        self._interrupted = self._ranks.any(self._signals.received)
        return time.time_ns()

    def check(self) -> None:
        """InterruptedRunError on every rank where one of them was signalled before the newest edge."""
        if self._interrupted:
            self._signals.stop()


class Pulse:
    """Reports progress between the steps of a batch that may take hours, and ends there with all ranks on a signal."""

    def __init__(self, ranks: Ranks, signals: Signals, report: Report) -> None:
        """`report` is called with each progress, and again between steps."""
        self._ranks, self._signals, self._report = ranks, signals, report
        self._last = Progress("load")
        self._calls = 0
        self._reported_s = 0.0

    def report(self, progress: Progress) -> None:
        """Report where the attempt is."""
        self._last, self._reported_s = progress, time.monotonic()
        self._report(progress)

    def __call__(self, done: int, of: int) -> None:
        """Take one step's end, with the requests done of those in work; every rank makes the same calls."""
        self._calls += 1
        if self._calls % _STEPS == 0 and self._ranks.any(self._signals.received):
            self._signals.stop()
        if time.monotonic() - self._reported_s >= _REPORT_S:
            alone = self._last.phase == "batches" and self._last.of == 1
            self.report(Progress("batches", done, of) if alone else self._last)


@dataclass(frozen=True)
class Instruments:
    """What times and watches the work of a rank."""

    clock: EdgeClock
    log: SpanLog
    mark: Callable[[], None]  # at the edges of the measured window, for the sidecar
    report: Report
    before_load: Callable[[], None] = lambda: None  # what is timed in no phase, once idle is over


def generate(
    engine: Engine, weights: Any, batches: Batches, idle_s: float, instruments: Instruments
) -> Iterator[Generated]:
    """Work through all phases; yields each batch's output once its spans lie in the spool.

    `weights` lie on the device already, or are null to be loaded.
    """
    log, report = instruments.log, instruments.report
    report(Progress("idle", 0, batches.count))
    with log.span("idle"):
        time.sleep(idle_s)
    report(Progress("load", 0, batches.count))
    instruments.before_load()
    with log.span("load"):
        engine.load(weights)
    report(Progress("warmup", 0, batches.count))
    with log.span("warmup", batch=0):
        engine.prefill(batches.warm_up)
        engine.decode()
    log.flush()
    instruments.mark()
    for number in range(batches.first, batches.count):
        instruments.clock.check()
        report(Progress("batches", number, batches.count))
        batch = batches[number]
        with log.span("prefill", number) as prefill:
            engine.prefill(batch)
        with log.span("decode", number) as decode:
            out = engine.decode()
        prefill.tokens_in = sum(map(len, batch))
        prefill.tokens_computed = out.prefill_tokens_computed
        decode.tokens_kept = sum(map(len, out.tokens))
        decode.tokens_computed = out.decode_tokens_computed
        log.flush()
        yield out
    instruments.mark()
    report(Progress("batches", batches.count, batches.count))
    with log.span("idle_after"):  # weights and cache still lie on the device
        time.sleep(idle_s)
    log.flush()


def run_reference(ranks: Ranks, seconds: float, instruments: Instruments) -> int:
    """Run the fixed load by which boards are compared, outside all phases of the point; its rounds on this rank."""
    instruments.report(Progress("reference"))
    with instruments.log.span("reference"):
        rounds = reference.run(ranks, seconds)
    instruments.log.flush()
    return rounds
