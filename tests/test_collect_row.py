"""One row: what stands in it, and the checks that its own numbers must pass."""

import json
from dataclasses import fields
from datetime import UTC, datetime

import pytest
from collection import one, phases, retraced, rows
from sweeps import START_NS, Gpu, Made, choices

from wattflow.collect.description import Description
from wattflow.collect.quantities import PhaseEnergy
from wattflow.collect.ratios import RATIOS
from wattflow.collect.row import Choices, Figures, attempt_rows, self_checks
from wattflow.config.choices import Config
from wattflow.errors import DamagedError
from wattflow.store.columns import PHASE, POINT, REASONS


def energies(sweep):
    """The collected rows of phases as they were before they became rows."""
    names = [field.name for field in fields(PhaseEnergy)]
    return [PhaseEnergy(**{name: row[name] for name in names}) for row in phases(sweep)]


def test_each_column_of_points_has_one_home():
    """Choices, each kind of figures and the row itself bring different columns, and together all that are declared."""
    found = Figures(Description("waiting"))
    parts = [found.about, found.throughput, found.sampling, found.conditions, found.roofline]
    parts += [found.neighbours, found.scheduling, found.latency, found.request_energy]
    homes = [
        *(vars(part) for part in [*parts, found.unfinished]),
        *(found.energy.columns(), found.host.columns("host_"), found.node.columns("node_")),
        *(found.accelerators.columns("accelerators_"), Choices.of(choices()).columns),
        [ratio.column for ratio in RATIOS],
        [
            "gpus",
            "nodes_seen",
            "pieces",
            "job_energy_expanded_u_j",
            "unfinished_energy_expanded_u_j",
        ],
        ["point_id", "attempt", "counts", "valid", "reasons"],
    ]
    assert sorted(name for home in homes for name in home) == sorted(POINT.names)


def test_each_column_of_phases_has_one_home():
    """A row of phases is an attempt's, and has all that is declared."""
    names = ["point_id", "attempt", *(field.name for field in fields(PhaseEnergy))]
    assert names == PHASE.names


def test_choices_of_another_version_are_read():
    """A key that is not known here is passed over, and one that is absent has its default and a null column."""
    asked = {"shards": 2, "new_axis": 1, "engine": {"name": "fast", "new": True}}
    found = Choices.of(asked)
    assert (found.config.shards, found.config.engine.name) == (2, "fast")
    assert found.config.batch_size == Config().batch_size
    assert (found.columns["shards"], found.columns["batch_size"]) == (2, None)


@pytest.mark.parametrize("text", ["[]", '{"engine": 5}', '{"sweep": {"exclude": 1}}', "7"])
def test_choices_that_are_none_are_damage(text):
    """What is valid JSON and no choices has one error, whatever it is."""
    with pytest.raises(DamagedError, match="choices are none"):
        Choices.of(json.loads(text))


def test_the_reasons_of_a_row_decide_whether_it_is_valid():
    """A remark leaves a row valid and is said once; a code that withholds does not."""
    chosen = Choices.of(choices())
    remark = Figures(Description("finished"), ["dummy_text", "dummy_text"])
    withheld = Figures(Description("finished"), ["dummy_text", "gap"])
    point = attempt_rows("0123456789ab", 1, chosen, remark).point
    assert (point["valid"], point["reasons"], point["counts"]) == (True, ["dummy_text"], False)
    assert not attempt_rows("0123456789ab", 1, chosen, withheld).point["valid"]


def test_what_a_row_says_beside_numbers(tmp_path):
    """Choices by their short names, the sensor, the devices, the job and the conditions stand in the row."""
    _, _, row = one(tmp_path, Made([Gpu("GPU-a")]), batch_size=4)
    expected = {
        "model": "tiny",
        "dataset": "alpaca",
        "engine": "paper",
        "engine_device": "auto",
        "power_meter": "auto",
        "batch_size": 4,
        "power_source": "nvml_buffer",
        "boundary": "gpu",
        "simulated": False,
        "gpus": 1,
        "nodes_seen": 1,
        "gpu_name": "NVIDIA H100 80GB HBM3",
        "driver": "580.159.04",
        "job_id": "17",
        "node_names": ["node1"],
        "temperature_c": 61.0,
        "throttle_reasons": 4,
        "words": None,
        "started": datetime.fromtimestamp(START_NS / 1e9, UTC),
    }
    assert {name: row[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"power_w": 71.0}, "energy_power_time"),
        ({"energy_per_token_j": 3.4}, "energy_per_token"),
        ({"other_energy_j": 5.0}, "phases_sum"),
        ({}, None),
    ],
)
def test_self_checks(tmp_path, change, code):
    """Each sum or product that does not hold among a row's numbers has its code; a sound row has none."""
    sweep, _, row = one(tmp_path, Made([Gpu("GPU-a")]))
    assert self_checks({**row, **change}, energies(sweep)) == ([code] if code else [])


def test_a_gpus_joules_missing_from_the_sum(tmp_path):
    """Rows of phases that lack a GPU's decode do not add up to the total."""
    sweep, _, row = one(tmp_path, Made([Gpu("GPU-a")]))
    short = [part for part in energies(sweep) if part.phase != "decode"]
    assert self_checks(row, short) == ["gpus_sum"]


@pytest.mark.parametrize(
    ("factor", "code", "valid"),
    [
        (1.03, "counter_differs", True),
        (1.05, "counter_contradicts", False),
        (1.1, "counter_contradicts", False),
        (1.25, "counter_contradicts", False),  # an integral over counter of 0.80
        (1.5, "counter_contradicts", False),
    ],
)
def test_integral_against_counter(tmp_path, factor, code, valid):
    """A counter 3 % above the integral is a remark; from 5 % on, more than uncertainties allow, the row is invalid."""

    def scaled(readings):
        zero = 126_000_000_000
        return [
            {**r, "counter_mj": zero + round((r["counter_mj"] - zero) * factor)}
            if r["counter_mj"] is not None
            else r
            for r in readings
        ]

    row = retraced(tmp_path, scaled)
    assert code in row["reasons"]
    assert row["valid"] is valid


def test_a_difference_inside_its_uncertainty_is_no_remark(tmp_path):
    """0.5 % beside a counter is what two readings of one board differ by: no remark."""

    def scaled(readings):
        zero = 126_000_000_000
        return [
            {**r, "counter_mj": zero + round((r["counter_mj"] - zero) * 1.005)}
            if r["counter_mj"] is not None
            else r
            for r in readings
        ]

    assert "counter_differs" not in retraced(tmp_path, scaled)["reasons"]


def test_only_declared_reasons(tmp_path):
    """Each reason in a row is a code that columns.REASONS explains."""
    sweep, attempt, _ = one(tmp_path, Made([Gpu("GPU-a"), Gpu("GPU-b")]))
    attempt.trace_path("node1", "GPU-b").unlink()
    sweep.points_path.unlink()
    assert set(rows(sweep)[0]["reasons"]) <= set(REASONS)
