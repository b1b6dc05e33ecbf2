"""Pages and papers from templates: `NAME.html.j2` in the room that fills it, escaped; `NAME.md.j2` as it stands.

All values pass one door: no control, bidi or invisible character of theirs reaches a page, a chart or a paper.
A page extends `report/base.html.j2`, fills its block `main`, and lays out tables and charts by `report/parts.html.j2`.
"""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from wattflow.analysis.axes import along_in_words, heading
from wattflow.errors import printable
from wattflow.nullable import NO_DOUBT, expanded, number, with_doubt
from wattflow.report import text


def render(template: str, **values: Any) -> str:
    """Return the text of a template, named by its path below the package; in `.html.j2` all values are escaped."""
    return _environment().get_template(template).render(values)


def _sha256(inline: str) -> str:
    """Return the hash by which a page's policy lets in an inline script or style, in base64."""
    return base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wattflow", ""),
        autoescape=jinja2.select_autoescape(["html.j2"], ["md.j2"]),
        undefined=jinja2.StrictUndefined,
        finalize=legible,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"default": str}  # dates among a chart's values
    environment.globals |= {"asset": asset, "vega": vega, "no_doubt": NO_DOUBT}
    environment.filters |= _FILTERS
    return environment


def legible(value: Any) -> Any:
    """Return a value for a page: the texts in it without characters that are not seen; markup of ours as it is."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        return printable(value, "\n\t")
    if isinstance(value, dict):
        return {legible(key): legible(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [legible(one) for one in value]
    return value


# how the values of pages and papers read
_FILTERS = {
    "along": along_in_words,
    "boundary": text.boundary,
    "break_even": text.break_even,
    "change": text.change,
    "choice": text.choice,
    "count_of": text.count_of,
    "csp": lambda inline: Markup(f"'sha256-{_sha256(inline)}'"),  # noqa: S704 (base64, of no value)
    "energy": text.energy,
    "established": text.established,
    "rests_on": text.rests_on,
    "expanded": expanded,
    "heading": heading,
    "interval": text.interval,
    "legible": legible,
    "listed": text.listed,
    "mark": text.mark,
    "markdown": text.markdown,
    "number": number,
    "plain": text.plain,
    "repr": repr,
    "source": text.source,
    "with_doubt": with_doubt,
    "order": lambda value: "" if value is None else value,
    "share": lambda share: f"{number(100 * share)} %",
    "span": text.span,
}


@cache
def asset(name: str) -> Markup:
    """Return the text of a script or style that the package has, named by its path below it."""
    text = (files("wattflow") / name).read_text(encoding="utf-8")
    return Markup(text)  # noqa: S704 (a file of the package, no value)


@cache
def vega() -> Markup:
    """Return the JavaScript that draws charts, 0.9 MB; bundling takes 2 s."""
    import vl_convert  # noqa: PLC0415 (slow to import, and only needed here)

    return Markup(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))  # noqa: S704 (a package's)
