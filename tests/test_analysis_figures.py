"""Charts: what stands on which axis, and what a timeline shows."""

import polars as pl
import pytest

from wattflow.analysis import figures


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
        "power_w": 600.0,
        "power_expanded_u_w": 30.0,
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


def test_a_template_of_timelines_has_a_place_for_any_point():
    """Its data are named and empty, and its phases have the colours of a timeline that is drawn at once."""
    template = figures.timeline_template(["prefill", "decode", "my phase"])
    assert [layer["data"]["name"] for layer in template["layer"]] == ["spans", "power", "power"]
    scale = template["layer"][0]["encoding"]["color"]["scale"]
    assert scale["domain"] == ["prefill", "decode", "my phase"]
    assert scale["range"][0] == figures.PHASE_COLOURS["prefill"]
