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


@dataclass(frozen=True)
class Batches:
    """The prompts of a point in batches, the last one as short as it is; those before `first` are answered already."""

    prompts: list[list[int]]  # token ids
    size: int
    first: int

    @property
    def count(self) -> int:
        """All batches, those that are answered already too."""
        return math.ceil(len(self.prompts) / self.size)

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


@dataclass(frozen=True)
class Instruments:
    """What times and watches the work of a rank."""

    clock: EdgeClock
    log: SpanLog
    mark: Callable[[], None]  # at the edges of the measured window, for the sidecar
    report: Report


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
    with log.span("load"):
        engine.load(weights)
    report(Progress("warmup", 0, batches.count))
    with log.span("warmup", batch=0):
        engine.prefill(batches[0])
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
