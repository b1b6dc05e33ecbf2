"""Points of one Slurm task side by side on its node: each slot has its own GPUs and CPUs, and one sidecar serves all.

    task (this process)   sidecar_server        all GPUs of the task
      slot 0   step 1: point a   step 3: point c ...     GPU 0
      slot 1   step 2: point b (fails)   step 4: point d GPU 1

Whatever ends a step frees its slot for the next points. A warning that the task must end reaches the steps too, which
close their attempts; then the task is queued again if that helps, as one that runs a single point is.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wattflow.config.choices import Config
from wattflow.errors import DamagedError, EngineError, PowerError
from wattflow.power.common_sidecar import CommonSidecar
from wattflow.power.open import choose, settings_of
from wattflow.power.sidecar_connection import Common
from wattflow.process import python
from wattflow.run.cpus import shares
from wattflow.run.place import Place
from wattflow.run.record import close_left
from wattflow.run.signals import Signals
from wattflow.run.step import StepJob
from wattflow.run.task import Todo, slurm_task, time_limit_min
from wattflow.slurm import steps
from wattflow.slurm.shapes import Shape, block_of, shapes
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.submit.last_words import last_words

_POLL_S = 0.1
_CLOSE_S = (
    20.0  # for steps that were ended to close their attempts; Slurm kills 30 s after its signal
)


@dataclass(frozen=True)
class Slot:
    """One of the parts of a node that run points at once."""

    number: int
    gpus: list[int]  # by their place among the task's
    devices: list[str]  # their UUIDs
    cpus: list[list[int]]  # of each rank; none: all


@dataclass(frozen=True)
class Unit:
    """Points that a slot runs in one go."""

    point_ids: list[str]
    slot: int | None = None  # null: whichever is free


@dataclass
class Step:
    """The points that run in a slot now, one after another, and the attempts that each had before."""

    unit: Unit
    slot: Slot
    point_ids: list[str]
    before: dict[str, int]
    spool: Path
    process: "subprocess.Popen[bytes]"


Start = Callable[[Slot, list[str], Path], "subprocess.Popen[bytes]"]


def run_side_by_side(
    sweep_path: str, point_ids: list[str], again: Mapping[str, int], slots: int
) -> None:
    """Run the points of a Slurm task, so many at once; submitit calls it once a task."""
    todo = Todo(SweepDir(Path(sweep_path)), point_ids, again)
    with slurm_task(todo) as (place, signals):
        signals.together = True  # a warning is for the steps first
        (shape,) = shapes([(p, todo.sweep.point(p).config()) for p in point_ids[:1]])
        config = todo.sweep.point(point_ids[0]).config()
        spool = Path(place.spool)
        with CommonSidecar(place.node, spool / "sidecar", slots, os.getpid()) as common:
            parts = list(slots_of(devices_of(config, place.node), slots))
            start = _starter(todo, place, shape, time_limit_min(config))
            node = Slots(todo, parts, spool, start, signals, check=common.check)
            for stage in stages_of(todo, slots):
                node.run(stage)
    failed = node.failed
    if failed:
        raise EngineError(f"{len(failed)} of {len(point_ids)} points failed: {', '.join(failed)}")


def devices_of(config: Config, node: str) -> list[str]:
    """Return the UUIDs of the task's GPUs; PowerError where a point's joules are not those of GPUs of its own."""
    meter = choose(settings_of(config), node)
    try:
        if meter.boundary != "gpu":
            raise PowerError(
                f"cluster.side_by_side: {node} is measured as a whole ({meter.source}), so that the joules of points "
                "beside each other cannot be separated. It needs GPUs; leave it out to run points one by one."
            )
        return [device["uuid"] for device in meter.devices]
    finally:
        meter.close()


def slots_of(uuids: Sequence[str], slots: int) -> Iterator[Slot]:
    """Yield the slots of a node with so many GPUs; PowerError where they are fewer than slots."""
    each = len(uuids) // slots
    if each == 0:
        raise PowerError(
            f"cluster.side_by_side: {len(uuids)} GPUs are visible for {slots} slots. Look at how the profile asks for "
            "GPUs, and at cluster.gpus_per_node."
        )
    of_ranks = shares(slots * each)
    for k in range(slots):
        mine = slice(k * each, (k + 1) * each)
        yield Slot(k, list(range(len(uuids)))[mine], list(uuids[mine]), of_ranks[mine])


def stages_of(todo: Todo, slots: int) -> list[list[Unit]]:
    """Return what is run in turn: all units at once, or the rounds of a control."""
    configs = {point_id: todo.sweep.point(point_id).config() for point_id in todo.point_ids}
    if configs[todo.point_ids[0]].sweep.block != "neighbours":
        return [[Unit(unit) for unit in units_of(configs, slots)]]
    stages = []
    for block in _blocks(configs):
        places = {configs[point_id].repeat % (2 * slots): point_id for point_id in block}
        number = configs[block[0]].repeat // (2 * slots)
        stages += _round(places, slots, all_first=number % 2 == 1)
    return stages


def _round(points: Mapping[int, str], slots: int, *, all_first: bool) -> list[list[Unit]]:
    """Return a control's round: each slot alone in turn, and all at once, the other way round every other time."""
    each = [[Unit([points[k]], k)] for k in range(slots) if k in points]
    together = [Unit([points[slots + k]], k) for k in range(slots) if slots + k in points]
    both = [*each, together] if together else each
    return both[::-1] if all_first else both


def _blocks(configs: Mapping[str, Config]) -> list[list[str]]:
    blocks: dict[Hashable, list[str]] = {}
    for point_id, config in configs.items():
        blocks.setdefault(block_of(config), []).append(point_id)
    return list(blocks.values())


def units_of(configs: Mapping[str, Config], slots: int) -> list[list[str]]:
    """Return the points that a slot runs in one go: those of a block, those that share a load, or one alone."""
    first = next(iter(configs.values()))
    if first.sweep.block is not None:
        return _blocks(configs)
    # points that share a load run in one process, but never while a slot has none
    most = max(1, -(-len(configs) // slots))
    each = min(first.sweep.load_shared_by, most)
    ids = list(configs)
    return [ids[start : start + each] for start in range(0, len(ids), each)]


def _starter(todo: Todo, place: Place, shape: Shape, limit_min: int) -> Start:
    """Return what starts a slot's points as a step of this job."""
    began_s = time.time()
    environment = steps.environment()

    def start(slot: Slot, point_ids: list[str], spool: Path) -> "subprocess.Popen[bytes]":
        own = replace(
            place,
            world=shape.ranks_per_node,
            init_method=f"file://{spool}/rendezvous",
            spool=str(spool),
            common=Common(str(Path(place.spool) / "sidecar"), slot.devices),
        )
        again = {p: todo.again[p] for p in point_ids if p in todo.again}
        job = StepJob(
            str(todo.sweep.path), point_ids, again, own, slot.gpus, slot.cpus, limit_min, began_s
        )
        program = python("-u", "-m", "wattflow.run.step", job.text())
        return subprocess.Popen(
            steps.command(shape, program, spool / "rank%t.log"),
            stdin=subprocess.DEVNULL,
            env=environment,
        )

    return start


class Slots:
    """Runs units of points in slots, until all have been tried."""

    def __init__(
        self,
        todo: Todo,
        slots: Sequence[Slot],
        spool: Path,
        start: Start,
        signals: Signals,
        *,
        check: Callable[[], None],
    ) -> None:
        """`start` begins a unit in a slot, with a spool of its own; `check` raises what ends all units."""
        self._todo, self._spool, self._start, self._signals = todo, spool, start, signals
        self._check = check
        self._free = deque(slots)
        self._running: list[Step] = []
        self._started = 0
        self.failed: list[str] = []  # points

    def run(self, units: Sequence[Unit]) -> None:
        """Try all points of some units; InterruptedRunError once no step is left, if asked to end."""
        queue = list(units)
        warned = False
        try:
            while self._running or (queue and not self._signals.received):
                if self._signals.received and not warned:
                    warned = True
                    self._pass_on()
                while not self._signals.received and (found := self._next(queue)) is not None:
                    queue.remove(found[0])
                    self._begin(*found)
                for step in [one for one in self._running if one.process.poll() is not None]:
                    if left := self._end(step):
                        queue.insert(0, Unit(left, step.unit.slot))
                self._check()
                time.sleep(_POLL_S)
        finally:
            self._wait_for_all()
        if self._signals.received:
            self._signals.stop()

    def _next(self, queue: Sequence[Unit]) -> tuple[Unit, Slot] | None:
        """The first unit for which there is a free slot, with the slot that has been free longest."""
        return next(
            (
                (unit, slot)
                for unit in queue
                for slot in self._free
                if unit.slot in (None, slot.number)
            ),
            None,
        )

    def _begin(self, unit: Unit, slot: Slot) -> None:
        """Start what is not finished of a unit in a slot."""
        before = self._before(unit)
        if not before:
            return
        point_ids = list(before)
        self._free.remove(slot)
        self._started += 1
        spool = self._spool / f"step-{self._started}"
        spool.mkdir(mode=0o700)
        process = self._start(slot, point_ids, spool)
        print(f"slot {slot.number}: {', '.join(point_ids)}", flush=True)
        self._running.append(Step(unit, slot, point_ids, before, spool, process))

    def _before(self, unit: Unit) -> dict[str, int]:
        """Return how many attempts the points had that are not finished; one whose folder is damaged fails at once."""
        before = {}
        for point_id in unit.point_ids:
            try:
                if not self._todo.is_finished(point_id):
                    before[point_id] = len(self._todo.sweep.attempts(point_id))
            except (DamagedError, OSError) as error:
                self.failed.append(point_id)
                print(f"point {point_id} failed; {error}", flush=True)
        return before

    def _pass_on(self) -> None:
        """Warn the steps: those that began after Slurm's own warning have not had it."""
        for step in self._running:
            with contextlib.suppress(OSError):
                step.process.send_signal(signal.SIGUSR2)

    def _end(self, step: Step) -> list[str]:
        """Take a step that has ended, close what it could not, and return the points that it did not come to."""
        self._running.remove(step)
        self._free.append(step.slot)
        code = step.process.returncode
        unfinished = [p for p in step.point_ids if not self._is_finished(p)]
        try:
            if self._signals.received:
                return []  # its attempts are closed as interrupted, by itself or by Slurm's word
            tried = [p for p in unfinished if self._was_tried(step, p)]
            if code == 0 and not tried:
                return []  # other processes run them, and this step gave way
            if unfinished and not tried:
                tried = unfinished[:1]
            for point_id in tried:
                self._close(step, point_id, code)
            self.failed += tried
            return [p for p in unfinished if p not in tried]
        finally:
            shutil.rmtree(step.spool, ignore_errors=True)

    def _is_finished(self, point_id: str) -> bool:
        """Whether a point is finished; not where its folder is damaged."""
        with contextlib.suppress(DamagedError, OSError):
            return self._todo.is_finished(point_id)
        return False

    def _was_tried(self, step: Step, point_id: str) -> bool:
        """Whether a step came to a point; so too where its folder is damaged: another step would fare no better."""
        with contextlib.suppress(DamagedError, OSError):
            return self._newest(step, point_id) is not None
        return True

    def _newest(self, step: Step, point_id: str) -> AttemptDir | None:
        """The attempt that a step made at a point; null where it made none."""
        attempts = self._todo.sweep.attempts(point_id)
        return attempts[-1] if len(attempts) > step.before[point_id] else None

    def _close(self, step: Step, point_id: str, code: int) -> None:
        """Close the attempt of a failed point, unless that was done; a damaged one stays, and ends no other point."""
        why = f"its step in slot {step.slot.number} ended {_in_words(code)}"
        try:
            attempt = self._newest(step, point_id) or self._todo.sweep.claim_attempt(point_id)
            if not _is_closed(attempt):
                logs = sorted(step.spool.glob("rank*.log"))
                said = next((words for words in map(last_words, logs) if words), "")
                close_left(attempt, step.spool, f"{why}. {said}".strip())
        except (DamagedError, OSError) as error:
            why += f", and its attempt could not be closed: {error}"
        print(f"slot {step.slot.number}: point {point_id} failed; {why}", flush=True)

    def _wait_for_all(self) -> None:
        """Give steps that are asked to end their time, then end those that are left."""
        deadline_s = time.monotonic() + (_CLOSE_S if self._running else 0.0)
        for step in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                step.process.wait(max(0.0, deadline_s - time.monotonic()))
        for step in self._running:
            step.process.kill()
            step.process.wait()


def _in_words(code: int) -> str:
    """How a step ended by srun's exit code: 128 and the signal's number where a rank was killed."""
    number = code - 128 if code > 128 else -code
    with contextlib.suppress(ValueError):
        if code > 128 or code < 0:
            return f"by {signal.Signals(number).name}"
    return f"with code {code}"


def _is_closed(attempt: AttemptDir) -> bool:
    """Whether an attempt's record says how it ended; a damaged one does not."""
    with contextlib.suppress(DamagedError):
        record = attempt.read_record()
        return record is not None and record["status"] != "running"
    return False
