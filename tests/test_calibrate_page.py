"""The page of passports: their figures in tables and charts, drawn offline."""

import json
import re
from pathlib import Path

import pytest
from browser import in_browser

from wattflow.calibrate.page import charts, draw_page

SHIPPED = sorted((Path(__file__).parent.parent / "docs" / "passports").glob("h100-*.json"))


@pytest.fixture
def passport():
    """A passport of a real H100."""
    return json.loads(SHIPPED[0].read_text())


def tables(page):
    """The rows of the page's tables, without tags."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]


def test_the_page_has_what_the_passport_says(passport):
    """The buffer's row, the first load's joules and 1 s windows, idle power and a call's cost, rounded by hand."""
    rows = tables(draw_page([passport]))
    assert ["sample buffer", "20.0", "16.8 to 23.2", "3.8", "13.1", "exponential", "1.7", "32", "119 samples, 2.37 s",
            "3 (0 to 9)"] in rows  # fmt: skip
    # 1098.463 J by the counter, 1108.823 J by the plateaus
    assert ["5", "4.50", "51.1", "1098.5", "0.9907", "1.0112", "1.0126", "1.0137", "1.0137"] in rows
    assert [
        "5",
        "-0.5 to +0.6",
        "-0.7 to +0.8",
        "-0.6 to +0.8",
        "-0.4 to +0.3",
        "-0.4 to +0.3",
    ] in rows
    assert [
        "bare",
        "no process on it, no call of the driver",
        "79.0",
        "79.1 / 79.0",
        "79.0 / 78.9",
    ] in rows
    assert [
        "clocks, temperature, limits",
        "0.133",
        "0.315",
        "0.335",
        "0.116",
        "0.275",
        "0.344",
    ] in rows
    assert ["limit", "200 to 700 W"] in rows
    assert ["remarks", "-"] in rows


def test_what_is_not_known_is_a_dash(passport):
    """A sensor without an answer says why; a load without two ticks, a state that was not reached, no plateaus."""
    passport["sources"]["nvml_gpm"] |= {
        "period_ms": None, "spacings_ms": None, "answer": None, "answer_reason": "no step of the load could be seen"
    }  # fmt: skip
    passport["aliasing"][0] |= {
        "seconds": None, "energy_j": {}, "ratio": {}, "windows_1s": {}, "on_share": None, "levels_j": None
    }  # fmt: skip
    passport["idle_w"]["bare"] = None
    passport["levels_w"] = None
    passport["others_on_the_gpu"] = [4711]
    rows = tables(draw_page([passport]))
    assert [
        "GPM, memory activity",
        *["-"] * 4,
        "no step of the load could be seen",
        *["-"] * 4,
    ] in rows
    assert ["5", *["-"] * 8] in rows
    assert ["bare", "no process on it, no call of the driver", "-", "-", "-"] in rows
    assert ["load", "-"] in rows
    assert [
        "remarks",
        "other processes came onto the GPU meanwhile: do not trust these figures",
    ] in rows


def test_names_are_text(passport):
    """What a driver calls its GPU cannot write HTML."""
    passport["gpu"]["name"] = "<script>alert(1)</script>"
    page = draw_page([passport])
    assert "<script>alert" not in page
    assert (
        page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2
    )  # title of the page, and of its part


def test_charts_are_drawn_of_what_is_there(passport):
    """Five of a whole passport; without answers, spacings and aliasing the two loads alone."""
    assert list(charts(passport)) == ["slow", "fast", "answers", "spacings", "aliasing"]
    passport["figures"]["answers"] = {}
    for sensor in passport["sources"].values():
        sensor["spacings_ms"] = None
    passport["aliasing"] = []
    assert list(charts(passport)) == ["slow", "fast"]


@pytest.mark.chromium
def test_the_page_renders_offline(tmp_path):
    """In headless Chromium all five charts of both GPUs are drawn, nothing is fetched, and no error is shown."""
    page = tmp_path / "passports.html"
    page.write_text(draw_page([json.loads(path.read_text()) for path in SHIPPED]))
    text = re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.DOTALL)
    assert "://" not in text
    dom, console = in_browser(page, tmp_path)
    assert console == []
    assert dom.count("<svg") == 10
    assert "could not be drawn" not in dom
