"""The same job and window by the site's own meters: what sacct and a Prometheus of GPU exporters say, beside ours.

    wattflow crosscheck SWEEP [--prometheus URL]

A ratio near 1 says that two ways to read one board agree, and nothing of its gain. A site's samples are seconds apart:
each value carries its uncertainty by that, and a window that they do not enclose has none.
"""

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from wattflow.analysis.cost import HOUR_S
from wattflow.analysis.means import of_sum
from wattflow.analysis.prometheus import Prometheus, Series, selector
from wattflow.analysis.sweep import Sweep
from wattflow.energy import counter, curve
from wattflow.errors import SlurmError
from wattflow.nullable import complete_sum, quadrature, quotient
from wattflow.slurm import client
from wattflow.store.columns import CROSSCHECK
from wattflow.store.schema import SCHEMA_VERSION
from wattflow.store.sources import MOST_HOST_W, SECOND_NS, least_w, most_w
from wattflow.store.tables import write_table

Row = Mapping[str, Any]  # of results/points.parquet
Window = tuple[int, int]  # unix ns

LEAST_SPACINGS = 3  # a window shorter than so many of the site's samples says nothing
_GAP_SPACINGS = 3  # a longer time without a sample is a gap


@dataclass(frozen=True)
class Metric:
    """One series of a site's exporter: its name, what it counts, and the label that names the GPU."""

    exporter: str
    name: str
    gpu_label: str
    unit: str  # W, mW, or mJ of a counter
    remark: str | None = None


# Names, labels and units as the exporters have them; docs/cost.md says where that stands.
METRICS = (
    Metric("dcgm-exporter", "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "UUID", "mJ"),
    Metric("dcgm-exporter", "DCGM_FI_DEV_POWER_USAGE", "UUID", "W"),
    Metric("dcgm-exporter", "DCGM_FI_DEV_POWER_USAGE_INSTANT", "UUID", "W"),
    Metric("jobstats", "nvidia_gpu_power_usage_milliwatts", "uuid", "mW"),
    Metric(
        "CEEMS",
        "uuid:ceems_gpu_power_watts:pue",
        "gpuuuid",
        "W",
        "holds the PUE that the site's rules multiply it with",
    ),
)


@dataclass(frozen=True)
class Check:
    """A row of columns.CROSSCHECK: the joules of one attempt or job beside those of one meter of the site."""

    point_id: str | None
    attempt: int | None
    job_id: str | None
    source: str
    window: str
    seconds: float | None
    boundary: str | None
    site_boundary: str
    simulated: bool | None
    energy_j: float | None
    energy_expanded_u_j: float | None = None
    site_energy_j: float | None = None
    site_energy_u_j: float | None = None
    ratio: float | None = None
    samples: int | None = None
    spacing_s: float | None = None
    remark: str | None = None
    why_not: str | None = None


@dataclass(frozen=True)
class _Attempt:
    """One finished attempt: its row, and the measured window of each of its nodes with the GPUs there."""

    row: Row
    windows: dict[str, Window]
    gpus: dict[str, list[str]]  # UUIDs by node

    @property
    def span(self) -> Window:
        """From the first node's start to the last one's end, by their own clocks."""
        return min(w[0] for w in self.windows.values()), max(w[1] for w in self.windows.values())


def crosscheck(sweep: Sweep, prometheus: Prometheus | None, *, sacct: bool = True) -> list[Check]:
    """Return a check for each attempt and metric of the site, and one a job by sacct; they are kept in results/.

    SiteError where the Prometheus does not answer; a Slurm that does not is a reason in its rows.
    """
    attempts = _attempts(sweep)
    rows: list[Check] = []
    if prometheus is not None and attempts:
        rows += _by_prometheus(attempts, prometheus)
    if sacct:
        rows += _by_sacct(sweep.attempts.to_dicts())
    about = {"schema_version": str(SCHEMA_VERSION)}
    table = pa.Table.from_pylist(
        [vars(row) for row in rows], schema=CROSSCHECK
    ).replace_schema_metadata(about)
    with contextlib.suppress(
        PermissionError
    ):  # somebody else's sweep may be read, and not written to
        write_table(sweep.directory.crosscheck_path, table)
    return rows


def _attempts(sweep: Sweep) -> list[_Attempt]:
    """Return the finished attempts whose joules were measured on GPUs, with their nodes' windows."""
    found = []
    for row in sweep.attempts.to_dicts():
        if row["energy_j"] is None or row["simulated"] or row["boundary"] != "gpu":
            continue
        if (row["pieces"] or 1) > 1:  # its joules are of several windows
            continue
        windows: dict[str, Window] = {}
        gpus: dict[str, list[str]] = {}
        for node, uuid, start_ns, end_ns in sweep.windows(row):
            gpus.setdefault(node, []).append(uuid)
            first, last = windows.get(node, (start_ns, end_ns))
            windows[node] = min(first, start_ns), max(last, end_ns)
        if windows:
            found.append(_Attempt(row, windows, gpus))
    return found


# --- Prometheus -----------------------------------------------------------------------------------


def _by_prometheus(attempts: Sequence[_Attempt], prometheus: Prometheus) -> list[Check]:
    first = min(attempt.span[0] for attempt in attempts)
    last = max(attempt.span[1] for attempt in attempts)
    there = prometheus.names(first - _MARGIN_NS, last + _MARGIN_NS)
    metrics = [metric for metric in METRICS if metric.name in there]
    if not metrics:
        names = ", ".join(metric.name for metric in METRICS)
        return [
            _ours(attempt.row, "Prometheus", why_not=f"the server has none of {names} at that time")
            for attempt in attempts
        ]
    return [_check(attempt, metric, prometheus) for attempt in attempts for metric in metrics]


_MARGIN_NS = 180 * SECOND_NS  # before and after a window: samples that enclose it


def _check(attempt: _Attempt, metric: Metric, prometheus: Prometheus) -> Check:
    """Return one attempt by one metric."""
    start_ns, end_ns = attempt.span
    uuids = [uuid for of_node in attempt.gpus.values() for uuid in of_node]
    series = prometheus.samples(
        selector(metric.name, metric.gpu_label, uuids), start_ns - _MARGIN_NS, end_ns + _MARGIN_NS
    )
    ours = _ours(attempt.row, f"{metric.exporter} {metric.name}", remark=metric.remark)
    limit_w = attempt.row.get("power_limit_max_w")
    samples = 0
    parts: list[curve.Joules] = []
    spacings_s: list[float] = []
    for node, of_node in attempt.gpus.items():
        window = attempt.windows[node]
        for uuid in of_node:
            time_ns, values = _merged(series, metric, uuid)
            if len(time_ns) < 2:
                why_not = f"no samples of {uuid}" if len(series) else "no samples of its GPUs"
                return replace(ours, samples=samples, why_not=why_not)
            spacing_ns = int(np.median(np.diff(time_ns)))
            spacings_s.append(spacing_ns / SECOND_NS)
            samples += int(np.sum((time_ns >= window[0]) & (time_ns <= window[1])))
            parts.append(_joules(time_ns, values, metric, window, spacing_ns, limit_w))
    found = replace(ours, samples=samples, spacing_s=max(spacings_s))
    reasons = [part.reason for part in parts if part.reason is not None]
    if reasons:
        return replace(found, why_not=_WHY[reasons[0]])
    if attempt.row["duration_s"] < LEAST_SPACINGS * max(spacings_s):
        why_not = f"the window is shorter than {LEAST_SPACINGS} of the site's samples"
        return replace(found, why_not=why_not)
    site_energy_j = complete_sum([part.energy_j for part in parts])
    return replace(
        found,
        site_energy_j=site_energy_j,
        site_energy_u_j=quadrature([part.u_j or 0.0 for part in parts]),
        ratio=quotient(site_energy_j, found.energy_j),
    )


_WHY = {
    "not_bracketed": "the site has no sample before the window's start, or none after its end",
    "gap": "the site's samples have a gap in the window",
    "counter_reset": "the site's counter was reset in the window, or may have been",
}


def _merged(series: Iterable[Series], metric: Metric, uuid: str) -> tuple[curve.Ints, curve.Floats]:
    """Return the samples of one GPU over all of its series, as other labels change with jobs; without slices of it."""
    own = [
        one
        for one in series
        if one.labels.get(metric.gpu_label) == uuid and not one.labels.get("GPU_I_ID")
    ]
    if not own:
        return np.zeros(0, np.int64), np.zeros(0)
    time_ns = np.concatenate([one.time_ns for one in own])
    values = np.concatenate([one.values for one in own])
    # blank values of DCGM are huge, and a board that answers draws more than 0 W
    least = 0.0 if metric.unit == "mJ" else np.nextafter(0, 1)
    known = np.isfinite(values) & (values >= least) & (values < _BLANK)
    time_ns, values = time_ns[known], values[known]
    time_ns, first = np.unique(time_ns, return_index=True)
    return time_ns, values[first]


_BLANK = 1e14


def _joules(  # noqa: PLR0917 (samples, and what they are of)
    time_ns: curve.Ints,
    values: curve.Floats,
    metric: Metric,
    window: Window,
    spacing_ns: int,
    limit_w: float | None = None,
) -> curve.Joules:
    """Return the joules of one GPU in its node's window; `limit_w` is the highest limit it accepts, where known."""
    start, end = [window[0]], [window[1]]
    highest_w = most_w("", limit_w)
    if metric.unit == "mJ":
        readings = counter.counter(time_ns, np.rint(values).astype(np.uint64), highest_w=highest_w)
        found = curve.summed(counter.counter_between(readings, start, end))
        was_reset = counter.resets_between(readings, *window) > 0
        return replace(found, reason="counter_reset") if found.reason and was_reset else found
    watts = values / 1e3 if metric.unit == "mW" else values
    # a value may be as old as the exporter's own period, which is about that of the scrapes
    power = curve.curve(
        time_ns,
        watts,
        longest_ns=_GAP_SPACINGS * spacing_ns,
        lag_ns=spacing_ns,
        lowest_w=least_w(),
        highest_w=highest_w,
    )
    return curve.summed(curve.between(power, start, end))


# --- Slurm ----------------------------------------------------------------------------------------

SACCT = "sacct ConsumedEnergy"
NO_GPU = "the node's, by Slurm: holds no NVIDIA GPU; right for exclusive jobs alone"


def _by_sacct(attempts: Sequence[Row]) -> list[Check]:
    """Return what Slurm's accounting keeps of each job beside the joules of the attempts that ran in it."""
    jobs: dict[str, list[Row]] = {}
    for row in attempts:
        if row["job_id"] is not None and re.fullmatch(r"\d+(_\d+)?", row["job_id"]):
            jobs.setdefault(row["job_id"], []).append(row)
    if not jobs:
        return []
    consumed: dict[str, float] = {}
    trouble = None
    try:
        consumed = client.consumed_energy_j(list(jobs))
    except SlurmError as error:
        trouble = str(error)
    return [_of_job(of_job, consumed.get(job), trouble) for job, of_job in jobs.items()]


def _of_job(attempts: Sequence[Row], consumed_j: float | None, trouble: str | None) -> Check:
    """Return what Slurm keeps of one job beside the joules of the attempts that ran in it."""
    one = attempts[0]
    alone = len(attempts) == 1
    energy_j = complete_sum([row["job_energy_j"] for row in attempts])
    simulated = any(row["simulated"] for row in attempts)
    why_not = trouble
    if why_not is None and consumed_j is None:
        why_not = "Slurm keeps no energy of this job (AcctGatherEnergyType)"
    elif why_not is None and not _possible(consumed_j, attempts):
        why_not = f"Slurm says {consumed_j:.4g} J, more than its nodes can have drawn"
        consumed_j = None
    elif why_not is None and energy_j is None:
        why_not = "the joules of its attempts are not known"
    elif why_not is None and simulated:
        why_not = "the joules of its attempts were simulated"
    return replace(
        _ours(one, SACCT, remark=NO_GPU, why_not=why_not),
        point_id=one["point_id"] if alone else None,
        attempt=one["attempt"] if alone else None,
        window="job",
        seconds=None,
        site_boundary="node without NVIDIA GPUs",
        simulated=simulated,
        energy_j=energy_j,
        energy_expanded_u_j=of_sum(row["job_energy_expanded_u_j"] for row in attempts),
        site_energy_j=consumed_j,
        ratio=quotient(consumed_j, energy_j) if why_not is None else None,
    )


def _possible(consumed_j: float | None, attempts: Sequence[Row]) -> bool:
    """Return whether a job can have drawn so much while its attempts ran, and as long again around them."""
    seconds = complete_sum([row["attempt_s"] for row in attempts])
    nodes = max((row["nodes_seen"] or 1 for row in attempts), default=1)
    if consumed_j is None or seconds is None:
        return True
    return consumed_j <= MOST_HOST_W * nodes * (2 * seconds + HOUR_S)


def _ours(
    attempt: Row, source: str, *, remark: str | None = None, why_not: str | None = None
) -> Check:
    """Return our side of a comparison."""
    return Check(
        point_id=attempt["point_id"],
        attempt=attempt["attempt"],
        job_id=attempt["job_id"],
        source=source,
        window="measured window",
        seconds=attempt["duration_s"],
        boundary=attempt["boundary"],
        site_boundary="gpu",
        simulated=attempt["simulated"],
        energy_j=attempt["energy_j"],
        energy_expanded_u_j=attempt["energy_expanded_u_j"],
        remark=remark,
        why_not=why_not,
    )
