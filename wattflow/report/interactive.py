"""What the page's own script draws from: templates of charts, names for people, and traces small enough to embed."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from wattflow.analysis.axes import heading, in_words
from wattflow.analysis.comparisons import of_watts
from wattflow.analysis.means import Setting
from wattflow.analysis.sweep import TIMELINE_BINS, Sweep
from wattflow.report.sections import Figures
from wattflow.report.text import choice, sensor
from wattflow.store.columns import unit_of
from wattflow.store.phases import NOT_WITHIN

TRACES_BYTES = 6_000_000  # of all embedded traces; more would make the page slow to open
LEAST_BINS = 100  # of one device's line: fewer would hide what is to be seen
SPANS = 200  # of one point that are shaded; of more each would be thinner than a hair
WINDOW = "window"  # the shade in place of so many
_COLUMNS = ("seconds", "power_w", "lowest_w", "highest_w")
_BIN_BYTES = len(_COLUMNS) * 2 * 4 / 3  # 16 bit each, in base64
_FULL = 65535

Json = dict[str, Any]


def charts(figures: Figures) -> Json:
    """Return what draws a page's charts from its figures, as JSON: templates, names and orders of choices, places."""
    from wattflow.analysis import charts as draw  # noqa: PLC0415 (altair is slow to import)
    from wattflow.analysis.figures import PALETTE  # noqa: PLC0415 (as above)

    counting = [one for one in figures.results if one.n]
    own = {metric.column for metric in draw.METRICS}
    further = [name for name in _known(counting) if name not in own]
    metrics = [metric for metric in draw.METRICS if metric.column in _known(counting)]
    metrics += [
        draw.Metric(name, heading(name), unit_of(name), power=of_watts(name)) for name in further
    ]
    kinds = {_kind(one): None for one in counting}
    return {
        "templates": draw.templates(),
        "palette": PALETTE,
        "axes": [
            {
                "name": axis,
                "heading": heading(axis),
                "numeric": draw.is_numeric(figures.results, axis),
                "values": draw.orders(figures.results, axis),
            }
            for axis in figures.axes
        ],
        "settings": [[in_words(value) for value in one.chosen.values()] for one in figures.results],
        "kinds": list(kinds),
        "kind_of": [list(kinds).index(_kind(one)) if one.n else -1 for one in figures.results],
        "metrics": [asdict(metric) for metric in metrics],
        "start": asdict(draw.places(counting or figures.results, figures.axes)),
        "least": _least(figures.results),
    }


def _known(settings: Sequence[Setting]) -> list[str]:
    """Return the figures that any setting has, without their uncertainties."""
    names = settings[0].means if settings else ()
    return [
        name
        for name in names
        if "expanded_u" not in name and any(one.means[name].mean is not None for one in settings)
    ]


def _kind(one: Setting) -> str:
    """Return what joules are apart by, in words."""
    return f"{sensor(one)} ({one.boundary}{', simulated' if one.simulated else ''})"


def _least(settings: Sequence[Setting]) -> int:
    """Return which setting has the lowest J/token: what is not on an axis stands at its values; -1 for none."""
    known = [
        (mean.mean, i)
        for i, one in enumerate(settings)
        if one.n and (mean := one.means["energy_per_token_j"]).mean is not None
    ]
    return min(known)[1] if known else -1


# --- power over time ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """The power of one device in bins: 16-bit numbers in base64, column after column, each over its own range."""

    name: str
    bins: int
    ranges: list[tuple[float, float]]  # of seconds, power_w, lowest_w, highest_w
    data: str


@dataclass(frozen=True)
class Timeline:
    """The power of one point over time."""

    point_id: str
    setting: int  # of the figures' results
    chosen: str  # its choices, in words
    titles: dict[str, str]
    devices: list[Device]
    spans: list[tuple[str, int | None, float, float]]  # phase, batch, from and to, s


@dataclass(frozen=True)
class Timelines:
    """The timelines that a page embeds, what draws them, and how many points it leaves out."""

    template: Json
    points: list[Timeline]
    left_out: int


def timelines(sweep: Sweep, figures: Figures) -> Timelines:
    """Return the power over time of the points that count, in fewer bins the more there are, first repeats first.

    At most TRACES_BYTES for all of them; points beyond are left out.
    """
    from wattflow.analysis import figures as draw  # noqa: PLC0415 (altair is slow to import)

    counting = sweep.points.filter("counts").sort("repeat", maintain_order=True)
    lines = int(counting["gpus"].fill_null(1).sum())
    bins = int(min(TIMELINE_BINS, max(LEAST_BINS, TRACES_BYTES / _BIN_BYTES / max(1, lines))))
    room = TRACES_BYTES
    setting_of = {_key(one.chosen, vars(one)): i for i, one in enumerate(figures.results)}
    found: list[Timeline] = []
    left_out = 0
    for row in counting.iter_rows(named=True):
        if room <= 0:
            left_out += 1
            continue
        power, spans = sweep.power_of(row, bins), sweep.spans_of(row)
        if power.is_empty() or spans.is_empty():
            continue
        first = draw.first_phase(spans)
        devices = [
            _device(of) for of in power.partition_by("node", "gpu_uuid", maintain_order=True)
        ]
        room -= sum(len(device.data) for device in devices)
        names = [name for name in (*figures.axes, "repeat") if row[name] is not None]
        found.append(
            Timeline(
                row["point_id"],
                setting_of.get(_key({axis: row[axis] for axis in figures.axes}, row), -1),
                ", ".join(f"{heading(name)} {choice(name, row[name])}" for name in names),
                asdict(draw.timeline_titles(row, first)),
                devices,
                _shades(draw.phase_shades(spans, first)),
            )
        )
    phases = dict.fromkeys(phase for one in found for phase, *_ in one.spans)
    return Timelines(draw.timeline_template(list(phases)), found, left_out)


def _key(chosen: Mapping[str, Any], of: Mapping[str, Any]) -> tuple[object, ...]:
    apart = (of["boundary"], of["simulated"], of["power_source"], bool(of["beside"]))
    return (*map(str, chosen.values()), *apart)


def _device(power: pl.DataFrame) -> Device:
    columns = [power[name].to_numpy() for name in _COLUMNS]
    ranges = [(float(values.min()), float(values.max())) for values in columns]
    packed = [
        np.rint((values - low) / ((high - low) or 1.0) * _FULL).astype("<u2")
        for values, (low, high) in zip(columns, ranges, strict=True)
    ]
    return Device(
        f"{power['node'][0]}  {power['gpu_uuid'][0][:12]}",
        len(power),
        [(round(low, 4), round(high, 4)) for low, high in ranges],
        base64.b64encode(np.concatenate(packed).tobytes()).decode(),
    )


def _shades(shades: pl.DataFrame) -> list[tuple[str, int | None, float, float]]:
    """Return the phases to be shaded; of very many those of the measured window as one."""
    rows: list[tuple[str, int | None, float, float]] = shades.rows()
    if len(rows) <= SPANS:
        return rows
    within = [row for row in rows if row[0] not in NOT_WITHIN]
    outside = [row for row in rows if row[0] in NOT_WITHIN]
    window = (WINDOW, None, min(row[2] for row in within), max(row[3] for row in within))
    return [*outside[: SPANS - 1], window]
