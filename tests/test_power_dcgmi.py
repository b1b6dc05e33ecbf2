"""dcgmi: what it prints, which fake_dcgmi plays from files in the documented format, and a dmon that runs."""

import os
import signal
import statistics
import time
from itertools import pairwise

import fake_dcgmi
import pytest
from fake_nvml import curves
from processes import PATIENCE_S, gone, until

from wattflow.power.dcgmi import Stream, Table, number, parse_discovery

# the fake NVML's GPUs of node n1, which DCGM counts the other way round
FIRST, SECOND = curves.uuid("n1", 0), curves.uuid("n1", 1)


@pytest.fixture
def played(tmp_path, monkeypatch):
    """The folder of what the fake dcgmi plays and of the calls that it got."""
    return fake_dcgmi.install(tmp_path, monkeypatch)


def text_of(name):
    return (fake_dcgmi.DATA / f"{name}.txt").read_bytes()


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("61.250", 61.25),
        ("0", 0),
        ("126311842000123", 126311842000123),  # an integer, as a float64 of a counter would do
        ("N/A", None),
        ("1407374883553...", None),
        ("140737488355328.000", None),  # DCGM_FP64_BLANK
        ("140737488355331.000", None),  # not permitted
        ("9223372036854775792", None),  # DCGM_INT64_BLANK
        ("2147483632", None),  # DCGM_INT32_BLANK
        ("9223372036854775794", None),  # and the three after it
        ("1_000", None),
        ("inf", None),
        ("\u0661\u0662", None),
        ("2147483635", None),  # not permitted
        ("2147483631", 2147483631),
        ("2147483648", 2147483648),
        ("-1", None),
        ("nan", None),
        ("<<<NULL>>>", None),
        ("", None),
    ],
)
def test_blank_values_are_null(cell, expected):
    """N/A, cut values, words, and each of DCGM's blank values are null; what lies beside them is a number."""
    assert number(cell) == expected


def test_only_whole_rows_of_gpus_are_readings():
    """Headers, other entities, empty lines and rows with a cell too few or too many are passed over."""
    rows = Table([155, 156]).feed(text_of("no-readings"))
    assert rows == [
        (0, {155: 61.25, 156: 126311842}),
        (1, {155: None, 156: None}),
        (2, {155: None, 156: None}),
        (3, {155: None, 156: None}),
        (4, {155: None, 156: None}),
        (5, {155: None, 156: None}),
        (10, {155: 971.125, 156: 126311842000123}),
        (0, {155: 61.5, 156: 126311903}),
    ]


def test_the_older_shape_is_read_too():
    """Right-aligned rows with an empty line before each header, as DCGM 2.0 prints them, say the same."""
    assert Table([155, 156]).feed(text_of("older-format")) == [
        (0, {155: 61.25, 156: 126311842}),
        (1, {155: None, 156: None}),
        (0, {155: 61.5, 156: 126311903}),
    ]


def test_output_may_be_cut_anywhere():
    """Cut in two at each byte, the output gives the same rows: a line is read once it is whole."""
    text = text_of("no-readings")
    whole = Table([155, 156]).feed(text)
    for cut in range(len(text)):
        table = Table([155, 156])
        assert table.feed(text[:cut]) + table.feed(text[cut:]) == whole


def test_a_last_line_that_was_cut_is_no_reading():
    """A process that dies in the middle of a counter leaves no wrong counter."""
    assert Table([155, 156]).feed(b"GPU 0     61.250            1263") == []


def test_what_is_no_table_is_remembered():
    """The last line that is no part of the table is kept, as it says why dmon ended."""
    table = Table([155, 156])
    table.feed(text_of("no-readings"))
    assert table.message == "dmon was stopped do to receiving a signal"


def test_gpus_are_known_by_uuid():
    """The map from UUIDs to DCGM's numbers has the GPUs of discovery, and no NvSwitch."""
    found = parse_discovery(text_of("discovery").decode())
    assert found == {curves.uuid("n2", 0): 0, SECOND: 1, FIRST: 2}


@pytest.fixture
def stream(played):
    """A function that starts a stream of instant power; none is left running after the test."""
    made = []

    def start(period_ms=20, **options):
        made.append(Stream([157], [1, 2], period_ms, **options))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_rows_are_stamped_as_they_come(stream):
    """Rows come at the period that was asked for, each with the moment of its coming."""
    one = stream(period_ms=50)
    started_ns = time.time_ns()
    one.wait(PATIENCE_S)
    one.take()
    heard = []
    until(lambda: heard.extend(h for h in one.take() if h.gpu == 1) or len(heard) >= 10)
    spacings_s = [(b.at.time_ns - a.at.time_ns) / 1e9 for a, b in pairwise(heard)]
    assert 0.045 < statistics.median(spacings_s) < 1.0
    assert all(started_ns < h.at.time_ns < time.time_ns() for h in heard)


def test_the_first_row_is_dropped(played, stream):
    """What DCGM prints first may be an old value of its cache: it is no sample."""
    path = played / "power-instant.txt"
    path.write_text(path.read_text().replace("GPU 1     70.000", "GPU 1     12.000", 1))
    one = stream(period_ms=50)
    one.wait(PATIENCE_S)
    heard = [h for h in one.take() if h.gpu == 1]
    assert heard[0].values == {157: 70.0}


def test_ctrl_c_is_not_for_dmon(played, stream):
    """A dmon has a process group of its own, as the sidecar ends it when its parent says so."""
    stream().wait(PATIENCE_S)
    ((pid, _),) = fake_dcgmi.calls(played)
    assert os.getpgid(pid) == pid


def test_of_rows_that_piled_up_the_newest_counts(stream):
    """Rows that waited in the pipe have no time of their own: one of each GPU is kept of what is read at once."""
    one = stream(period_ms=0)
    one.wait(PATIENCE_S)
    stamps_ns = []
    until(
        lambda: (
            stamps_ns.extend(h.at.monotonic_ns for h in one.take() if h.gpu == 1)
            or len(stamps_ns) > 10
        )
    )
    assert all(after > before for before, after in pairwise(stamps_ns))


def test_a_dmon_that_dies_is_started_again(played, stream):
    """A killed dmon is told once, with the moment, and rows come again from another process."""
    one = stream()
    one.wait(PATIENCE_S)
    ((pid, _),) = fake_dcgmi.calls(played)
    one.take()
    os.kill(pid, signal.SIGKILL)
    heard = []
    until(lambda: heard.extend(one.take()) or any(h.gpu is None for h in heard))
    end = next(i for i, h in enumerate(heard) if h.gpu is None)
    until(lambda: heard.extend(one.take()) or len(heard) > end + 2)
    assert [h.gpu is None for h in heard].count(True) == 1
    assert {h.gpu for h in heard[end + 1 :]} == {1, 2}
    assert len(fake_dcgmi.calls(played)) == 2


def test_a_dmon_that_goes_silent_is_started_again(played, stream):
    """A dmon that is stopped prints nothing more: it is killed and started again."""
    one = stream(silent_ns=500_000_000)
    one.wait(PATIENCE_S)
    ((pid, _),) = fake_dcgmi.calls(played)
    os.kill(pid, signal.SIGSTOP)
    heard = []
    until(lambda: heard.extend(one.take()) or any(h.gpu is None for h in heard))
    until(lambda: len(fake_dcgmi.calls(played)) == 2)
    assert gone(pid)


def test_closing_leaves_no_process(played, stream):
    """After close the process is gone, and it is not started again."""
    one = stream()
    one.wait(PATIENCE_S)
    ((pid, _),) = fake_dcgmi.calls(played)
    one.close()
    until(lambda: gone(pid))
    time.sleep(0.3)
    assert len(fake_dcgmi.calls(played)) == 1
