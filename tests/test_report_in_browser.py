"""The report in Chromium, by what a person does with it: sort, filter, choose, look at power, print, on a phone."""

import json

import pytest
from browser import opened
from processes import until
from sweeps import Gpu, Made, choices, collected, constant, demo

import wattflow
from wattflow.analysis import charts
from wattflow.analysis.charts import METRICS, Places
from wattflow.collect.collect import collect
from wattflow.report.page import report
from wattflow.report.sections import figures

pytestmark = pytest.mark.chromium
BATCHES = (4, 8, 16)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two precisions by two shards by three batches, twice each, at watts of their own; one more failed."""
    points = [
        choices(precision=precision, shards=shards, batch_size=batch, repeat=repeat)
        for repeat in (0, 1)
        for precision in ("bf16", "fp32")
        for shards in (1, 2)
        for batch in BATCHES
    ]
    made = [
        Made(
            [
                Gpu(
                    f"GPU-{rank}",
                    constant(
                        50.0 + 3.0 * point["batch_size"] + 9.0 * (point["precision"] == "fp32")
                    ),
                )
                for rank in range(point["shards"])
            ],
            batches=1,
            tokens=25 * point["batch_size"],
        )
        for point in points
    ]
    failed = choices(precision="bf16", shards=4, batch_size=4)
    made.append(Made([Gpu("GPU-0", ranks=4)], status="failed"))
    return collected(tmp_path_factory.mktemp("sweeps") / "s", made, [*points, failed])


@pytest.fixture(scope="module")
def page(sweep):
    """Its report."""
    return report(sweep)


@pytest.fixture
def tab(page):
    """The report as a person opens it: what another test chose is not there."""
    with opened(page) as tab:
        yield tab


CELLS = "[...row.cells].map((cell) => cell.innerText.trim())"
ROWS = f"[...document.querySelectorAll('#table tbody tr')].map((row) => {CELLS})"


def column(tab, name):
    """What stands in a column of the table, from top to bottom."""
    heads = tab.evaluate(
        "[...document.querySelectorAll('#table thead th')].map((head) => head.innerText.trim())"
    )
    return [row[heads.index(name)] for row in tab.evaluate(ROWS)]


def comes_to(tab, name, expected):
    """Wait until a column holds these texts: a table is drawn a moment after a click."""
    until(lambda: column(tab, name) == expected, timeout_s=30)


def spec_of(tab):
    """The chart that is drawn, as Vega-Lite."""
    tab.until("document.querySelector('#chart svg') !== null")
    return tab.evaluate("document.getElementById('chart').spec")


def unfold(tab):
    """Show the columns and filters."""
    tab.click("#columns summary")
    tab.until("document.querySelector('#columns').open")


def test_nothing_is_asked_for_and_nothing_is_wrong(tab, sweep):
    """One file is opened and no more; the console says nothing; the answer stands on top, in words."""
    assert tab.requests == [f"file://{sweep.directory.report_path}"]
    assert tab.console == []
    first = tab.evaluate("document.querySelector('main section').innerText")
    assert first.startswith("Cheapest: shards 1, batch_size 16, precision bf16, ")
    assert "below the next" in first
    assert tab.evaluate("document.querySelectorAll('.figure svg').length") == 2


def test_a_click_on_a_heading_sorts(tab):
    """The lowest J/token stand first; a click on another heading sorts by it, one more the other way round."""
    assert column(tab, "batch size")[0] == "16"
    ascending = [str(size) for size in sorted(map(int, column(tab, "batch size")))]
    tab.click("#table thead th:nth-child(2)")
    comes_to(tab, "batch size", ascending)
    tab.click("#table thead th:nth-child(2)")
    comes_to(tab, "batch size", ascending[::-1])


def test_rows_are_found_by_words_and_filtered_by_values(tab):
    """`fp32` in the field leaves its six settings; then two shards three; a least number of tokens/s one of these."""
    tab.write("#search", "fp32")
    comes_to(tab, "precision", ["fp32"] * 6)
    assert tab.evaluate("document.getElementById('count').innerText") == "6 of 13 settings"
    unfold(tab)
    lines = "[...document.querySelectorAll('.columns div')]"
    names = tab.evaluate(f"{lines}.map((line) => line.innerText.split('\\n')[0].trim())")
    shards, rate = names.index("shards") + 1, names.index("tokens/s") + 1
    options = f"document.querySelector('.columns div:nth-child({shards}) select').options"
    (two,) = tab.evaluate(
        f"[...{options}].filter((one) => one.text === '2').map((one) => one.value)"
    )
    tab.choose(f".columns div:nth-child({shards}) select", two)
    comes_to(tab, "shards", ["2"] * 3)
    tab.write(f".columns div:nth-child({rate}) input[placeholder=least]", "90")
    comes_to(tab, "batch size", ["16"])


def test_columns_are_chosen(tab):
    """Seconds are among those that can be asked for."""
    heads = "document.querySelector('#table thead').innerText"
    assert "duration, s" not in tab.evaluate(heads)
    unfold(tab)
    tab.evaluate(
        "[...document.querySelectorAll('.columns label')].find((one) => one.innerText.includes('duration'))"
        ".querySelector('input').click()"
    )
    tab.until(f"{heads}.includes('duration, s')")
    assert column(tab, "duration, s")[0] == "4.00"


def test_the_chart_is_that_of_paper(tab, sweep):
    """Rows, titles, orders and scales of the first chart are those which Python fills in."""
    of = [one for one in figures(sweep).results if one.n]
    at = Places("batch_size", "shards", "precision")
    expected = charts.fill(charts.templates()["lines"], charts.filling("lines", of, at, METRICS[0]))
    found = spec_of(tab)
    for spec in (expected, found):
        del spec["columns"], spec["spec"]["width"]
        spec["datasets"]["settings"].sort(key=lambda row: row["setting"])
    rows, expected_rows = found.pop("datasets"), expected.pop("datasets")
    assert (
        json.dumps(found, sort_keys=True, indent=1).splitlines()
        == json.dumps(expected, sort_keys=True, indent=1).splitlines()
    )
    for row, wanted in zip(rows["settings"], expected_rows["settings"], strict=True):
        assert row == pytest.approx(wanted)


def test_a_person_chooses_what_stands_where(tab):
    """Throughput over shards, batch sizes in colour, no panels; then a heat map; then the front."""
    for name, value in (
        ("metric", "tokens_per_s"),
        ("x", "shards"),
        ("color", "batch_size"),
        ("facet", ""),
    ):
        tab.choose(f"#place-{name} select", value)
    encoding = spec_of(tab)["spec"]["layer"][-1]["encoding"]
    titles = [encoding[channel]["title"] for channel in ("x", "y", "color")]
    assert titles == ["shards", "output tokens/s", "batch size"]
    tab.choose("#place-view select", "map")
    tab.until("document.getElementById('chart').spec.spec.layer[0].mark.type === 'rect'")
    shown = [row["shown"] for row in spec_of(tab)["datasets"]["settings"]]
    assert "-" in shown  # the point that failed, as a gap
    tab.choose("#place-view select", "front")
    tab.until("document.getElementById('chart').spec.layer !== undefined")
    assert len(spec_of(tab)["datasets"]["settings"]) == 12
    tab.until("document.querySelectorAll('#chart svg').length === 1")
    assert tab.console == []


def test_a_row_shows_its_power_over_time(tab):
    """A click on the last row that counts draws its first run; the menu has all 24."""
    tab.until("document.querySelector('#timeline svg') !== null")
    before = tab.evaluate("document.querySelector('#run').value")
    assert tab.evaluate("document.querySelector('#run').options.length") == 24
    tab.click("#table tbody tr:nth-child(12)")
    tab.until(f"document.querySelector('#run').value !== '{before}'")
    tab.choose("#run", "23")
    point = tab.evaluate("document.querySelector('#run').selectedOptions[0].text.slice(-13, -1)")
    tab.until(f"document.querySelector('#timeline').textContent.includes({json.dumps(point)})")
    assert tab.console == []


def test_paper_has_all_that_is_folded(tab):
    """A print opens what is folded, and folds it again."""
    assert tab.printed().startswith(b"%PDF")
    folded = "document.querySelectorAll('#details details:not([open])').length"
    count = tab.evaluate(folded)
    assert count > 3
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate(folded) == 0
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.evaluate(folded) == count


def test_a_narrow_window_is_no_wider_than_itself(page):
    """At 400 px nothing of the page stands beyond its edge, but what scrolls by itself."""
    with opened(page, width=400) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= 400


def test_simulated_watts_are_marked_in_the_chart(tmp_path):
    """Their axis carries a ~; many nodes and devices are drawn."""
    directory = demo(tmp_path / "demo")
    collect(directory)
    with opened(report(wattflow.open_sweep(directory.path))) as tab:
        encoding = spec_of(tab)["spec"]["layer"][-1]["encoding"]
        assert encoding["y"]["title"] == "~ J per output token"
        assert tab.console == []
