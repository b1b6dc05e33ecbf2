"""The verbs of one machine: what is measured, tuned and found out here, and what can be set."""

import os
import sys
import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from wattflow.cli.arguments import AsJson, DryRun
from wattflow.cli.printing import print_json, print_table, shown, talk


def measure(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- CMD...", help="The command and its words.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="DIR", help="Where it goes; by default below ./sweeps."),
    ] = None,
    tokens_json: Annotated[
        str | None,
        typer.Option(
            "--tokens-json",
            metavar="FILE",
            help="JSON or JSON lines that the command writes; - for its own output.",
        ),
    ] = None,
    tokens_key: Annotated[
        str | None,
        typer.Option("--tokens-key", metavar="KEY", help="Where the output tokens stand in it."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="power.KEY=VALUE", help="A setting of the meter."),
    ] = None,
) -> None:
    """Run any command and measure what it costs; its output is its own, and so is the exit code."""
    from pathlib import Path  # noqa: PLC0415

    from wattflow.measure import command as stage  # noqa: PLC0415
    from wattflow.measure import request  # noqa: PLC0415

    job = request.Request(
        command=command or [],
        out=None if out is None else Path(out),
        power=stage.power_settings(settings or []),
        tokens_json=tokens_json,
        tokens_key=tokens_key,
    )
    outcome = stage.measure(job, lambda text: talk(f"wattflow: {text}"))
    for line in outcome.lines:
        talk(f"wattflow: {line}")
    if outcome.complete:
        talk(f"wattflow: `wattflow report {shown(outcome.folder)}` draws it.")
    sys.stderr.flush()
    os._exit(outcome.exit_code)  # the caller waits, and taking pyarrow down takes 0.1 s


def restore(
    journal_dir: Annotated[
        str | None,
        typer.Option("--journal-dir", metavar="DIR", help="Where the jobs kept prior values."),
    ] = None,
) -> None:
    """Put back power limits and clocks that a killed job of this user's left on this node's GPUs."""
    from wattflow.config.choices import Control  # noqa: PLC0415
    from wattflow.power.control import restore as put_back  # noqa: PLC0415

    restored = put_back(Control() if journal_dir is None else Control(journal_dir=journal_dir))
    for uuid in restored:
        print(uuid)
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
    no_page: Annotated[
        bool, typer.Option("--no-page", help="Write JSON only, where altair is not installed.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Find out what the power sensors of this machine's GPUs show: a passport a GPU, as JSON and a page."""
    from pathlib import Path  # noqa: PLC0415

    from wattflow.calibrate import passport as stage  # noqa: PLC0415

    if read is not None:
        for path in stage.read_again(Path(read), draw=not no_page):
            print(path)
        return
    from wattflow.power.recorder import Recorder, load_command, plan  # noqa: PLC0415

    own = [sys.executable, "-P", "-m", "wattflow.engine.pulsed_load"]
    steps = plan(minutes)
    command = own if load is None else load_command(load)
    stage.check(Path(out))
    if dry_run:
        with Recorder(command) as recorder:
            for device in recorder.devices:
                talk(f"{device['uuid']} {device['name']}, driver {recorder.driver}")
        print_table(["step", "s"], [[s.name, f"{s.seconds:.1f}"] for s in steps], numbers=[1])
        talk(f"{sum(s.seconds for s in steps) / 60:.1f} minutes, and some seconds to start loads")
        return
    asked = stage.Asked(Path(out), steps, command, draw=not no_page)
    began_s = time.monotonic()
    paths = stage.calibrate(
        asked, lambda text: talk(f"{time.monotonic() - began_s:5.0f} s  {text}")
    )
    for path in paths:
        print(path)


def tune(
    words: Annotated[
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
    """Measure the fast engine's kernel sets on this GPU for one model and batch, and keep the best."""
    from wattflow import tune as stage  # noqa: PLC0415

    config = stage.choices(["engine=fast", *(words or [])], goal, windows, seconds)
    made = stage.tune(config, goal, windows, seconds, talk)
    if as_json:
        print_json(asdict(made))
        return
    mark = "~" if made.source == "simulated" else ""
    print_table(
        ["kernels", "tokens/s", "J/token", "W", "SM MHz", "degC", "under cap", "note"],
        [
            [
                row["kernels"],
                _plus_minus(row, "tokens_per_s", ".1f"),
                _plus_minus(row, "energy_per_token_j", ".4g", mark),
                _plus_minus(row, "power_w", ".0f", mark),
                *(_cell(row[name], ".0f") for name in ("sm_clock_mhz", "temperature_c")),
                _cell(row["under_cap"], ".0%"),
                stage.note(row, made.best),
            ]
            for row in [*made.frontier, {**made.again, "again": True}]
        ],
        numbers=range(1, 7),
    )
    if mark:
        talk("~ marks watts and joules that were simulated, not measured.")
    talk(
        f"kept for this GPU, driver and torch in {shown(made.kept)}: engine.kernels={goal} takes {made.best[goal]}"
    )


def _plus_minus(row: dict[str, Any], column: str, form: str, mark: str = "") -> str | None:
    """A mean and half its 95 % interval, where there is one."""
    value, half = row[column], row.get(f"{column}_half")
    if value is None:
        return None
    return f"{mark}{value:{form}}" + ("" if half is None else f" ± {half:.2g}")


def _cell(value: float | None, form: str) -> str | None:
    return None if value is None else f"{value:{form}}"


def doctor(as_json: AsJson = False) -> None:
    """Show what this machine can measure, for this user: sensors, rights, GPUs, Slurm, folders."""
    from wattflow.doctor import examine  # noqa: PLC0415

    findings = examine()
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        print_table(["check", "status", "detail"], findings)


def keys(
    part: Annotated[
        str,
        typer.Argument(metavar="[GROUP]", help="model, dataset, engine, power, cluster or grid."),
    ] = "",
) -> None:
    """List the keys that can be set with their defaults, or the files of one config group."""
    from wattflow.config.checks import allowed  # noqa: PLC0415
    from wattflow.config.choices import GROUPS  # noqa: PLC0415
    from wattflow.config.identity import DEFAULTS  # noqa: PLC0415
    from wattflow.plan import hydra  # noqa: PLC0415

    if part:
        for name in hydra.group_files(part):
            print(name)
        return
    for group in GROUPS:
        talk(f"{group}: {', '.join(hydra.group_files(group))}")
    rows = [
        [key, "null" if value is None else value, ", ".join(allowed(key))]
        for key, value in DEFAULTS.items()
    ]
    print_table(["key", "default", "one of"], rows)
