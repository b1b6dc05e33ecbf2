"""The verbs of this machine's GPUs: their sensors, their kernels, their limits."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from wattflow import process
from wattflow import tune as tuning
from wattflow.analysis.means import expanded_column
from wattflow.calibrate import passport
from wattflow.cli.arguments import AsJson, DryRun
from wattflow.cli.printing import print_json, print_table, print_text, shown, talk
from wattflow.config.choices import Control
from wattflow.errors import RefusedError
from wattflow.nullable import NO_DOUBT, expanded, is_undoubted, quotient, with_doubt
from wattflow.power import control
from wattflow.power.calibration_steps import plan
from wattflow.power.load_process import load_command
from wattflow.power.recorder import Recorder


def restore(
    journal_dir: Annotated[
        str | None,
        typer.Option("--journal-dir", metavar="DIR", help="Where the jobs kept prior values."),
    ] = None,
) -> None:
    """Put back power limits and clocks that a killed job left behind.

    Only limits and clocks that a job of this user set on this node's GPUs.
    """
    restored = control.restore(
        Control() if journal_dir is None else Control(journal_dir=journal_dir)
    )
    for uuid in restored:
        print_text(uuid)
    talk(f"{len(restored)} GPUs put back.")


def calibrate(  # noqa: PLR0917 - options, given by name
    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="A new folder, for records and passports.")
    ] = "passports",
    minutes: Annotated[
        float, typer.Option("--minutes", help="How long it takes, about; 2 at least.")
    ] = 5.0,
    load: Annotated[
        str | None,
        typer.Option(
            "--load",
            metavar="CMD",
            help="Another load's command, one process a GPU; docs/calibrate.md.",
        ),
    ] = None,
    read: Annotated[
        str | None,
        typer.Option("--from", metavar="DIR", help="Read a recorded folder again; needs no GPU."),
    ] = None,
    meter: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            metavar="CSV",
            help="An external meter's time and power_w beside a board; with --from.",
        ),
    ] = None,
    meter_u: Annotated[
        float, typer.Option("--meter-u", help="What that meter may be off, % of a reading (k = 1).")
    ] = 0.0,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="UUID", help="The board that it saw.")
    ] = None,
    no_page: Annotated[
        bool, typer.Option("--no-page", help="Write JSON only, where altair is not installed.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Measure the power sensors of this machine's GPUs.

    Each GPU gets a passport, as JSON and a page: how often, how late and how smoothed its sensors report.
    """
    if meter is not None:
        if read is None:
            raise RefusedError(
                "--reference needs --from DIR: what was recorded while the meter ran."
            )
        _refer(Path(read), passport.Meter(meter, meter_u / 100), gpu)
        return
    if read is not None:
        for path in passport.read_again(Path(read), draw=not no_page):
            print_text(path)
        return

    own = process.python("-m", "wattflow.engine.pulsed_load")
    steps = plan(minutes)
    command = own if load is None else load_command(load)
    passport.check(Path(out))
    if dry_run:
        with Recorder(command) as recorder:
            for device in recorder.devices:
                talk(f"{device['uuid']} {device['name']}, driver {recorder.driver}")
        print_table(["step", "s"], [[s.name, f"{s.seconds:.1f}"] for s in steps], numbers=[1])
        talk(f"{sum(s.seconds for s in steps) / 60:.1f} minutes, and some seconds to start loads")
        return
    request = passport.Request(Path(out), steps, command, draw=not no_page)
    began_s = time.monotonic()
    paths = passport.calibrate(
        request, lambda text: talk(f"{time.monotonic() - began_s:5.0f} s  {text}")
    )
    for path in paths:
        print_text(path)


def _refer(folder: Path, meter: passport.Meter, uuid: str | None) -> None:
    """Find gain and offset of a board by a meter, and say what they are."""
    path, kept, found = passport.refer(folder, meter, uuid)
    of = found["reference"]
    print_text(path)
    print_text(kept)
    gain = with_doubt(100 * of["gain"], expanded(100 * of["gain_u"]), "%")
    offset = with_doubt(of["offset_w"], expanded(of["offset_u_w"]), "W")
    talk(
        f"gain {gain}, offset {offset} (k = 2), over {of['low_w']:.0f} to {of['high_w']:.0f} W; the meter's clock is "
        f"shifted by {of['shift_s']:.2f} s, correlation {of['match']:.3f}. New attempts on it are corrected."
    )


def tune(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Choices of one point: model=llama-7b batch_size=1 max_gen_len=256.",
        ),
    ] = None,
    goal: Annotated[
        str, typer.Option(help="What to choose by: speed, energy or edp (joules times seconds).")
    ] = "energy",
    windows: Annotated[int, typer.Option(help="Windows of each kernel set.")] = 4,
    seconds: Annotated[float, typer.Option(help="Seconds of decode in a window.")] = 4.0,
    as_json: AsJson = False,
) -> None:
    """Find the fast engine's best kernels for a model on this GPU."""
    config = tuning.point_config(["engine=fast", *(overrides or [])], goal, windows, seconds)
    result = tuning.tune(config, goal, windows, seconds, talk)
    if as_json:
        print_json(asdict(result))
        return
    mark = "~" if result.source == "simulated" else ""
    rows = [(asdict(one), tuning.note(one, result.best)) for one in result.frontier]
    rows.append((asdict(result.again), "again, in a fresh window"))
    print_table(
        ["kernels", "tokens/s", "J/token", "scatter", "W", "SM MHz", "degC", "under cap", "note"],
        [
            [
                row["kernels"],
                _plus_minus(row, "tokens_per_s", ".1f"),
                _joules(row, "energy_per_token_j", mark),
                _scatter(row),
                _joules(row, "power_w", mark),
                *(_cell(row[name], ".0f") for name in ("sm_clock_mhz", "temperature_c")),
                _cell(row["under_cap"], ".0%"),
                note,
            ]
            for row, note in rows
        ],
        numbers=range(1, 8),
    )
    if mark:
        talk("~ marks watts and joules that were simulated, not measured.")
    elif any(is_undoubted(row["power_w"], row["power_expanded_u_w"]) for row, _ in rows):
        talk(NO_DOUBT)
    talk(
        "scatter is half the 95 % interval of J/token over windows: it parts kernels on one board, whose sensor is off "
        "by as much in all"
    )
    talk(
        f"kept for this GPU, driver and torch in {shown(result.kept)}: engine.kernels={goal} takes {result.best[goal]}"
    )


def _plus_minus(row: dict[str, Any], column: str, form: str) -> str:
    """Return a mean and half its 95 % interval, where there is one."""
    half = row.get(f"{column}_half")
    return f"{row[column]:{form}}" + ("" if half is None else f" ± {half:.2g}")


def _joules(row: dict[str, Any], column: str, mark: str) -> str | None:
    """Return joules or watts with their expanded uncertainty, that of the sensor included."""
    value = row[column]
    return None if value is None else with_doubt(value, row[expanded_column(column)], mark=mark)


def _scatter(row: dict[str, Any]) -> str | None:
    """Return half the 95 % interval of J/token over windows, relative; null of one window."""
    share = quotient(row.get("energy_per_token_j_half"), row["energy_per_token_j"])
    return None if share is None else f"{100 * share:.2g} %"


def _cell(value: float | None, form: str) -> str | None:
    return None if value is None else f"{value:{form}}"
