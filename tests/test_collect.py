"""Attempts on disk become rows: billed devices, withheld totals, self-checks, and what a damaged file costs."""

import json
import time
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sweeps import (
    ABOUT,
    START_NS,
    Gpu,
    Made,
    choices,
    constant,
    make_attempt,
    make_sweep,
    spans_of,
    trace_of,
)

from wattflow.collect.collect import collect
from wattflow.collect.figures import self_checks
from wattflow.config import identity
from wattflow.store.columns import PHASE, POINT, REASONS
from wattflow.store.schema import SPAN, TRACE
from wattflow.store.tables import write_table

POINT_1 = choices(shards=1)


def rows(sweep):
    collect(sweep)
    return pq.read_table(sweep.points_path).to_pylist()


def phases(sweep):
    return pq.read_table(sweep.phases_path).to_pylist()


def one(tmp_path, made, **over):
    """The sweep, attempt and collected row of one attempt at one point."""
    point = choices(shards=sum(gpu.ranks for gpu in made.gpus), **over)
    sweep = make_sweep(tmp_path / "s", [point])
    attempt = make_attempt(sweep, point, made)
    (row,) = rows(sweep)
    return sweep, attempt, row


def test_constant_power_end_to_end(tmp_path):
    """70 W over a window of 10 s is 700 J: every ratio follows by hand."""
    made = Made([Gpu("GPU-a")], batches=2, prefill_s=1.0, decode_s=3.5, pause_s=1.0, tokens=100)
    _, _, row = one(tmp_path, made)
    expected = {
        "duration_s": 10.0,
        "energy_j": 700.0,
        "power_w": 70.0,
        "tokens_kept": 200,
        "computed_tokens": 400,
        "tokens_in": 80,
        "responses": 8,
        "tokens_per_s": 20.0,
        "responses_per_s": 0.8,
        "energy_per_token_j": 3.5,
        "energy_per_computed_token_j": 1.75,
        "energy_per_response_j": 87.5,
        "prefill_energy_j": 140.0,
        "decode_energy_j": 490.0,
        "other_energy_j": 70.0,
        "prefill_s": 2.0,
        "decode_s": 7.0,
        "other_s": 1.0,
        "idle_power_w": 70.0,
        "load_energy_j": 70.0,
        "load_s": 1.0,
        "warmup_energy_j": 70.0,
        "job_energy_j": 700.0 + 3 * 70.0,
        "counter_ratio": 1.0,
        "coverage": 1.0,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert row["valid"]
    assert row["counts"]
    assert row["reasons"] == ["dummy_text"]


def test_a_choice_that_this_version_does_not_know_costs_no_joules(tmp_path):
    """The record of a later version, whose new key says nothing of power or time: 70 W for 10 s stay 700 J."""
    point = choices(shards=1)
    sweep = make_sweep(tmp_path / "s", [point])
    made = Made([Gpu("GPU-a")], batches=2, prefill_s=1.0, decode_s=3.5, pause_s=1.0, tokens=100)
    attempt = make_attempt(sweep, point, made)
    record = attempt.read_record()
    record["choices"] = {**record["choices"], "new_axis": 1}
    attempt.write_record(record)
    (row,) = rows(sweep)
    assert (row["counts"], row["energy_j"]) == (True, pytest.approx(700.0))


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


def test_words_of_real_weights(tmp_path):
    """40 words in 4 batches' requests over 700 J: words are counted, and no dummy_text is said."""
    made = Made([Gpu("GPU-a")], prefill_s=1.0, decode_s=3.5, pause_s=1.0, dummy=False)
    _, _, row = one(tmp_path, made, weights="hf")
    assert row["words"] == 40
    assert row["words_per_s"] == pytest.approx(4.0)
    assert row["energy_per_word_j"] == pytest.approx(17.5, rel=1e-4)
    assert row["reasons"] == []


def test_phases_add_up_exactly(tmp_path):
    """Prefill, decode and other of each GPU add up to the row's joules to 1e-9 on a wild curve."""
    wild = lambda s: 300 + 250 * np.sin(s * 31) * np.cos(s * 7)  # noqa: E731 (a curve)
    sweep, _, row = one(tmp_path, Made([Gpu("GPU-a", wild), Gpu("GPU-b", wild)], batches=5))
    parts = [p["energy_j"] for p in phases(sweep) if p["phase"] in ("prefill", "decode", "other")]
    assert len(parts) == 6
    assert sum(parts) == pytest.approx(row["energy_j"], rel=1e-9)
    assert min(parts) >= 0


def test_ramp_in_each_phase(tmp_path):
    """A ramp of 10 W/s: prefill from 3 to 4 s holds 35 J and decode from 4 to 7 s 165 J, by the integral."""
    made = Made([Gpu("GPU-a", lambda s: 10 * np.clip(s, 0, None))], batches=1)
    _, _, row = one(tmp_path, made)
    assert row["prefill_energy_j"] == pytest.approx(35.0, rel=1e-6)
    assert row["decode_energy_j"] == pytest.approx(165.0, rel=1e-6)


def test_the_steady_state_leaves_out_the_first_batch_and_the_last(tmp_path):
    """Of four batches of 4 s and pauses of 0.5 s the inner two last 8.5 s: 595 J at 70 W for 200 tokens."""
    row = one(tmp_path, Made([Gpu("GPU-a")], batches=4))[2]
    assert row["steady_s"] == pytest.approx(8.5)
    assert row["steady_energy_j"] == pytest.approx(595.0)
    assert row["steady_energy_per_token_j"] == pytest.approx(595 / 200)
    assert row["steady_tokens_per_s"] == pytest.approx(200 / 8.5)
    assert row["steady_power_w"] == pytest.approx(70.0)


def test_two_batches_have_no_steady_state(tmp_path):
    """With two batches nothing lies between the first and the last."""
    row = one(tmp_path, Made([Gpu("GPU-a")]))[2]
    assert row["steady_energy_j"] is None
    assert row["steady_s"] is None


def test_net_stands_beside_gross(tmp_path):
    """40 W idle, 100 W at work for 8.5 s, 60 W idle with weights: 850 J gross, 510 J net."""
    watts = lambda s: np.where(s < 3.0, 40.0, np.where(s < 11.5, 100.0, 60.0))  # noqa: E731
    made = Made([Gpu("GPU-a", watts)], idle_after_s=2.0, after_s=2.2)
    row = one(tmp_path, made)[2]
    assert row["energy_j"] == pytest.approx(850.0, rel=2e-3)
    assert row["net_energy_j"] == pytest.approx(510.0, rel=4e-3)
    assert row["idle_power_w"] == pytest.approx(40.0)
    assert row["idle_after_power_w"] == pytest.approx(60.0, rel=2e-3)
    assert row["job_energy_j"] == pytest.approx(3 * 40 + 850 + 120, rel=2e-3)


def test_four_unequal_gpus_are_summed(tmp_path):
    """GPUs at 50, 100, 150 and 400 W make 700 W together, each in its own row of phases."""
    gpus = [Gpu(f"GPU-{i}", constant(w)) for i, w in enumerate((50.0, 100.0, 150.0, 400.0))]
    sweep, _, row = one(tmp_path, Made(gpus))
    assert row["power_w"] == pytest.approx(700.0, rel=1e-6)
    assert row["gpus"] == 4
    decode = {p["gpu_uuid"]: p["power_w"] for p in phases(sweep) if p["phase"] == "decode"}
    assert decode == pytest.approx({"GPU-0": 50.0, "GPU-1": 100.0, "GPU-2": 150.0, "GPU-3": 400.0})


def test_an_unused_gpu_is_never_billed(tmp_path):
    """A trace of a neighbour's GPU at 600 W on the same node changes nothing, and is not collected."""
    made = Made([Gpu("GPU-a")])
    point = choices()
    sweep = make_sweep(tmp_path / "s", [point])
    attempt = make_attempt(sweep, point, made)
    neighbour = Gpu("GPU-other", constant(600.0))
    write_table(attempt.trace_path("node1", "GPU-other"), trace_of(made, neighbour))
    (row,) = rows(sweep)
    assert row["power_w"] == pytest.approx(70.0)
    assert row["gpus"] == 1
    assert {p["gpu_uuid"] for p in phases(sweep)} == {"GPU-a"}
    (bucket,) = sweep.traces.iterdir()
    assert set(pq.read_table(bucket)["gpu_uuid"].to_pylist()) == {"GPU-a"}


def test_eight_ranks_share_one_device(tmp_path):
    """A host device under 8 ranks is billed once: 70 W, not 560."""
    made = Made([Gpu("host-node1", ranks=8)], source="simulated", boundary="host", period_s=0.05)
    sweep, _, row = one(tmp_path, made)
    assert row["power_w"] == pytest.approx(70.0)
    assert row["gpus"] == 1
    assert row["simulated"]
    assert len([p for p in phases(sweep) if p["phase"] == "decode"]) == 1


def test_ranks_that_share_a_gpu_are_no_point_of_as_many_shards(tmp_path):
    """Two ranks on one GPU: its joules are billed once, but two shards were asked for, so the row does not count."""
    row = one(tmp_path, Made([Gpu("GPU-a", ranks=2)]))[2]
    assert row["energy_j"] == pytest.approx(595.0)
    assert (row["gpus"], row["shards"]) == (1, 2)
    assert "missing_gpu" in row["reasons"]
    assert not row["valid"]


@pytest.mark.parametrize("drift", [-50e-6, 0.0, 50e-6])
def test_two_nodes_joules_are_the_analytic_sum(drift, tmp_path):
    """A ramp of 20 W/s from 100 W and a wave of 200 and 400 W, clocks 3 s apart that drift by 50 ppm: by hand.

    From 3 to 11.5 s the ramp holds 100 x 8.5 + 10 x (11.5^2 - 3^2) = 2082.5 J, and the wave, which turns each second,
    8 x 300 + 0.5 x 400 = 2600 J. In the prefills, from 3 to 4 and 7.5 to 8.5 s, they hold 170 + 260 and 400 + 300 J.
    """
    ramp = lambda s: 100 + 20 * np.clip(s, 0, None)  # noqa: E731 (a curve)
    wave = lambda s: np.where(np.floor(s) % 2 == 1, 400.0, 200.0)  # noqa: E731 (a curve)
    gpus = [Gpu("GPU-a", ramp, "node1"), Gpu("GPU-b", wave, "node2")]
    made = Made(gpus, offset_s={"node2": 3.0}, drift={"node2": drift}, period_s=0.001)
    row = one(tmp_path, made)[2]
    assert row["energy_j"] == pytest.approx(2082.5 + 2600.0, rel=1e-3)
    assert row["prefill_energy_j"] == pytest.approx(1130.0, rel=1e-3)


def test_two_nodes_with_clocks_3_s_apart(tmp_path):
    """Each node's window is integrated by its own clock: the sum is that of nodes in step, to 0.01 %."""
    wave = lambda s: 200 + 100 * np.sign(np.sin(s * 2))  # noqa: E731 (a curve)
    gpus = [Gpu("GPU-a", wave, "node1"), Gpu("GPU-b", constant(300.0), "node2")]
    _, _, in_step = one(tmp_path / "a", Made(gpus))
    _, _, apart = one(tmp_path / "b", Made(gpus, offset_s={"node2": 3.0}))
    for name in ("energy_j", "prefill_energy_j", "decode_energy_j", "other_energy_j"):
        assert apart[name] == pytest.approx(in_step[name], rel=1e-4)
    assert apart["duration_s"] == in_step["duration_s"]
    assert apart["nodes_seen"] == 2
    assert apart["valid"]


WITHHELD = (
    "energy_j",
    "power_w",
    "energy_per_token_j",
    "job_energy_j",
    "energy_per_response_j",
    "decode_energy_j",
)


def test_a_missing_trace_withholds_the_total(tmp_path):
    """Without one GPU's trace no joule is told, only why; tokens per second stay."""
    sweep, attempt, _ = one(tmp_path, Made([Gpu("GPU-a"), Gpu("GPU-b")]))
    attempt.trace_path("node1", "GPU-b").unlink()
    sweep.points_path.unlink()
    (row,) = rows(sweep)
    assert [row[name] for name in WITHHELD] == [None] * len(WITHHELD)
    assert "missing_trace" in row["reasons"]
    assert not row["valid"]
    assert not row["counts"]
    assert row["tokens_per_s"] > 0


def test_a_missing_node_withholds_the_total(tmp_path):
    """A node of the record without spans withholds the job's joules."""
    sweep, attempt, _ = one(tmp_path, Made([Gpu("GPU-a"), Gpu("GPU-b", node="node2")]))
    attempt.spans_path("node2").unlink()
    sweep.points_path.unlink()
    (row,) = rows(sweep)
    assert [row[name] for name in WITHHELD] == [None] * len(WITHHELD)
    assert "missing_node" in row["reasons"]
    assert row["nodes_seen"] == 1


def test_fewer_ranks_than_shards(tmp_path):
    """An attempt by one rank at a point of two shards is no measurement of it."""
    point = choices(shards=2)
    sweep = make_sweep(tmp_path / "s", [point])
    make_attempt(sweep, point, Made([Gpu("GPU-a")]))
    (row,) = rows(sweep)
    assert row["energy_j"] is None
    assert "missing_rank" in row["reasons"]


def test_mixed_boundaries_are_not_added(tmp_path):
    """A node that measured its host and one that measured its GPU give no sum."""
    sweep, attempt, _ = one(tmp_path, Made([Gpu("GPU-a"), Gpu("GPU-b", node="node2")]))
    record = attempt.read_record()
    record["nodes"][1]["boundary"] = "host"
    attempt.write_record(record)
    (row,) = rows(sweep)
    assert row["energy_j"] is None
    assert "mixed_boundary" in row["reasons"]


def retraced(tmp_path, change, **made):
    """The row of an attempt whose trace was changed, as rows, before it was collected."""
    point = choices()
    sweep = make_sweep(tmp_path / "s", [point])
    made = Made([Gpu("GPU-a")], **made)
    attempt = make_attempt(sweep, point, made)
    path = attempt.trace_path("node1", "GPU-a")
    found = pq.read_table(path)
    told = change(found.to_pylist())
    write_table(path, pa.Table.from_pylist(told, schema=found.schema))
    (row,) = rows(sweep)
    return row


def at(reading):
    return (reading["time_ns"] - START_NS) / 1e9


def test_a_gap_withholds(tmp_path):
    """With a second of the 8.5 s window lost there are no joules, but coverage and the gap are told."""
    row = retraced(tmp_path, lambda told: [r for r in told if not 5.0 < at(r) < 6.0])
    assert row["energy_j"] is None
    assert "gap" in row["reasons"]
    assert row["coverage"] == pytest.approx(7.5 / 8.5, abs=0.01)
    assert row["longest_gap_s"] == pytest.approx(1.0, abs=0.05)


def test_not_bracketed_withholds(tmp_path):
    """A trace that ends before the last decode does has no total."""
    row = retraced(tmp_path, lambda told: [r for r in told if at(r) < 11.0])
    assert row["energy_j"] is None
    assert "not_bracketed" in row["reasons"]


def test_no_power_at_all(tmp_path):
    """A sensor that told no watt gives null and no_power, never 0 J."""
    row = retraced(tmp_path, lambda told: [r for r in told if r["power_w"] is None])
    assert row["energy_j"] is None
    assert "no_power" in row["reasons"]


def test_another_sensors_gap_is_none_of_power(tmp_path):
    """A temperature that could not be read, flagged as a gap, takes nothing from the watts."""
    lost = {"time_ns": START_NS + 6_000_000_000, "source": "nvml_conditions", "gap": True}
    row = retraced(tmp_path, lambda told: [*told, lost])
    assert row["coverage"] == 1.0


def test_a_cached_counter_is_less_certain(tmp_path):
    """DCGM's counter may be 1 s old: at 70 W, 0.55 s to each side of a tick, u is 38.5 J / sqrt(3) at each edge."""
    row = one(tmp_path, Made([Gpu("GPU-a")], source="dcgm", after_s=2.0))[2]
    assert row["power_source"] == "dcgm"
    assert row["counter_energy_u_j"] == pytest.approx(38.5 * np.sqrt(2 / 3), rel=0.01)


def test_counter_reset_is_flagged_and_bridged(tmp_path):
    """A driver reload in mid-window leaves the counter's joules finite and right, with a remark."""

    def reset(told):
        return [
            {**r, "counter_mj": r["counter_mj"] - 126_000_000_000}
            if r["counter_mj"] is not None and at(r) > 6.0
            else r
            for r in told
        ]

    row = retraced(tmp_path, reset)
    assert row["counter_ratio"] == pytest.approx(1.0, rel=1e-3)
    assert "counter_reset" in row["reasons"]
    assert row["valid"]


@pytest.mark.parametrize(
    ("factor", "code", "valid"),
    [(1.1, "counter_differs", True), (1.5, "counter_contradicts", False)],
)
def test_integral_against_counter(tmp_path, factor, code, valid):
    """A counter 10 % above the integral is a remark, one 50 % above it makes the row invalid."""

    def scaled(told):
        zero = 126_000_000_000
        return [
            {**r, "counter_mj": zero + round((r["counter_mj"] - zero) * factor)}
            if r["counter_mj"] is not None
            else r
            for r in told
        ]

    row = retraced(tmp_path, scaled)
    assert code in row["reasons"]
    assert row["valid"] is valid


def test_a_difference_inside_its_uncertainty_is_no_remark(tmp_path):
    """8.5 s against a counter 2 % above: inside 3 %, so the row carries no remark; 1 % would do from 10 s on."""

    def scaled(told):
        zero = 126_000_000_000
        return [
            {**r, "counter_mj": zero + round((r["counter_mj"] - zero) * 1.02)}
            if r["counter_mj"] is not None
            else r
            for r in told
        ]

    short = retraced(tmp_path / "a", scaled)
    long = retraced(tmp_path / "b", scaled, batches=8)
    assert "counter_differs" not in short["reasons"]
    assert "counter_differs" in long["reasons"]


def test_board_gain_stands_apart(tmp_path):
    """Two boards of 595 J each: 5 % / sqrt(3) of each, in quadrature, is 24.3 J, and no part of energy_u_j."""
    row = one(tmp_path, Made([Gpu("GPU-a"), Gpu("GPU-b")]))[2]
    assert row["board_gain_u_j"] == pytest.approx(0.05 * 595 / 3**0.5 * 2**0.5, rel=1e-3)
    assert row["energy_u_j"] < 1.0


def test_simulated_watts_have_no_boards_gain(tmp_path):
    """Arithmetic has no sensor, so no gain."""
    made = Made([Gpu("host-node1")], source="simulated", boundary="host")
    assert one(tmp_path, made)[2]["board_gain_u_j"] is None


@pytest.mark.parametrize(("weights", "u_j"), [("dummy", 0.017 * 595 / 3**0.5), ("hf", None)])
def test_dummy_weights_carry_what_they_may_hide(tmp_path, weights, u_j):
    """Rows of dummy weights have 1.7 % / sqrt(3) of their 595 J apart; those of real weights have none."""
    sweep = make_sweep(tmp_path / "s", [choices(weights=weights)])
    make_attempt(sweep, choices(weights=weights), Made([Gpu("GPU-a")]))
    assert rows(sweep)[0]["dummy_data_u_j"] == (
        None if u_j is None else pytest.approx(u_j, rel=1e-3)
    )


def test_ratios_carry_the_uncertainty(tmp_path):
    """u of the joules, over 200 tokens and over 8.5 s."""
    row = one(tmp_path, Made([Gpu("GPU-a", lambda s: 70 + 30 * np.sin(s))]))[2]
    assert row["energy_per_token_u_j"] == pytest.approx(row["energy_u_j"] / 200)
    assert row["power_u_w"] == pytest.approx(row["energy_u_j"] / 8.5)
    assert row["energy_u_j"] > 0
    assert row["energy_per_response_u_j"] == pytest.approx(row["energy_u_j"] / 8)
    assert row["energy_per_computed_token_u_j"] == pytest.approx(row["energy_u_j"] / 400)


def test_every_joule_has_its_uncertainty(tmp_path):
    """Beside each column of joules stands its u: where the one is known and measured, so is the other."""
    made = Made([Gpu("GPU-a"), Gpu("GPU-b")], batches=3, idle_after_s=1.0, after_s=1.2)
    made = replace(made, reference_s=0.4, dummy=False, hosts={"node1": constant(90.0)})
    row = one(tmp_path, made, weights="hf")[2]
    joules = [name for name in POINT.names if name.endswith("_j") and not name.endswith("_u_j")]
    assert len(joules) > 15
    joules.remove(
        "unfinished_energy_j"
    )  # of attempts that did not finish: tests/test_unfinished.py
    for name in joules:
        assert row[name] is not None, name
        assert row[f"{name.removesuffix('_j')}_u_j"] is not None, name


def test_uncertainties_of_phases_job_and_net_joules(tmp_path):
    """Phases add their devices in quadrature; the job its phases; net joules also those of the idle watts."""
    wild = lambda s: 300 + 250 * np.sin(s * 31) * np.cos(s * 7)  # noqa: E731 (a curve)
    sweep, _, row = one(tmp_path, Made([Gpu("GPU-a", wild), Gpu("GPU-b", lambda s: wild(s + 1))]))
    u = {
        phase: np.sqrt(sum(p["energy_u_j"] ** 2 for p in phases(sweep) if p["phase"] == phase))
        for phase in ("idle", "load", "warmup", "prefill", "decode", "other")
    }
    told = {phase: row[f"{phase}_energy_u_j"] for phase in u}
    assert told == pytest.approx(u)
    around = [u["idle"], u["load"], u["warmup"]]
    assert row["job_energy_u_j"] == pytest.approx(np.linalg.norm([row["energy_u_j"], *around]))
    # 1 s of idle tells the watts, taken over 8.5 s
    net_u_j = np.hypot(row["energy_u_j"], 8.5 * u["idle"])
    assert row["net_energy_u_j"] == pytest.approx(net_u_j)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.2])
def test_uncertainty_never_uses_the_counter(factor, tmp_path):
    """Whatever the counter says, and if it says nothing, every other u is the same: it is what they are checked by."""
    wild = Made([Gpu("GPU-a", lambda s: 300 + 250 * np.sin(s * 31))])
    point = choices()
    told = []
    for name, made in (("with", wild), ("without", replace(wild, counter=False))):
        sweep = make_sweep(tmp_path / name, [point])
        attempt = make_attempt(sweep, point, made)
        path = attempt.trace_path("node1", "GPU-a")
        trace = pq.read_table(path)
        readings_mj = pc.round(pc.multiply(pc.cast(trace["counter_mj"], "float64"), factor))
        at = trace.schema.get_field_index("counter_mj")
        write_table(
            path, trace.set_column(at, TRACE.field("counter_mj"), readings_mj.cast("uint64"))
        )
        told.append(rows(sweep)[0])
    us = [name for name in POINT.names if "_u_" in name and name != "counter_energy_u_j"]
    assert len(us) > 15
    assert [told[0][name] for name in us] == [told[1][name] for name in us]
    assert told[0]["counter_energy_j"] is not None
    assert told[1]["counter_energy_j"] is None


def readings_of(source, **columns):
    """Rows of one sensor as dictionaries; `columns` map to lists of values by time in seconds."""
    times = columns.pop("at_s")
    blank = dict.fromkeys(TRACE.names)
    return [
        {
            **blank,
            "time_ns": START_NS + round(at_s * 1e9),
            "source": source,
            "gap": False,
            **{name: values[i] for name, values in columns.items()},
        }
        for i, at_s in enumerate(times)
    ]


@pytest.mark.parametrize("source", ["nvml_gpm", "dcgm_profiling"])
def test_activity_is_weighted_by_its_time_in_the_window(tmp_path, source):
    """The window lasts from 3 to 11.5 s: 40 % for 7 s of it and 80 % for 1.5 s are 47.06 %."""
    added = readings_of(
        source, at_s=[2.0, 3.0, 10.0, 12.0], dram_activity_pct=[99.0, 1.0, 40.0, 80.0]
    )
    row = retraced(tmp_path, lambda told: told + added)
    assert row["dram_activity_pct"] == pytest.approx((40 * 7 + 80 * 1.5) / 8.5)
    assert row["sm_activity_pct"] is None


@pytest.mark.parametrize(("count", "valid"), [(1, True), (2, False)])
def test_another_process_on_the_gpu_costs_the_row(tmp_path, count, valid):
    """One rank, one process; a second one at the trace's end has spoilt the joules."""
    added = readings_of("nvml_conditions", at_s=[0.0, 11.7], processes=[1, count])
    row = retraced(tmp_path, lambda told: told + added)
    assert row["valid"] is valid
    assert ("other_process" in row["reasons"]) is not valid


@pytest.mark.parametrize(("bits", "told"), [(0x4, False), (0x40, True), (0x8, True)])
def test_heat_is_told_and_a_power_cap_is_none(tmp_path, bits, told):
    """Clocks lowered by heat or the hardware are a remark; the software power cap has its own column."""
    added = readings_of("nvml_conditions", at_s=[5.0], throttle_reasons=[bits])
    row = retraced(tmp_path, lambda rows: rows + added)
    assert ("throttled" in row["reasons"]) is told
    assert row["valid"]


def test_samples_are_counted_against_the_sensors_period(tmp_path):
    """8.5 s at 20 ms are 425 samples; each third one left out is a remark, though no gap."""
    whole = one(tmp_path / "a", Made([Gpu("GPU-a")]))[2]
    thinned = retraced(
        tmp_path / "b",
        lambda told: [r for i, r in enumerate(told) if r["power_w"] is None or i % 3],
    )
    assert (whole["samples"], whole["samples_expected"]) == (425, 425)
    assert "samples_missing" in thinned["reasons"]
    assert thinned["valid"]


def test_a_stepped_clock_withholds(tmp_path):
    """Pairs of both clocks that jump by 2 s inside the window withhold its joules."""

    def stepped(told):
        return [
            {**r, "monotonic_ns": r["time_ns"] - START_NS - (2_000_000_000 if at(r) > 6 else 0)}
            for r in told
        ]

    assert "clock_step" in retraced(tmp_path, stepped)["reasons"]


@pytest.mark.parametrize("source", ["nvml_average", "nvml_usage_mean", "dcgm_mean"])
def test_an_average_cannot_tell_a_short_window(tmp_path, source):
    """A sensor that averages over 1 s is refused for windows under 10 s, and taken above."""
    short = one(tmp_path / "a", Made([Gpu("GPU-a")], source=source))[2]
    long = one(tmp_path / "b", Made([Gpu("GPU-a")], source=source, batches=4))[2]
    assert "short_window" in short["reasons"]
    assert short["energy_j"] is None
    assert long["power_w"] == pytest.approx(70.0)


def test_joules_from_the_counter_alone(tmp_path):
    """Where a node has the counter only, its joules are the counter's, and nothing checks them."""
    made = Made([Gpu("GPU-a")])
    point = choices()
    sweep = make_sweep(tmp_path / "s", [point])
    attempt = make_attempt(sweep, point, made)
    record = attempt.read_record()
    record["nodes"][0]["source"] = "nvml_counter"
    attempt.write_record(record)
    retold(attempt, source="nvml_counter")
    (row,) = rows(sweep)
    assert row["power_w"] == pytest.approx(70.0, rel=1e-3)
    assert row["power_source"] == "nvml_counter"
    assert row["counter_energy_j"] is None


def test_tokens_must_agree_with_requests(tmp_path):
    """Spans that count other output tokens than the requests make the row invalid."""
    point = choices()
    sweep = make_sweep(tmp_path / "s", [point])
    made = Made([Gpu("GPU-a")])
    attempt = make_attempt(sweep, point, made)
    spans = [
        {**row, "tokens_kept": 101} if row["phase"] == "decode" else row for row in spans_of(made)
    ]
    write_table(
        attempt.spans_path("node1"),
        pa.Table.from_pylist(spans, schema=SPAN).replace_schema_metadata(ABOUT),
    )
    (row,) = rows(sweep)
    assert row["reasons"] == ["dummy_text", "tokens_differ"]
    assert not row["valid"]


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
    assert self_checks({**row, **change}, phases(sweep)) == ([code] if code else [])


def test_a_gpus_joules_missing_from_the_sum(tmp_path):
    """Rows of phases that lack a GPU's decode do not add up to the total."""
    sweep, _, row = one(tmp_path, Made([Gpu("GPU-a")]))
    short = [p for p in phases(sweep) if p["phase"] != "decode"]
    assert self_checks(row, short) == ["gpus_sum"]


# --- damage


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def foreign(path):
    write_table(path, pa.table({"x": [1]}))


def text(path):
    path.write_text("not what you think")


@pytest.mark.parametrize("harm", [cut, foreign, text])
@pytest.mark.parametrize("which", ["trace", "spans", "requests", "record"])
def test_damage_costs_one_attempt(tmp_path, harm, which):
    """A cut, foreign or garbled file costs its attempt alone, and the summary names it."""
    points = [choices(repeat=0), choices(repeat=1)]
    sweep = make_sweep(tmp_path / "s", points)
    attempts = [make_attempt(sweep, point, Made([Gpu("GPU-a")])) for point in points]
    bad = attempts[0]
    paths = {
        "trace": bad.trace_path("node1", "GPU-a"),
        "spans": bad.spans_path("node1"),
        "requests": bad.requests_path,
        "record": bad.record_path,
    }
    harm(paths[which])
    summary = collect(sweep)
    first, second = pq.read_table(sweep.points_path).to_pylist()
    assert first["reasons"] == ["damaged"]
    assert paths[which].name in first["error"]
    assert [first["valid"], second["valid"]] == [False, True]
    assert len(summary.damaged) == 1
    assert f"point {bad.point_id}, attempt 1" in summary.damaged[0]


def test_another_devices_trace_is_damage(tmp_path):
    """A trace whose metadata names another GPU is not taken for this one's."""
    point = choices()
    sweep = make_sweep(tmp_path / "s", [point])
    made = Made([Gpu("GPU-a")])
    attempt = make_attempt(sweep, point, made)
    write_table(attempt.trace_path("node1", "GPU-a"), trace_of(made, Gpu("GPU-b")))
    assert rows(sweep)[0]["reasons"] == ["damaged"]


def retold(attempt, **changed):
    """Change what the metadata of an attempt's trace tell; null takes it away."""
    path = attempt.trace_path("node1", "GPU-a")
    trace = pq.read_table(path)
    told = {key.decode(): value.decode() for key, value in trace.schema.metadata.items()} | changed
    told = {key: value for key, value in told.items() if value is not None}
    write_table(path, trace.replace_schema_metadata(told))


@pytest.mark.parametrize("value", [None, "another"])
@pytest.mark.parametrize("key", ["node", "gpu_uuid", "source", "scope"])
def test_a_trace_that_does_not_say_what_it_is_is_damage(key, value, tmp_path):
    """Without node, GPU, sensor or scope, or with others than the record has, watts are nobody's: none is told."""
    sweep, attempt, _ = one(tmp_path, Made([Gpu("GPU-a")]))
    retold(attempt, **{key: value})
    sweep.points_path.unlink()
    (row,) = rows(sweep)
    assert row["reasons"] == ["damaged"]
    assert key in row["error"]
    assert row["energy_j"] is None


def test_a_mended_file_is_seen(tmp_path):
    """A damaged attempt is read again by the next collection, though its record has not changed."""
    sweep, attempt, _ = one(tmp_path, Made([Gpu("GPU-a")]))
    path = attempt.trace_path("node1", "GPU-a")
    whole = path.read_bytes()
    cut(path)
    sweep.points_path.unlink()
    assert rows(sweep)[0]["reasons"] == ["damaged"]
    path.write_bytes(whole)
    assert rows(sweep)[0]["valid"]


@pytest.mark.parametrize("which", ["points_path", "phases_path"])
def test_damaged_results_are_made_anew(tmp_path, which):
    """Results that were cut are no obstacle: they are computed from the attempts once more."""
    sweep, _, row = one(tmp_path, Made([Gpu("GPU-a")]))
    text(getattr(sweep, which))
    assert rows(sweep) == [row]


# --- attempts, again and again


def test_the_newest_valid_attempt_counts(tmp_path):
    """Of a finished attempt, a second finished one and a failed third, the second counts; all three have rows."""
    point = choices()
    sweep = make_sweep(tmp_path / "s", [point])
    for made in (
        Made([Gpu("GPU-a")]),
        Made([Gpu("GPU-a", constant(80.0))]),
        Made([Gpu("GPU-a")], status="failed"),
    ):
        make_attempt(sweep, point, made)
    found = rows(sweep)
    assert [row["attempt"] for row in found] == [1, 2, 3]
    assert [row["counts"] for row in found] == [False, True, False]
    assert found[2]["reasons"] == ["failed"]
    assert found[2]["error"] == "the checkpoint ends early"


def test_a_requeued_point(tmp_path):
    """An attempt cut short and a whole one after it: two rows, the whole one counts, and only it is billed."""
    point = choices()
    sweep = make_sweep(tmp_path / "s", [point])
    make_attempt(sweep, point, Made([Gpu("GPU-a")], status="interrupted"))
    make_attempt(sweep, point, Made([Gpu("GPU-a")]))
    first, second = rows(sweep)
    assert (first["reasons"], first["energy_j"], first["counts"]) == (["interrupted"], None, False)
    assert second["counts"]


def test_points_without_attempts(tmp_path):
    """A point never tried waits, one that cannot run is infeasible with its figures, one being run is unfinished."""
    points = [choices(repeat=0), choices(shards=3), choices(repeat=1)]
    sweep = make_sweep(tmp_path / "s", points, [None, "shards=3 does not divide n_heads=32", None])
    sweep.claim_attempt(identity.point_id(points[2]))
    found = rows(sweep)
    assert [row["status"] for row in found] == ["waiting", "infeasible", "running"]
    assert [row["reasons"] for row in found] == [["waiting"], ["infeasible"], ["unfinished"]]
    assert found[1]["error"] == "shards=3 does not divide n_heads=32"
    assert found[1]["attempt"] is None


def test_collecting_twice_changes_nothing(tmp_path):
    """The second collection reads no attempt anew and leaves the same rows and traces."""
    sweep, _, _ = one(tmp_path, Made([Gpu("GPU-a")]))
    (bucket,) = sweep.traces.iterdir()
    before = [pq.read_table(path) for path in (sweep.points_path, sweep.phases_path, bucket)]
    written = bucket.stat().st_mtime_ns
    assert collect(sweep).new == 0
    assert [pq.read_table(p) for p in (sweep.points_path, sweep.phases_path, bucket)] == before
    assert bucket.stat().st_mtime_ns == written


def test_a_new_attempt_joins_its_bucket(tmp_path):
    """A later attempt's trace stands beside the earlier one's, and the earlier row is taken over."""
    sweep, _, _ = one(tmp_path, Made([Gpu("GPU-a")]))
    make_attempt(sweep, choices(shards=1), Made([Gpu("GPU-a")]))
    assert collect(sweep).new == 1
    (bucket,) = sweep.traces.iterdir()
    table = pq.read_table(bucket)
    assert set(table["attempt"].to_pylist()) == {1, 2}
    assert [row["counts"] for row in pq.read_table(sweep.points_path).to_pylist()] == [False, True]


def test_collected_traces_are_the_sidecars(tmp_path):
    """Every reading of a billed GPU is in results/traces, under the first two digits of the point's id."""
    sweep, attempt, _ = one(tmp_path, Made([Gpu("GPU-a")]))
    table = pq.read_table(sweep.traces / f"{attempt.point_id[:2]}.parquet")
    raw = pq.read_table(attempt.trace_path("node1", "GPU-a"))
    assert table.num_rows == raw.num_rows
    assert set(table["point_id"].to_pylist()) == {attempt.point_id}


def test_rows_keep_the_declared_types(tmp_path):
    """points.parquet and phases.parquet have the declared columns and types, in order."""
    sweep, _, _ = one(tmp_path, Made([Gpu("GPU-a")]))
    for path, schema in ((sweep.points_path, POINT), (sweep.phases_path, PHASE)):
        stored = pq.read_schema(path)
        assert [(f.name, f.type) for f in stored] == [(f.name, f.type) for f in schema]
        assert stored.metadata[b"schema_version"] == b"1"


def test_only_declared_reasons(tmp_path):
    """Each reason in a row is a code that columns.REASONS explains."""
    sweep, attempt, _ = one(tmp_path, Made([Gpu("GPU-a"), Gpu("GPU-b")]))
    attempt.trace_path("node1", "GPU-b").unlink()
    sweep.points_path.unlink()
    assert set(rows(sweep)[0]["reasons"]) <= set(REASONS)


def test_a_thousand_failed_points_are_quick(tmp_path):
    """1,000 records of failed attempts are collected in under 3 s, and in under 1.5 s the second time."""
    points = [choices(seed=i) for i in range(1000)]
    sweep = make_sweep(tmp_path / "s", points)
    for point in points:
        attempt = sweep.claim_attempt(identity.point_id(point))
        record = {
            "schema_version": 1,
            "point_id": attempt.point_id,
            "attempt": 1,
            "status": "failed",
            "error": "no",
            "started_ns": START_NS,
            "choices": point,
        }
        attempt.record_path.write_text(json.dumps(record))
    for limit_s in (3.0, 1.5):
        began = time.process_time()
        assert collect(sweep).attempts == 1000
        assert time.process_time() - began < limit_s


def test_results_are_opened_to_the_group_only_when_asked(tmp_path):
    """cluster.group_readable lets the group read results/ and the report, and pass through the sweep; no more."""
    asked = choices()
    asked["cluster"] = {**asked["cluster"], "group_readable": True}
    sweep = make_sweep(tmp_path / "shared", [asked])
    collect(sweep)
    assert sweep.results.stat().st_mode & 0o777 == 0o750
    assert sweep.points_path.stat().st_mode & 0o777 == 0o640
    assert sweep.path.stat().st_mode & 0o777 == 0o710
    assert sweep.submitit.stat().st_mode & 0o777 == 0o700
    alone = make_sweep(tmp_path / "alone", [choices()])
    collect(alone)
    assert alone.points_path.stat().st_mode & 0o777 == 0o600


def test_hosts_are_added_up_apart(tmp_path):
    """Hosts at 90 W and 110 W over 7.5 s, clocks 3 s apart: 1,500 J beside the GPUs' 1,050 J, and in no other sum."""
    gpus = [Gpu("GPU-a", node="node1"), Gpu("GPU-b", node="node2")]
    hosts = {"node1": constant(90.0), "node2": constant(110.0)}
    made = Made(gpus, hosts=hosts, pause_s=0.0, decode_s=2.75, offset_s={"node2": 3.0})
    sweep, _, row = one(tmp_path, made)
    assert row["duration_s"] == pytest.approx(7.5)
    assert row["host_energy_j"] == pytest.approx(1500.0)
    assert row["host_power_w"] == pytest.approx(200.0)
    assert row["energy_j"] == pytest.approx(1050.0)
    assert row["gpus"] == 2
    assert {phase["gpu_uuid"] for phase in phases(sweep)} == {"GPU-a", "GPU-b"}


def test_a_host_that_one_node_lacks_has_no_total(tmp_path):
    """Where one of two nodes does not show RAPL, the hosts' joules are not known; the GPUs' are."""
    gpus = [Gpu("GPU-a", node="node1"), Gpu("GPU-b", node="node2")]
    _, _, row = one(tmp_path, Made(gpus, hosts={"node1": constant(90.0)}))
    assert row["host_energy_j"] is None
    assert row["valid"]


def test_what_devices_agree_on_is_told(tmp_path):
    """ECC of two devices is told where both say the same, and null where they differ."""
    sweep, attempt, _ = one(tmp_path, Made([Gpu("GPU-a"), Gpu("GPU-b")]))
    record = attempt.read_record()
    told = []
    for second in (True, False):
        for device, ecc in zip(record["nodes"][0]["devices"], (True, second), strict=True):
            device.update(ecc=ecc, power_limit_max_w=700.0)
        attempt.write_record(record)
        (row,) = rows(sweep)
        told.append((row["ecc"], row["power_limit_max_w"]))
    assert told == [(True, 700.0), (None, 700.0)]


def capped(tmp_path, limits_w, *, asked_w=300, under_cap_ns=(0, 0), clocks=(1980, 1980), **over):
    """The collected row of an attempt whose two readings of conditions in the window are these."""
    point = choices(control__power_limit_w=asked_w, **over)
    sweep = make_sweep(tmp_path / "s", [point])
    made = Made([Gpu("GPU-a", constant(290.0))], pause_s=0.0)
    attempt = make_attempt(sweep, point, made)
    path = attempt.trace_path("node1", "GPU-a")
    trace = pq.read_table(path)
    at_ns = [START_NS + round(s * 1e9) for s in (3.5, 10.5)]
    readings = [
        {
            "time_ns": time_ns,
            "source": "nvml_conditions",
            "gap": False,
            "power_limit_w": limit_w,
            "under_cap_ns": 10**12 + spent_ns,
            "sm_clock_mhz": mhz,
        }
        for time_ns, limit_w, spent_ns, mhz in zip(
            at_ns, limits_w, under_cap_ns, clocks, strict=True
        )
    ]
    told = pa.Table.from_pylist(readings, schema=TRACE)
    power = trace.filter(pa.compute.not_equal(trace["source"], "nvml_conditions"))
    table = pa.concat_tables([power.replace_schema_metadata(None), told])
    write_table(path, table.sort_by("time_ns").replace_schema_metadata(trace.schema.metadata))
    (row,) = rows(sweep)
    return row


def test_a_cap_in_force_that_bound(tmp_path):
    """300 W in force at each reading, 2 of 8 s under the cap: the row counts, and the cap bound."""
    row = capped(tmp_path, (300.0, 300.0), under_cap_ns=(0, 2 * 10**9))
    assert row["counts"]
    assert row["cap_bound"]
    assert row["under_cap_s"] == pytest.approx(2.0)
    assert not {"not_applied", "did_not_bind"} & set(row["reasons"])


@pytest.mark.parametrize(
    "limits_w", [(700.0, 700.0), (300.0, 700.0), (400.0, 400.0), (None, None), (250.0, 250.0)]
)
def test_a_cap_that_was_not_in_force_is_never_shown_as_capped(tmp_path, limits_w):
    """Not set, lost half-way, clipped, not told, or another one: the row says not_applied and does not count."""
    row = capped(tmp_path, limits_w)
    assert "not_applied" in row["reasons"]
    assert not row["counts"]


def test_a_cap_that_never_bound_is_said(tmp_path):
    """At 290 W under a cap of 400 W, no time under it: a remark, and the row counts."""
    row = capped(tmp_path, (400.0, 400.0), asked_w=400)
    assert row["counts"]
    assert row["cap_bound"] is False
    assert "did_not_bind" in row["reasons"]


def test_samples_near_the_limit_bind(tmp_path):
    """290 W of samples under 295 W bind, though the driver counts no time under the cap."""
    assert capped(tmp_path, (295.0, 295.0), asked_w=295)["cap_bound"]


@pytest.mark.parametrize(
    ("clocks", "applied"),
    [((1200, 1200), True), ((1200, 900), True), ((1980, 1200), False), ((900, 900), False)],
)
def test_a_locked_clock_is_read_back(tmp_path, clocks, applied):
    """1,200 MHz was in force where it was seen and never passed; a cap may hold clocks lower at times."""
    row = capped(tmp_path, (700.0, 700.0), asked_w=None, clocks=clocks, control__sm_clock_mhz=1200)
    assert ("not_applied" not in row["reasons"]) == applied


def test_simulated_watts_are_never_capped(tmp_path):
    """Where no sensor tells a limit, a cap cannot be confirmed."""
    made = Made([Gpu("host-node1")], source="simulated", boundary="host", counter=False)
    _, _, row = one(tmp_path, made, control__power_limit_w=300)
    assert "not_applied" in row["reasons"]
