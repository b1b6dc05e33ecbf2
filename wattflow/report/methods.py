"""The methods of a paper, in words, made from what a sweep's records and results say and nothing else."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wattflow.analysis.axes import axes_of, choice_columns, shown_axes
from wattflow.analysis.means import APART, Mean, Setting, energies, expanded_column, settings
from wattflow.nullable import with_doubt
from wattflow.report.html import render
from wattflow.report.text import choice, count_of, mark, source
from wattflow.store.columns import REASONS
from wattflow.store.schema import SCHEMA_VERSION
from wattflow.store.sources import source_of

Row = Mapping[str, Any]  # of results/points.parquet
Record = Mapping[str, Any]  # an attempt's record.json

_NAMES = (
    *("gpu_name", "driver", "model", "precision", "weights", "shards", "engine", "n_prompts", "dataset"),
    *("batch_size", "max_gen_len", "stop", "temperature", "top_p", "seed", "boundary", "prompts_sha256"),
)  # fmt: skip


@dataclass(frozen=True)
class Methods:
    """What was measured and how, over the attempts that count; `methods.md.j2` puts it into words."""

    measured: bool  # a command under `measure`
    simulated: bool
    # attempts, and points that were never tried
    counting: int
    tried: int
    never: int
    reasons: list[str]  # why attempts do not count
    names: dict[str, list[Any]]  # the distinct values of columns
    axes: list[str]
    settings: int
    repeats: list[int]
    gpus: list[int]
    nodes: list[int]
    tokens: list[int]
    prompt_tokens: list[float]  # mean tokens of a prompt, an attempt each
    sensors: list[str]  # in words
    periods_ms: list[float]
    limits_w: list[float]
    clocks_mhz: list[float]
    # of each window at least so much was covered; the largest uncertainties, over the joules
    coverage: float
    sampling_u: float
    gain_u: float | None
    expanded_u: float | None  # k = 2, all of it
    dummy_u: float | None
    counter_ratios: list[float]
    versions: list[str]


def methods(rows: Sequence[Row], records: Sequence[Record]) -> Methods:
    """Return the methods of rows of results/points.parquet and of the records of the attempts."""
    counting = [row for row in rows if row["counts"]]
    tried = [row for row in rows if row["attempt"] is not None]
    axes = shown_axes(choice_columns(counting))
    repeats = [one.n for one in settings(counting, axes, (), apart=())]
    sources = {name for row in counting for name in row["power_source"].split(" + ")}
    return Methods(
        measured=any(row["command"] is not None for row in counting),
        simulated=any(row["simulated"] for row in counting),
        counting=len(counting),
        tried=len(tried),
        never=len(rows) - len(tried),
        reasons=sorted(
            {
                code
                for row in tried
                if not row["counts"]
                for code in row["reasons"]
                if _withholds(code)
            }
        ),
        names={name: _distinct(row[name] for row in counting) for name in _NAMES},
        axes=axes,
        settings=len(repeats),
        repeats=_distinct(repeats),
        gpus=_distinct(row["gpus"] for row in counting),
        nodes=_distinct(row["nodes_seen"] for row in counting),
        tokens=_distinct(row["tokens_kept"] for row in counting if row["tokens_kept"]),
        prompt_tokens=_distinct(r["prompts"].get("tokens_mean") for r in records if "prompts" in r),
        sensors=[source_of(name).description for name in sorted(sources)],
        periods_ms=_distinct(node["period_ms"] for r in records for node in r.get("nodes", [])),
        limits_w=_distinct(row["power_limit_w"] for row in counting),
        clocks_mhz=_distinct(row["sm_clock_mhz"] for row in counting),
        coverage=min((row["coverage"] for row in counting), default=0.0),
        sampling_u=_largest_share(counting, "energy_u_j") or 0.0,
        gain_u=_largest_share(counting, "board_u_j"),
        expanded_u=_largest_share(counting, "energy_expanded_u_j"),
        dummy_u=_largest_share(counting, "dummy_data_u_j"),
        counter_ratios=_distinct(row["counter_ratio"] for row in counting),
        versions=_versions(records),
    )


def text(rows: Sequence[Row], records: Sequence[Record]) -> str:
    """Return METHODS.md: the methods in words, a line a paragraph, and the table of means."""
    head, *body = table(rows)
    laid_out = render(
        "report/methods.md.j2",
        **vars(methods(rows, records)),
        doubt=DOUBT,
        table=[head, ["---"] * len(head), *body],
        schema_version=SCHEMA_VERSION,
    )
    parts = re.split(r"\n{2,}", laid_out.strip())
    return "\n\n".join(p if p.startswith("|") else " ".join(p.split()) for p in parts) + "\n"


def _withholds(code: str) -> bool:
    """Return whether a reason keeps a row out of figures; codes of later versions are taken to."""
    return REASONS[code][0] if code in REASONS else True


def _largest_share(rows: Sequence[Row], column: str) -> float | None:
    """Return the largest of a column over the joules; null where no row has any."""
    return max(
        (row[column] / row["energy_j"] for row in rows if row[column] and row["energy_j"]),
        default=None,
    )


def _versions(records: Sequence[Record]) -> list[str]:
    versions: dict[str, set[str]] = {}
    for record in records:
        for name, version in record.get("versions", {}).items():
            versions.setdefault(name, set()).add(version)
    return [f"{name} {' / '.join(sorted(some))}" for name, some in versions.items()]


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Return the known values, each once and in order."""
    return sorted({v for v in values if v is not None}, key=lambda v: (str(type(v)), v))


# --- the table ------------------------------------------------------------------------------------

FIGURES = ("tokens_per_s", "power_w", "energy_per_token_j", "energy_per_response_j", "energy_j")
SENSOR = "watts from"
DOUBT = (
    "Of watts and joules ± is the expanded uncertainty (k = 2)"  # how a table says that it has them
)
_EXPANDED = tuple(map(expanded_column, FIGURES[1:]))


def table(
    rows: Sequence[Row],
    axes: Sequence[str] | None = None,
    *,
    by_sensor: bool = True,
    doubt: bool = True,
) -> list[list[str]]:
    """Return a heading, then a row a setting: its choices, how many repeats count, the mean of each figure.

    Behind watts and joules stands their expanded uncertainty, behind rates their deviation; behind all of them that in
    tables of before (`doubt` is false).

    Joules of another boundary or sensor, and those that were simulated, are a row of their own. `axes` are what varies
    among the rows that count, unless given; without `by_sensor` neither the last column nor that difference is there.
    """
    counting = [row for row in rows if row["counts"]]
    axes = axes_of(choice_columns(counting)) if axes is None else axes
    columns = [*FIGURES, *_EXPANDED]
    apart = APART if by_sensor else ("boundary", "simulated", "beside")
    found = settings(counting, axes, columns, apart)
    return [
        [*axes, "n", *FIGURES, *([SENSOR] if by_sensor else [])],
        *(
            [
                *(choice(axis, value) for axis, value in one.chosen.items()),
                str(one.n),
                *(_cell(one, name, doubt=doubt) for name in FIGURES),
                *([source(one)] if by_sensor else []),
            ]
            for one in found
        ),
    ]


def _cell(one: Setting, name: str, *, doubt: bool) -> str:
    shown = mark(one.simulated and _is_energy(name))
    expanded = one.expanded_u(name)
    if doubt and expanded is not None:
        return with_doubt(one.means[name].mean, expanded, mark=shown)
    return _mean_sd(one.means[name], shown)


def _is_energy(column: str) -> bool:
    return "energy" in column or "power" in column


def _mean_sd(of: Mean, mark: str) -> str:
    if of.mean is None:
        return "-"
    if of.sd is None:
        return f"{mark}{of.mean:.5g}"
    return f"{mark}{of.mean:.5g} ± {f'{of.sd:.0f}' if of.sd >= 10 else f'{of.sd:.2g}'}"


def joules(rows: Sequence[Row], *, doubt: bool = True) -> str:
    """Return the joules that count, those of each boundary and what was simulated apart: they make no sum.

    Papers of before have no doubt behind them.
    """
    found = energies(rows)
    amounts = [
        with_doubt(one.energy_j, one.expanded_u_j, "J", mark(one.simulated))
        if doubt and one.expanded_u_j is not None
        else f"{mark(one.simulated)}{one.energy_j:,.1f} J"
        for one in found
    ]
    if len(found) < 2:
        return amounts[0] if amounts else "0.0 J"
    return ", ".join(
        f"{amount} ({one.boundary})" for amount, one in zip(amounts, found, strict=True)
    )


def lock(records: Sequence[Record]) -> str:
    """Return the exact versions of what measured and computed, as lines that pip reads, a comment for each set."""
    sets: dict[str, int] = {}
    for record in records:
        versions = json.dumps(
            {"git": record.get("git"), **record.get("versions", {})}, sort_keys=True
        )
        sets[versions] = sets.get(versions, 0) + 1
    lines = []
    for i, (key, attempts) in enumerate(sorted(sets.items(), key=lambda pair: -pair[1])):
        versions = json.loads(key)
        commit, python = versions.pop("git", None), versions.pop("python", "unknown")
        own = versions.pop("wattflow", "unknown")
        lines.append(
            f"# {count_of(attempts, 'attempt')}: python {python}, wattflow {own}, commit {commit or 'unknown'}"
        )
        start = "# " if i else ""
        lines += [f"{start}{name}=={version}" for name, version in sorted(versions.items())]
    return "".join(f"{line}\n" for line in lines)
