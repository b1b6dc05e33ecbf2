"""The passports under docs/passports/, and the tables of docs/calibrate.md that stand in them.

    wattflow calibrate --from FOLDER                    what a GPU machine brought home, read again here
    python tests/gpu/passports.py FOLDER NAME           its passports into docs/passports/NAME-<k>.json, with figures
    python tests/gpu/passports.py                       the tables of the page alone

UUIDs are cut to their beginning: which board it was is nobody's business.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from wattflow.calibrate.documents import Passport, Sensor  # noqa: E402 - the path
from wattflow.calibrate.sources import COUNTER, NAMES, POWER  # noqa: E402 - the path

DOCS = ROOT / "docs"
BEGIN, END = "<!-- passports: begin -->", "<!-- passports: end -->"


def shown(text: str) -> str:
    """Text with no more of a UUID than its beginning."""
    return re.sub(r"(GPU-[0-9a-f]{8})-[-0-9a-f]{27}", r"\1", text)


def take_in(folder: Path, name: str) -> None:
    """Copy the passports of a folder, and draw two figures of each."""
    import vl_convert

    from wattflow.calibrate.page import charts

    target = DOCS / "passports"
    target.mkdir(exist_ok=True)
    for k, path in enumerate(sorted(folder.glob("passport-*.json"))):
        one = json.loads(path.read_text())
        (target / f"{name}-{k}.json").write_text(
            shown(json.dumps(one, separators=(",", ":"))) + "\n"
        )
        drawn = charts(one)
        for which in ("answers", "aliasing", "fast"):
            if which in drawn:
                png = vl_convert.vegalite_to_png(drawn[which].to_dict(), scale=1)
                (target / f"{name}-{k}-{which}.png").write_bytes(png)


def page() -> str:
    """The tables of all passports, as Markdown."""
    paths = sorted((DOCS / "passports").glob("*.json"))
    return "\n".join(
        line for path in paths for line in of_one(path.stem, json.loads(path.read_text()))
    )


def of_one(name: str, one: Passport) -> Iterator[str]:
    """One passport's tables and figures."""
    gpu, levels = one["gpu"], one["levels_w"]
    yield (
        f"### {gpu['name']} ({name})\n\nDriver {one['driver']}, {one['minutes']:g} minutes, load {levels['off_w']:.0f} "
        f"and {levels['on_w']:.0f} W, limit {gpu['power_limit_max_w']:g} W.\n"
    )
    heads = [
        "sensor",
        "renewed each, ms (5 to 95 %)",
        "lag, ms",
        "window or time constant, ms",
        "answer",
    ]
    yield "| " + " | ".join([*heads, "on alone", "off alone"]) + " |"
    yield "| --- " * 7 + "|"
    for source, of in one["sources"].items():
        yield "| " + " | ".join([NAMES[source], *sensor_cells(of)]) + " |"
    yield ""
    buffer = one["sources"].get("nvml_buffer", {})
    if buffer:
        history, after = buffer["history"], buffer["shown_after_ms"]
        yield (
            f"The buffer holds {history['samples']} samples, {history['seconds']:.2f} s. A sample can be read "
            f"{after['median']:.0f} ms after its stamp ({after['least']:.0f} to {after['most']:.0f}).\n"
        )
    yield from idle(one)
    yield from aliasing(one)
    yield from costs(one)
    for which, about in (
        ("fast", "The fast load by each sensor"),
        ("answers", "Each sensor's answer to an edge, and its fit"),
        (
            "aliasing",
            "Joules off those of the plateaus (dots), and the range of windows of 1 s (bars)",
        ),
    ):
        if (DOCS / "passports" / f"{name}-{which}.png").exists():
            yield f"![{about}](passports/{name}-{which}.png)\n"


def sensor_cells(sensor: Sensor) -> list[str]:
    period, answer = sensor["period_ms"], sensor["answer"]
    cells = [
        f"{sensor['beat_ms'] or period['median']:.1f} ({period['p5']:.1f} to {period['p95']:.1f})"
        if period
        else "-"
    ]
    if answer is None:
        return [*cells, "-", "-", str(sensor["answer_reason"]), "-", "-"]
    cells += [f"{answer['lag_ms']:.1f}", f"{answer['window_ms']:.1f}"]
    cells.append(f"{answer['shape']}, {100 * answer['rms']:.1f} % left, {answer['edges']} edges")
    for which in ("on", "off"):
        of = answer[which]
        cells.append("-" if of is None else f"{of['lag_ms']:.1f} + {of['window_ms']:.1f}")
    return cells


def idle(one: Passport) -> Iterator[str]:
    states = []
    for state, of in one["idle_w"].items():
        if of is not None:
            each = (
                ""
                if len(of["buffer"]) < 2
                else f" ({' and '.join(f'{w:.1f}' for w in of['buffer'])})"
            )
            states.append(f"{state} {of['power_w']:.1f} W{each}")
    yield f"Idle: {'; '.join(states)}.\n"


def aliasing(one: Passport) -> Iterator[str]:
    sources = [source for source in one["sources"] if source in POWER]
    heads = [
        "load, ms",
        "on, %",
        "counter, J",
        "counter / levels",
        *(f"{NAMES[s]} / counter" for s in sources),
    ]
    heads += [f"{NAMES[s]}, 1 s" for s in (COUNTER, *sources)]
    yield "| " + " | ".join(heads) + " |"
    yield "| --- " * len(heads) + "|"
    for of in one["aliasing"]:
        counted = of["energy_j"][COUNTER]
        cells = [f"{of['period_ms']:g}", f"{100 * of['on_share']:.1f}", f"{counted:.0f}"]
        cells.append(f"{counted / of['levels_j']:.3f}")
        cells += ["-" if (r := of["ratio"].get(s)) is None else f"{r:.3f}" for s in sources]
        for source in (COUNTER, *sources):
            reach = of["windows_1s"].get(source)
            cells.append(
                "-" if reach is None else " to ".join(f"{100 * (r - 1):+.1f}" for r in reach)
            )
        yield "| " + " | ".join(cells) + " |"
    yield ""


def costs(one: Passport) -> Iterator[str]:
    yield "| call | idle: median, ms | most | busy: median, ms | most |"
    yield "| --- " * 5 + "|"
    for source, of in one["costs_ms"].items():
        cells = [NAMES[source]]
        for name in ("idle", "busy"):
            cost = of.get(name)
            cells += (
                ["-", "-"] if cost is None else [f"{cost['median']:.3f}", f"{cost['most']:.2f}"]
            )
        yield "| " + " | ".join(cells) + " |"
    yield ""


def main() -> int:
    """Take in a folder, if one is named, and put the tables into the page."""
    if sys.argv[1:]:
        take_in(Path(sys.argv[1]), sys.argv[2])
    path = DOCS / "calibrate.md"
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{page()}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
