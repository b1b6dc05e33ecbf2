"""The cells of figures and tables from rows that are known: Table III to the printed digits, and gaps with reasons."""

import pytest
from paper_sweeps import ENERGY, RATE, TIME, table_three, write_rows

from wattflow.paper.cells import NOT_RUN, cells
from wattflow.paper.objects import OBJECTS
from wattflow.paper.results import found


def of_rows(folder, name, grid, rows):
    """The cells of one object on rows of its grid."""
    write_rows(folder, grid, rows)
    ((one,), _) = found("full", folder)
    return cells(OBJECTS[name], one)


def test_table_three_to_the_printed_digits(tmp_path):
    """Each of its eighteen cells, and the means: 19.56 % at 150 W, where the text says 19.49."""
    table_three(tmp_path)
    ((one,), _) = found("full", tmp_path)
    made = {(c.metric.column, c.series, c.x): c for c in cells(OBJECTS["table3"], one)}
    for metric, table in (("time", TIME), ("energy", ENERGY), ("rate", RATE)):
        for length, changes in table.items():
            for cap, change in zip(("175", "150"), changes, strict=True):
                cell = made[metric, cap, str(length)]
                assert f"{cell.value.mean:.2f}" == f"{change:.2f}"
                ((published, low, high),) = cell.ratios()
                assert published.value == change
                assert low == high == pytest.approx(1.0)
    means = {(m, cap): made[m, cap, "mean"].value.mean for m, cap, x in made if x == "mean"}
    assert f"{means['time', '175']:.2f}" == "6.71"
    assert f"{means['time', '150']:.2f}" == "19.56"
    assert f"{means['energy', '175']:.2f}" == "-23.21"
    assert [one.value for one in made["time", "150", "mean"].published] == [19.49]


def test_a_cap_that_was_not_in_force_is_a_gap_with_its_reason(tmp_path):
    """Withheld rows have no number, and the means over lengths have none either."""
    table_three(tmp_path, counts=False, valid=False, reasons=["not_applied"])
    ((one,), _) = found("full", tmp_path)
    made = cells(OBJECTS["table3"], one)
    assert {cell.value.mean for cell in made} == {None}
    assert all("was not in force on every GPU" in str(cell.value.reason) for cell in made)


def scaling_rows(**of_two):
    """65B's analogue over 1 and 2 shards and two batches, on gsm8k, two repeats each; 2 shards as given."""
    base = {"tokens_per_s": 10.0, "energy_expanded_u_j": 10.0, "power_expanded_u_w": 1.0}
    return [
        (
            {
                "dataset__name": "gsm8k",
                "shards": s,
                "batch_size": b,
                "max_gen_len": 128,
                "repeat": k,
            },
            {
                **base,
                "duration_s": 10.0,
                "energy_j": 1000.0 * s + 20.0 * k,
                **(of_two if s == 2 else {}),
            },
        )
        for s in (1, 2)
        for b in (16, 64)
        for k in (0, 1)
    ]


def test_ours_stands_by_place_beside_the_papers(tmp_path):
    """The least of our shards beside its 8; what it had and we had not is a gap; means over repeats."""
    made = of_rows(tmp_path, "fig4", "paper-scaling", scaling_rows())
    by = {(c.dataset, c.series, c.x): c for c in made}
    first = by["gsm8k", "64", "8"]
    assert (first.here, first.here_x) == ("batch size 16, shards 1", "1")
    assert first.value.mean == pytest.approx(101.0)  # 100 and 102 W
    assert first.value.n == 2
    # the sensors' 1 W that repeats share, and their scatter: 2 sd / sqrt(2) = 2 W
    assert first.value.high - first.value.mean == pytest.approx((1.0 + 2.0**2) ** 0.5)
    ((published, low, high),) = first.ratios()
    assert (published.value, published.tag, published.gpu) == (300.0, "text", "V100")
    assert low == high == pytest.approx(101.0 / 300.0)
    assert by["gsm8k", "64", "32"].value.reason == NOT_RUN
    assert by["alpaca", "64", "8"].value.reason == NOT_RUN
    (none,) = by["gsm8k", "64", "16"].published
    assert (none.value, none.tag) == (None, "bar_not_readable")


def test_a_range_has_two_ratios(tmp_path):
    """3 to 4 J a token in the text: ours over each end."""
    rows = [(c, {**m, "energy_per_token_j": 1.2}) for c, m in scaling_rows()]
    made = of_rows(tmp_path, "fig6", "paper-scaling", rows)
    first = next(c for c in made if (c.dataset, c.series, c.x) == ("gsm8k", "64", "8"))
    ((_, low, high),) = first.ratios()
    assert (low, high) == pytest.approx((0.3, 0.4))


@pytest.mark.parametrize(
    ("measured", "reason"),
    [
        ({"status": "failed", "error": "no GPU"}, "failed: no GPU"),
        ({"status": "infeasible", "error": "too big"}, "infeasible: too big"),
        ({"status": "waiting"}, "not run yet"),
        ({"reasons": ["gap"]}, "Less than 99 % of the window was measured."),
    ],
)
def test_why_a_cell_has_no_number(tmp_path, measured, reason):
    """What failed, cannot run, was never tried or was withheld."""
    rows = scaling_rows(counts=False, valid=False, **measured)
    made = of_rows(tmp_path, "fig4", "paper-scaling", rows)
    cell = next(c for c in made if (c.dataset, c.series, c.x) == ("gsm8k", "64", "16"))
    assert (cell.value.mean, cell.value.reason) == (None, reason)


def test_joules_of_two_sensors_make_no_mean(tmp_path):
    """One repeat by the counter, one by the buffer."""
    rows = [(c, m | {"power_source": ("a", "b")[c["repeat"]]}) for c, m in scaling_rows()]
    made = of_rows(tmp_path, "fig4", "paper-scaling", rows)
    assert made[-1].value.mean is None
    reasons = {c.value.reason for c in made if c.dataset == "gsm8k"}
    assert "the joules of two kinds of sensor make no mean" in reasons


@pytest.mark.parametrize(("gib", "fits"), [(32.0, [1, 2, 8]), (80.0, [1, 1, 4])])
def test_table_two_by_the_memory_model(tmp_path, gib, fits):
    """The least hardware is the paper's, on both of its GPUs."""
    shapes = {
        "llama-7b": (4096, 32, 32, 11008),
        "llama-13b": (5120, 40, 40, 13824),
        "llama-65b": (8192, 80, 64, 22016),
    }
    rows = [
        (
            {
                "model__name": name,
                "model__dim": dim,
                "model__n_layers": layers,
                "model__n_heads": heads,
                "model__n_kv_heads": heads,
                "model__ffn_dim": ffn,
                "cluster__gpu_memory_gib": gib,
                "precision": "fp16",
            },
            {"status": "waiting", "counts": False},
        )
        for name, (dim, layers, heads, ffn) in shapes.items()
    ]
    made = of_rows(tmp_path, "table2", "paper-baseline", rows)
    least = [cell.value.mean for cell in made if cell.metric.column == "least_gpus"]
    assert least == fits
    gpu = "V100" if gib == 32.0 else "A100"
    published = [p.value for c in made[:3] for p in c.published if p.gpu == gpu]
    assert published == fits


def test_nothing_run_is_all_gaps():
    """Each object has its published cells, and none of ours."""
    for of in OBJECTS.values():
        made = cells(of, None)
        assert made
        assert {cell.value.reason for cell in made} == {NOT_RUN}
