"""What a sweep's attempts took and cost, from factors that a site declares, against numbers worked out by hand."""

import json
from datetime import UTC, datetime

import pytest
from sweeps import START_NS, Gpu, Made, choices, constant, make_attempt, make_sweep

import wattflow
from wattflow.analysis.costs import factor_lines
from wattflow.cli.app import main
from wattflow.collect.collect import collect
from wattflow.config.choices import Cost
from wattflow.config.overrides import with_cost
from wattflow.errors import RefusedError
from wattflow.plan.grid import plan
from wattflow.report.page import report
from wattflow.report.terminal import cost_table

DECLARED = {
    "cluster__cost__price_per_kwh": 0.25,
    "cluster__cost__currency": "EUR",
    "cluster__cost__price_source": "tariff of 2026",
    "cluster__cost__carbon_g_per_kwh": 400.0,
    "cluster__cost__carbon_source": "grid operator, mean of 2025",
    "cluster__cost__pue": 1.5,
    "cluster__cost__pue_source": "data centre's own meters",
}


def run(monkeypatch, *words):
    """The exit code of a command."""
    monkeypatch.setattr("sys.argv", ["wattflow", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Batches of 2 at 100 W and 80 s, of 4 at 300 W and 40 s; the same 200 tokens each, two repeats."""
    points, made = [], []
    for size, watts, decode_s in ((2, 100.0, 35.0), (4, 300.0, 15.0)):
        for repeat in range(2):
            points.append(choices(batch_size=size, repeat=repeat, **DECLARED))
            gpu = Gpu("GPU-a", constant(watts))
            made.append(
                Made([gpu], decode_s=decode_s, prefill_s=4.75, idle_after_s=1.0, after_s=1.2)
            )
    directory = make_sweep(tmp_path_factory.mktemp("sweeps") / "s", points)
    for point, one in zip(points, made, strict=True):
        make_attempt(directory, point, one)
    collect(directory)
    return wattflow.open_sweep(directory.path)


def test_a_comparison_has_its_break_even(sweep):
    """80 s at 100 W against 40 s at 300 W for the same tokens: 8 kJ and 12 kJ, so 4 kJ / 40 s = 100 W."""
    base, other = sweep.compare("batch_size", reference=2).to_dicts()
    assert base["break_even_host_w"] is None
    assert other["break_even_host_w"] == pytest.approx(100.0, rel=1e-3)
    assert other["break_even_why_not"] is None


def test_the_break_even_stands_in_table_and_page(sweep, monkeypatch, capsys):
    """`wattflow compare` and the report's section show 100 W beside the ratio of 1.5."""
    assert run(monkeypatch, "compare", sweep.directory.path, "--by", "batch_size") == 0
    head, _, other = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    # repeats do not scatter; one board's gain and offset are unknown
    assert other[head.index("break-even host, W")] == "100 (81.8 to 118)"
    page = report(sweep).read_text()
    assert '<td>4</td><td>2</td><td class="n">1.500</td>' in page  # a batch of 4, against 2
    assert '<td class="n">100 (81.8 to 118)</td>' in page
    assert "from tariff of 2026" in page


def test_cost_of_a_sweep(sweep, monkeypatch, capsys):
    """Both repeats at 100 W: 3 s before, 80 s and 1 s after, 84 s each; price, carbon and their sources beside them."""
    rows = [row for row in sweep.cost().to_dicts() if row["energy_kwh"] < 0.003]
    assert len(rows) == 2
    kwh = 84 * 100 / 3.6e6
    for row in rows:
        assert row["energy_kwh"] == pytest.approx(kwh, rel=1e-3)
        assert row["facility_energy_kwh"] == pytest.approx(1.5 * kwh, rel=1e-3)
        assert row["price"] == pytest.approx(1.5 * kwh * 0.25, rel=1e-3)
        assert row["carbon_g"] == pytest.approx(1.5 * kwh * 400, rel=1e-3)
        assert row["gpu_hours"] == pytest.approx(60 / 3600)
        assert row["price_source"] == "tariff of 2026"
        assert row["pue_source"] == "data centre's own meters"
        # 8,000 J over 200 tokens are 40 J a token
        assert row["carbon_g_per_million_tokens"] == pytest.approx(40e6 / 3.6e6 * 600, rel=1e-3)
    first, _ = cost_table(sweep)
    assert (first["attempts"], first["unknown"], first["boundary"]) == ("2", "0", "gpu")
    assert run(monkeypatch, "cost", sweep.directory.path) == 0
    shown = capsys.readouterr()
    assert "g / M tokens" in shown.out
    assert "carbon: 400 g a kWh, from grid operator, mean of 2025" in shown.err
    assert "price: 0.25 EUR a kWh, from tariff of 2026" in shown.err


def test_a_factor_is_replaced_by_a_table(sweep, tmp_path):
    """--set takes the profile's constant away for a table; an attempt that the table does not cover says so."""
    began = datetime.fromtimestamp(START_NS / 1e9, UTC)
    path = tmp_path / "carbon.csv"
    path.write_text(f"time,g_per_kwh\n{began.replace(minute=0, second=0).isoformat()},80\n")
    words = [f"cluster.cost.carbon_path={path}", "cluster.cost.carbon_source=hourly of the grid"]
    row = sweep.cost(words).to_dicts()[0]
    assert row["carbon_g_per_kwh"] == 80.0
    assert row["carbon_source"] == "hourly of the grid"
    assert "carbon: 80 g a kWh, from hourly of the grid" in factor_lines(sweep, words)
    path.write_text("time,g_per_kwh\n2020-01-01T00:00:00Z,80\n")
    row = sweep.cost(words).to_dicts()[0]
    assert (row["carbon_g"], row["price"] is None) == (None, False)
    assert row["why_not"] == "carbon_g_per_kwh: its table does not cover the attempt"
    short = "carbon: the table from hourly of the grid does not cover 4 of 4 attempts"
    assert short in factor_lines(sweep, words)


def test_a_page_in_place_of_a_table(sweep, tmp_path):
    """What a browser saved, with a line longer than any of a CSV: one line that names the file."""
    path = tmp_path / "prices.csv"
    path.write_text("time,g_per_kwh\n" + "<p>" * 50_000)
    words = [f"cluster.cost.carbon_path={path}", "cluster.cost.carbon_source=grid"]
    with pytest.raises(RefusedError, match=r"prices\.csv: field larger than"):
        sweep.cost(words)


def test_what_was_simulated_is_marked(tmp_path):
    """Simulated kWh, price and carbon carry a ~, GPU-hours are none, as there is no GPU."""
    point = choices(**DECLARED)
    sweep = make_sweep(tmp_path / "s", [point])
    gpu = Gpu("host-node1")
    make_attempt(sweep, point, Made([gpu], source="simulated", boundary="host", counter=False))
    collect(sweep)
    (row,) = cost_table(wattflow.open_sweep(sweep.path))
    assert row["GPU-hours"] == "-"
    assert all(row[name].startswith("~") for name in ("kWh", "kWh x PUE", "price", "g CO2e"))


def test_costs_change_no_id():
    """Factors are no part of the point_id: they change nothing that runs."""
    (plain,) = plan(["n_prompts=8", "sweep.repeats=1"]).points
    words = ["cluster.cost.carbon_g_per_kwh=56", "cluster.cost.carbon_source=x"]
    (priced,) = plan(["n_prompts=8", "sweep.repeats=1", *words]).points
    assert plain.point_id == priced.point_id
    assert priced.config.cluster.cost.carbon_g_per_kwh == 56.0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["cluster.cost.price_per_kwh=0.3"], "say where it comes from"),
        (["cluster.cost.pue=1.2"], "pue_source"),
        (["cluster.cost.carbon_path=a.csv"], "carbon_source"),
        (
            ["cluster.cost.price_per_kwh=0.3", "cluster.cost.price_source=x"],
            "in which currency",
        ),
        (["cluster.cost.pue=0.9", "cluster.cost.pue_source=x"], "at least 1"),
        (["cluster.cost.carbon_g_per_kwh=-1"], "at least 0"),
    ],
)
def test_a_factor_names_its_source(words, why):
    """A plan and a cost with a factor of unknown origin, or one that cannot be, are refused."""
    with pytest.raises(RefusedError, match=why):
        plan(words)
    with pytest.raises(RefusedError, match=why):
        with_cost(Cost(), words)


def test_a_factor_that_is_told_twice():
    """A constant and a table for one factor are refused in a profile."""
    words = ["cluster.cost.carbon_g_per_kwh=1", "cluster.cost.carbon_path=a.csv"]
    with pytest.raises(RefusedError, match="declare one of them"):
        plan([*words, "cluster.cost.carbon_source=x"])


@pytest.mark.parametrize("word", ["price=3", "cluster.cost.colour=1", "cluster.cost.pue", "pue=2"])
def test_a_setting_that_is_none(word):
    """Another key than those of cluster.cost is refused with the list of them."""
    with pytest.raises(RefusedError, match=r"one of cluster\.cost\.price_per_kwh"):
        with_cost(Cost(), [word])


def test_null_takes_a_factor_away():
    """A profile's PUE is taken away by null; a number that is none is refused."""
    assert with_cost(Cost(pue=1.2, pue_source="x"), ["cluster.cost.pue=null"]).pue is None
    with pytest.raises(RefusedError, match="takes a number"):
        with_cost(Cost(), ["cluster.cost.pue=much"])


def test_a_table_that_is_not_there(sweep, tmp_path, monkeypatch, capsys):
    """A path to nothing ends with code 2 and one line that says what is wanted."""
    words = ["--set", f"cluster.cost.price_path={tmp_path}/none.csv"]
    assert run(monkeypatch, "cost", sweep.directory.path, *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "No such file" in line
    assert "time (ISO 8601" in line


def test_json_has_every_attempt(sweep, monkeypatch, capsys):
    """`wattflow cost --json` prints a row an attempt with all columns."""
    assert run(monkeypatch, "cost", sweep.directory.path, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 4
    assert {"point_id", "attempt", "energy_kwh", "carbon_source"} <= set(rows[0])
