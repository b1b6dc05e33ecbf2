"""What is measured of nodes beside the job's devices: a node as a whole, its accelerators, and a superchip's module."""

import pyarrow as pa
import pytest
from collection import one, phases, retraced, rows
from sweeps import Gpu, Made, constant

from wattflow.store.schema import TRACE
from wattflow.store.tables import read_table, write_table

NODE = {
    "node-node1": ("cray_node", constant(742.0)),
    "accel0-node1": ("cray_accelerator", constant(187.0)),
    "accel1-node1": ("cray_accelerator", constant(213.0)),
}


def test_a_node_and_its_accelerators_are_columns_of_their_own(tmp_path):
    """Over 8.5 s 742 W and 400 W beside 70 W of the job's GPU, in none of its sums and no phase."""
    sweep, _, row = one(
        tmp_path, Made([Gpu("GPU-a")], others=NODE, hosts={"node1": constant(90.0)})
    )
    assert row["node_energy_j"] == pytest.approx(742 * 8.5)
    assert row["node_power_w"] == pytest.approx(742.0)
    assert row["accelerators_energy_j"] == pytest.approx(400 * 8.5)
    assert row["host_energy_j"] == pytest.approx(90 * 8.5)
    assert row["energy_j"] == pytest.approx(70 * 8.5)
    assert row["node_energy_u_j"] < 0.01 * row["node_energy_j"]
    assert row["valid"]
    assert {phase["gpu_uuid"] for phase in phases(sweep)} == {"GPU-a"}


def test_nodes_are_added_and_one_that_is_missing_leaves_no_sum(tmp_path):
    """Two nodes of 742 W and 500 W; where one has no counters the node's joules are unknown, and the GPUs' are not."""
    gpus = [Gpu("GPU-a", node="node1"), Gpu("GPU-b", node="node2")]
    both = {**NODE, "node-node2": ("cray_node", constant(500.0))}
    assert one(tmp_path / "a", Made(gpus, others=both))[2]["node_power_w"] == pytest.approx(1242.0)
    alone = one(tmp_path / "b", Made(gpus, others=NODE))[2]
    assert (alone["node_energy_j"], alone["accelerators_energy_j"]) == (None, None)
    assert alone["energy_j"] is not None


def test_a_restart_of_the_counters_leaves_no_joules_of_the_node(tmp_path):
    """Two seconds without watts in the window are a gap: no node_energy_j, and a remark; the row counts."""
    sweep, attempt, _ = one(tmp_path, Made([Gpu("GPU-a")], others=NODE))
    path = attempt.trace_path("node1", "node-node1")
    trace = read_table(path, TRACE)
    readings = [row for i, row in enumerate(trace.to_pylist()) if not 100 <= i < 140]
    readings[100]["gap"] = True
    write_table(path, pa.Table.from_pylist(readings, schema=trace.schema))
    attempt.record_path.touch()
    (row,) = rows(sweep)
    assert row["node_energy_j"] is None
    assert "node_gap" in row["reasons"]
    assert row["valid"]


def of_module(readings):
    """The counter of a trace as a superchip's: 80 W more than the GPU's."""
    return [
        {
            **row,
            "source": "nvml_module_counter",
            "counter_mj": row["counter_mj"] + i * 8000,
        }
        if row["counter_mj"] is not None
        else row
        for i, row in enumerate(sorted(readings, key=lambda row: row["counter_mj"] is None))
    ]


def test_a_modules_counter_is_no_check_on_its_gpu(tmp_path):
    """150 W counted beside 70 W of the GPU contradict nothing; under the name of the GPU's counter they would."""
    row = retraced(tmp_path / "a", of_module, source="nvml_instant")
    assert (row["counter_energy_j"], row["counter_ratio"]) == (None, None)
    assert row["power_w"] == pytest.approx(70.0)
    assert row["valid"]

    def as_gpu(readings):
        return [
            {**one, "source": "nvml_counter"} if one["counter_mj"] is not None else one
            for one in of_module(readings)
        ]

    wrong = retraced(tmp_path / "b", as_gpu, source="nvml_instant")
    assert "counter_contradicts" in wrong["reasons"]
    assert not wrong["valid"]


def test_a_module_is_a_boundary_of_its_own(tmp_path):
    """Its joules are checked by its own counter, and have no expanded uncertainty: nobody metered such sensors."""
    made = Made(
        [Gpu("GPU-a", constant(560.0))],
        source="nvml_module_instant",
        boundary="module",
        hosts={"node1": constant(96.5)},
    )
    _, _, row = one(tmp_path, made)
    assert (row["boundary"], row["power_w"]) == ("module", pytest.approx(560.0))
    assert row["counter_ratio"] == pytest.approx(1.0, rel=1e-3)
    assert row["host_power_w"] == pytest.approx(96.5)
    assert row["energy_u_j"] is not None
    assert row["energy_expanded_u_j"] is None
    assert row["valid"]


@pytest.mark.parametrize(
    ("boundary", "source", "bound"),
    [("gpu", "nvml_instant", True), ("module", "nvml_module_instant", False)],
)
def test_a_modules_watts_say_nothing_of_its_gpus_limit(tmp_path, boundary, source, bound):
    """70 W where the GPU's limit is 71 W: the GPU is held back by it, of a module's watts nobody knows."""

    def without_bits(readings):
        return [{**one, "throttle_reasons": 0 * (one["throttle_reasons"] or 0)} for one in readings]

    row = retraced(tmp_path, without_bits, source=source, boundary=boundary, limit_w=71.0)
    assert row["cap_bound"] is bound
