"""Measure which of the fast engine's kernel sets makes most tokens a second here, and which costs least; keep the best.

    wattflow tune model=llama-7b batch_size=1 [--goal speed|energy|edp]

    load once -> blocks of one window a set, each in an order of its own -> best by the goal -> a fresh window of it
        -> ~/.cache/wattflow/tuned.json, which engine.kernels=speed, energy and edp read

Joules are of decode alone, at the GPU, by the same sidecar that measures a sweep. Sets are compared within one run on
one board: its sensor's gain and offset are alike for all of them, and the offset's share in a difference is small where
they take alike watts.
"""

import math
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wattflow.analysis.expanded import of_board
from wattflow.analysis.intervals import student_t
from wattflow.collect.conditions import POWER_CAP
from wattflow.collect.reading import power_curve, samples_of
from wattflow.config.choices import Config
from wattflow.energy import curve
from wattflow.engine import tuned_kernels
from wattflow.engine.ranks import join
from wattflow.errors import PowerError, RefusedError
from wattflow.nullable import complete, quotient
from wattflow.plan.grid import expand
from wattflow.power.open import settings_of
from wattflow.power.sidecar_client import Sidecar
from wattflow.process import node_name
from wattflow.run.device_choice import refuse_fallback
from wattflow.run.device_locks import device_locks, visible_devices
from wattflow.store import sources
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import TRACE, MeterInfo, Reference
from wattflow.store.tables import read_table

if TYPE_CHECKING:
    from wattflow.engine.tune_windows import Window  # torch takes seconds to import

Say = Callable[[str], None]


@dataclass(frozen=True)
class WindowResult:
    """What one window of decode took, at the GPU; null where the sensor reports nothing."""

    kernels: str
    tokens_per_s: float
    energy_per_token_j: float | None
    energy_per_token_expanded_u_j: float | None  # k = 2; null where the gain of the sensor is
    edp_js: float | None  # joules a token times seconds a token
    power_w: float | None
    power_expanded_u_w: float | None
    bytes_per_s: float
    sm_clock_mhz: float | None
    temperature_c: float | None
    power_limit_w: float | None
    under_cap: (
        float | None
    )  # the share of readings at which the software power cap held clocks back


@dataclass(frozen=True)
class SetSummary:
    """Means over the windows of one kernel set, each with half its 95 % interval; null from one window.

    That interval is of what windows scatter, by which sets on one board are distinguished. `expanded_u` (k = 2) is how
    far a figure may be from the truth: what the sensor is off in all windows alike, and that half.
    """

    kernels: str
    windows: int
    tokens_per_s: float
    tokens_per_s_half: float | None
    energy_per_token_j: float | None
    energy_per_token_j_half: float | None
    energy_per_token_expanded_u_j: float | None
    edp_js: float | None
    edp_js_half: float | None
    power_w: float | None
    power_w_half: float | None
    power_expanded_u_w: float | None
    bytes_per_s: float
    bytes_per_s_half: float | None
    sm_clock_mhz: float | None
    temperature_c: float | None
    power_limit_w: float | None
    under_cap: float | None
    dominated: bool  # another set is both quicker and cheaper


@dataclass(frozen=True)
class TuneResult:
    """The measured sets, the best by each goal, a fresh window of the one chosen, the sensor, and the file kept."""

    frontier: list[SetSummary]
    best: dict[str, str]
    again: WindowResult
    source: str
    kept: Path


def point_config(overrides: Sequence[str], goal: str, windows: int, seconds: float) -> Config:
    """The one point that the overrides name; RefusedError for several points, an unknown goal or no time."""
    if goal not in tuned_kernels.GOALS:
        raise RefusedError(f"--goal {goal}: not one of {', '.join(tuned_kernels.GOALS)}.")
    if windows < 1 or not 0 < seconds < math.inf:
        raise RefusedError(
            f"--windows {windows} --seconds {seconds:g}: take at least one, above 0."
        )
    _, points, _ = expand(overrides, repeats=1)
    if len(points) > 1:
        raise RefusedError(f"these overrides name {len(points)} points: tune takes one.")
    if points[0].reason is not None:
        raise RefusedError(points[0].reason)
    return points[0].config


def tune(config: Config, goal: str, windows: int, seconds: float, say: Say) -> TuneResult:
    """Measure every set that runs here; RefusedError, EngineError or PowerError where that cannot be."""
    with (
        visible_devices(1),
        device_locks(config, lambda: say("waiting for another sweep on this machine")),
    ):
        return _tune(config, goal, windows, seconds, say)


def _tune(config: Config, goal: str, windows: int, seconds: float, say: Say) -> TuneResult:
    from wattflow.engine.tune_windows import Arms  # noqa: PLC0415 - torch takes seconds to import

    ranks = join(0, 1, 0, node_name(), "", config.engine.device, 60.0, 60.0)
    refuse_fallback(config, ranks)
    with tempfile.TemporaryDirectory(prefix="wattflow-tune-") as folder:
        attempt = AttemptDir(Path(folder) / "attempt-1", "tune", 1)
        attempt.path.mkdir()
        attempt.make_folders()
        with (
            Sidecar(settings_of(config), ranks.node, Path(folder)) as sidecar,
            Arms(config, ranks) as arms,
        ):
            names = arms.names()
            ready = sidecar.start(attempt)
            device = _device(ready, ranks.gpu_uuid)
            measured: list[Window] = []
            for name in order(names, windows):
                sidecar.mark()
                measured.append(arms.window(name, seconds))
                say(f"{name}: {rate(measured[-1]):.1f} tokens/s")
            # the sensor's last sample of a window may still be to come, and its joules decide what is measured again
            sidecar.mark()
            sidecar.stop()
            trace = read_table(attempt.trace_path(ranks.node, device), TRACE)
            frontier = summaries([window_result(window, trace, ready) for window in measured])
            best = {name: choose(frontier, name) for name in tuned_kernels.GOALS}
            say(f"{best[goal]} again, in a fresh window")
            sidecar.start(attempt)
            fresh = arms.window(best[goal], seconds)
            sidecar.stop()
            trace = read_table(attempt.trace_path(ranks.node, device), TRACE)
            again = window_result(fresh, trace, ready)
            kept = tuned_kernels.keep(arms.key, best, [asdict(summary) for summary in frontier])
    return TuneResult(frontier, best, again, ready["source"], kept)


def order(names: Sequence[str], windows: int, seed: int = 0) -> list[str]:
    """Blocks of one window a set, the sets of each block in a random order: drift of heat falls on all alike."""
    drawn = random.Random(seed)  # noqa: S311 (an order, not a secret)
    return [name for _ in range(windows) for name in drawn.sample(list(names), len(names))]


def note(summary: SetSummary, best: dict[str, str]) -> str:
    """Which goals a set is the best by, or whether it is dominated."""
    won = [goal for goal, name in best.items() if name == summary.kernels]
    return f"best by {', '.join(won)}" if won else "dominated" if summary.dominated else ""


def rate(window: "Window") -> float:
    """Tokens per second of decode."""
    seconds = sum(end - start for start, end in window.spans) / sources.SECOND_NS
    return float(window.tokens / seconds)


def summaries(results: Sequence[WindowResult]) -> list[SetSummary]:
    """Summarise each set over its windows, quickest first."""
    sets = [
        _summary(name, [result for result in results if result.kernels == name])
        for name in dict.fromkeys(result.kernels for result in results)
    ]
    sets.sort(key=lambda one: -one.tokens_per_s)
    return [replace(one, dominated=_is_dominated(one, sets)) for one in sets]


def _summary(name: str, results: Sequence[WindowResult]) -> SetSummary:
    tokens_per_s, tokens_per_s_half = _interval([result.tokens_per_s for result in results])
    bytes_per_s, bytes_per_s_half = _interval([result.bytes_per_s for result in results])
    energy_j, energy_j_half = _interval([result.energy_per_token_j for result in results])
    edp_js, edp_js_half = _interval([result.edp_js for result in results])
    power_w, power_w_half = _interval([result.power_w for result in results])
    assert tokens_per_s is not None  # each window has both
    assert bytes_per_s is not None
    return SetSummary(
        kernels=name,
        windows=len(results),
        tokens_per_s=tokens_per_s,
        tokens_per_s_half=tokens_per_s_half,
        energy_per_token_j=energy_j,
        energy_per_token_j_half=energy_j_half,
        energy_per_token_expanded_u_j=_expanded(
            [result.energy_per_token_expanded_u_j for result in results], energy_j_half
        ),
        edp_js=edp_js,
        edp_js_half=edp_js_half,
        power_w=power_w,
        power_w_half=power_w_half,
        power_expanded_u_w=_expanded(
            [result.power_expanded_u_w for result in results], power_w_half
        ),
        bytes_per_s=bytes_per_s,
        bytes_per_s_half=bytes_per_s_half,
        sm_clock_mhz=_interval([result.sm_clock_mhz for result in results])[0],
        temperature_c=_interval([result.temperature_c for result in results])[0],
        power_limit_w=_interval([result.power_limit_w for result in results])[0],
        under_cap=_interval([result.under_cap for result in results])[0],
        dominated=False,  # until it is compared with the others
    )


def _expanded(own: Sequence[float | None], half: float | None) -> float | None:
    """Return the expanded uncertainty of a mean over windows on one board; null where that of one is unknown."""
    shared = complete(statistics.fmean, own)
    return None if shared is None else math.hypot(shared, half or 0.0)


def choose(frontier: Sequence[SetSummary], goal: str) -> str:
    """The set with the best mean by the goal; the quickest where joules are not known."""
    by_energy = {one.kernels: one.energy_per_token_j for one in frontier}
    by_edp = {one.kernels: one.edp_js for one in frontier}
    costs = by_energy if goal == "energy" else by_edp
    known = {name: cost for name, cost in costs.items() if cost is not None}
    if goal == "speed" or len(known) < len(frontier):
        return max(frontier, key=lambda one: one.tokens_per_s).kernels
    return min(known, key=known.__getitem__)


def _is_dominated(one: SetSummary, sets: Sequence[SetSummary]) -> bool:
    """Whether another set is both quicker and cheaper."""
    joules = one.energy_per_token_j
    return joules is not None and any(
        other.tokens_per_s > one.tokens_per_s and other.energy_per_token_j < joules
        for other in sets
        if other.energy_per_token_j is not None
    )


def _interval(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """The mean, and half its 95 % interval by Student's t; null where a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None, None
    middle = statistics.fmean(known)
    if len(known) == 1:
        return middle, None
    return middle, student_t(len(known) - 1) * statistics.stdev(known) / math.sqrt(len(known))


def _device(ready: MeterInfo, gpu_uuid: str | None) -> str:
    """The device that the engine works on, by its UUID; PowerError when the sidecar does not measure it."""
    found = [d["uuid"] for d in ready["devices"] if gpu_uuid in (None, d["uuid"])]
    if not found:
        raise PowerError(
            f"the engine works on {gpu_uuid}, which the sidecar does not measure. Check CUDA_VISIBLE_DEVICES."
        )
    return found[0]


def _reference(ready: MeterInfo, trace: pa.Table) -> Reference | None:
    """Return what a meter found of the board whose trace it is, if one was beside it."""
    uuid = (trace.schema.metadata or {}).get(b"gpu_uuid", b"").decode()
    return next((one.get("reference") for one in ready["devices"] if one["uuid"] == uuid), None)


def window_result(window: "Window", trace: pa.Table, ready: MeterInfo) -> WindowResult:
    """The rates and joules of one window, by the trace of its device."""
    source, period_ms = ready["source"], ready["period_ms"]
    reference = _reference(ready, trace)
    power = power_curve(samples_of(trace, source), source, period_ms, reference=reference)
    start, end = (np.array(edge, np.int64) for edge in zip(*window.spans, strict=True))
    joules = curve.summed(curve.between(power, start, end))
    seconds = float((end - start).sum()) / sources.SECOND_NS
    per_token = None if joules.energy_j is None else joules.energy_j / window.tokens
    doubt_j = of_board(source, joules, reference)
    inside = trace.filter(
        pc.and_(
            pc.greater_equal(trace["time_ns"], int(start[0])),
            pc.less_equal(trace["time_ns"], int(end[-1])),
        )
    )
    return WindowResult(
        kernels=window.kernels,
        tokens_per_s=window.tokens / seconds,
        energy_per_token_j=per_token,
        energy_per_token_expanded_u_j=quotient(doubt_j, window.tokens),
        edp_js=None if per_token is None else per_token * seconds / window.tokens,
        power_w=None if joules.energy_j is None else joules.energy_j / seconds,
        power_expanded_u_w=quotient(doubt_j, seconds),
        bytes_per_s=window.bytes_per_step * window.steps / seconds,
        sm_clock_mhz=pc.mean(inside["sm_clock_mhz"]).as_py(),
        temperature_c=pc.max(inside["temperature_c"]).as_py(),
        power_limit_w=pc.min(inside["power_limit_w"]).as_py(),
        under_cap=_under_cap(inside),
    )


def _under_cap(inside: pa.Table) -> float | None:
    """The share of readings at which the software power cap held clocks back; null without such readings."""
    bits = inside["throttle_reasons"].drop_null().to_numpy()
    return float(np.mean((bits & POWER_CAP) != 0)) if len(bits) else None
