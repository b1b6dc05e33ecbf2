"""The report: offline, readable, honest about what was simulated, and without an error in a real browser."""

import json
import os
import re
import shutil
import subprocess
import zipfile

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from processes import bound
from sweeps import Gpu, Made, choices, constant, demo, make_attempt, make_sweep

import wattflow
from wattflow.analysis.axes import varying
from wattflow.analysis.tables import number
from wattflow.collect.collect import collect
from wattflow.errors import RefusedError
from wattflow.publish.bundle import bundle
from wattflow.report import methods
from wattflow.report.page import cost_table, report, table
from wattflow.store.tables import write_table

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=10000",
    "--enable-logging=stderr",
    "--v=0",
]


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


def measured(tmp_path, *attempts, points=None):
    """A collected sweep of measured attempts, a point each unless told."""
    points = points or [choices(seed=i) for i in range(len(attempts))]
    directory = make_sweep(tmp_path / "s", points)
    for point, made in zip(points, attempts, strict=True):
        make_attempt(directory, point, made)
    collect(directory)
    return wattflow.open_sweep(directory.path)


def body(path):
    """The page without its scripts."""
    return re.sub(r"<script.*?</script>", "", path.read_text(), flags=re.DOTALL)


def test_axes_are_what_varies(sweep):
    """Shards and batch size tell the points apart; what follows from them, and repeats, do not."""
    assert varying(sweep.points.filter("counts")) == ["shards", "batch_size"]


def test_table_of_means(sweep):
    """Each combination has one row over its two repeats, its simulated watts and joules marked."""
    rows = table(sweep)
    assert [(row["shards"], row["batch_size"], row["n"]) for row in rows[:4]] == [
        ("1", "4", "2"),
        ("1", "8", "2"),
        ("2", "4", "2"),
        ("2", "8", "2"),
    ]
    for heading in ("W", "J/token", "J/response"):
        assert all(row[heading].startswith("~") for row in rows[:4])
    assert not rows[0]["tokens/s"].startswith("~")


def test_table_says_why_there_is_no_number(sweep):
    """Points that failed or cannot run have `-`, and why in place of a sensor."""
    rows = table(sweep)[4:]
    assert [row["J/token"] for row in rows] == ["-", "-"]
    assert [row["source"] for row in rows] == ["failed", "infeasible"]


def test_measured_watts_carry_no_mark(tmp_path):
    """70 W over 200 tokens in 10 s, from the buffer, print as 70.0 W and 3.50 J/token."""
    made = Made([Gpu("GPU-a")], decode_s=3.5, pause_s=1.0)
    (row,) = table(measured(tmp_path, made))
    assert (row["W"], row["J/token"], row["source"]) == ("70.0", "3.50", "nvml_buffer (gpu)")


def test_means_leave_out_what_does_not_count(tmp_path):
    """Of three repeats at 70, 80 and a failed one, n is 2 and the mean is 75 W."""
    points = [choices(repeat=i) for i in range(3)]
    made = [Made([Gpu("GPU-a", constant(w))]) for w in (70.0, 80.0)]
    sweep = measured(tmp_path, *made, Made([Gpu("GPU-a")], status="failed"), points=points)
    (row,) = table(sweep)
    assert (row["n"], row["W"]) == ("2", "75.0")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.01234, "0.0123"),
        (1.1, "1.10"),
        (85.66, "85.7"),
        (99.98, "100"),
        (12345.6, "12,346"),
    ],
)
def test_numbers_read_well(value, text):
    """Three digits, or all before the point with commas."""
    assert number(value) == text


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
    assert re.findall(r"<th class=n>([^<]*)", section) == heads
    assert re.findall(r"<td class=n>([^<]*)", section) == ["90.0", "40.0"]


def test_no_use_is_shown_that_no_sensor_told(tmp_path):
    """A trace of watts alone knows of no activity."""
    assert use_of(tmp_path, lambda t: t.filter(pc.is_null(t["gpu_activity_pct"]))) is None


def test_the_page_says_consistency(tmp_path):
    """Beside the agreement with the counter stands that it is consistency, not accuracy."""
    path = report(measured(tmp_path, Made([Gpu("GPU-a")])))
    text = body(path)
    assert "100 to 100 % of the hardware energy counter" in text
    assert text.count("consistency, not accuracy") == 2  # there, and over the figures
    assert "whose gain may be off by about 5 %" in path.read_text()  # in the timeline's title


def test_simulated_watts_have_no_gain(page):
    """Arithmetic has no sensor whose gain could be off."""
    assert "whose gain" not in page.read_text()
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
    assert "<td class=n>~0.000" in text


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


def test_a_line_leads_through_numbers_only(tmp_path):
    """Batch sizes are joined by a line; between two models there is nothing that one could lead through."""
    for name, points, joined in (
        ("sizes", [choices(batch_size=4), choices(batch_size=8)], True),
        ("models", [choices(model__name="a"), choices(model__name="b")], False),
    ):
        made = [Made([Gpu("GPU-a")]) for _ in points]
        page = report(measured(tmp_path / name, *made, points=points)).read_text()
        specs = page.partition('<script id="specs"')[2].partition("</script>")[0]
        by_choice = json.loads(specs.partition(">")[2])[0]
        assert ('"line"' in json.dumps(by_choice)) == joined


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
    assert "<b>1,700 J (gpu), ~1,700 J (host)</b>" in text
    assert "3,400" not in text
    assert "J/token, ratio" not in text
    with pytest.raises(RefusedError, match=r"several kinds \(gpu, host, simulated\)"):
        sweep.compare("batch_size")
    assert len(sweep.compare("batch_size", "tokens_per_s")) == 2


def test_a_bundle_adds_neither(tmp_path):
    """README.md and the means of METHODS.md keep them apart too, also where they are repeats of one setting."""
    rows = [
        {**row, "batch_size": 4, "repeat": i}
        for i, row in enumerate(of_two_kinds(tmp_path).points.to_dicts())
    ]
    bundle(of_two_kinds(tmp_path / "again").directory, tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip") as packed:
        assert "1,700.0 J (gpu), ~1,700.0 J (host)" in packed.read("README.md").decode()
    _, *means = methods.table(rows)
    assert [line[-1] for line in means] == ["1700", "~1700"]


def test_hostile_words_stay_words(tmp_path):
    """A label that holds markup, or the end of a script, is shown and not obeyed."""
    point = choices(model__name="</script><img src=x onerror=alert(1)>")
    page = report(measured(tmp_path, Made([Gpu("GPU-a")]), points=[point])).read_text()
    assert "<img src=x" not in page
    assert "&lt;img" in page


def test_a_sweep_without_numbers_has_a_report(tmp_path):
    """Where nothing counts yet the report says so."""
    directory = make_sweep(tmp_path / "s", [choices()])
    collect(directory)
    assert "nothing to draw" in body(report(wattflow.open_sweep(directory.path)))


def in_browser(page, profile):
    """The page as Chromium renders it, and what its console said."""
    if BROWSER is None:
        if "chromium" in os.environ.get("WATTFLOW_REQUIRE", ""):
            pytest.fail("WATTFLOW_REQUIRE asks for Chromium, and none is on the PATH")
        pytest.skip("no Chromium on the PATH")
    done = subprocess.run(
        bound(BROWSER, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", f"file://{page}"),
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    dom = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
    return dom, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


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
    assert opened.boards()["relative"].to_list() == pytest.approx([1.05, 0.95])
    assert "<h2>Boards</h2>" in body(report(opened))
    assert "<h2>Boards</h2>" not in body(report(measured(tmp_path / "none", Made([Gpu("GPU-a")]))))


@pytest.mark.chromium
def test_renders_without_a_console_error(page, tmp_path):
    """In headless Chromium the figures are drawn as SVG, with points and phases, and the console stays silent."""
    dom, console = in_browser(page, tmp_path)
    assert console == []
    assert dom.count("<svg") == 2  # by choice, and the one timeline that is unfolded
    assert "output tokens/s" in dom
    assert "could not be drawn" not in dom


@pytest.mark.chromium
def test_a_many_sided_sweep_renders(tmp_path):
    """Two models, datasets, shards and batch sizes, several GPUs on two nodes: panels and colours are drawn."""
    points = [
        choices(model__name=model, dataset__name=dataset, shards=shards, batch_size=batch)
        for model in ("7b", "13b")
        for dataset in ("alpaca", "gsm8k")
        for shards in (2, 4)
        for batch in (16, 32)
    ]
    made = [
        Made(
            [Gpu(f"GPU-{i}", constant(60.0 + 9 * i), f"node{i % 2}") for i in range(p["shards"])],
            period_s=0.05,
        )
        for p in points
    ]
    page = report(measured(tmp_path, *made, points=points))
    dom, console = in_browser(page, tmp_path / "profile")
    assert console == []
    assert dom.count("<svg") == 2
    assert "gsm8k" in dom
