"""Attempts of one sidecar, and what their closed traces hold."""

import contextlib

import numpy as np

from wattflow.config.choices import Power
from wattflow.errors import DamagedError
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import TRACE
from wattflow.store.tables import read_stream, read_table

SIMULATED = Power(meter="simulated", poll_ms=20, simulated_idle_w=70.0, simulated_full_w=70.0)


def new_attempt(folder, number=1):
    attempt = AttemptDir(folder / f"attempt-{number}", "0123456789ab", number)
    attempt.path.mkdir()
    attempt.make_folders()
    return attempt


def power_of(attempt, uuid):
    """Stamps, watts and gaps of a closed trace's power samples."""
    rows = [
        row
        for row in read_table(attempt.trace_path("n1", uuid), TRACE).to_pylist()
        if row["power_w"] is not None
    ]
    return (
        np.array([row["time_ns"] for row in rows]),
        np.array([row["power_w"] for row in rows]),
        [row["gap"] for row in rows],
    )


def joules(time_ns, power_w, start_ns, end_ns):
    """Trapezoids over the true stamps, interpolated at both edges."""
    assert time_ns[0] <= start_ns < end_ns <= time_ns[-1]
    inside = time_ns[(time_ns > start_ns) & (time_ns < end_ns)]
    at = np.concatenate([[start_ns], inside, [end_ns]])
    return np.trapezoid(np.interp(at, time_ns, power_w), (at - start_ns) / 1e9)


def samples(tmp_path, part):
    """How many rows of an attempt's first device a sidecar has put into the spool: part 0, after a restart part 1."""
    for path in sorted((tmp_path / "spool").glob(f"*.{part}.arrow")):
        with contextlib.suppress(DamagedError):  # begun, and nothing written yet
            return read_stream(path).num_rows
    return 0


def rows_of(readings, source, uuid=None):
    """The rows of a sensor among readings, of one device or of all."""
    return [
        row for who, row in readings if row["source"] == source and (uuid is None or who == uuid)
    ]
