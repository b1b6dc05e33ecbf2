"""The report: offline, readable, honest about what was simulated, and without an error in a real browser."""

import json
import re

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from browser import in_browser
from forgery import edit
from sweeps import Gpu, Made, choices, collected, constant, demo, make_attempt, make_sweep

import wattflow
from wattflow.collect.collect import collect
from wattflow.energy.boards import METERED
from wattflow.errors import RefusedError
from wattflow.nullable import NO_DOUBT, with_doubt
from wattflow.report.page import read_figures, report, texts
from wattflow.report.terminal import cost_table
from wattflow.store.columns import POINT
from wattflow.store.tables import write_table


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A collected sweep on simulated watts."""
    directory = demo(tmp_path_factory.mktemp("sweeps") / "demo")
    collect(directory)
    return wattflow.open_sweep(directory.path)


@pytest.fixture(scope="module")
def page(sweep):
    """Its report."""
    return report(sweep)


def measured(tmp_path, *attempts, points=()):
    """A collected sweep of measured attempts, a point each."""
    return collected(tmp_path / "s", attempts, points)


def body(path):
    """The page without its scripts, each stretch of blanks as one."""
    return " ".join(re.sub(r"<script.*?</script>", "", path.read_text(), flags=re.DOTALL).split())


def test_the_page_stands_alone(page):
    """Nothing is fetched: no address in a link, image, style or script source, and a policy that forbids it."""
    text = body(page)
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?!data:)\S*//""", text)
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert not re.search(r"<script[^>]+src=", page.read_text())


def test_the_page_says_what_is_simulated(page):
    """Plain words say that no sensor was there, and which boundary the joules have."""
    text = body(page)
    assert "not measured" in text
    assert "Boundary <code>host</code>" in text


def use_of(tmp_path, change):
    """The report's section on the use of devices, of a trace that was changed; null without one."""
    point = choices()
    directory = make_sweep(tmp_path / "s", [point])
    attempt = make_attempt(directory, point, Made([Gpu("GPU-a")]))
    path = attempt.trace_path("node1", "GPU-a")
    write_table(path, change(pq.read_table(path)))
    collect(directory)
    text = body(report(wattflow.open_sweep(directory.path)))
    found = re.search(r"<h2>Use of the devices</h2>.*?</section>", text, re.DOTALL)
    return found and found[0]


def test_activity_and_occupancy_stand_apart(tmp_path):
    """Kernels ran in 90 % of the time and 40 of the board's GiB were full: two columns, each with its own name."""

    def filled(trace):
        at = trace.schema.get_field_index("memory_used_bytes")
        read = pc.is_valid(trace["gpu_activity_pct"])
        full = pc.if_else(read, 40 * 2**30, pa.scalar(None, "int64"))
        return trace.set_column(at, trace.schema.field(at), full)

    section = use_of(tmp_path, filled)
    assert "Activity is not occupancy" in section
    heads = ["a kernel ran, % of time", "memory full, GiB"]
    assert re.findall(r'<th class="n">([^<]*)', section) == heads
    assert re.findall(r'<td class="n">([^<]*)', section) == ["90.0", "40.0"]


def test_no_use_is_shown_that_no_sensor_told(tmp_path):
    """A trace of watts alone knows of no activity."""
    assert use_of(tmp_path, lambda t: t.filter(pc.is_null(t["gpu_activity_pct"]))) is None


def test_the_page_says_consistency(tmp_path):
    """Beside the agreement with the counter stands that it is consistency, not accuracy."""
    path = report(measured(tmp_path, Made([Gpu("GPU-a")])))
    text = body(path)
    assert "100 to 100 % of the hardware energy counter" in text
    assert text.count("consistency, not accuracy") == 1


def test_simulated_watts_have_no_gain(page):
    """Arithmetic has no sensor whose gain could be off."""
    assert NO_DOUBT not in page.read_text()
    assert "gain of a board" not in page.read_text()


def test_the_page_lists_failures_and_provenance(page):
    """Failed and infeasible points with their figures, versions, device and prompts are there."""
    text = body(page)
    for told in (
        "the checkpoint ends early",
        "shards=4 does not divide n_heads=6",
        "torch 2.13.0",
        "ab" * 32,
    ):
        assert told in text


def test_the_page_has_comparisons_and_costs(page):
    """Simulated kWh are marked, and where no factor is declared the page says so; each choice has its break-even."""
    text = body(page)
    assert "<h2>Cost</h2>" in text
    assert "no price, carbon factor or PUE is declared" in text
    assert "break-even host, W" in text
    assert "the cheaper one is also faster" in text
    assert '<td class="n">~0.000' in text


def test_rows_of_comparisons_and_costs_stand_in_order(tmp_path):
    """Whatever order the points ran in, rows stand by shards and batch; each ratio names what it is against."""
    points = [
        choices(shards=shards, batch_size=batch)
        for shards, batch in ((2, 4), (1, 8), (2, 8), (1, 4))
    ]
    made = [Made([Gpu(f"GPU-{rank}") for rank in range(point["shards"])]) for point in points]
    sweep = measured(tmp_path, *made, points=points)
    assert [(row["shards"], row["batch_size"]) for row in cost_table(sweep)] == [
        ("1", "4"),
        ("1", "8"),
        ("2", "4"),
        ("2", "8"),
    ]
    text = body(report(sweep))
    assert "<th>batch size</th><th>shards</th><th>against</th>" in text
    by_shards = text.partition("<h3>shards</h3>")[2].partition("</table>")[0]
    assert "<tr><td>4</td><td>2</td><td>1</td>" in by_shards
    assert by_shards.index("<tr><td>4</td>") < by_shards.index("<tr><td>8</td>")


def of_two_kinds(tmp_path):
    """1,700 J measured on a GPU, and as many simulated of a host, each at a batch size of its own."""
    points = [choices(batch_size=4), choices(batch_size=8)]
    gpu = Made([Gpu("GPU-a", constant(200.0))])
    host = Made([Gpu("host-node1", constant(200.0))], source="simulated", boundary="host")
    return measured(tmp_path, gpu, host, points=points)


def test_simulated_joules_are_not_added_to_measured_ones(tmp_path):
    """The page tells 1,700 J (gpu) and ~1,700 J (host) apart, and no ratio of the two."""
    sweep = of_two_kinds(tmp_path)
    text = body(report(sweep))
    assert "<b>1,700 ± 120 J (gpu), ~1,700 J (host)</b>" in text
    assert "3,400" not in text
    assert "J/token, ratio" not in text
    with pytest.raises(RefusedError, match=r"several kinds \(gpu, host, simulated\)"):
        sweep.compare("batch_size")
    assert len(sweep.compare("batch_size", "tokens_per_s")) == 2


def test_hostile_words_stay_words(tmp_path):
    """A label that holds markup, or the end of a script, is shown and not obeyed."""
    point = choices(model__name="</script><img src=x onerror=alert(1)>")
    page = report(measured(tmp_path, Made([Gpu("GPU-a")]), points=[point])).read_text()
    assert "<img src=x" not in page
    assert "&lt;img" in page


def test_the_figures_stand_in_the_page_as_json(tmp_path):
    """70 W over 8.5 s and 200 tokens are 595 J and 2.975 J/token, also where a label ends a script."""
    point = choices(model__name="</script><b>")
    page = report(measured(tmp_path, Made([Gpu("GPU-a")]), points=[point])).read_text()
    held = read_figures(page)
    assert held["version"] == 3
    assert held["cards"]["energies"] == [
        {
            "energy_j": pytest.approx(595.0),
            "boundary": "gpu",
            "simulated": False,
            "expanded_u_j": pytest.approx(2 * 8.5 * METERED.u(70.0, 1.0), rel=1e-3),
        }
    ]
    (row,) = held["results"]
    assert row["chosen"] == {"model": "</script><b>"}
    assert row["means"]["energy_per_token_j"] == {"mean": pytest.approx(2.975), "sd": None}


def test_a_page_from_before_has_no_figures():
    """A report of an older version holds no JSON of figures, which is no error."""
    assert (
        read_figures("<html><script id='specs' type='application/json'>[]</script></html>") is None
    )


def test_what_a_page_shows_is_read_piece_by_piece():
    """Text of the elements that show figures, by their ids; that of others is left out."""
    page = "<section id='cards'><b>8\n of 9</b> <b>~3 J</b></section><section><b>x</b></section>"
    assert texts(page) == {"cards": ["8 of 9", "~3 J"]}


def test_a_sweep_without_numbers_has_a_report(tmp_path):
    """Where nothing counts yet the report says so."""
    directory = make_sweep(tmp_path / "s", [choices()])
    collect(directory)
    assert "nothing to draw" in body(report(wattflow.open_sweep(directory.path)))


def test_caps_against_the_highest(tmp_path):
    """300 W takes 1.25 times as long as 400 W at 0.8 times the energy: +25 %, -20 %, by hand; the cap bound."""
    points = [choices(control__power_limit_w=cap) for cap in (400, 300)]
    attempts = [
        Made([Gpu("GPU-a", constant(390.0))], batches=1, limit_w=400.0),
        Made([Gpu("GPU-a", constant(249.6))], batches=1, decode_s=4.0, limit_w=300.0),
    ]
    text = body(report(measured(tmp_path, *attempts, points=points)))
    assert "<h2>Power caps</h2>" in text
    assert "+25.00" in text
    assert "-20.00" in text
    assert "Best: energy: 300 W (not established)" in text
    assert "energy x time²: 400 W" in text


def test_boards_under_the_reference_load(tmp_path):
    """A board at 84 W beside one at 76 W is 1.05 of their mean, and the page says what that may be."""
    made = [
        Made([Gpu(f"GPU-{watts}", constant(float(watts)))], reference_s=1.0) for watts in (76, 84)
    ]
    opened = measured(tmp_path, *made)
    boards = opened.boards()
    assert boards["relative"].to_list() == pytest.approx([1.05, 0.95])
    own = [2 * METERED.relative_u(watts) * watts for watts in (84.0, 76.0)]
    assert boards["power_expanded_u_w"].to_list() == pytest.approx(own)
    text = body(report(opened))
    assert "<h2>Boards</h2>" in text
    assert with_doubt(84.0, own[0]) in text
    assert "<h2>Boards</h2>" not in body(report(measured(tmp_path / "none", Made([Gpu("GPU-a")]))))


SCRIPT = "</script><script>document.title='owned'</script>"
PAYLOAD = f"{SCRIPT}<img src=x onerror=\"document.title='owned'\"><style>*{{color:red}}</style>[x](javascript:1)"
UNSEEN = "\x1b\x07\u202e\u2066\u200b\u3164"  # none of it may stand on a page
PAYLOAD += f"{UNSEEN}]52;c;eA=="
# what a page looks up or computes with, and so is no free text
VOCABULARY = {"point_id", "status", "reasons", "command", "cluster_cost", "versions", "engine_info"}


def foul(rows):
    """Put the payload into each column of text of a table of results."""
    for row in rows:
        for column, value in row.items():
            if column in VOCABULARY:
                continue
            if isinstance(value, str) or (value is None and column in TEXTS):
                row[column] = PAYLOAD
            elif isinstance(value, list) and value and isinstance(value[0], str):
                row[column] = [PAYLOAD] * len(value)
        if row.get("versions"):
            row["versions"] = json.dumps({PAYLOAD: PAYLOAD})


TEXTS = {field.name for field in POINT if pa.types.is_string(field.type)}


def test_a_payload_in_every_text_column_stays_text(tmp_path):
    """Markup in all columns of text of the results, names of sensors and boundaries too, is escaped in the page."""
    opened = measured(tmp_path, Made([Gpu("GPU-a")]), Made([Gpu("GPU-a")], status="failed"))
    edit(opened.directory.points_path, foul)
    page = report(wattflow.open_sweep(opened.directory.path)).read_text()
    assert "&lt;/script&gt;&lt;script&gt;document.title" in page
    for raw in (SCRIPT, "<img src=x", "<style>*"):
        assert raw not in page
    held = json.dumps(read_figures(page), ensure_ascii=False)
    assert "onerror" in held
    assert not set(UNSEEN).intersection(held)


@pytest.mark.chromium
def test_what_came_in_by_the_results_runs_in_no_browser(tmp_path):
    """A page of foul results runs nothing of theirs; a script that came past escaping is stopped by its policy."""
    opened = measured(tmp_path, Made([Gpu("GPU-a")]))
    edit(opened.directory.points_path, foul)
    page = report(wattflow.open_sweep(opened.directory.path))
    dom, console = in_browser(page, tmp_path / "profile")
    assert "<title>owned" not in dom
    assert not set(UNSEEN).intersection(dom)
    assert console == []
    assert "<svg" in dom
    page.write_text(page.read_text().replace("<body>", f"<body>{PAYLOAD}"))
    dom, console = in_browser(page, tmp_path / "profile")
    assert "<title>owned" not in dom
    assert any("Content Security Policy" in line for line in console)
    page.write_text(page.read_text().replace("Content-Security-Policy", "none"))
    dom, _ = in_browser(page, tmp_path / "profile")
    assert "<title>owned" in dom
