"""Measure one point on one rank: its prompts through the engine, beside the sidecar, until all files lie in place."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

from wattflow.config.choices import Config
from wattflow.engine import ceilings
from wattflow.engine.build import build
from wattflow.engine.protocol import Engine
from wattflow.engine.ranks import Ranks
from wattflow.errors import PowerError
from wattflow.run.answers import Answers
from wattflow.run.continuation import Continuation
from wattflow.run.device_choice import refuse_fallback
from wattflow.run.generation import (
    Batches,
    EdgeClock,
    Instruments,
    Pulse,
    generate,
    run_reference,
)
from wattflow.run.place import Place, Progress, Report, TaskEnds
from wattflow.run.record import RecordWriter
from wattflow.run.resources import Task
from wattflow.run.signals import InterruptedRunError
from wattflow.run.spans import SpanLog, close_node
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import Device, MeterInfo, RankInfo
from wattflow.store.tables import write_table
from wattflow.workload import confined_tokenizer
from wattflow.workload import prompts as workload_prompts

_WARM_UP = 16  # requests of the warm-up of a load that has no batch


class PointMeasurement:
    """One rank's measurement of one point: prompts, answers so far, and where they go."""

    def __init__(
        self,
        task: Task,
        config: Config,
        attempt: AttemptDir,
        continuation: Continuation,
        record: RecordWriter,
    ) -> None:
        """Read the prompts; batches that the continued attempts answered are left out, if of the same prompts."""
        self._task, self._config, self._attempt, self._record = task, config, attempt, record
        self._spool = task.spool_of(attempt)
        self._spool.mkdir(mode=0o700, exist_ok=True)
        self._text = confined_tokenizer.load(config.model, config.weights)
        prompts = workload_prompts.load(config, self._text)
        self._text.close()  # no process beside the measured one
        record.add(prompts=prompts.info)
        first = 0
        if continuation.prompts_sha256 == prompts.info["sha256"]:
            record.add(pieces=continuation.partial_attempts)
            first = continuation.batches
        size = config.batch_size if config.workload.mode == "static" else len(prompts.tokens)
        at_once = config.batch_size
        if config.workload.mode in ("closed", "open"):
            at_once = min(at_once, config.workload.concurrency or _WARM_UP)
        self._batches = Batches(prompts.tokens, size, first, at_once)
        self._answers = Answers(config, self._text, prompts, first, size)

    def run(self, ends: TaskEnds, report: Report) -> None:
        """Measure; on return all files but the final record lie in place."""
        config, ranks = self._config, self._task.ranks
        if self._batches.first >= self._batches.count:
            self._record.add(ranks=[], nodes=[])
            return
        refuse_fallback(config, ranks)
        pulse = Pulse(ranks, self._task.signals, report)
        report = pulse.report
        text = self._text
        engine = build(config, ranks, eos_ids=text.eos_ids, pad_id=text.pad_id, pulse=pulse)
        with contextlib.closing(engine):
            weights = self._shared_weights(engine, report)
            with self._sidecars() as nodes:
                self._answer(engine, weights, nodes, ends, report)
        self._write_files()
        ranks.barrier()
        if self._task.place.local_rank == 0:
            shutil.rmtree(self._spool, ignore_errors=True)

    def _shared_weights(self, engine: Engine, report: Report) -> Any:
        """Load the weights that points of this task share, unmeasured; null where each point loads its own."""
        if self._config.sweep.load_shared_by == 1:
            self._task.weights.drop()
            return None
        weights = self._task.weights.take(self._config, engine, lambda: report(Progress("load")))
        self._record.add(load_shared=True)
        return weights

    @contextlib.contextmanager
    def _sidecars(self) -> Iterator[list[MeterInfo]]:
        """Record the power of all nodes; every rank waits for every node's sidecar."""
        ranks, sidecar = self._task.ranks, self._task.sidecar
        ready = sidecar.start(self._config, self._attempt)
        nodes = [node for node in ranks.gather(ready) if node is not None]
        try:
            yield nodes
        except BaseException as error:
            sidecar.close_failed()
            if isinstance(error, InterruptedRunError) and self._may_continue:
                # for the next attempt, by each node for itself, as other ranks may be anywhere
                self._record.add(nodes=[sidecar.info(node) for node in nodes])
                self._write_files()
            raise
        ranks.barrier()  # no rank still works when a sidecar takes its last sample
        info = sidecar.stop()
        self._record.add(nodes=[node for node in ranks.gather(info) if node is not None])

    def _answer(
        self, engine: Engine, weights: Any, nodes: list[MeterInfo], ends: TaskEnds, report: Report
    ) -> None:
        """Work through all phases, with the reference load at the ends of a task, and note what the engine reports."""
        task, place, ranks = self._task, self._task.place, self._task.ranks
        (devices,) = (node["devices"] for node in nodes if node["node"] == place.node)
        device = _device_of(ranks, place, devices)
        rank: RankInfo = {
            "rank": ranks.rank,
            "node": place.node,
            "local_rank": place.local_rank,
            "gpu_uuid": device["uuid"],
            "device": ranks.device_name,
        }
        self._record.add(ranks=ranks.gather(rank))
        clock = EdgeClock(engine, ranks, task.signals)
        log = SpanLog(
            self._spool / f"spans-rank{ranks.rank}.arrow",
            rank=ranks.rank,
            node=place.node,
            gpu_uuid=device["uuid"],
            edge=clock.read,
        )
        instruments = Instruments(clock, log, task.sidecar.mark, report, self._before_load)
        reference_s, rounds = self._config.sweep.reference_s, 0
        if reference_s and ends.first:
            rounds += run_reference(ranks, reference_s, instruments)
            self._record.add(reference_rounds=rounds)
        idle_s = self._config.power.idle_s
        for output in generate(engine, weights, self._batches, idle_s, instruments):
            self._answers.add(output)
        self._record.add(engine=engine.info)
        engine.close()
        if (work := self._answers.work()) is not None:
            self._record.add(work=work, ceilings=ceilings.measure(ranks, self._config.precision))
        if reference_s and ends.last:
            rounds += run_reference(ranks, reference_s, instruments)
            self._record.add(reference_rounds=rounds)
        log.close()

    def _before_load(self) -> None:
        """Have a copy timed while the memory is fresh; vLLM looks at what is free, and `synthetic` has no torch."""
        if self._config.engine.name not in ("vllm", "synthetic"):
            ceilings.look_before_load(self._task.ranks)

    @property
    def _may_continue(self) -> bool:
        """Whether another attempt may continue from the finished batches of this one."""
        return self._config.sweep.on_interrupt == "continue"

    def _write_files(self) -> None:
        """Write this node's spans and, as rank 0, the requests; list the batches where other attempts may continue."""
        place, answers = self._task.place, self._answers
        if place.local_rank == 0:
            spans = sorted(self._spool.glob("spans-rank*.arrow"))
            close_node(spans, self._attempt.spans_path(place.node))
            if answers.has_iterations:
                table = answers.iterations(place.rank, place.node)
                write_table(self._attempt.iterations_path(place.node), table)
        if place.rank == 0:
            if self._may_continue and answers.batches:
                self._record.add_partial_attempt(answers.first_batch, answers.batches)
            write_table(self._attempt.requests_path, answers.table())
            self._text.close()


def _device_of(ranks: Ranks, place: Place, devices: list[Device]) -> Device:
    """The measured device that this rank works on; PowerError when sidecar and rank disagree."""
    if ranks.gpu_uuid is not None:
        found = [device for device in devices if device["uuid"] == ranks.gpu_uuid]
    elif len(devices) == 1:
        found = devices  # a host's one meter serves all of its CPU ranks
    else:
        found = [device for device in devices if device["ordinal"] == place.local_rank]
    if not found:
        measured = ", ".join(f"{device['ordinal']}: {device['uuid']}" for device in devices)
        raise PowerError(
            f"rank {ranks.rank} on {place.node} works on "
            f"{ranks.gpu_uuid or f'ordinal {place.local_rank}'}, and the sidecar "
            f"measures {measured}. Check CUDA_VISIBLE_DEVICES and how the profile asks for GPUs."
        )
    return found[0]
