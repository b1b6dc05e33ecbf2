"""The verb that says what points will take before they run, and holds frozen predictions to what they took."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from wattflow.analysis.axes import choice_columns, moving
from wattflow.analysis.sweep import Sweep, Sweeps, open_sweep
from wattflow.cli import completion
from wattflow.cli.arguments import AsJson, check_folder_of
from wattflow.cli.opened import opened
from wattflow.cli.printing import print_json, print_table, print_text, talk
from wattflow.config.choices import to_dict
from wattflow.errors import RefusedError
from wattflow.plan import grid
from wattflow.plan.points import Point
from wattflow.predict.fit import Estimate, HeldOut, Prediction
from wattflow.predict.form import Fabric
from wattflow.predict.frozen import check as check_frozen
from wattflow.predict.frozen import freeze as write_frozen
from wattflow.predict.frozen import hash_of, read_frozen
from wattflow.predict.runs import BoardFit, Model, measured_of, model_of, predicted
from wattflow.store.columns import choice_values

_MARK = "predicted"


def predict(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE,...]...",
            help="The points, as plan takes them; with --check the sweep that ran.",
            autocompletion=completion.overrides,
        ),
    ] = None,
    *,
    source: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="SWEEP", help="A finished sweep; may be given again."),
    ] = None,
    freeze: Annotated[
        Path | None,
        typer.Option("--freeze", metavar="FILE", help="Write the predictions, with their sha256."),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option("--check", metavar="FILE", help="Hold frozen predictions to a sweep."),
    ] = None,
    fabric: Annotated[
        str,
        typer.Option(
            "--fabric",
            metavar="US,GB/S",
            help="Latency and rate between GPUs, for more shards than were measured.",
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Predict time and energy of points never run, or check predictions that were frozen.

    The form is physical, its coefficients are fitted to finished sweeps; what it misses held-out is printed.
    """
    if check is not None:
        if source or freeze is not None or fabric:
            raise RefusedError(f"--check {check}: leave --from, --freeze and --fabric out.")
        _check(check, words or [], as_json=as_json)
        return
    if not source:
        raise RefusedError("--from SWEEP: a finished sweep to learn from.")
    if freeze is not None:
        check_folder_of("--freeze", freeze)
    results = opened(source)
    sweeps = results.sweeps if isinstance(results, Sweeps) else [results]
    model = model_of(measured_of(results), _fabric(fabric))
    plan = grid.plan(words or [])
    found = predicted(model, plan.feasible)
    choices = _choices(plan.feasible)
    if freeze is not None:
        known = [
            (point.point_id, chosen, made)
            for (point, made, _), chosen in zip(found, choices, strict=True)
            if made is not None
        ]
        digest = write_frozen(freeze, known, _about(model, sweeps))
        print_text(digest)
    elif as_json:
        print_json(_document(found, choices, model))
    else:
        _print(found, choices)
    _say(found, model)


def _fabric(text: str) -> Fabric | None:
    if not text:
        return None
    try:
        microseconds, gigabytes = map(float, text.split(","))
    except ValueError:
        microseconds = gigabytes = -1.0
    if not (0 <= microseconds < 1e9 and 0 < gigabytes < 1e9):
        raise RefusedError(
            f"--fabric {text}: two numbers, as 8,350: microseconds and GB/s of a GPU."
        )
    return Fabric(microseconds / 1e6, gigabytes * 1e9)


_Found = Sequence[tuple[Point, Prediction | None, str | None]]


def _choices(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return of each point the choices that vary, and its repeat."""
    rows = [choice_values(to_dict(point.config)) for point in points]
    names = [*(moving(choice_columns(rows)) if rows else []), "repeat"]
    return [{name: row[name] for name in names} for row in rows]


def _print(found: _Found, choices: Sequence[dict[str, Any]]) -> None:
    """Print a row a configuration: its repeats are predicted alike."""
    shown: dict[str, list[object]] = {}
    names = [name for name in (choices[0] if choices else {}) if name != "repeat"]
    for (_, made, why), chosen in zip(found, choices, strict=True):
        values = [chosen[name] for name in names]
        cells = [None, None, None, why]
        if made is not None:
            scenario = made.joules.low is None
            cells = [
                _cell(made.seconds),
                _cell(made.joules),
                _cell(made.energy_per_token_j),
                "scenario" if scenario else _MARK,
            ]
        shown.setdefault(str(values), [*values, *cells])
    print_table([*names, "s", "J", "J/token", "is"], list(shown.values()))


def _cell(one: Estimate) -> str:
    interval = "" if one.low is None else f" ({one.low:.3g} to {one.high:.3g})"
    return f"{one.value:.3g}{interval}"


def _say(found: _Found, model: Model) -> None:
    known = [(point, made) for point, made, _ in found if made is not None]
    for board, of in model.boards.items():
        talk(
            f"{board}: fitted to {len(of.runs)} runs of {of.settings} configurations, models {', '.join(of.models)}."
        )
        talk(f"  held out by configuration: {_held(of.by_setting)}; by model: {_held(of.by_model)}")
    for why in model.why_not.values():
        talk(f"no fit: {why}")
    kwh = sum(made.joules.value for _, made in known) / 3.6e6
    hours = sum(made.seconds.value * point.config.shards for point, made in known) / 3600
    talk(
        f"{len(known)} of {len(found)} points: {hours:.3g} GPU-hours and {kwh:.3g} kWh in their measured windows, "
        f"{_MARK}; loading, warm-up and idling come on top."
    )


def _held(errors: HeldOut | None) -> str:
    if errors is None:
        return "too few to leave any out"
    return (
        f"energy {100 * errors.energy_mape:.1f} % off on the mean, {100 * errors.worst_energy:.1f} % at worst, time "
        f"{100 * errors.time_mape:.1f} %, over {errors.settings} configurations"
    )


def _board(of: BoardFit) -> dict[str, Any]:
    return {
        "runs": len(of.runs),
        "settings": of.settings,
        "models": of.models,
        "time_coefficients": of.fit.time.coefficients,
        "energy_coefficients": of.fit.energy.coefficients,
        "held_out_by_configuration": None if of.by_setting is None else asdict(of.by_setting),
        "held_out_by_model": None if of.by_model is None else asdict(of.by_model),
    }


def _about(model: Model, sweeps: Sequence[Sweep]) -> dict[str, Any]:
    """Return what predictions rest on: the sweeps, by the hash of their results, and the fits."""
    return {
        "from": [
            {"sweep": one.name, "points_sha256": hash_of(one.directory.points_path)}
            for one in sweeps
        ],
        "fits": [{"board": asdict(board), **_board(of)} for board, of in model.boards.items()],
    }


def _document(found: _Found, choices: Sequence[dict[str, Any]], model: Model) -> dict[str, Any]:
    return {
        "is": _MARK,
        "fits": [{"board": asdict(board), **_board(of)} for board, of in model.boards.items()],
        "points": [
            {
                "point_id": point.point_id,
                "choices": chosen,
                **({} if made is None else asdict(made)),
                "why_not": why,
            }
            for (point, made, why), chosen in zip(found, choices, strict=True)
        ],
    }


def _check(path: Path, words: Sequence[str], *, as_json: bool) -> None:
    if len(words) != 1:
        raise RefusedError(f"--check {path}: and one sweep, which ran what was predicted.")
    document = read_frozen(path)
    outcome = check_frozen(document, open_sweep(words[0]))
    if as_json:
        print_json({"sha256": document["sha256"], **asdict(outcome)})
        return
    names = list(outcome.points[0].choices) if outcome.points else []
    print_table(
        [*names, "J predicted", "J measured", "off", "s off", "in the interval"],
        [
            [
                *one.choices.values(),
                *(f"{one.predicted_j:.4g}", f"{one.measured_j:.4g}"),
                *(f"{100 * one.error_j:+.1f} %", f"{100 * one.error_s:+.1f} %"),
                None if one.inside is None else "yes" if one.inside else "no",
            ]
            for one in outcome.points
        ],
    )
    talk(f"sha256 {document['sha256']}: as it was frozen.")
    for value, said in (
        (outcome.energy_mape, "energy off on the mean of configurations"),
        (outcome.time_mape, "time off"),
        (outcome.inside, "of runs inside their 95 % interval"),
    ):
        if value is not None:
            talk(f"{100 * value:.1f} % {said}.")
    if outcome.best_first is not None:
        talk(
            f"the configuration predicted cheapest {'has' if outcome.best_first else 'does not have'} the lowest mean."
        )
    if outcome.earlier:
        talk(
            f"{outcome.earlier} points ran before the predictions were frozen: they test nothing and are left out."
        )
    if outcome.missing:
        talk(f"{outcome.missing} predicted points have no measured run that counts.")
