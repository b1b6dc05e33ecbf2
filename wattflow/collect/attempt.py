"""What one attempt cost: its traces joined with its spans on (node, GPU UUID), as rows of results/.

    record.json -> description ; spans, requests -> throughput ; traces -> energy, conditions  => one row, built once

Joules are summed over the distinct devices of the job's ranks, so that ranks which share a device bill it once and a
device that no rank used is never billed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import pyarrow as pa

from wattflow.collect import merge, nodes, roofline
from wattflow.collect.conditions import conditions
from wattflow.collect.description import Description, describe, reason
from wattflow.collect.dummy import Bias, bias
from wattflow.collect.latency import latency
from wattflow.collect.neighbours import neighbours
from wattflow.collect.node_energy import beside_energies, over_nodes, read_beside
from wattflow.collect.plausibility import is_implausible
from wattflow.collect.quantities import (
    Amount,
    Throughput,
    command_throughput,
    energy,
    phase_energies,
    sampling,
    throughput,
)
from wattflow.collect.reading import (
    Batches,
    Device,
    DeviceKey,
    Spans,
    of_batches,
    read_devices,
    read_spans,
)
from wattflow.collect.row import AttemptRows, Choices, Figures, attempt_rows, self_checks
from wattflow.collect.scheduling import read_load, scheduling
from wattflow.collect.served import served
from wattflow.collect.unfinished import unfinished
from wattflow.config.choices import ranks_of
from wattflow.config.identity import is_replaceable
from wattflow.energy.curve import Joules
from wattflow.errors import DamagedError
from wattflow.store.columns import CHOICE_KEYS, POINT, choice_values
from wattflow.store.files import changed_ns
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import REQUEST, Part, PartialAttempt, Record
from wattflow.store.sources import DEVICES
from wattflow.store.tables import read_table

# without all spans no device's window is known
_NO_WINDOWS = {"missing_node", "missing_rank", "no_window", "spans_overlap"}


def collect_attempt(attempt: AttemptDir, choices: Choices) -> AttemptRows:
    """Return what one attempt cost. Never raises for what lies in its files: a damaged one is a reason in the row."""
    found = Figures(Description("running"), ["unfinished"])
    try:
        for found in _figures(attempt, choices):  # noqa: B007 (the last is all of it, or what was known before damage)
            pass
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        OSError,
        TypeError,
        ValueError,
        pa.ArrowException,
    ) as error:
        # whatever a cut page, a foreign value or a record without a field leads to costs this attempt alone
        about = replace(found.about, error=_fault(attempt, error))
        found = replace(found, about=about, reasons=["damaged"], phases=(), requests=(), traces={})
    return attempt_rows(attempt.point_id, attempt.number, _as_asked(attempt, choices), found)


def _as_asked(attempt: AttemptDir, choices: Choices) -> Choices:
    """The same choices with the values of `cluster.*` that the attempt had, if a resume has set others since."""
    try:
        record = attempt.read_record()
        cluster = cast(Any, record or {})["choices"]["cluster"]
        recorded = choice_values({"cluster": cluster})
        columns = {
            column: pa.scalar(recorded[column], POINT.field(column).type).as_py()
            for column, key in CHOICE_KEYS.items()
            if is_replaceable(key) and key.partition(".")[2] in cluster
        }
    except (OSError, LookupError, TypeError, AttributeError, ValueError, pa.ArrowException):
        return choices  # a damaged record, a foreign one, or that of a measured command
    return replace(choices, columns={**choices.columns, **columns})


def _fault(attempt: AttemptDir, error: Exception) -> str:
    if isinstance(error, DamagedError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return f"{error.filename}: not there, though the record says finished."
    return f"{attempt.path}: a file there is not whole ({type(error).__name__}: {error})."


def _figures(attempt: AttemptDir, choices: Choices) -> Iterator[Figures]:
    """Yield what is known of an attempt, more each time, so that a damaged file costs what comes after it alone."""
    record = attempt.read_record()
    if record is None:
        return
    stamp_ns = changed_ns(attempt.record_path)
    yield Figures(Description(record["status"], record_stamp_ns=stamp_ns), [reason(record)])
    about = describe(record, stamp_ns)
    found = Figures(about, [reason(record)])
    yield found
    pieces, number = record.get("pieces", []), record["attempt"]
    if record["status"] != "finished":
        found = replace(found, unfinished=unfinished(attempt, record))
        yield found
        own = [piece for piece in pieces if piece["attempt"] == number]
        if own:  # its window is in the row of the attempt that went on from it
            part = _partial(attempt, own[-1], choices)
            yield replace(found, phases=part.phases, traces=part.traces)
    elif any(piece["attempt"] != number for piece in pieces):
        yield _whole(attempt, pieces, about, choices)
    else:
        yield from _measured(attempt, record, about, choices, None)


def _whole(
    attempt: AttemptDir, pieces: list[PartialAttempt], about: Description, choices: Choices
) -> Figures:
    """Return the figures of a point that several partial attempts measured, with the phases of its own part alone.

    The phases and traces of each earlier part are in the rows of the attempt that measured it.
    """
    folder = attempt.path.parent
    parts = []
    for piece in pieces:
        path = folder / f"attempt-{piece['attempt']}"
        earlier = AttemptDir(path, attempt.point_id, piece["attempt"])
        parts.append(_partial(earlier, piece, choices))
    own = parts[-1] if pieces[-1]["attempt"] == attempt.number else None
    whole = merge.join(parts, about, own)
    failed = self_checks(whole.columns(), [phase for part in parts for phase in part.phases])
    return replace(whole, reasons=[*whole.reasons, "in_pieces", *failed])


def _partial(attempt: AttemptDir, piece: PartialAttempt, choices: Choices) -> Figures:
    """Return what one attempt measured of its own batches, as if they were a whole point."""
    record = attempt.read_record()
    if record is None:
        raise DamagedError(
            f"{attempt.record_path}: not there, though a later attempt goes on from it."
        )
    about = describe(record, changed_ns(attempt.record_path))
    batches = piece["first_batch"], piece["batches"]
    *_, whole = _measured(attempt, record, about, choices, batches)
    return whole


def _measured(
    attempt: AttemptDir,
    record: Record,
    about: Description,
    choices: Choices,
    batches: Batches | None,
) -> Iterator[Figures]:
    """Yield the figures of an attempt that measured a window, more each time; with `batches` those of these alone."""
    ranks, reasons = read_spans(attempt, record, batches)
    known, doubts = _throughput(attempt, record, ranks, choices, batches)
    reasons = [*reasons, *doubts, *(["load_shared"] if record.get("load_shared") else [])]
    found = Figures(about, reasons, known, neighbours=neighbours(record))
    yield found
    devices: list[Device] = []
    if not _NO_WINDOWS & set(reasons):
        devices, doubts = read_devices(attempt, record, ranks)
        reasons = [*reasons, *doubts]
    gpus = len({(rank["node"], rank["gpu_uuid"]) for rank in record["ranks"]})
    nodes_seen = len({spans.device.node for spans in ranks.values()})
    command, config = "measure" in record, choices.config
    if not command and about.boundary in DEVICES and gpus < ranks_of(config):
        reasons = [*reasons, "missing_gpu"]
    found = replace(found, reasons=reasons, gpus=gpus, nodes_seen=nodes_seen)
    yield found
    if devices:
        found = _with_energy(found, devices, None if command else bias(config))
        yield found
        # the meter of a measured command leaves the command's own processes out of its count
        ranks_there = [] if command else record["ranks"]
        state, doubts = conditions(
            devices, ranks_there, config.control.power_limit_w, config.control.sm_clock_mhz
        )
        found = replace(found, reasons=[*found.reasons, *doubts], conditions=state)
        yield found
    if not command and batches is None:
        limits = roofline.of_record(config, record, known.prefill_s, known.decode_s)
        found = replace(found, roofline=limits)
        yield found
    if not command and batches is None:
        nodes_by_rank = list(dict.fromkeys(rank["node"] for rank in record["ranks"]))
        load = read_load(attempt, nodes_by_rank, config)
        if load is not None:
            steps, doubts = scheduling(load, devices)
            times, remarks = latency(load, config.workload.slo)
            reasons = [*found.reasons, *doubts, *remarks]
            found = replace(found, reasons=reasons, scheduling=steps, latency=times)
            energies, rows = served(load, devices, found.phases, config)
            found = replace(found, request_energy=energies, requests=rows)
        yield found
    windows = {device.key.node: device.window for device in devices}
    beside = read_beside(attempt, record, list(windows))
    keys: list[DeviceKey] = [*(device.key for device in devices), *(key for key, _, _ in beside)]
    by_node = {of: beside_energies(beside, of, windows) for of in ("host", "node", "accelerator")}
    sums = {of: over_nodes(energies, len(windows)) for of, energies in by_node.items()}
    lost = [
        f"{of}_gap"
        for of in ("host", "node")
        if 0 < len(windows) == len(by_node[of]) and sums[of].energy_j is None
    ]
    found = replace(
        found,
        host=sums["host"],
        node=sums["node"],
        accelerators=sums["accelerator"],
        rates=_rates(found, ranks, record["parts"], devices, by_node) if command else {},
        traces={key: attempt.trace_path(*key) for key in keys},
    )
    restarted = ["sidecar_restarted"] if about.sidecar_restarts else []
    stood = ["stopped"] if command and _stood_still(record["parts"], windows) else []
    failed = self_checks(found.columns(), found.phases, found.rates)
    yield replace(found, reasons=[*found.reasons, *lost, *stood, *restarted, *failed])


def _stood_still(parts: Sequence[Part], windows: Mapping[str, tuple[int, int]]) -> bool:
    """Whether a command stood still, as after Ctrl-Z, within the window of a node."""
    return any(
        start_ns < windows[part["node"]][1] and end_ns > windows[part["node"]][0]
        for part in parts
        if part["node"] in windows
        for start_ns, end_ns in part.get("stopped", [])
    )


def _rates(
    found: Figures,
    ranks: dict[int, Spans],
    parts: Sequence[Part],
    devices: Sequence[Device],
    beside: Mapping[str, Mapping[str, Amount]],
) -> dict[str, float | None]:
    """Return the rates of a command over several nodes, of what the row has."""
    joules: dict[str, list[Joules]] = {}
    if found.energy.window.energy_j is not None:
        for device in devices:
            joules.setdefault(device.key.node, []).append(device.energy().window)
    rates = nodes.rates(ranks, parts, joules, beside)
    return rates | (
        {"tokens_per_s": None} if rates and found.throughput.tokens_kept is None else {}
    )


def _throughput(
    attempt: AttemptDir,
    record: Record,
    ranks: dict[int, Spans],
    choices: Choices,
    batches: Batches | None,
) -> tuple[Throughput, list[str]]:
    """Return the throughput of a measured command or of a sweep's point, and reason codes."""
    if "measure" in record:
        return command_throughput(ranks, record["parts"])
    requests = of_batches(read_table(attempt.requests_path, REQUEST), batches)
    known, doubts = throughput(ranks.get(0), requests)
    too_few = len(record["ranks"]) < ranks_of(choices.config)
    return known, [*(["missing_rank"] if too_few else []), *doubts]


def _with_energy(found: Figures, devices: list[Device], dummy: Bias | None) -> Figures:
    """Return the figures with what the devices took in the window and in each phase."""
    parts = [device.energy() for device in devices]
    simulated = bool(found.about.simulated)
    total, doubts = energy(devices, parts, found.throughput, simulated=simulated, dummy=dummy)
    samples, gaps = sampling(devices, parts)
    if not simulated and is_implausible(devices):
        gaps = [*gaps, "implausible_power"]
    return replace(
        found,
        reasons=[*found.reasons, *doubts, *gaps],
        energy=total,
        sampling=samples,
        phases=phase_energies(devices, parts, found.throughput),
    )
