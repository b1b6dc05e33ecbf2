"""Pages and papers from templates: `NAME.html.j2` in the room that fills it, escaped; `NAME.md.j2` as it stands.

A page extends `report/base.html.j2`, fills its block `main`, and lays out tables and charts by `report/parts.html.j2`.
"""

from functools import cache
from typing import Any

import jinja2

from wattflow.report import text


def render(template: str, **values: Any) -> str:
    """Return the text of a template, named by its path below the package; in `.html.j2` all values are escaped."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wattflow", ""),
        autoescape=jinja2.select_autoescape(["html.j2"], ["md.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"default": str}  # dates among a chart's values
    environment.globals["vega"] = vega
    environment.filters |= _FILTERS
    return environment


# how the values of pages and papers read
_FILTERS = {
    "break_even": text.break_even,
    "change": text.change,
    "choice": text.choice,
    "count_of": text.count_of,
    "heading": text.heading,
    "interval": text.interval,
    "listed": text.listed,
    "mark": text.mark,
    "markdown": text.markdown,
    "number": text.number,
    "plain": text.plain,
    "repr": repr,
    "source": text.source,
    "span": text.span,
}


@cache
def vega() -> str:
    """Return the JavaScript that draws charts, 0.9 MB; bundling takes 2 s."""
    import vl_convert  # noqa: PLC0415 (slow to import, and only needed here)

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle
