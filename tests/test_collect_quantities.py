"""Throughput and energy of an attempt, worked out by hand for constant power, ramps and waves."""

import json
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from collection import at, one, phases, relabelled, retraced, rows
from sweeps import ABOUT, Gpu, Made, choices, constant, make_attempt, make_sweep, spans_of

from wattflow.collect.latency import Latency
from wattflow.collect.served import RequestEnergy
from wattflow.store.columns import POINT
from wattflow.store.schema import SPAN, TRACE
from wattflow.store.sources import response_of
from wattflow.store.tables import write_table

HOPPER = response_of("nvml_buffer", "NVIDIA H100 80GB HBM3", 20.0)


def test_words_of_real_weights(tmp_path):
    """40 words in 4 batches' requests over 700 J: words are counted, and no dummy_text is said."""
    made = Made([Gpu("GPU-a")], prefill_s=1.0, decode_s=3.5, pause_s=1.0, dummy=False)
    _, _, row = one(tmp_path, made, weights="hf")
    assert row["words"] == 40
    assert row["words_per_s"] == pytest.approx(4.0)
    assert row["energy_per_word_j"] == pytest.approx(17.5, rel=1e-4)
    assert row["reasons"] == []


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


def test_a_gap_withholds(tmp_path):
    """With a second of the 8.5 s window lost there are no joules, but coverage and the gap are known."""
    row = retraced(tmp_path, lambda readings: [r for r in readings if not 5.0 < at(r) < 6.0])
    assert row["energy_j"] is None
    assert "gap" in row["reasons"]
    assert row["coverage"] == pytest.approx(7.5 / 8.5, abs=0.01)
    assert row["longest_gap_s"] == pytest.approx(1.0, abs=0.05)


def test_not_bracketed_withholds(tmp_path):
    """A trace that ends before the last decode does has no total."""
    row = retraced(tmp_path, lambda readings: [r for r in readings if at(r) < 11.0])
    assert row["energy_j"] is None
    assert "not_bracketed" in row["reasons"]


def test_no_power_at_all(tmp_path):
    """A sensor that reported no watt gives null and no_power, never 0 J."""
    row = retraced(tmp_path, lambda readings: [r for r in readings if r["power_w"] is None])
    assert row["energy_j"] is None
    assert "no_power" in row["reasons"]


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
    relabelled(attempt, source="nvml_counter")
    (row,) = rows(sweep)
    assert row["power_w"] == pytest.approx(70.0, rel=1e-3)
    assert row["power_source"] == "nvml_counter"
    assert row["counter_energy_j"] is None


def test_a_cached_counter_is_less_certain(tmp_path):
    """DCGM's counter may be 1 s old: at 70 W, 0.55 s to each side of a tick, u is 38.5 J / sqrt(3) at each edge."""
    row = one(tmp_path, Made([Gpu("GPU-a")], source="dcgm", after_s=2.0))[2]
    assert row["power_source"] == "dcgm"
    assert row["counter_energy_u_j"] == pytest.approx(38.5 * np.sqrt(2 / 3), rel=0.01)


def test_counter_reset_is_flagged_and_bridged(tmp_path):
    """A driver reload in mid-window leaves the counter's joules finite and right, with a remark."""

    def reset(readings):
        return [
            {**r, "counter_mj": r["counter_mj"] - 126_000_000_000}
            if r["counter_mj"] is not None and at(r) > 6.0
            else r
            for r in readings
        ]

    row = retraced(tmp_path, reset)
    assert row["counter_ratio"] == pytest.approx(1.0, rel=1e-3)
    assert "counter_reset" in row["reasons"]
    assert row["valid"]


def test_board_gain_stands_apart(tmp_path):
    """Two boards of 595 J in 8.5 s each: own gains in quadrature, the mean gain as it is; no part of energy_u_j.

    The budget's parts add up to energy_u_j in quadrature, and with gain and offset, doubled, to the expanded one.
    """
    row = one(tmp_path, Made([Gpu("GPU-a"), Gpu("GPU-b")]))[2]
    sd, mean = 0.0365651 * 595, 0.00984398 * 1190
    assert row["board_gain_u_j"] == pytest.approx(
        (2 * sd**2 + 4 * sd**2 / 19 + mean**2) ** 0.5, rel=1e-3
    )
    assert row["board_offset_u_j"] == pytest.approx(
        8.5 * (5.87048**2 * (2 + 4 / 19) + (2 * 0.857677) ** 2) ** 0.5, rel=1e-3
    )
    assert row["energy_u_j"] < 1.0
    parts = [row[f"{name}_u_j"] for name in ("sampling", "edges", "missing", "ticks")]
    assert sum(part**2 for part in parts) == pytest.approx(row["energy_u_j"] ** 2)
    both = np.hypot(row["energy_u_j"], row["board_u_j"])
    assert row["energy_expanded_u_j"] == pytest.approx(2 * both)
    assert row["board_u_j"] < np.hypot(row["board_gain_u_j"], row["board_offset_u_j"])  # r = -0.55


def test_simulated_watts_have_no_boards_gain(tmp_path):
    """Arithmetic has no sensor, so no gain."""
    made = Made([Gpu("host-node1")], source="simulated", boundary="host")
    assert one(tmp_path, made)[2]["energy_expanded_u_j"] is None


@pytest.mark.parametrize(("weights", "u_j"), [("dummy", 0.017 * 595 / 3**0.5), ("hf", None)])
def test_dummy_weights_carry_what_they_may_hide(tmp_path, weights, u_j):
    """Rows of dummy weights have 1.7 % / sqrt(3) of their 595 J apart; those of real weights have none."""
    sweep = make_sweep(tmp_path / "s", [choices(weights=weights)])
    make_attempt(sweep, choices(weights=weights), Made([Gpu("GPU-a")]))
    assert rows(sweep)[0]["dummy_data_u_j"] == (
        None if u_j is None else pytest.approx(u_j, rel=1e-3)
    )


def test_every_joule_has_its_uncertainty(tmp_path):
    """Beside each column of joules stands its u: where the one is known and measured, so is the other."""
    made = Made([Gpu("GPU-a"), Gpu("GPU-b")], batches=3, idle_after_s=1.0, after_s=1.2)
    made = replace(made, reference_s=0.4, dummy=False, hosts={"node1": constant(90.0)})
    row = one(tmp_path, made, weights="hf")[2]
    joules = [name for name in POINT.names if name.endswith("_j") and not name.endswith("_u_j")]
    assert len(joules) > 15
    # of attempts that did not finish, of engines' iterations, of loads, of Cray's counters
    elsewhere = {"unfinished_energy_j", *(field.name for field in fields(RequestEnergy))}
    elsewhere |= {field.name for field in fields(Latency)} | {"energy_per_good_request_j"}
    joules = [
        name
        for name in joules
        if name not in elsewhere and not name.startswith(("full_", "node_", "accelerators_"))
    ]
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
    found = {phase: row[f"{phase}_energy_u_j"] for phase in u}
    assert found == pytest.approx(u)
    around = [u["idle"], u["load"], u["warmup"]]
    assert row["job_energy_u_j"] == pytest.approx(np.linalg.norm([row["energy_u_j"], *around]))
    # 1 s of idle gives the watts, taken over 8.5 s
    net_u_j = np.hypot(row["energy_u_j"], 8.5 * u["idle"])
    assert row["net_energy_u_j"] == pytest.approx(net_u_j)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.2])
def test_the_counter_is_in_the_uncertainty_of_aliasing_alone(factor, tmp_path):
    """What it differs by, over sqrt(3), is there where it contradicts; every other part is the same without it."""
    wild = Made([Gpu("GPU-a", lambda s: 300 + 250 * np.sin(s * 31))])
    point = choices()
    found = []
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
        found.append(rows(sweep)[0])
    parts = ("sampling", "edges", "response", "missing", "ticks", "board_gain", "board_offset")
    us = [f"{part}_u_j" for part in parts]
    us += [
        name for name in POINT.names if "_u_" in name and factor == 1.0 and "counter" not in name
    ]
    assert [found[0][name] for name in us] == pytest.approx([found[1][name] for name in us])
    assert found[0]["counter_energy_j"] is not None
    assert found[1]["counter_energy_j"] is None
    if factor != 1.0:
        apart_j = abs(found[0]["energy_j"] - found[0]["counter_energy_j"])
        assert found[0]["aliasing_u_j"] == pytest.approx(apart_j / 3**0.5)
        assert "counter_contradicts" in found[0]["reasons"]


def recorded(tmp_path, made, change):
    """The row of an attempt whose record was changed, as text, before it was collected."""
    point = choices()
    sweep = make_sweep(tmp_path, [point])
    attempt = make_attempt(sweep, point, made)
    attempt.record_path.write_text(change(attempt.record_path.read_text()))
    (row,) = rows(sweep)
    return row


@pytest.mark.parametrize(("steps", "remarked"), [(300, True), (351, False), (0, False)])
def test_decode_steps_in_step_with_the_samples_are_remarked(steps, remarked, tmp_path):
    """6 s of decode in 300 steps take 20 ms each, as samples do: all watts are in doubt, the row says so and counts."""
    work = {"decode_steps": steps, "decode_rows": steps, "decode_positions": 1, "prefills": 2}
    work |= {"prefill_tokens": 8, "prefill_squares": 32}
    with_work = lambda text: json.dumps({**json.loads(text), "work": work})  # noqa: E731
    row = recorded(tmp_path / "s", Made([Gpu("GPU-a")]), with_work)
    assert ("may_alias" in row["reasons"]) is remarked
    assert (row["aliasing_u_j"] > 0.1 * row["energy_j"]) is remarked
    assert row["valid"]


def test_short_prefills_of_an_h100_are_put_right(tmp_path):
    """Seen 17 ms late, 40 prefills of 60 ms at 700 W are 1680 J, of which an integral over them lacks 13 % and more."""
    made = Made([], batches=40, prefill_s=0.06, decode_s=0.31, pause_s=0.013)
    fine = np.arange(-1.0, 25.0, 1e-4)
    inside = (fine >= 3.0) & (fine < 3.0 + made.window_s)
    watts = np.where(inside, np.where((fine - 3.0) % 0.383 < 0.06, 700.0, 300.0), 100.0)
    answer = np.exp(-np.arange(0, 0.2, 1e-4) / HOPPER.window_ms * 1e3)
    shown = np.convolve(watts, answer / answer.sum())[: len(fine)]
    made = replace(made, gpus=[Gpu("GPU-a", lambda s: np.interp(s - 0.0039, fine, shown))])
    unknown = recorded(tmp_path / "a", made, lambda text: text.replace("H100", "B300"))
    known = recorded(tmp_path / "b", made, str)
    assert known["energy_j"] == unknown["energy_j"]
    assert unknown["prefill_energy_j"] < 0.87 * 1680
    assert known["prefill_energy_j"] == pytest.approx(1680, rel=0.02)
    assert abs(known["prefill_energy_j"] - 1680) <= 2 * known["prefill_energy_u_j"]
    assert known["reasons"] == unknown["reasons"]


def test_samples_are_counted_against_the_sensors_period(tmp_path):
    """8.5 s at 20 ms are 425 samples; each third one left out is a remark, though no gap."""
    whole = one(tmp_path / "a", Made([Gpu("GPU-a")]))[2]
    thinned = retraced(
        tmp_path / "b",
        lambda readings: [r for i, r in enumerate(readings) if r["power_w"] is None or i % 3],
    )
    assert (whole["samples"], whole["samples_expected"]) == (425, 425)
    assert "samples_missing" in thinned["reasons"]
    assert thinned["valid"]


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


@pytest.mark.parametrize(
    ("decode_s", "later_s", "reason"),
    [
        (0.1, 0.005, "window_too_short"),
        (3.0, 0.2, "energy_power_time"),
        (3.0, 0.005, None),
    ],
)
def test_a_window_too_short_to_measure_says_so(tmp_path, decode_s, later_s, reason):
    """One rank ends 5 ms after the other: 4 % of a window of 0.12 s, nothing of one of 3 s; 0.2 s is another fault."""
    sweep = make_sweep(tmp_path / "s", [choices(shards=2)])
    made = Made([Gpu("GPU-a"), Gpu("GPU-b")], batches=1, prefill_s=0.02, decode_s=decode_s)
    attempt = make_attempt(sweep, choices(shards=2), made)
    path = attempt.spans_path("node1")
    table = pq.read_table(path)
    spans = table.to_pylist()
    for span in spans:
        if (span["rank"], span["phase"]) == (1, "decode"):
            span["end_ns"] += round(later_s * 1e9)
    write_table(path, pa.Table.from_pylist(spans, schema=table.schema))
    (row,) = rows(sweep)
    named = {"window_too_short", "energy_power_time"}.intersection(row["reasons"])
    assert named == ({reason} if reason else set())
    assert row["valid"] == (reason is None), row["reasons"]


def test_a_host_with_a_gap_has_no_joules_and_a_remark(tmp_path):
    """A host that no package can have drawn for a second has no joules; the row says why, and counts."""
    sweep = make_sweep(tmp_path / "s", [choices()])
    made = Made([Gpu("GPU-a")], hosts={"node1": constant(90.0)})
    attempt = make_attempt(sweep, choices(), made)
    (path,) = attempt.trace_path("node1", "x").parent.glob("*host*")
    trace = pq.read_table(path)
    watts = trace["power_w"].to_pylist()
    middle = len(watts) // 2
    watts[middle : middle + 50] = [5e6] * 50
    at = trace.schema.get_field_index("power_w")
    write_table(path, trace.set_column(at, TRACE.field("power_w"), pa.array(watts)))
    (row,) = rows(sweep)
    assert row["host_energy_j"] is None
    assert "host_gap" in row["reasons"]
    assert row["valid"]


def test_a_host_that_one_node_lacks_has_no_total(tmp_path):
    """Where one of two nodes does not show RAPL, the hosts' joules are not known; the GPUs' are."""
    gpus = [Gpu("GPU-a", node="node1"), Gpu("GPU-b", node="node2")]
    _, _, row = one(tmp_path, Made(gpus, hosts={"node1": constant(90.0)}))
    assert row["host_energy_j"] is None
    assert row["valid"]
