"""Charts: what stands on which axis, and what a timeline shows."""

import json

import polars as pl
import pytest

from wattflow.analysis import figures
from wattflow.analysis.means import FIGURES, Mean, Setting


def setting(power_w=100.0, sd=None, **chosen):
    """A setting whose figures are all alike."""
    means = {name: Mean(power_w, sd) for name in FIGURES}
    return Setting(chosen, "gpu", False, "nvml_buffer", 2, means, [])


def titles(chart, channel):
    """The titles of a channel, wherever it stands in a chart."""
    found = []

    def visit(part):
        if isinstance(part, dict):
            if isinstance(part.get(channel), dict) and "title" in part[channel]:
                found.append(part[channel]["title"])
            for inner in part.values():
                visit(inner)
        elif isinstance(part, list):
            for inner in part:
                visit(inner)

    visit(chart)
    return set(found)


def test_the_number_with_most_values_stands_on_x():
    """Of two models and three batch sizes the sizes stand on x, the models have colours."""
    of = [setting(model=m, batch_size=b) for m in ("a", "b") for b in (1, 2, 4)]
    chart = figures.by_choice(of, ["model", "batch_size"], simulated=False).to_dict()
    assert titles(chart, "x") == {"batch size"}
    assert titles(chart, "color") == {"model"}


def test_a_third_choice_is_in_panels():
    """Each of two datasets has a panel, named by the choice."""
    of = [
        setting(model=m, batch_size=b, dataset=d)
        for m in ("a", "b")
        for b in (1, 2, 4)
        for d in ("alpaca", "gsm8k")
    ]
    chart = figures.by_choice(of, ["model", "dataset", "batch_size"], simulated=False).to_dict()
    panels = {row["panel"] for rows in chart["datasets"].values() for row in rows}
    assert panels == {"dataset alpaca", "dataset gsm8k"}


def test_bars_reach_one_deviation():
    """100 W with a deviation of 5 has a bar from 95 to 105; without a repeat the bar has no length."""
    of = [setting(100.0, 5.0, batch_size=1), setting(100.0, None, batch_size=2)]
    chart = figures.by_choice(of, ["batch_size"], simulated=False).to_dict()
    bars = {(row["low"], row["high"]) for rows in chart["datasets"].values() for row in rows}
    assert bars == {(95.0, 105.0), (100.0, 100.0)}


def test_simulated_watts_are_marked():
    """Units of joules and watts carry a ~, tokens/s do not."""
    units = titles(
        figures.by_choice([setting(batch_size=1)], ["batch_size"], simulated=True).to_dict(), "y"
    )
    assert {unit for unit in units if not unit.startswith("~")} == {"output tokens/s"}


def test_a_figure_that_nobody_has_is_not_drawn():
    """Without responses there is no chart of joules per response."""
    one = setting(batch_size=1)
    none = Setting(
        **{**vars(one), "means": {**one.means, "energy_per_response_j": Mean(None, None)}}
    )
    chart = figures.by_choice([none], ["batch_size"], simulated=False).to_dict()
    assert "J per response" not in titles(chart, "y")
    assert "J per output token" in titles(chart, "y")


@pytest.mark.parametrize(("devices", "strokes"), [(1, 0), (2, 1)])
def test_a_timeline_has_a_line_a_device(devices, strokes):
    """Over shaded phases stands a band and a line; a lone device needs no legend."""
    uuids = [f"GPU-{k}" for k in range(devices)]
    power = pl.DataFrame(
        [
            {
                "node": "n",
                "gpu_uuid": u,
                "seconds": s,
                "power_w": 70.04,
                "lowest_w": 70.0,
                "highest_w": 71.0,
            }
            for u in uuids
            for s in (0.0, 1.0)
        ]
    )
    second = 10**9
    spans = pl.DataFrame(
        {
            "node": ["n"] * 3,
            "phase": ["idle", "prefill", "decode"],
            "batch": [None, 0, 0],
            "start_ns": [0, 2 * second, 3 * second],
            "end_ns": [2 * second, 3 * second, 5 * second],
        }
    )
    row = {
        "point_id": "a" * 12,
        "attempt": 1,
        "simulated": False,
        "boundary": "gpu",
        "command": None,
        "model": "tiny",
        "dataset": "alpaca",
        "shards": 1,
        "batch_size": 4,
        "power_source": "nvml_buffer",
    }
    chart = figures.timeline(power, spans, row).to_dict()
    assert [layer["mark"]["type"] for layer in chart["layer"]] == ["rect", "area", "line"]
    assert titles(chart, "stroke") == ({"device"} if strokes else set())
    shades = next(rows for rows in chart["datasets"].values() if "phase" in rows[0])
    # seconds since the first prefill
    assert [(one["phase"], one["start_s"], one["end_s"]) for one in shades] == [
        ("idle", -2.0, 0.0),
        ("prefill", 0.0, 1.0),
        ("decode", 1.0, 3.0),
    ]


def test_a_choice_that_is_null_is_drawn_by_that_name():
    """On x, in colour and in panels: numbers in order, what nobody asked for last."""
    caps, clocks, names = (None, 300, 200), (1200, None), ("null", None)
    found = [
        setting(cap=cap, clock=clock, name=name)
        for cap in caps
        for clock in clocks
        for name in names
    ]
    chart = figures.by_choice(found, ["cap", "clock", "name"], simulated=False).to_dict()
    text = json.dumps(chart)
    assert '"sort": ["200", "300", "null"]' in text
    assert "None" not in text
    drawn = [row for rows in chart["datasets"].values() for row in rows]
    assert {row["cap"] for row in drawn} == {"200", "300", "null"}
