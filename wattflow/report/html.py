"""Pages and papers from templates: `NAME.html.j2` in the room that fills it, escaped; `NAME.md.j2` as it stands.

A page extends `report/base.html.j2`, fills its block `main`, and lays out tables and charts by `report/parts.html.j2`.
"""

import json
from collections.abc import Iterable
from functools import cache
from html import escape
from typing import Any

import jinja2

from wattflow.analysis.tables import number


def render(template: str, **values: Any) -> str:
    """The text of a template, named by its path below the package; in `.html.j2` all values are escaped."""
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
    environment.filters |= {"number": number, "plain": plain, "heading": heading}
    return environment


def plain(value: object) -> str:
    """A value as text; `-` for null."""
    return "-" if value is None else str(value)


def heading(name: str) -> str:
    """A column's name as a heading: blanks for underscores."""
    return name.replace("_", " ")


@cache
def vega() -> str:
    """The JavaScript that draws charts, 0.9 MB; bundling takes 2 s."""
    import vl_convert  # noqa: PLC0415 (slow to import, and only needed here)

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle


# --- pages that are no templates yet ---


def page(title: str, body: str, figures: list[dict[str, Any]]) -> str:
    """The page of a body, in which `<div class="figure" data-figure="k">` is the place of figure k (Vega-Lite)."""
    # `</script>` in a label must not end the script that holds it
    specs = json.dumps(figures, default=str).replace("<", "\\u003c")
    return _PAGE.format(
        title=escape(title), style=_STYLE, body=body, bundle=vega(), specs=specs, script=_SCRIPT
    )


def td(text: str, *, numeric: bool) -> str:
    """A cell of a table; numbers stand on the right."""
    return f"<td{' class=n' if numeric else ''}>{escape(text)}</td>"


def html_table(
    head: list[str], rows: list[str], numeric: Iterable[int] = (), numeric_axes: Iterable[bool] = ()
) -> str:
    """A table of rows that are HTML; the columns in `numeric` stand on the right."""
    right = {*numeric, *(i for i, yes in enumerate(numeric_axes) if yes)}
    cells = "".join(
        f"<th{' class=n' if i in right else ''}>{escape(name)}</th>" for i, name in enumerate(head)
    )
    return (
        f"<div class='wide'><table><thead><tr>{cells}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def figure(figures: list[dict[str, Any]], chart: Any) -> str:
    """A place for a chart, whose specification joins those at the end of the page."""
    figures.append(chart.to_dict())
    return f"<div class='figure' data-figure='{len(figures) - 1}'></div>"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval';
 style-src 'unsafe-inline'; img-src data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>{bundle}</script>
<script id="specs" type="application/json">{specs}</script>
<script>{script}</script>
</body>
</html>
"""

_STYLE = """
:root { --ink: #1f2933; --grey: #616e7c; --rule: #e4e7eb; --wash: #f7f9fa; --accent: #0b6e99; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; line-height: 1.5; font-size: 15px;
  font-family: Inter, system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 28px 80px; }
.brand { margin: 0; color: var(--accent); font-weight: 600; letter-spacing: .04em; }
h1 { margin: 0 0 20px; font-size: 30px; line-height: 1.2; }
h2 { margin: 0 0 8px; font-size: 19px; }
h3 { margin: 16px 0 4px; font-size: 15px; }
section { margin-top: 44px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; }
.cards div { background: var(--wash); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 16px; }
.cards b { display: block; font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; }
.cards span, .note { color: var(--grey); font-size: 13.5px; }
.note { margin: 0 0 12px; max-width: 75ch; }
.prose p { margin: 0 0 8px; max-width: 75ch; }
mark { background: #fdecc8; padding: 1px 6px; border-radius: 4px; font-weight: 600; }
code { font-family: ui-monospace, "SF Mono", "DejaVu Sans Mono", monospace; font-size: .9em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { padding: 7px 16px 7px 0; }
th { text-align: left; vertical-align: bottom; color: var(--grey); font-weight: 500;
  border-bottom: 1.5px solid #cbd2d9; }
td { border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; vertical-align: top; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
td.n { white-space: nowrap; }
td small { display: block; color: var(--grey); font-size: 11.5px; }
tr.none td { color: var(--grey); }
tbody tr:hover td { background: var(--wash); }
.facts th { width: 150px; border-bottom: 1px solid var(--rule); vertical-align: top; }
details { border-top: 1px solid var(--rule); padding: 8px 0; }
summary { cursor: pointer; font-size: 14px; }
.figure { margin-top: 12px; overflow-x: auto; }
.vega-embed { padding: 0 !important; }
@media print { details:not([open]) { display: none; } main { max-width: none; } }
"""

_SCRIPT = """
const specs = JSON.parse(document.getElementById("specs").textContent);
const draw = (place) => {
  if (place.dataset.drawn) return;
  place.dataset.drawn = "yes";
  vegaEmbed(place, specs[place.dataset.figure], { actions: false, renderer: "svg" })
    .catch((error) => { console.error(error); place.textContent = "This figure could not be drawn: " + error; });
};
document.querySelectorAll(".figure").forEach((place) => {
  const folded = place.closest("details:not([open])");
  if (!folded) draw(place);
  else folded.addEventListener("toggle", () => draw(place), { once: true });
});
"""
