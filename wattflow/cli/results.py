"""The verbs of results: what collected sweeps show, as a page, tables and files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from wattflow.analysis import crosscheck as checking
from wattflow.analysis import usage as spending
from wattflow.analysis.axes import along_in_words, heading
from wattflow.analysis.caps import METRICS, OBJECTIVES, Row, best
from wattflow.analysis.costs import factor_lines
from wattflow.analysis.prometheus import Prometheus, read_token
from wattflow.analysis.sweep import open_sweep
from wattflow.cli.arguments import Along, AsJson, SweepArgument
from wattflow.cli.printing import print_json, print_table, print_text, shown, talk
from wattflow.errors import RefusedError, WattflowError
from wattflow.nullable import NO_DOUBT, expanded, is_undoubted, number, with_doubt
from wattflow.report.appendix import appendix as write_appendix
from wattflow.report.export import export as write_export
from wattflow.report.page import report as write_report
from wattflow.report.terminal import cost_table
from wattflow.report.text import break_even, change, mark
from wattflow.store.columns import columns_in
from wattflow.submit.status import states


def report(sweep: SweepArgument) -> None:
    """Write an HTML report that opens offline, and print its path."""
    opened = open_sweep(sweep)
    points = opened.points
    waiting = points.filter(points["status"] == "waiting")["point_id"].to_list()
    unstarted: dict[str, tuple[str, str | None]] = {}
    if waiting:
        try:
            rows = states(opened.directory, set(waiting))
            unstarted = {row.point_id: (row.state, row.reason) for row in rows}
        except WattflowError as error:  # a damaged journal
            talk(f"what became of {len(waiting)} points without an attempt is unknown: {error}")
    print_text(write_report(opened, unstarted))


def appendix(sweep: SweepArgument) -> None:
    """Print an artifact description: hardware, software, commands, hashes.

    As Markdown, for the appendix of a paper. Paths and the names of accounts, nodes and jobs are left out.
    """
    print_text(write_appendix(open_sweep(sweep)), end="")


def caps(
    sweep: SweepArgument,
    reference: Annotated[
        str, typer.Option("--reference", metavar="CAP", help="The cap that changes are against.")
    ],
    clocks: Annotated[
        bool, typer.Option("--clocks", help="Locked clocks (MHz) in place of power caps (W).")
    ] = False,
    objective: Annotated[
        str,
        typer.Option(
            "--objective", help="What is best: energy, edp, ed2p (energy x delay^2), time."
        ),
    ] = "energy",
    *,
    along: Along = "",
    as_json: AsJson = False,
) -> None:
    """Show what power caps change in time, energy and token rate.

    Changes are against one of the caps; the best one by the objective is named.
    """
    if objective not in OBJECTIVES:
        raise RefusedError(f"--objective {objective}: one of {', '.join(OBJECTIVES)}.")
    if not (reference.isdecimal() and reference.isascii()) and reference != "none":
        raise RefusedError(f"--reference {reference}: a whole number, or none for boards as found.")
    against = None if reference == "none" else int(reference)
    opened = open_sweep(sweep)
    by = "control_sm_clock_mhz" if clocks else "control_power_limit_w"
    found = opened.caps(against, by, columns_in(along))
    winners = [(chosen, *best(rows, objective)) for chosen, rows in found]
    if as_json:
        print_json(
            {
                "reference": against,
                "objective": objective,
                "rows": [{**chosen, **row.row()} for chosen, rows in found for row in rows],
                "best": [
                    {**chosen, "cap": row.cap, "established": sure} for chosen, row, sure in winners
                ],
            }
        )
        return
    unit = "MHz" if clocks else "W"
    _print_caps(found, unit, mark(opened.points["simulated"].any()))
    for chosen, row, sure in winners:
        where = " ".join(f"{key}={value}" for key, value in chosen.items())
        doubt = "" if sure or row.ratios is None else ", though the difference is not established"
        if row.along:
            doubt += f"; moves along: {along_in_words(row.along)}"
        cap = "the boards as found" if row.cap is None else f"{row.cap} {unit}"
        talk(f"least {objective}{f' at {where}' if where else ''}: {cap}{doubt}")


def _print_caps(
    found: Sequence[tuple[dict[str, Any], list[Row]]], unit: str, simulated: str
) -> None:
    """Print a row a cap or clock, with the other choices that vary."""
    headings = [*(found[0][0] if found else []), "MHz" if unit == "MHz" else "cap, W"]
    headings += ["n", "boards", "bound", "time, %", "energy, %", "token rate, %"]
    headings += ["energy x time, %", "energy x time^2, %", "break-even host, W"]
    moved = any(row.along for _, rows in found for row in rows)
    headings += ["moves along"] * moved
    print_table(
        headings,
        [
            [
                *(*chosen.values(), row.name, row.n, row.boards, row.bound),
                *(change(row.ratios[m]) if row.ratios else "reference" for m in METRICS),
                break_even(row.break_even, simulated),
                *([along_in_words(row.along) or "-"] if moved else []),
            ]
            for chosen, rows in found
            for row in rows
        ],
    )


Factors = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="cluster.cost.KEY=VALUE",
        help="A factor in place of the site profile's; may be given again.",
    ),
]


def cost(sweep: SweepArgument, settings: Factors = None, *, as_json: AsJson = False) -> None:
    """Show GPU-hours, kWh, price and carbon of a sweep.

    Price and carbon follow from the factors that the site declares, each shown with its source.
    """
    opened = open_sweep(sweep)
    if as_json:
        print_json(opened.cost(settings or []).to_dicts())
        return
    rows = cost_table(opened, settings or [])
    if rows:
        headings = list(rows[0])
        first = headings.index("attempts")
        print_table(
            headings, [list(row.values()) for row in rows], numbers=range(first, len(headings) - 1)
        )
    for line in factor_lines(opened, settings or []):
        talk(line)


def usage(
    folders: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DIR]...", help="Folders of sweeps, or sweeps; ./sweeps."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the kWh of many sweeps, and what part was overhead.

    Overhead is what went into failures, loading, warm-up and idling.
    """
    found = spending.usage([Path(folder) for folder in folders or ["sweeps"]])
    if as_json:
        lists = [[row.document() for row in rows] for rows in (found.rows, found.totals)]
        print_json({"sweeps": lists[0], "totals": lists[1], "notes": found.notes})
        return
    shown = [*found.rows, *found.totals]
    kinds = [kind for kind in spending.KINDS if any(row.kwh[kind] != 0 for row in shown)]
    priced = [
        name for name in ("price", "currency", "carbon_g") if any(vars(row)[name] for row in shown)
    ]
    headings = ["sweep", "boundary", "attempts", "failed", "unknown", "GPU-hours", "kWh"]
    headings += [f"{heading(kind)}, kWh" for kind in kinds]
    headings += [{"carbon_g": "g CO2e"}.get(name, name) for name in priced]
    print_table(
        headings,
        [_usage_cells(row, kinds, priced) for row in shown],
        numbers=range(2, len(headings)),
    )
    if any(row.simulated for row in shown):
        talk("~ marks what was simulated, not measured.")
    if any(not r.simulated and is_undoubted(r.total_kwh, r.relative_expanded_u) for r in shown):
        talk(NO_DOUBT)
    for kind, name in (("price", "price_source"), ("carbon", "carbon_source")):
        for source in dict.fromkeys(vars(row)[name] for row in found.rows if vars(row)[name]):
            talk(f"{kind} by {source}")
    for note in found.notes:
        talk(note)
    if partly := sum(row.partly for row in found.rows):
        talk(f"of {partly} attempts a phase is not known, and not in the sums")


def _usage_cells(row: Any, kinds: Sequence[str], priced: Sequence[str]) -> list[Any]:
    def energy(value: float | None) -> str:
        doubt = (
            None
            if value is None or row.relative_expanded_u is None
            else row.relative_expanded_u * value
        )
        return with_doubt(value, doubt, mark=mark(row.simulated and value))

    cells = [row.sweep, row.boundary, row.attempts, row.failed, row.unknown, number(row.gpu_hours)]
    cells += [energy(row.total_kwh), *(energy(row.kwh[kind]) for kind in kinds)]
    return cells + [vars(row)[n] if n == "currency" else energy(vars(row)[n]) for n in priced]


def crosscheck(
    sweep: SweepArgument,
    *,
    url: Annotated[
        str | None,
        typer.Option("--prometheus", metavar="URL", help="The site's Prometheus server."),
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="Holds a bearer token for it; or WATTFLOW_PROMETHEUS_TOKEN.",
        ),
    ] = None,
    no_sacct: Annotated[
        bool, typer.Option("--no-sacct", help="Leave Slurm's accounting alone.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare a sweep's joules with the site's own meters.

    The meters are sacct and a Prometheus server of GPU exporters; each line is a ratio over the same window.
    """
    server = None if url is None else Prometheus(url, read_token(token_file))
    rows = checking.crosscheck(open_sweep(sweep), server, sacct=not no_sacct)
    if as_json:
        print_json([vars(row) for row in rows])
        return
    print_table(
        ["point_id", "job", "source", "window", "s", "J", "site's J", "ratio", "remark"],
        [
            [
                *(row.point_id, row.job_id, row.source, row.window, number(row.seconds)),
                with_doubt(row.energy_j, row.energy_expanded_u_j, mark=mark(row.simulated)),
                with_doubt(row.site_energy_j, expanded(row.site_energy_u_j)),
                "-" if row.ratio is None else f"{row.ratio:.4f}",
                row.why_not or row.remark,
            ]
            for row in rows
        ],
        numbers=range(4, 8),
    )
    if not rows:
        talk(
            "nothing to hold against: no attempt of a Slurm job, and no GPU's joules with --prometheus."
        )


def export(
    sweep: SweepArgument,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="DIR", help="Where it goes; the sweep's results/export."),
    ] = None,
    timestamps: Annotated[
        bool,
        typer.Option("--timestamps", help="Stamp each sample with the end of its attempt."),
    ] = False,
) -> None:
    """Write results as JSON and OpenMetrics for other programs.

    One JSON file an attempt, and one OpenMetrics file of all, whose path is printed.
    """
    opened = open_sweep(sweep)
    folder = opened.directory.results / "export" if out is None else Path(out)
    *documents, _, text = write_export(opened, folder, timestamps=timestamps)
    print_text(text)
    talk(f"{len(documents)} attempts in {shown((folder / 'attempts').absolute())}")
