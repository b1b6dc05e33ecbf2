"""What neighbours change, by a control: the same point alone, then in all slots of a node (grid=neighbours).

    round   slot 0   alone                 all
            slot 1          alone          all      the same boards in both, so that no board's sensor is in the ratio

The ratio of all slots to alone, with its interval, is kept in the control's results/ under what it holds for: the site,
the GPU, how the profile asks for nodes, and the number of slots. Where points beside others are compared with points
alone, the interval is widened by it; without one they are not compared.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wattflow.analysis.beside import MixedError, is_mixed
from wattflow.analysis.statistics import Ratio
from wattflow.errors import WattflowError
from wattflow.store.files import read_json, write_json
from wattflow.store.layout import SweepDir

if TYPE_CHECKING:  # it is slow to load
    import polars as pl

METRICS = {"energy": "energy_per_computed_token_j", "power": "power_w", "rate": "tokens_per_s"}
_VERSION = 1


@dataclass(frozen=True)
class Bound:
    """What all slots make of a figure, over alone, with its 95 % interval over boards."""

    ratio: float
    low: float
    high: float
    pairs: int  # boards, or sets of them, that ran both

    @property
    def factor(self) -> float:
        """Return by how much a ratio may be off, upwards or downwards: 1 or more."""
        return max(1.0, self.high, 1.0 / self.low)


@dataclass(frozen=True)
class Control:
    """What neighbours change on one kind of node."""

    sweep: str
    cluster: str
    gpu_name: str
    node_type: str
    slots: int
    bounds: dict[str, Bound]  # of METRICS

    def in_words(self) -> list[str]:
        """Return a line a metric for people."""
        where = f"{self.slots} slots of {self.cluster} ({self.gpu_name}, {self.node_type})"
        return [
            f"{name} in all {where}: {one.ratio:.4f} of alone, {one.low:.4f} to {one.high:.4f} over {one.pairs} boards"
            for name, one in self.bounds.items()
        ]


def kind_of(row: dict[str, Any]) -> tuple[str, str, str]:
    """Return what a control holds for of a row: site, GPU and how its profile asks for nodes."""
    named = [row["cluster_partition"], row["cluster_constraint"]]
    words = [f"{row['cluster_gpus_per_node']} GPUs", *(name for name in named if name)]
    return str(row["cluster"]), str(row["gpu_name"]), ", ".join(words)


def keep(sweep: SweepDir, found: Sequence[Control]) -> None:
    """Write a sweep's controls into its results."""
    write_json(
        sweep.controls_path, {"version": _VERSION, "controls": [asdict(one) for one in found]}
    )


def of(sweep: SweepDir) -> list[Control]:
    """Return the controls that a sweep itself made."""
    return _read(sweep.controls_path)


def near(sweep: SweepDir) -> list[Control]:
    """Return the controls in the sweeps beside one, its own first, then the newest; damaged ones are left out."""
    others = list(sweep.path.parent.glob("*/results/neighbours.json"))
    others.sort(key=_age_s)
    own = [path for path in others if path == sweep.controls_path]
    return [one for path in dict.fromkeys([*own, *others]) for one in _read(path)]


def _age_s(path: Path) -> float:
    try:
        return -path.stat().st_mtime  # the newest first
    except OSError:
        return 0.0


def _read(path: Path) -> list[Control]:
    try:
        kept = read_json(path)
        return [
            Control(**{**one, "bounds": {name: _bound(of) for name, of in one["bounds"].items()}})
            for one in kept["controls"]
            if kept["version"] == _VERSION and one["bounds"].keys() == METRICS.keys()
        ]
    except (WattflowError, OSError, AttributeError, LookupError, TypeError, ValueError):
        return []


def _bound(of: dict[str, Any]) -> Bound:
    """Return a bound; ValueError where its numbers are none that can be."""
    one = Bound(**of)
    if not 0 < one.low <= one.ratio <= one.high < math.inf:
        raise ValueError(f"{one} is no interval")
    return one


def bounding(rows: "pl.DataFrame", controls: Sequence[Control], by: str) -> Control | None:
    """Return the control for rows of points beside others and alone; null where they are not mixed.

    MixedError where there is none for their site, GPU, nodes and slots.
    """
    if not is_mixed(rows):
        return None
    kinds = {kind_of(row) for row in rows.to_dicts()}
    slots = set(rows["slots"].drop_nulls().to_list())
    for one in controls:
        of = (one.cluster, one.gpu_name, one.node_type)
        if kinds == {of} and slots == {one.slots}:
            return one
    beside = int(rows["beside"].sum())
    where = " and ".join(sorted(f"{', '.join(kind)}" for kind in kinds))
    raise MixedError(
        f"{by}: {beside} of these {len(rows)} points were measured side by side with others on their node, the rest "
        f"alone, and what neighbours change is not known for {where}. `wattflow submit grid=neighbours` measures it, "
        "or run all alike: `wattflow resume --force --only POINT` with cluster.side_by_side=true or false."
    )


def widened(ratio: Ratio, control: Control, metric: str) -> Ratio:
    """Return a ratio between points beside others and points alone, with what neighbours may change in its interval."""
    kind = "power" if "power" in metric else "energy" if "energy" in metric else "rate"
    factor = control.bounds[kind].factor
    low = None if ratio.low is None else ratio.low / factor
    high = None if ratio.high is None else ratio.high * factor
    rests_on = (
        f"neighbours change at most {100 * (factor - 1):.2g} %, by the control {control.sweep}"
    )
    wide = replace(ratio, low=low, high=high, rests_on=f"{ratio.rests_on}; {rests_on}")
    if ratio.established and (low is None or high is None or low <= 1.0 <= high):
        return replace(wide, established=False, why_not="within what neighbours may change")
    return wide
