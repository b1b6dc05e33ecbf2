"""METHODS.md: what was measured, in words, and means that keep apart what the report keeps apart."""

import zipfile

import pytest
from sweeps import Gpu, Made, choices, collected, constant

from wattflow.publish.bundle import bundle
from wattflow.report import methods
from wattflow.report.terminal import table


def means_of(packed):
    """The rows of the table in a bundle's METHODS.md, by heading."""
    with zipfile.ZipFile(packed) as members:
        text = members.read("METHODS.md").decode()
    heading, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [dict(zip(heading, line, strict=True)) for line in lines]


def test_two_profiles_are_two_rows(tmp_path):
    """One board at 1 J/token and one at 3, 200 tokens in 8.5 s each: two means of one, not `2 ± 1.4` of both."""
    points = [
        choices(cluster__name=f"site-{gpu}", cluster__gpu_model=gpu)
        for gpu in ("a100-sxm4-80gb", "h100-sxm5-80gb")
    ]
    made = [Made([Gpu("GPU-a", constant(energy_j * 200 / 8.5))]) for energy_j in (1.0, 3.0)]
    sweep = collected(tmp_path / "s", made, points)
    bundle(sweep.directory, tmp_path / "b.zip")
    rows = means_of(tmp_path / "b.zip")
    assert sorted((row["n"], row["energy_per_token_j"]) for row in rows) == [
        ("1", "1.00 ± 0.48"),
        ("1", "3.00 ± 0.45"),
    ]
    assert len({row["cluster"] for row in rows}) == 2
    # as the report has it
    assert sorted(row["J/token"] for row in table(sweep)) == ["1.00 ± 0.48", "3.00 ± 0.45"]
    assert "which differ in cluster, ran once." in methods.text(sweep.attempts.to_dicts(), [])


def test_measured_and_simulated_joules_are_added_nowhere(tmp_path):
    """README.md and METHODS.md keep 1,700 J of a GPU and as many simulated of a host apart, also in one setting."""
    gpu = Made([Gpu("GPU-a", constant(200.0))])
    host = Made([Gpu("host-node1", constant(200.0))], source="simulated", boundary="host")
    sweep = collected(tmp_path / "s", [gpu, host], [choices(batch_size=4), choices(batch_size=8)])
    bundle(sweep.directory, tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip") as packed:
        assert "1,700 ± 120 J (gpu), ~1,700.0 J (host)" in packed.read("README.md").decode()
    alike = [{**row, "batch_size": 4, "repeat": i} for i, row in enumerate(sweep.points.to_dicts())]
    _, *means = methods.table(alike)
    assert [line[-2:] for line in means] == [
        ["1,700 ± 120", "nvml_buffer (gpu)"],
        ["~1700", "simulated (host)"],
    ]


def test_two_sensors_are_two_rows(tmp_path):
    """Two repeats, one of which was polled: joules of another sensor have a mean of their own, as in the report."""
    points = [choices(repeat=0), choices(repeat=1)]
    made = [Made([Gpu("GPU-a")]), Made([Gpu("GPU-a")], source="nvml_instant", period_s=0.05)]
    sweep = collected(tmp_path / "s", made, points)
    _, *means = methods.table(sweep.attempts.to_dicts())
    assert [line[-1] for line in means] == ["nvml_buffer (gpu)", "nvml_instant (gpu)"]
    assert len(table(sweep)) == 2


def test_a_name_that_somebody_gave_makes_no_cell(tmp_path):
    """A model whose name holds a bar and markup is one cell, and shows as it is."""
    point = choices(model__name="a|b <i>*x*")
    sweep = collected(tmp_path / "s", [Made([Gpu("GPU-a")])], [point])
    text = methods.text(sweep.attempts.to_dicts(), [])
    assert r"Model: a\|b \<i\>\*x\* in bf16" in text
    (row,) = [line for line in text.splitlines() if line.startswith(r"| a\|b")]
    assert row.startswith(r"| a\|b \<i\>\*x\* | 1 | ")


def test_a_sweep_without_figures():
    """Where nothing counts there is nothing to describe, and the table has its heading alone."""
    text = methods.text([], [])
    assert "No point of this sweep counts" in text
    assert [line for line in text.splitlines() if line.startswith("| model | n |")]


def test_the_lock_names_the_exact_versions():
    """Two attempts of one set of versions and one of another: the first as lines, the other as comments."""
    first = {"git": "abc", "versions": {"python": "3.11.2", "wattflow": "0.1.0", "torch": "2.13.0"}}
    other = {"git": None, "versions": {"python": "3.12.1", "wattflow": "0.1.0", "torch": "2.4.0"}}
    assert methods.lock([first, other, first]).splitlines() == [
        "# 2 attempts: python 3.11.2, wattflow 0.1.0, commit abc",
        "torch==2.13.0",
        "# 1 attempt: python 3.12.1, wattflow 0.1.0, commit unknown",
        "# torch==2.4.0",
    ]


@pytest.mark.parametrize(
    ("kinds", "text"),
    [
        ([], "0.0 J"),
        ([("gpu", False, 1234.56), ("gpu", False, 1.0)], "1,240 ± 120 J"),
        ([("gpu", False, 10.0), ("host", True, 20.0)], "10.0 ± 1.0 J (gpu), ~20.0 J (host)"),
    ],
)
def test_joules_of_one_kind_are_summed(kinds, text):
    """1,234.56 and 1 J are 1,235.56 J, 10 % off; another boundary has a line of its own."""
    rows = [
        {
            "counts": True,
            "boundary": boundary,
            "simulated": simulated,
            "energy_j": energy_j,
            "energy_expanded_u_j": None if simulated else 0.1 * energy_j,
        }
        for boundary, simulated, energy_j in kinds
    ]
    assert methods.joules([*rows, {"counts": False, "energy_j": 99.0}]) == text
