"""What a record reports beside figures."""

from datetime import UTC, datetime

import pytest
from collection import one, rows
from sweeps import SECOND_NS, Gpu, Made

from wattflow.collect.description import describe, reason


def test_what_devices_agree_on_stands_in_the_row(tmp_path):
    """ECC of two devices is known where both have the same, and null where they differ."""
    sweep, attempt, _ = one(tmp_path, Made([Gpu("GPU-a"), Gpu("GPU-b")]))
    record = attempt.read_record()
    found = []
    for second in (True, False):
        for device, ecc in zip(record["nodes"][0]["devices"], (True, second), strict=True):
            device.update(ecc=ecc, power_limit_max_w=700.0)
        attempt.write_record(record)
        (row,) = rows(sweep)
        found.append((row["ecc"], row["power_limit_max_w"]))
    assert found == [(True, 700.0), (None, 700.0)]


def record_of(*devices, **over):
    """The record of an attempt that began at 100 s and ended at 130 s, with one node of these devices."""
    node = {"driver": "580", "source": "nvml_buffer", "boundary": "gpu", "sidecar_restarts": 1}
    record = {"status": "finished", "started_ns": 100 * SECOND_NS, "ended_ns": 130 * SECOND_NS}
    return {**record, "nodes": [{**node, "devices": devices}, {**node, "devices": []}], **over}


def test_what_a_record_reports():
    """30 s, two nodes with one restart of the sidecar each, one driver, two GPUs of one name, measured watts."""
    found = describe(record_of({"name": "A100"}, {"name": "A100"}), 7)
    assert (found.status, found.record_stamp_ns, found.attempt_s) == ("finished", 7, 30.0)
    assert (found.gpu_name, found.driver, found.boundary) == ("A100", "580", "gpu")
    assert (found.sidecar_restarts, found.simulated) == (2, False)
    assert found.started == datetime(1970, 1, 1, 0, 1, 40, tzinfo=UTC)


def test_what_a_record_lacks_is_null():
    """An attempt that never came to its nodes has no device, no sensor and no job: null, not empty."""
    found = describe({"status": "failed", "error": "no GPU", "started_ns": 0}, 7)
    known = {name: value for name, value in vars(found).items() if value is not None}
    assert known == {
        "status": "failed",
        "error": "no GPU",
        "record_stamp_ns": 7,
        "started": datetime(1970, 1, 1, tzinfo=UTC),
    }


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ({"status": "failed"}, "failed"),
        ({"status": "failed", "reason": "hung"}, "hung"),
        ({"status": "interrupted", "reason": None}, "interrupted"),
        ({"status": "running"}, "unfinished"),
        ({"status": "failed", "reason": "of a later version"}, "unfinished"),
    ],
)
def test_the_reason_of_an_attempt_without_figures(record, code):
    """The record's own reason, else its end; what is no code of this version is unfinished."""
    assert reason(record) == code


@pytest.mark.parametrize(("codes", "exit_code"), [([0, 0], 0), ([0, 3, 2], 3), ([], None)])
def test_a_measured_command_has_the_first_exit_code_that_is_not_0(codes, exit_code):
    """Of two nodes that ended well, of three of which two failed, and of none."""
    measure = {"command": ["./train", "--fast"], "nodes": len(codes)}
    parts = [{"exit_code": code} for code in codes]
    found = describe(record_of(measure=measure, parts=parts), 7)
    assert (found.command, found.exit_code) == ('["./train", "--fast"]', exit_code)
