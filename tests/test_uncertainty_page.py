"""docs/uncertainty.md says what docs/measurements/uncertainty.json says, and the row by hand comes out by hand."""

import json
import math
import re
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from wattflow.energy.boards import METERED
from wattflow.nullable import with_doubt

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "uncertainty.md").read_text()
FOUND = json.loads((DOCS / "measurements" / "uncertainty.json").read_text())
ROW = FOUND["row"]


def cell(name, section="## A row by hand"):
    """The number beside a name in a section's table."""
    of = PAGE[PAGE.index(section) :]
    return float(re.search(rf"^\| {re.escape(name)} \| (-?[\d.]+) \|", of, re.MULTILINE)[1])


def test_the_row_is_the_shipped_bundles():
    """Each number of the JSON stands in points.parquet of the bundle."""
    with (
        zipfile.ZipFile(DOCS / "bundles" / "llama-7b-h100.zip") as packed,
        packed.open("sweep/results/points.parquet") as file,
    ):
        rows = pq.read_table(file).to_pylist()
    (row,) = [row for row in rows if row["point_id"] == ROW["point_id"]]
    assert {name: row[name] for name in ROW if name != "from"} == {
        name: value for name, value in ROW.items() if name != "from"
    }


@pytest.mark.parametrize("name", ["sampling", "edges", "response", "aliasing", "gain", "offset"])
def test_each_input_of_the_row_is_the_jsons(name):
    """To the digits that the page has."""
    column = f"board_{name}_u_j" if name in ("gain", "offset") else f"{name}_u_j"
    shown = cell(name)
    assert shown == pytest.approx(ROW[column], abs=0.06 if shown > 10 else 0.006)


def test_gain_and_offset_come_out_by_hand():
    """By the fit's own numbers: gain, offset, their covariance, all of it together and doubled."""
    energy_j, seconds = ROW["energy_j"], ROW["duration_s"]
    gain_j = energy_j * math.sqrt(0.00984**2 + 0.03657**2 * 20 / 19)
    offset_j = seconds * math.sqrt(0.858**2 + 5.870**2 * 20 / 19)
    shared_j2 = 2 * energy_j * seconds * (0.00984 * 0.858 - 0.5483 * 0.03657 * 5.870 * 20 / 19)
    assert cell("gain") == pytest.approx(gain_j, abs=0.06)
    assert cell("offset") == pytest.approx(offset_j, abs=0.06)
    assert cell("gain with offset") == pytest.approx(-math.sqrt(-shared_j2), abs=0.06)
    own_j2 = sum(ROW[f"{name}_u_j"] ** 2 for name in ("sampling", "edges", "response", "aliasing"))
    combined_j = math.sqrt(own_j2 + gain_j**2 + offset_j**2 + shared_j2)
    assert cell("combined, k = 1") == pytest.approx(combined_j, abs=0.06)
    assert cell("expanded, k = 2") == pytest.approx(ROW["energy_expanded_u_j"], abs=0.6)


def test_what_is_printed_of_the_row():
    """As the one door prints them."""
    for value, doubt, unit in (
        ("energy_j", "energy_expanded_u_j", "J"),
        ("power_w", "power_expanded_u_w", "W"),
        ("energy_per_token_j", "energy_per_token_expanded_u_j", "J/token"),
    ):
        assert with_doubt(ROW[value], ROW[doubt], unit) in PAGE


def test_shares_at_constant_watts():
    """10.8 % at 100 W, 8.0 at 150, 6.8 at 250 and 350, 7.0 at 600."""
    shares = [200 * METERED.relative_u(watts) for watts in (100, 150, 250, 350, 600)]
    assert [round(share, 1) for share in shares] == [10.8, 8.0, 6.8, 6.8, 7.0]
    assert "10.8 % at 100 W, 8.0 % at 150 W, 6.8 % at\n250 to 350 W and 7.0 % at 600 W" in PAGE


def test_the_simulations_are_the_jsons():
    """Of 5,000 sweeps each, and each bounded by 5 % + 2 deviations."""
    found = FOUND["simulations"]
    assert found["sweeps"] == 5000
    most = 100 * (0.05 + 2 * math.sqrt(0.05 * 0.95 / 5000))
    one_board = list(found["false_on_one_board_pct"].values())
    assert ", ".join(f"{value:.1f}" for value in one_board) + " % |" in PAGE
    assert max(one_board) <= most
    assert f"| break-even on one board | 95 % | {found['break_even_coverage_pct']} % |" in PAGE
    for one in found["drift_and_jobs"]:
        assert one["false_pct"] <= most
        if one["without_pct"] > 50:
            assert f"| {one['false_pct']} % ({one['without_pct']} %" in PAGE


def test_the_rows_of_the_h200_are_the_jsons():
    """Watts and J/token of each of the four with their doubt; all count, and none has a remark but on its text."""
    found = json.loads((DOCS / "measurements" / "metrology-h200.json").read_text())
    rows = [row for of in found["sweeps"].values() for row in of]
    assert len(rows) == 4
    for row in rows:
        watts = with_doubt(row["power_w"], row["power_expanded_u_w"])
        joules = with_doubt(row["energy_per_token_j"], row["energy_per_token_expanded_u_j"])
        assert f"| {watts} | {joules} | {100 * (row['counter_ratio'] - 1):+.2f} % | none |" in PAGE
        assert row["counts"]
        assert row["reasons"] == ["dummy_text"]
