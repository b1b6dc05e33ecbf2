"""The report of a sweep: one HTML file that opens offline.

    wattflow report sweeps/NAME

`table` has the same numbers as rows of text, for a terminal.
"""

import json
import shlex
import stat
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, cast

import polars as pl

from wattflow import __version__
from wattflow.analysis import caps, statistics
from wattflow.analysis.axes import axes_of, is_measured, varying
from wattflow.analysis.sweep import Sweep
from wattflow.analysis.tables import NUMBERS, Number, Row, costs, factor_lines, means, number
from wattflow.errors import DamagedError, RefusedError
from wattflow.report.html import figure, html_table, page, td
from wattflow.store.columns import CROSSCHECK, REASONS
from wattflow.store.files import write_atomic
from wattflow.store.sources import source_of
from wattflow.store.tables import read_table

TIMELINES = 16  # points whose power is drawn; `open_sweep(...).timeline(point)` draws any other

COMPARED = 40  # rows of a comparison that are shown; `wattflow compare` has all


def table(sweep: Sweep) -> list[dict[str, str]]:
    """The closing table as text: a dict a row from heading to cell, means over repeats.

    `~` stands before watts and joules that were simulated; `-` where there is no number, its reason under `source`.
    """
    axes = axes_of(sweep.points)
    rows = []
    for row in means(sweep.points, axes).to_dicts():
        cells = {axis: _choice(axis, row[axis]) for axis in axes}
        cells["n"] = str(row["n"])
        for column in NUMBERS:
            cells[column.heading] = _cell(row, column)
        cells["source"] = _source(row)
        rows.append(cells)
    return rows


def cost_table(sweep: Sweep, settings: Sequence[str] = ()) -> list[dict[str, str]]:
    """The same as text, a dict a row from heading to cell; `~` before what was simulated.

    Columns of factors that are not declared are left out.
    """
    found = costs(sweep, settings)
    axes = axes_of(sweep.points)
    columns = [
        ("gpu_hours", "GPU-hours", False),
        ("energy_kwh", "kWh", True),
        ("facility_energy_kwh", "kWh x PUE", True),
        ("price", "price", True),
        ("price_per_million_tokens", "price / M tokens", True),
        ("carbon_g", "g CO2e", True),
        ("carbon_g_per_million_tokens", "g / M tokens", True),
    ]
    shown = [c for c in columns if not c[2] or found[c[0]].null_count() < len(found)]
    rows = []
    for row in found.to_dicts():
        cells = {axis: _choice(axis, row[axis]) for axis in axes}
        cells |= {"attempts": str(row["attempts"]), "untold": str(row["untold"])}
        for column, heading, energy in shown:
            mark = "~" if energy and row["simulated"] and row[column] is not None else ""
            cells[heading] = mark + number(row[column])
        cells["boundary"] = _plain(row["boundary"])
        rows.append(cells)
    return rows


def report(sweep: Sweep) -> Path:
    """Write results/report.html, which needs nothing but itself, and return its path."""
    figures: list[dict[str, Any]] = []
    body = "\n".join(
        (
            _header(sweep),
            _about(sweep),
            _results(sweep),
            _comparisons(sweep),
            _use(sweep),
            _caps(sweep),
            _cost(sweep),
            _crosscheck(sweep),
            _by_choice(sweep, figures),
            _timelines(sweep, figures),
            _boards(sweep),
            _failures(sweep),
            _provenance(sweep),
        )
    )
    made = page(f"wattflow: {sweep.name}", body, figures)
    shared = sweep.directory.results.stat().st_mode & stat.S_IRGRP  # cluster.group_readable
    write_atomic(sweep.directory.report_path, made.encode(), 0o640 if shared else 0o600)
    return sweep.directory.report_path


def shows(sweep: Sweep) -> bool | None:
    """Whether results/report.html has the figures that results/ have; null where another wattflow drew it."""
    text = sweep.directory.report_path.read_text(errors="replace")
    if f"<td>wattflow {__version__}</td>" not in text:
        return None
    return _header(sweep) in text and _results(sweep) in text


# --- numbers ------------------------------------------------------------------------------------------


def _plain(value: object) -> str:
    return "-" if value is None else str(value)


def _choice(axis: str, value: Any) -> str:
    """A choice as a person wrote it: a measured command is kept as JSON."""
    if axis != "command" or value is None:
        return _plain(value)
    return shlex.join(json.loads(value))


def _cell(row: dict[str, Any], column: Number) -> str:
    value = row[column.column]
    simulated = "~" if column.power and row["simulated"] and value is not None else ""
    return simulated + number(value)


def _source(row: dict[str, Any]) -> str:
    """Where the watts came from; why, where there are none."""
    if row["n"]:
        return f"{row['power_source']} ({row['boundary']})"
    return "; ".join(reason for reason in row["reasons"] if REASONS[reason][0])


# --- the page -----------------------------------------------------------------------------------------


def _header(sweep: Sweep) -> str:
    points = sweep.points
    counting = int(points["counts"].sum())
    infeasible = int((points["status"] == "infeasible").sum())
    cards = [
        ("points that count", f"{counting} of {len(points) - infeasible}"),
        ("attempts", str(sweep.attempts["attempt"].drop_nulls().len())),
        ("output tokens", _tokens(points)),
        ("energy in measured windows", _joules(sweep)),
    ]
    shown = "".join(f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in cards)
    return (
        f"<header><p class='brand'>wattflow</p><h1>{escape(sweep.name)}</h1>"
        f"<div class='cards'>{shown}</div></header>"
    )


def _total(points: pl.DataFrame, column: str) -> float:
    return float(points.filter("counts")[column].sum())


def _tokens(points: pl.DataFrame) -> str:
    """The kept tokens of the points that count; `-` where none of them told any."""
    known = points.filter(pl.col("counts"))["tokens_kept"].drop_nulls()
    return number(float(known.sum())) if len(known) else "-"


def _joules(sweep: Sweep) -> str:
    """The joules that count, those of each boundary and what was simulated apart: they make no sum."""
    counting = sweep.points.filter("counts")
    told = []
    for (boundary, simulated), of_one in counting.group_by(
        ["boundary", "simulated"], maintain_order=True
    ):
        mark, energy_j = "~" if simulated else "", float(of_one["energy_j"].sum())
        amount = f"{number(energy_j)} J" if energy_j < 1e5 else f"{number(energy_j / 1e3)} kJ"
        told.append((f"{mark}{amount}", boundary))
    if len(told) < 2:
        return told[0][0] if told else "-"
    return ", ".join(f"{amount} ({boundary})" for amount, boundary in told)


_GAIN = "The gain of a board's sensor, off by about 5 %, is in no bar: repeats show consistency, not accuracy."


def _about(sweep: Sweep) -> str:
    """What was measured and where the watts came from, in plain words."""
    told = sweep.points.filter(pl.col("energy_j").is_not_null())
    window = (
        "from the first prefill's start to the last decode's end, time between batches included; loading and one "
        "warm-up batch are outside. Tokens are <b>output tokens kept</b> after the stop rule"
    )
    if is_measured(sweep.points):
        window = (
            "from the start of the first span that the command told to the end of the last one, or the whole command "
            "where it told none. Tokens are <b>output tokens</b> as it told them"
        )
    paragraphs = [
        f"Each number is of the <b>measured window</b>: {window}. Joules are gross, idle power included."
    ]
    for source in told["power_source"].unique(maintain_order=True):
        sensors = ", ".join(source_of(name).description for name in source.split(" + "))
        paragraphs.append(f"The watts come from {escape(sensors)} (<code>{escape(source)}</code>).")
    if told["simulated"].any():
        paragraphs.append(
            "<mark>Simulated.</mark> Watts and joules marked <b>~</b> were <b>not measured</b>: no sensor was there. "
            "They show how the parts fit together and say nothing about any machine."
        )
    meaning = {
        "gpu": "the GPUs that the job used, each counted once: no CPU, memory, fan or power supply",
        "host": "the host as one device, shared by all ranks on it",
    }
    for boundary in told["boundary"].unique(maintain_order=True):
        words = meaning.get(boundary, "several boundaries, whose joules are not added")
        paragraphs.append(f"Boundary <code>{escape(boundary)}</code>: {words}.")
    ratio = sweep.points.filter("counts")["counter_ratio"].drop_nulls()
    if len(ratio):
        paragraphs.append(
            f"Over {len(ratio)} points the integral of power is {number(_percent(ratio.min()))} to "
            f"{number(_percent(ratio.max()))} % of the hardware energy counter. Agreement of two readings of one "
            "board is consistency, not accuracy: boards differ by about 5 % in gain, and both may share a sensor."
        )
    elif len(told) and not told["simulated"].all():
        paragraphs.append(
            "No energy counter was read, so nothing checks the integral. Boards differ by about 5 % in gain."
        )
    inner = "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    return f"<section><h2>What was measured</h2><div class='prose'>{inner}</div></section>"


def _percent(value: Any) -> float:
    return 100.0 * float(value)


def _results(sweep: Sweep) -> str:
    """The table of results: means over repeats."""
    axes = axes_of(sweep.points)
    groups = means(sweep.points, axes)
    head = [
        *(axis.replace("_", " ") for axis in axes),
        "n",
        *(n.heading for n in NUMBERS),
        "watts from",
    ]
    numeric = {axis for axis in axes if groups[axis].dtype.is_numeric()}
    rows = []
    for row in groups.to_dicts():
        cells = [td(_choice(axis, row[axis]), numeric=axis in numeric) for axis in axes]
        cells.append(td(str(row["n"]), numeric=True))
        for column in NUMBERS:
            sd = row[f"{column.column}_sd"]
            spread = f"<small>± {number(sd)}</small>" if sd is not None else ""
            cells.append(f"<td class='n'>{escape(_cell(row, column))}{spread}</td>")
        cells.append(td(_source(row), numeric=False))
        rows.append(f"<tr{'' if row['n'] else ' class=none'}>{''.join(cells)}</tr>")
    words = (
        "Means over the repeats that count; n is how many, ± one standard deviation over them. "
        "<b>-</b> stands where there is no number, with the reason in the last column."
    )
    if is_measured(sweep.points):
        words += " A measured command tells no words or responses."
    elif sweep.points["words"].null_count() == len(sweep.points):
        words += " Words are missing because dummy weights write no meaningful text."
    left = len(axes)
    return (
        f"<section><h2>Results</h2><p class='note'>{words}</p>"
        + html_table(
            head,
            rows,
            range(left, left + 1 + len(NUMBERS)),
            numeric_axes=[a in numeric for a in axes],
        )
        + "</section>"
    )


def _by_choice(sweep: Sweep, figures: list[dict[str, Any]]) -> str:
    """Throughput, energy and power by the choices that vary, a group of figures for each boundary."""
    from wattflow.analysis import figures as draw  # noqa: PLC0415 (altair is slow to import)

    axes = axes_of(sweep.points)
    groups = means(sweep.points, axes).filter(pl.col("n") > 0)
    if len(groups) == 1 and is_measured(sweep.points):  # one dot, and the table has its number
        return ""
    parts: list[str] = []
    for (boundary, simulated, source), of_one in groups.group_by(
        ["boundary", "simulated", "power_source"], maintain_order=True
    ):
        told = f"Boundary {boundary}, watts from {source}" + (
            "; <b>~ marks simulated watts</b>" if simulated else ""
        )
        # what the sensors of all boards share, or one board has, no repeat shows
        gain = "" if simulated else f" {_GAIN}"
        note = f"{told}. Points are means, bars one standard deviation.{gain}"
        parts.append(f"<p class='note'>{note}</p>")
        drawn = of_one.drop("reasons", "statuses")
        parts.append(figure(figures, draw.by_choice(drawn, axes, bool(simulated))))
    if not parts:
        parts = ["<p class='note'>No point counts yet, so there is nothing to draw.</p>"]
    return f"<section><h2>By choice</h2>{''.join(parts)}</section>"


def _comparisons(sweep: Sweep) -> str:
    """The values of each choice that varies against its first one, with the host watts at which they cost the same."""
    parts = []
    mark = "~" if sweep.points["simulated"].any() else ""
    for axis in varying(sweep.points):
        try:
            found = sweep.compare(axis).to_dicts()
        except RefusedError:  # one value alone counts
            continue
        against = _against_first(found, axis)
        if not against:
            continue
        names = [key for key in found[0] if key in sweep.points.columns and key != "boards"]
        rows = []
        for row, first in against[:COMPARED]:
            cells = [td(_plain(row[name]), numeric=False) for name in names]
            cells += [
                td(_plain(first), numeric=False),
                td(f"{row['ratio']:.3f}", numeric=True),
                td(_interval(row["ratio_low"], row["ratio_high"]), numeric=True),
                td("yes" if row["established"] else f"no: {row['why_not']}", numeric=False),
                td(break_even(row, mark), numeric=True),
            ]
            rows.append(f"<tr>{''.join(cells)}</tr>")
        head = [*(name.replace("_", " ") for name in names), "against", "J/token, ratio"]
        head += ["95 % interval", "established", "break-even host, W"]
        at = len(names) + 1
        parts.append(
            f"<h3>{escape(axis.replace('_', ' '))}</h3>"
            + html_table(head, rows, [at, at + 1, at + 3])
        )
        if len(against) > COMPARED:
            parts.append(
                f"<p class='note'>The first {COMPARED} of {len(against)}; <code>wattflow compare</code> has all.</p>"
            )
    if not parts:
        return ""
    return (
        "<section><h2>Which costs less</h2><p class='note'>Each value of a choice against its first one, all other "
        "choices alike. <b>Break-even host</b>: the watts outside the boundary, of CPUs, memory and fans, of all nodes "
        "of the job together, at which both cost the same energy a token: with more than that the faster one is the "
        f"cheaper one.</p>{''.join(parts)}</section>"
    )


def _against_first(rows: Sequence[Row], axis: str) -> list[tuple[Row, object]]:
    """The rows of a comparison that have a ratio, each with the value that it is against: the one before it without."""
    out: list[tuple[Row, object]] = []
    first: object = None
    for row in rows:
        if row.get("ratio") is None:
            first = row[axis]
        else:
            out.append((row, first))
    return out


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _cost(sweep: Sweep) -> str:
    """GPU-hours, kWh, and price and carbon by the factors that the site declares; nothing before the first attempt."""
    try:
        rows, lines = cost_table(sweep), factor_lines(sweep)
    except RefusedError as error:  # a table of factors that lies elsewhere by now
        return f"<section><h2>Cost</h2><p class='note'>{escape(str(error))}</p></section>"
    if not rows:
        return ""
    heads = [heading.replace("_", " ") for heading in rows[0]]
    numbers = range(heads.index("attempts"), heads.index("boundary"))
    body = [
        f"<tr>{''.join(td(cell, numeric=i in numbers) for i, cell in enumerate(row.values()))}</tr>"
        for row in rows
    ]
    told = "; ".join(escape(line) for line in lines)
    return (
        "<section><h2>Cost</h2><p class='note'>Sums over all attempts, what failed among them: loading, warm-up and "
        "idling are in, attempts whose joules are unknown (<b>untold</b>) are not. A million tokens: of the measured "
        f"window of the points that count. Factors: {told}.</p>"
        + html_table(heads, body, numbers)
        + "</section>"
    )


# What was busy, then what was full. The paper's Tables IV and V print the first and the fifth as "utilization".
_USE = {
    "gpu_activity_pct": "a kernel ran, % of time",
    "sm_activity_pct": "SMs at work, %",
    "sm_occupancy_pct": "warps resident, %",
    "tensor_activity_pct": "tensor cores, %",
    "memory_activity_pct": "memory touched, % of time",
    "dram_activity_pct": "memory bandwidth, %",
    "memory_used_bytes": "memory full, GiB",
}


def _use(sweep: Sweep) -> str:
    """How busy and how full the devices were, means over the points that count; nothing where no sensor told any."""
    counting = sweep.points.filter("counts")
    known = [column for column in _USE if counting[column].null_count() < len(counting)]
    if not known:
        return ""
    axes = axes_of(sweep.points)
    groups = (
        counting.with_columns(pl.col("memory_used_bytes") / 2**30)
        .group_by(axes, maintain_order=True)
        .agg(pl.col(known).mean())
        .sort(axes, nulls_last=True)
    )
    rows = []
    for row in groups.to_dicts():
        cells = [td(_choice(axis, row[axis]), numeric=False) for axis in axes]
        cells += [td(number(row[column]), numeric=True) for column in known]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = [*(axis.replace("_", " ") for axis in axes), *(_USE[column] for column in known)]
    told = html_table(head, rows, range(len(axes), len(head)))
    return (
        "<section><h2>Use of the devices</h2><p class='note'><b>Activity is not occupancy.</b> Time in which a kernel "
        "ran, or memory was touched, says nothing of how much of either was used: a kernel that waits for another GPU "
        "counts. How full memory is stands apart. Means over the repeats that count; GPM tells the shares of SMs, "
        f"warps, tensor cores and bandwidth, where it answers.</p>{told}</section>"
    )


def _crosscheck(sweep: Sweep) -> str:
    """What the site's own meters said when `wattflow crosscheck` last asked; nothing where there is nothing."""
    try:
        rows = read_table(sweep.directory.crosscheck_path, CROSSCHECK).to_pylist()
    except (FileNotFoundError, DamagedError):
        return ""
    if not rows:
        return ""
    body = []
    for row in rows:
        told = row["why_not"] or row["remark"] or ""
        mark = "~" if row["simulated"] and row["energy_j"] is not None else ""
        cells = [
            f"<td><code>{escape(row['point_id'] or '-')}</code></td>",
            td(row["source"], numeric=False),
            td(mark + number(row["energy_j"]), numeric=True),
            td(number(row["site_energy_j"]), numeric=True),
            td("-" if row["ratio"] is None else f"{row['ratio']:.4f}", numeric=True),
            td(told, numeric=False),
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    head = ["point", "source", "J", "site's J", "ratio", ""]
    return (
        "<section><h2>By the site's own meters</h2><p class='note'>The same jobs and windows by what the site records: "
        "agreement of two readings of one board is consistency, not accuracy. What Slurm keeps is of another boundary."
        f"</p>{html_table(head, body, range(2, 5))}</section>"
    )


def _caps(sweep: Sweep) -> str:
    """What power caps change against the highest of them, or against boards as found; nothing without two caps."""
    counting = sweep.points.filter(pl.col("counts") & (pl.col("energy_j") > 0))
    asked = counting["control_power_limit_w"]
    if asked.n_unique() < 2:
        return ""
    reference = None if asked.null_count() else int(cast(int, asked.max()))
    rows = []
    names: list[str] = []
    best: list[str] = []
    mark = "~" if counting["simulated"].any() else ""
    for chosen, of_caps in sweep.caps(reference):
        names = list(chosen)
        where = "".join(f", {name.replace('_', ' ')} {_plain(chosen[name])}" for name in names)
        best.append(_best_caps(of_caps) + where)
        for row in of_caps:
            cells = [td(_plain(value), numeric=False) for value in chosen.values()]
            cells += [
                td("as found" if row.cap is None else str(row.cap), numeric=True),
                td(str(row.n), numeric=True),
                td("-" if row.bound is None else str(row.bound), numeric=True),
            ]
            for metric in caps.METRICS:
                told = "reference" if row.ratios is None else caps.change(row.ratios[metric])
                cells.append(td(told, numeric=True))
            even = {
                f"break_even_{k}": v for k, v in vars(row.break_even or statistics.NONE).items()
            }
            cells.append(td(break_even(even, mark), numeric=True))
            rows.append(f"<tr>{''.join(cells)}</tr>")
    against = "boards as they were found" if reference is None else f"{reference} W"
    head = [*(name.replace("_", " ") for name in names), "cap, W", "n", "bound", *_CHANGES]
    told = html_table(head, rows, range(len(names), len(head)))
    return (
        f"<section><h2>Power caps</h2><p class='note'>Changes against {against}, with 95 % intervals where there are "
        "repeats; <b>bound</b> is in how many runs the cap held power back. Runs in which a cap was not in force do "
        f"not count. Best: {escape('; '.join(best))}.</p>{told}</section>"
    )


_CHANGES = ["time, %", "energy, %", "token rate, %", "energy x time, %", "energy x time², %"]
_CHANGES += ["break-even host, W"]


def _best_caps(rows: Sequence[caps.Row]) -> str:
    """Which cap takes the least by each objective."""
    told = {"energy": "energy", "edp": "energy x time", "ed2p": "energy x time²"}
    words = []
    for objective, name in told.items():
        row, sure = caps.best(rows, objective)
        cap = "as found" if row.cap is None else f"{row.cap} W"
        words.append(f"{name}: {cap}{'' if sure or row.ratios is None else ' (not established)'}")
    return ", ".join(words)


def break_even(row: Mapping[str, Any], mark: str = "") -> str:
    """The host watts at which two settings cost the same, with their 95 % interval, or why there are none.

    `mark` is `~` where they follow from simulated joules.
    """
    if row.get("break_even_host_w") is None:
        return row.get("break_even_why_not") or "-"
    told = mark + number(row["break_even_host_w"])
    low, high = row["break_even_low_w"], row["break_even_high_w"]
    return told if low is None else f"{told} ({mark}{number(low)} to {mark}{number(high)})"


def _boards(sweep: Sweep) -> str:
    """The map of dear and cheap boards, where a sweep ran the reference load."""
    boards = sweep.boards()
    if boards.is_empty():
        return ""
    rows = []
    for row in boards.to_dicts():
        spread = (
            "" if row["power_sd_w"] is None else f"<small>± {number(row['power_sd_w'])}</small>"
        )
        cells = [
            td(row["node"], numeric=False),
            f"<td><code>{escape(row['gpu_uuid'])}</code></td>",
            td(str(row["n"]), numeric=True),
            f"<td class='n'>{number(row['power_w'])}{spread}</td>",
            td(f"{row['relative']:.4f}", numeric=True),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        "<section><h2>Boards</h2><p class='note'>Mean power of each board under the same fixed load at both ends of "
        "each task, ± one standard deviation over n. A dear board may draw more or only tell more: sensors differ by "
        "about 5 % in gain, and this load alone cannot part the two.</p>"
        + html_table(["node", "board", "n", "W", "relative to the mean"], rows, range(2, 5))
        + "</section>"
    )


def _timelines(sweep: Sweep, figures: list[dict[str, Any]]) -> str:
    """A power timeline a point, those of the first repeats first."""
    from wattflow.analysis import figures as draw  # noqa: PLC0415 (altair is slow to import)

    counting = sweep.points.filter("counts").sort("repeat", maintain_order=True)
    axes = varying(sweep.points)
    parts: list[str] = []
    for row in counting.head(TIMELINES).to_dicts():
        power, spans = sweep.power(row["point_id"]), sweep.spans(row["point_id"])
        if power.is_empty() or spans.is_empty():
            continue
        named = [axis for axis in [*axes, "repeat"] if row[axis] is not None]
        chosen = ", ".join(f"{axis.replace('_', ' ')} {row[axis]}" for axis in named)
        parts.append(
            f"<details{'' if parts else ' open'}><summary><code>{escape(row['point_id'])}</code> {escape(chosen)}"
            f"</summary>{figure(figures, draw.timeline(power, spans, row))}</details>"
        )
    if not parts:
        return ""
    note = "Line: mean power; band: lowest to highest sample of each stretch of time. Shades: phases of rank 0's node."
    if len(counting) > TIMELINES:
        note += (
            f" The first {TIMELINES} of {len(counting)} points; "
            f"<code>wattflow.open_sweep({escape(repr(str(sweep.name)))}).timeline(point_id)</code> draws any other."
        )
    return f"<section><h2>Power over time</h2><p class='note'>{note}</p>{''.join(parts)}</section>"


def _failures(sweep: Sweep) -> str:
    """Points without a number, and why."""
    bad = sweep.points.filter(~pl.col("counts"))
    doubtful = sweep.points.filter(pl.col("counts") & (pl.col("reasons").list.len() > 0))
    rows = []
    for row in bad.to_dicts():
        reasons = [r for r in row["reasons"] if REASONS[r][0]]
        meanings = " ".join(REASONS[reason][1] for reason in reasons)
        told = row["error"] or meanings
        cells = [
            f"<td><code>{escape(row['point_id'])}</code></td>",
            td(row["status"], numeric=False),
        ]
        cells += [td(", ".join(reasons), numeric=False), td(told, numeric=False)]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    parts = ["<section><h2>Points without a number</h2>"]
    if rows:
        parts.append(html_table(["point", "status", "reasons", "what happened"], rows))
        if (bad["status"] != "infeasible").any():
            parts.append(
                "<p class='note'><code>wattflow status</code> names each log; <code>wattflow resume</code> runs these "
                "points again, except the infeasible ones.</p>"
            )
    else:
        parts.append("<p class='note'>None: every point of this sweep counts.</p>")
    remarks = (
        doubtful["reasons"].explode().drop_nulls().value_counts(sort=True)
        if len(doubtful)
        else None
    )
    if remarks is not None and len(remarks):
        items = "".join(
            f"<li><code>{escape(r['reasons'])}</code>, {r['count']} points: {escape(REASONS[r['reasons']][1])}</li>"
            for r in remarks.to_dicts()
        )
        parts.append(f"<p class='note'>Remarks on points that count:</p><ul>{items}</ul>")
    return "".join(parts) + "</section>"


def _provenance(sweep: Sweep) -> str:
    """Where the numbers come from: hardware, drivers, versions, prompts."""
    tried = sweep.attempts.filter(pl.col("attempt").is_not_null())
    versions: dict[str, set[str]] = {}
    for told in tried["versions"].drop_nulls().unique():
        for name, version in json.loads(told).items():
            versions.setdefault(name, set()).add(version)
    started = tried["started"].drop_nulls()
    entries = {
        "devices": _distinct(tried["gpu_name"]),
        "driver": _distinct(tried["driver"]),
        "nodes": _distinct(tried["node_names"].explode()) if len(tried) else "-",
        "began": " to ".join(started.sort().dt.strftime("%Y-%m-%d %H:%M").gather([0, -1])) + " UTC"
        if len(started)
        else "-",
        "versions": ", ".join(f"{name} {' / '.join(sorted(v))}" for name, v in versions.items())
        or "-",
        "prompts, sha256": _distinct(tried["prompts_sha256"]),
        "Slurm jobs": _distinct(tried["job_id"]),
        "report by": f"wattflow {__version__}",
    }
    rows = [f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in entries.items()]
    return (
        "<section><h2>Provenance</h2><div class='wide'><table class='facts'><tbody>"
        + "".join(rows)
        + "</tbody></table></div></section>"
    )


def _distinct(values: pl.Series, most: int = 8) -> str:
    found = [str(value) for value in values.drop_nulls().unique(maintain_order=True)]
    shown = ", ".join(found[:most]) or "-"
    return shown if len(found) <= most else f"{shown} and {len(found) - most} more"
