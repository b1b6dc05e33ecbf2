"""The reads of one GPU as arrays: by source and step, stamped as each source allows."""

import math

import numpy as np
import pytest
from calibrations import MS, START_NS, UUID, counter_rows, reads_of, step, unix

NOTHING = step("idle", 0, 1)


def row(source, at_ms, value, stamp_ms=None, number=0):
    """A read of 2 ms around a time, ms after START_NS."""
    middle = START_NS + at_ms * MS
    stamp_ns = None if stamp_ms is None else START_NS + stamp_ms * MS
    return (number, source, middle - MS, middle + MS, stamp_ns, float(value))


def since_ms(stamps):
    return [(int(stamp) - START_NS) / MS for stamp in stamps]


def test_steps_are_found_by_name_and_a_source_by_its_reads():
    """Of three steps two are called bare; sources come in the order in which they are watched, silent ones not."""
    steps = [step("bare", 0, 1), step("slow", 1, 2), step("bare", 2, 3)]
    reads = reads_of(steps, [row("nvml_counter", 5, 1), row("nvml_instant", 5, 100)])
    assert reads.numbers("bare") == [0, 2]
    assert reads.numbers("fast") == []
    assert reads.sources == ["nvml_instant", "nvml_counter"]


def test_calls_are_those_of_the_named_steps():
    """A read of step 1 is not among those of step 0; a source that gave nothing has four empty arrays."""
    rows = [row("nvml_instant", 5, 100), row("nvml_instant", 1005, 200, number=1)]
    reads = reads_of([NOTHING, step("slow", 1, 2)], rows)
    start, end, _, value = reads.calls("nvml_instant", [1])
    assert since_ms(start) == [1004]
    assert since_ms(end) == [1006]
    assert value.tolist() == [200]
    assert [len(array) for array in reads.calls("nvml_gpm", [0, 1])] == [0] * 4


def test_edges_are_those_of_this_gpu_between_the_steps_ends():
    """Another GPU's load has edges of its own; a step without a load has its two ends alone."""
    loaded = step("slow", 1, 9, [2, 4], half_s=2.0)
    loaded["edges_ns"]["GPU-2"] = [unix(3)]
    reads = reads_of([NOTHING, loaded], [])
    assert reads.edges(1) == [unix(1), unix(2), unix(4), unix(9)]
    assert reads.edges(0) == [unix(0), unix(1)]
    assert UUID in loaded["edges_ns"]


def test_sensors_have_settled_at_57_per_cent_of_a_half():
    """2 s on, 2 s off: a plateau counts from 1.14 s after its edge."""
    assert reads_of([step("slow", 0, 9, half_s=2.0)], []).settle_ns(0) == 1_140 * MS


def test_the_buffers_samples_are_those_of_all_its_reads_once():
    """Two reads of the buffer hold the sample of 20 ms both; it has the driver's stamp."""
    rows = [row("nvml_buffer", 50, 100, stamp_ms=20), row("nvml_buffer", 50, 110, stamp_ms=40)]
    rows += [row("nvml_buffer", 70, 100, stamp_ms=20)]
    stamps, values = reads_of([NOTHING], rows).series("nvml_buffer", [0])
    assert since_ms(stamps) == [20, 40]
    assert values.tolist() == [100, 110]


def test_a_polled_value_is_stamped_between_the_reads_that_show_the_change():
    """Read at 10, 20 and 30 ms as 100, 100 and 300 W: the new value came at 25 ms."""
    rows = [row("nvml_instant", at, value) for at, value in ((10, 100), (20, 100), (30, 300))]
    stamps, values = reads_of([NOTHING], rows).series("nvml_instant", [0])
    assert since_ms(stamps) == [25]
    assert values.tolist() == [300]


def test_gpm_has_no_value_between_renewals():
    """A read that had none is there for its cost alone; others are stamped at their end."""
    rows = [row("nvml_gpm", 10, math.nan), row("nvml_gpm", 20, 35.0)]
    stamps, values = reads_of([NOTHING], rows).series("nvml_gpm", [0])
    assert since_ms(stamps) == [21]
    assert values.tolist() == [35]


def test_the_counters_ticks_keep_their_beat():
    """A tick each 100 ms, seen by reads 10 ms apart, is 10 J at 100 W; as a series it is 100 W."""
    reads = reads_of([step("idle", 0, 3)], counter_rows(0, 0, 3))
    ticks = reads.ticks([0])
    assert np.diff(ticks.time_ns) / MS == pytest.approx(
        np.full(len(ticks.time_ns) - 1, 100), abs=0.01
    )
    assert set(ticks.step_mj.tolist()) == {10_000}
    _, power_w = reads.series("nvml_counter", [0])
    assert power_w == pytest.approx(np.full(len(power_w), 100), abs=0.1)


def test_power_is_integrated_at_the_buffers_stamps_or_at_each_poll():
    """The curve has a point for each sample of the buffer, and for each read of a polled field, old values too."""
    rows = [row("nvml_buffer", 50, 100, stamp_ms=at) for at in (20, 40)]
    rows += [row("nvml_instant", at, 100) for at in (10, 20, 30)]
    reads = reads_of([NOTHING], rows)
    assert since_ms(reads.curve("nvml_buffer", [0]).time_ns) == [20, 40]
    assert since_ms(reads.curve("nvml_instant", [0]).time_ns) == [10, 20, 30]
