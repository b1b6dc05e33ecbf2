"""Which of the fast engine's kernel sets makes most tokens a second here, and which costs least: measured, then kept.

    wattflow tune model=llama-7b batch_size=1 [--goal speed|energy|edp]

    load once -> blocks of one window a set, each in an order of its own -> best by the goal -> a fresh window of it
        -> ~/.cache/wattflow/tuned.json, which engine.kernels=speed, energy and edp read

Joules are of decode alone, at the GPU, by the same sidecar that measures a sweep. Sets are compared within one run on
one board, whose sensor's gain therefore drops out.
"""

import math
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wattflow.analysis.statistics import student_t
from wattflow.collect.conditions import POWER_CAP
from wattflow.config.choices import Config, from_dict
from wattflow.energy import curve
from wattflow.engine import tuned_kernels
from wattflow.engine.ranks import join
from wattflow.errors import PowerError, RefusedError
from wattflow.plan.grid import expand
from wattflow.power.sidecar_client import Sidecar
from wattflow.process import node_name
from wattflow.run.device_locks import device_locks, visible_devices
from wattflow.store import sources
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import TRACE, MeterInfo
from wattflow.store.tables import read_table

Row = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Tuned:
    """The sets measured, the best by each goal, the fresh window of the one asked for, and where it was kept."""

    frontier: list[Row]
    best: dict[str, str]
    again: Row
    source: str
    kept: Path


def choices(words: Sequence[str], goal: str, windows: int, seconds: float) -> Config:
    """The one point that the words name; RefusedError for several, or for a goal or a window that is none."""
    if goal not in tuned_kernels.GOALS:
        raise RefusedError(f"--goal {goal}: not one of {', '.join(tuned_kernels.GOALS)}.")
    if windows < 1 or not 0 < seconds < math.inf:
        raise RefusedError(
            f"--windows {windows} --seconds {seconds:g}: take at least one, above 0."
        )
    _, points, _ = expand(words, repeats=1)
    if len(points) > 1:
        raise RefusedError(f"these words name {len(points)} points: tune takes one.")
    if points[0].reason is not None:
        raise RefusedError(points[0].reason)
    return from_dict(points[0].choices)


def tune(config: Config, goal: str, windows: int, seconds: float, say: Say) -> Tuned:
    """Measure every set that runs here; RefusedError, EngineError or PowerError where that cannot be."""
    with (
        visible_devices(1),
        device_locks(config.power, lambda: say("waiting for another sweep on this machine")),
    ):
        return _tune(config, goal, windows, seconds, say)


def _tune(config: Config, goal: str, windows: int, seconds: float, say: Say) -> Tuned:
    from wattflow.engine.tune_windows import Arms  # noqa: PLC0415 - torch takes seconds to import

    ranks = join(0, 1, 0, node_name(), "", config.engine.device, 60.0, 60.0)
    with tempfile.TemporaryDirectory(prefix="wattflow-tune-") as folder:
        attempt = AttemptDir(Path(folder) / "attempt-1", "tune", 1)
        attempt.path.mkdir()
        attempt.make_folders()
        with (
            Sidecar(config.power, ranks.node, Path(folder)) as sidecar,
            Arms(config, ranks) as arms,
        ):
            names = arms.names()
            ready = sidecar.start(attempt)
            device = _device(ready, ranks.gpu_uuid)
            taken: list[Any] = []
            for name in order(names, windows):
                sidecar.mark()
                taken.append(arms.window(name, seconds))
                say(f"{name}: {rate(taken[-1]):.1f} tokens/s")
            # the sensor's last sample of a window may still be to come, and its joules decide what is measured again
            sidecar.mark()
            sidecar.stop()
            told = [_told(w, _trace(attempt, ranks.node, device), ready) for w in taken]
            frontier = summaries(told)
            best = {name: choose(frontier, name) for name in tuned_kernels.GOALS}
            say(f"{best[goal]} again, in a fresh window")
            sidecar.start(attempt)
            fresh = arms.window(best[goal], seconds)
            sidecar.stop()
            again = _told(fresh, _trace(attempt, ranks.node, device), ready)
            kept = tuned_kernels.keep(arms.key, best, frontier)
    return Tuned(frontier, best, again, ready["source"], kept)


def order(names: Sequence[str], windows: int, seed: int = 0) -> list[str]:
    """Blocks of one window a set, the sets of each block in a random order: drift of heat falls on all alike."""
    drawn = random.Random(seed)  # noqa: S311 (an order, not a secret)
    return [name for _ in range(windows) for name in drawn.sample(list(names), len(names))]


def note(row: Row, best: dict[str, str]) -> str:
    """What a row of the table is: the best by which goals, or the fresh window."""
    if row.get("again"):
        return "again, in a fresh window"
    won = [goal for goal, name in best.items() if name == row["kernels"]]
    return f"best by {', '.join(won)}" if won else "dominated" if row["dominated"] else ""


def rate(window: Any) -> float:
    """Tokens per second of decode."""
    seconds = sum(end - start for start, end in window.spans) / sources.SECOND_NS
    return float(window.tokens / seconds)


def summaries(rows: Sequence[Row]) -> list[Row]:
    """A row a set, quickest first: means over its windows with their 95 % intervals, null from one window."""
    out = []
    for name in dict.fromkeys(row["kernels"] for row in rows):
        own = [row for row in rows if row["kernels"] == name]
        summary: Row = {"kernels": name, "windows": len(own)}
        for column in ("tokens_per_s", "energy_per_token_j", "edp_js", "power_w", "bytes_per_s"):
            middle, half = _interval([row[column] for row in own])
            summary |= {column: middle, f"{column}_half": half}
        for column in ("sm_clock_mhz", "temperature_c", "power_limit_w", "under_cap"):
            summary[column] = _interval([row[column] for row in own])[0]
        out.append(summary)
    out.sort(key=lambda row: -row["tokens_per_s"])
    return [{**row, "dominated": _dominated(row, out)} for row in out]


def choose(frontier: Sequence[Row], goal: str) -> str:
    """The set with the best mean by the goal; the quickest where joules are not known."""
    if goal == "speed" or any(row["energy_per_token_j"] is None for row in frontier):
        return str(max(frontier, key=lambda row: row["tokens_per_s"])["kernels"])
    column = "energy_per_token_j" if goal == "energy" else "edp_js"
    return str(min(frontier, key=lambda row: row[column])["kernels"])


def _dominated(row: Row, rows: Sequence[Row]) -> bool:
    """Whether another set is both quicker and cheaper."""
    joules = row["energy_per_token_j"]
    known = [other for other in rows if other["energy_per_token_j"] is not None]
    return joules is not None and any(
        other["tokens_per_s"] > row["tokens_per_s"] and other["energy_per_token_j"] < joules
        for other in known
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


def _trace(attempt: AttemptDir, node: str, device: str) -> pa.Table:
    return read_table(attempt.trace_path(node, device), TRACE)


def _told(window: Any, trace: pa.Table, ready: MeterInfo) -> Row:
    """One window's rates and joules; null where the sensor did not tell."""
    source, period_ms = ready["source"], ready["period_ms"]
    samples = trace.filter(pc.equal(trace["source"], source))
    power = curve.curve_of(
        source,
        period_ms,
        samples["time_ns"].to_numpy(),
        samples["power_w"].to_numpy(),
        samples["gap"].to_numpy(),
    )
    start, end = (np.array(edge, np.int64) for edge in zip(*window.spans, strict=True))
    joules = curve.summed(curve.between(power, start, end))
    seconds = float((end - start).sum()) / sources.SECOND_NS
    per_token = None if joules.energy_j is None else joules.energy_j / window.tokens
    inside = trace.filter(
        pc.and_(
            pc.greater_equal(trace["time_ns"], int(start[0])),
            pc.less_equal(trace["time_ns"], int(end[-1])),
        )
    )
    return {
        "kernels": window.kernels,
        "tokens_per_s": window.tokens / seconds,
        "energy_per_token_j": per_token,
        "edp_js": None if per_token is None else per_token * seconds / window.tokens,
        "power_w": None if joules.energy_j is None else joules.energy_j / seconds,
        "bytes_per_s": window.bytes_per_step * window.steps / seconds,
        "sm_clock_mhz": pc.mean(inside["sm_clock_mhz"]).as_py(),
        "temperature_c": pc.max(inside["temperature_c"]).as_py(),
        "power_limit_w": pc.min(inside["power_limit_w"]).as_py(),
        "under_cap": _under_cap(inside),
    }


def _under_cap(inside: pa.Table) -> float | None:
    """The share of readings at which the software power cap held clocks back; null where none tells."""
    bits = inside["throttle_reasons"].drop_null().to_numpy()
    return float(np.mean((bits & POWER_CAP) != 0)) if len(bits) else None
