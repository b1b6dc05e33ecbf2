"""Measure a node beside the job's devices: its host, all of it, and what its controller counts as accelerators.

Their joules hold some of the devices' (all of a node does), or some of theirs (a Grace CPU is part of its module): they
stand in columns of their own and are added to nothing.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from wattflow.collect.quantities import Amount, amount
from wattflow.collect.reading import DeviceKey, Window, check_trace, power_curve, samples_of
from wattflow.energy import curve
from wattflow.energy.curve import Curve, Joules
from wattflow.nullable import complete_sum, quadrature
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import TRACE, Record, beside_devices
from wattflow.store.sources import source_of
from wattflow.store.tables import read_table


class PowerBeside(NamedTuple):
    """The power over time of a node's host, of all of it or of one of its accelerators, beside the job's devices."""

    key: DeviceKey
    boundary: str
    power: Curve


def read_beside(attempt: AttemptDir, record: Record, nodes: Sequence[str]) -> list[PowerBeside]:
    """Return what was measured of some nodes beside the job's devices, where its traces are there."""
    infos = {info["node"]: info for info in record.get("nodes", [])}
    found = []
    for node in nodes:
        for one in beside_devices(infos[node]):
            source, key = one["source"], DeviceKey(node, one["uuid"])
            path = attempt.trace_path(*key)
            try:
                trace = read_table(path, TRACE)
            except FileNotFoundError:
                continue
            check_trace(path, trace, key, source=source)
            power = power_curve(samples_of(trace, source), source, one["period_ms"])
            found.append(PowerBeside(key, source_of(source).boundary, power))
    return found


def beside_energies(
    beside: Sequence[PowerBeside], boundary: str, windows: Mapping[str, Window]
) -> dict[str, Amount]:
    """Return the energy within a boundary that was measured beside the devices, by node, in the node's window."""
    joules: dict[str, list[Joules]] = {}
    for key, of, power in beside:
        if of == boundary:
            edges = ([edge] for edge in windows[key.node])
            joules.setdefault(key.node, []).append(curve.summed(curve.between(power, *edges)))
    return {node: amount(parts) for node, parts in joules.items()}


def over_nodes(of_nodes: Mapping[str, Amount], nodes: int) -> Amount:
    """Return the sum over all nodes; null unless all of them are known."""
    if len(of_nodes) < nodes:
        return Amount()
    return Amount(
        complete_sum(one.energy_j for one in of_nodes.values()),
        quadrature(one.u_j for one in of_nodes.values()),
    )
