"""Charts of settings: what stands on which axis, and what fills a template."""

import json

import pytest

from wattflow.analysis import charts, figures
from wattflow.analysis.charts import METRICS, Metric, Places
from wattflow.analysis.means import FIGURES, Mean, Setting
from wattflow.errors import RefusedError

TOKENS = Metric("tokens_per_s", "Throughput", "output tokens/s", power=False)
JOULES = METRICS[0]


def setting(value=100.0, sd=None, *, simulated=False, **chosen):
    """A setting of two repeats whose figures are all alike, but for their uncertainties of 3 %."""
    means = {
        name: Mean(0.03 * value if "expanded" in name and value else value, sd) for name in FIGURES
    }
    return Setting(chosen, "gpu", simulated, "nvml_buffer", 2, means, ["failed"])


def drawn(of, at, metric=TOKENS, view="lines", **more):
    """The specification of a chart."""
    return charts.fill(charts.templates()[view], charts.filling(view, of, at, metric, **more))


def test_the_number_with_most_values_stands_on_x():
    """Of two models and three batch sizes the sizes stand on x, the models have colours, and datasets panels."""
    of = [
        setting(dataset=d, model=m, batch_size=b)
        for d in ("alpaca", "gsm8k")
        for m in ("a", "b")
        for b in (1, 2, 4)
    ]
    axes = ["dataset", "model", "batch_size"]
    assert charts.places(of, axes) == Places("batch_size", "dataset", "model")


def test_what_is_no_other_work_has_its_colour_first():
    """Tokens of two datasets do not compete: precision is in colour, the dataset in panels."""
    of = [
        setting(dataset=d, precision=p, batch_size=b)
        for d in ("alpaca", "gsm8k")
        for p in ("bf16", "fp8")
        for b in (1, 2, 4)
    ]
    found = charts.places(of, ["dataset", "precision", "batch_size"])
    assert found == Places("batch_size", "precision", "dataset")


def test_a_choice_that_is_null_is_drawn_by_that_name():
    """Numbers in order of size, names in the grid's; what nobody asked for comes last."""
    of = [setting(cap=cap, name=name) for cap in (None, 300, 200) for name in (None, "b", "a")]
    assert charts.orders(of, "cap") == ["200", "300", "null"]
    assert charts.orders(of, "name") == ["b", "a", "null"]
    assert '"None"' not in json.dumps(drawn(of, Places("cap", "name")))


def test_bars_are_expanded_uncertainties_of_joules_and_deviations_of_rates():
    """100 J with 3 J expanded and a deviation of 4 over two repeats: hypot(3, 2 * 4 / sqrt 2); of a rate 4."""
    of = [setting(100.0, 4.0, batch_size=1)]
    (row,) = charts.filling("lines", of, Places("batch_size"), JOULES).rows
    assert row["high"] - 100 == pytest.approx((9 + 32) ** 0.5)
    (row,) = charts.filling("lines", of, Places("batch_size"), TOKENS).rows
    assert (row["low"], row["high"]) == (96.0, 104.0)


def test_simulated_joules_are_marked_and_rates_are_not():
    """Only what a sensor would measure carries a ~."""
    of = [setting(batch_size=1, simulated=True)]
    titles = [
        charts.filling("lines", of, Places("batch_size"), one).titles["value"] for one in METRICS
    ]
    assert [title for title in titles if not title.startswith("~")] == [
        "output tokens/s",
        "responses/s",
    ]


def test_a_line_leads_through_numbers_only():
    """Batch sizes are joined; between two models there is nothing that a line could lead through."""
    sizes = [setting(batch_size=4), setting(batch_size=8)]
    models = [setting(model="a"), setting(model="b")]
    for of, axis, marks in (
        (sizes, "batch_size", ["line", "rule", "point"]),
        (models, "model", ["rule", "point"]),
    ):
        layers = drawn(of, Places(axis))["spec"]["layer"]
        assert [layer["mark"]["type"] for layer in layers] == marks


def test_titles_and_orders_are_filled_in():
    """Axes are named by their choices; without a colour there is no legend; many values have shades, not hues."""
    of = [setting(batch_size=b, shards=s) for b in range(1, 13) for s in (1, 2)]
    point = drawn(of, Places("shards", "batch_size"))["spec"]["layer"][-1]["encoding"]
    assert (point["x"]["title"], point["color"]["title"]) == ("shards", "batch size")
    assert point["color"]["scale"]["scheme"] == "viridis"
    assert point["y"]["title"] == "output tokens/s"
    point = drawn(of, Places("batch_size"))["spec"]["layer"][-1]["encoding"]
    assert (point["color"]["legend"], point["x"]["sort"][-1]) == (None, "12")


def test_a_logarithmic_axis_has_no_bar_to_zero():
    """A bar that would reach below 0 begins at its middle."""
    spec = drawn([setting(1.0, 5.0, batch_size=1)], Places("batch_size"), log=True)
    scales = [layer["encoding"]["y"].get("scale") for layer in spec["spec"]["layer"]]
    assert {"type": "log"} in scales
    assert spec["datasets"]["settings"][0]["low"] == 1.0


def test_a_cell_without_a_number_says_why():
    """It stays on a heat map, as a gap with its reason."""
    of = [setting(batch_size=4, shards=1), setting(None, batch_size=4, shards=2)]
    rows = drawn(of, Places("batch_size", "shards"), view="map")["datasets"]["settings"]
    assert [(row["shown"], row["why"]) for row in rows] == [("100", None), ("-", "failed")]


def test_what_cannot_be_drawn_is_refused():
    """A choice that does not vary, and a figure that nobody has."""
    of = [setting(None, batch_size=1)]
    with pytest.raises(RefusedError, match="shards: does not vary here; batch_size do"):
        charts.filling("lines", of, Places("shards"), TOKENS)
    with pytest.raises(RefusedError, match="tokens_per_s: no setting has it"):
        charts.filling("lines", of, Places("batch_size"), TOKENS)


def test_a_front_has_its_intervals_and_states():
    """One repeat has no interval: both its ends are its middle; rows go along the other figure."""
    one = {"setting": "a", "state": "front", "value": 2.0, "low": None, "high": None}
    one |= {"other": 5.0, "other_low": 4.0, "other_high": 6.0}
    two = {**one, "setting": "b", "state": "dominated", "other": 1.0}
    spec = charts.front([one, two], "energy_per_token_j", "tokens_per_s", simulated=True)
    rows = spec["datasets"]["settings"]
    assert [(row["setting"], row["low"], row["high"]) for row in rows] == [
        ("b", 2.0, 2.0),
        ("a", 2.0, 2.0),
    ]
    encoding = spec["layer"][-1]["encoding"]
    assert encoding["y"]["title"] == "~ energy per token j"
    assert encoding["x"]["title"] == "tokens per s"


def test_files():
    """SVG with the words of its axes as text; PDF by its first bytes."""
    spec = drawn([setting(batch_size=4), setting(batch_size=8)], Places("batch_size"))
    assert "batch size" in figures.svg(spec)
    assert figures.pdf(spec).startswith(b"%PDF")
