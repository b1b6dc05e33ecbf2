"""The verb that says what a token and a request cost in joules."""

from typing import Annotated

import typer

from wattflow.analysis.axes import in_words
from wattflow.analysis.price import Lengths, Price, prices
from wattflow.cli.arguments import AsJson, SweepArguments
from wattflow.cli.opened import opened
from wattflow.cli.printing import print_json, print_table, talk
from wattflow.errors import RefusedError
from wattflow.nullable import with_doubt
from wattflow.report.text import mark


def price(
    sweeps: SweepArguments,
    tokens_in: Annotated[
        int | None,
        typer.Option("--in", min=1, metavar="TOKENS", help="Prompt tokens of a request."),
    ] = None,
    tokens_out: Annotated[
        int | None, typer.Option("--out", min=1, metavar="TOKENS", help="Its output tokens.")
    ] = None,
    cached: Annotated[
        int,
        typer.Option(
            "--cached", min=0, metavar="TOKENS", help="Prompt tokens in the prefix cache."
        ),
    ] = 0,
    *,
    as_json: AsJson = False,
) -> None:
    """Show what a token of each kind costs in joules, by a model of each load.

    With --in and --out also what a request of those lengths costs at each load.
    """
    if (tokens_in is None) != (tokens_out is None):
        raise RefusedError("--in and --out: a request has both.")
    if cached and (tokens_in is None or cached >= tokens_in):
        raise RefusedError(
            f"--cached {cached}: fewer than the tokens of --in, as one at least is computed."
        )
    lengths = None
    if tokens_in is not None and tokens_out is not None:
        lengths = Lengths(tokens_in, tokens_out, cached)
    found = prices(opened(sweeps).points, lengths)
    if as_json:
        print_json(
            [{**one.load, **{k: v for k, v in vars(one).items() if k != "load"}} for one in found]
        )
    else:
        _print(found, lengths)


def _print(found: list[Price], lengths: Lengths | None) -> None:
    load = list(dict.fromkeys(name for one in found for name in one.load))
    heads = ["J/input token", "J/cached token", "J/output token", "held-out error"]
    heads += ["J/request, own", "J/request, all"] if lengths is not None else []
    print_table(
        [*load, *heads],
        [
            [
                *(in_words(one.load.get(name)) for name in load),
                _cell(one, one.input_token_j, one.input_token_half_width_j),
                _cell(one, one.cached_token_j, one.cached_token_half_width_j),
                _cell(one, one.output_token_j, one.output_token_half_width_j),
                f"{one.held_out:.1%}",
                *(
                    [_cell(one, one.own_request_j), _cell(one, one.request_j)]
                    if lengths is not None
                    else []
                ),
            ]
            for one in found
        ],
    )
    talk(
        "A model's, not measured: the joules of each load's seconds, fitted to what they worked on. `own` is what the "
        "load would take less without the request, `all` with its share of constant watts."
    )
    if any(one.simulated for one in found):
        talk("~ marks what was simulated, not measured.")


def _cell(one: Price, value: float | None, half_width: float | None = None) -> str:
    if value is None:
        return "-"
    sign = mark(one.simulated)
    return f"{sign}{value:.3g}" if half_width is None else with_doubt(value, half_width, mark=sign)
