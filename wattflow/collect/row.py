"""Build the rows of results/ from typed values, each row once, and check the numbers that it publishes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wattflow.analysis.expanded import expanded
from wattflow.collect.conditions import Conditions
from wattflow.collect.description import Description
from wattflow.collect.latency import Latency
from wattflow.collect.neighbours import Neighbours
from wattflow.collect.quantities import (
    Amount,
    Energy,
    PhaseEnergy,
    Sampling,
    Throughput,
    close,
)
from wattflow.collect.ratios import RATIOS, ratios
from wattflow.collect.reading import DeviceKey
from wattflow.collect.roofline import Roofline
from wattflow.collect.scheduling import Scheduling
from wattflow.collect.served import RequestEnergy
from wattflow.collect.unfinished import Unfinished
from wattflow.config.choices import Config, from_dict, to_dict
from wattflow.errors import DamagedError
from wattflow.nullable import complete_sum
from wattflow.store.columns import REASONS, choice_values
from wattflow.store.phases import NOT_WITHIN, WITHIN

# beyond twice the uncertainty of both: buffer and counter look at a board at instants of their own, and came out 3 %
# apart at most under loads that pulse, those locked to the samples aside (docs/passports); 0.2 % under steady ones
COUNTER_CONTRADICTS = 0.03
COUNTER_DIFFERS = 0.01
SUM = 0.005  # how far energies may be off their sum
PRODUCT = 1e-6  # and a quotient times its denominator off its numerator

Row = dict[str, Any]  # of a table in results/: values by column

_DEFAULTS = to_dict(Config())


@dataclass(frozen=True)
class Choices:
    """What was chosen at a point."""

    config: Config  # keys that this version does not know are left out, those that are absent have their defaults
    columns: Row  # of results: null for an absent key, as of a measured command, which has few

    @classmethod
    def of(cls, choices: Mapping[str, Any]) -> "Choices":
        """Return the typed form of choices, decoded from grid.parquet or a record; DamagedError where they are none."""
        try:
            return cls(from_dict(_known(choices, _DEFAULTS)), choice_values(dict(choices)))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise DamagedError(f"a point's choices are none ({error}).") from error


def _known(choices: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _known(choices.get(key, {}), default)
        if isinstance(default, dict) and default
        else choices.get(key, default)
        for key, default in defaults.items()
    }


@dataclass(frozen=True)
class Figures:
    """All that a row of results/points.parquet has beside the choices, the attempt's rows of phases, and its traces."""

    about: Description
    reasons: Sequence[str] = ()
    throughput: Throughput = field(default_factory=Throughput)
    energy: Energy = field(default_factory=Energy)
    sampling: Sampling = field(default_factory=Sampling)
    host: Amount = field(default_factory=Amount)
    conditions: Conditions = field(default_factory=Conditions)
    neighbours: Neighbours = field(default_factory=Neighbours)
    roofline: Roofline = field(default_factory=Roofline)
    scheduling: Scheduling = field(default_factory=Scheduling)
    latency: Latency = field(default_factory=Latency)
    request_energy: RequestEnergy = field(default_factory=RequestEnergy)
    unfinished: Unfinished = field(default_factory=Unfinished)
    node: Amount = field(default_factory=Amount)
    accelerators: Amount = field(default_factory=Amount)
    rates: dict[str, float | None] = field(default_factory=dict)  # in place of ratios
    gpus: int | None = None
    nodes_seen: int | None = None
    pieces: int | None = None
    phases: Sequence[PhaseEnergy] = ()
    requests: Sequence[Row] = ()  # of a load whose requests came while others were in work
    traces: Mapping[DeviceKey, Path] = field(default_factory=dict)

    def columns(self) -> Row:
        """Return the columns of measured values, ratios included."""
        sums = {
            **vars(self.about),
            **vars(self.throughput),
            **self.energy.columns(),
            **vars(self.sampling),
            **self.host.columns("host_"),
            **self.node.columns("node_"),
            **self.accelerators.columns("accelerators_"),
            **vars(self.conditions),
            **vars(self.neighbours),
            **vars(self.roofline),
            **vars(self.scheduling),
            **vars(self.latency),
            **vars(self.request_energy),
            **vars(self.unfinished),
            "gpus": self.gpus,
            "nodes_seen": self.nodes_seen,
            "pieces": self.pieces,
        }
        return sums | ratios(sums) | self.rates | _expanded(sums)


def _expanded(sums: Row) -> Row:
    """Return the expanded uncertainties of what an attempt took in all, and of what one took that did not finish."""
    return {
        f"{name}_energy_expanded_u_j": expanded(
            sums, sums[f"{name}_energy_j"], sums[seconds], sums[f"{name}_energy_u_j"]
        )
        for name, seconds in (("job", "attempt_s"), ("unfinished", "unfinished_s"))
    }


@dataclass(frozen=True)
class AttemptRows:
    """One attempt's row of points.parquet, its rows of other tables, and where its devices' traces lie.

    An hour of 32 GPUs is half a gigabyte of readings, so they are kept on the disk.
    """

    point: dict[str, Any]
    phases: Sequence[Row]
    traces: Mapping[DeviceKey, Path]
    requests: Sequence[Row] = ()


def attempt_rows(
    point_id: str, attempt: int | None, choices: Choices, found: Figures
) -> AttemptRows:
    """Return the rows of one attempt, or of a point without any; it counts in nothing yet."""
    reasons = list(dict.fromkeys(found.reasons))
    identity = {"point_id": point_id, "attempt": attempt}
    chosen = choices.columns
    if found.pieces and "mixed_boundary" in reasons:  # a row of two boundaries has no watts at all
        chosen = chosen | {name: None for name in chosen if name.endswith("_w")}
    point = {
        **chosen,
        **identity,
        **found.columns(),
        "counts": False,
        "valid": not any(REASONS[code].withheld for code in reasons),
        "reasons": reasons,
    }
    phases = [{**identity, **vars(phase)} for phase in found.phases]
    requests = [{**identity, **one} for one in found.requests]
    return AttemptRows(point, phases, found.traces, requests)


def self_checks(row: Row, phases: Sequence[PhaseEnergy], rates: Collection[str] = ()) -> list[str]:
    """Return reason codes of the sums and products that do not hold among the published numbers of one attempt.

    `rates` are columns that are no ratio of the row's sums.
    """
    total = row["energy_j"]
    if total is None:
        return []
    failed = [
        ratio.check
        for ratio in RATIOS
        if ratio.check is not None
        and ratio.column not in rates
        and row[ratio.column] is not None
        and not close(row[ratio.numerator], row[ratio.column] * row[ratio.denominator], PRODUCT)
    ]
    parts_j = complete_sum(row[f"{phase}_energy_j"] for phase in WITHIN)
    if row["command"] is None and parts_j is not None and not close(total, parts_j, SUM):
        failed.append("phases_sum")
    devices_j = complete_sum(part.energy_j for part in phases if part.phase not in NOT_WITHIN)
    if devices_j is not None and not close(total, devices_j, SUM):
        failed.append("gpus_sum")
    ratio, seconds = row["counter_ratio"], row["duration_s"]
    if ratio is not None and seconds > 1.0:  # below, a tick at each edge alone explains much
        # what the samples hide is no excuse: the counter would show it
        own_j2 = row["energy_u_j"] ** 2 - (row["aliasing_u_j"] or 0.0) ** 2
        u_of_both = (max(own_j2, 0.0) + row["counter_energy_u_j"] ** 2) ** 0.5 / total
        beyond = abs(ratio - 1) - 2 * u_of_both
        if beyond > COUNTER_DIFFERS:
            failed.append("counter_differs")
        if beyond > COUNTER_CONTRADICTS:
            failed.append("counter_contradicts")
    return failed
