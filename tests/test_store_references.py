"""What meters found of single boards, kept by UUID."""

import json

import pytest

from wattflow.errors import DamagedError, RefusedError
from wattflow.store import references

GOOD = {
    "gain": 0.03,
    "offset_w": -4.0,
    "gain_u": 0.005,
    "offset_u_w": 0.7,
    "correlation": -0.8,
    "made": "2026-01-01T00:00:00Z",
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


def test_what_is_kept_is_found_by_its_board_alone():
    """The five numbers and the date, and nothing else of what was passed; another board has none."""
    path = references.keep("GPU-a1", {**GOOD, "meter": "/home/me/meter.csv"})
    assert references.find("GPU-a1") == GOOD
    assert "/home" not in path.read_text()
    assert references.find("GPU-b2") is None


@pytest.mark.parametrize(
    "change",
    [
        {"gain": 3.0},
        {"gain": float("nan")},
        {"gain": "0.1"},
        {"gain_u": -0.1},
        {"offset_w": 1e9},
        {"correlation": 1.5},
        {"made": None},
    ],
)
def test_what_no_board_has_is_refused(change):
    """A gain of 300 %, no number, a negative uncertainty: one clear error, read or written."""
    with pytest.raises(DamagedError):
        references.keep("GPU-a1", {**GOOD, **change})
    path = references.path_of("GPU-a1")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(DamagedError, match="GPU-a1"):
        references.find("GPU-a1")


@pytest.mark.parametrize("uuid", ["../x", "GPU-../x", "", "MIG-1"])
def test_names_that_are_no_boards_make_no_paths(uuid):
    """No file outside of the folder."""
    with pytest.raises(RefusedError):
        references.path_of(uuid)
    assert references.find(uuid) is None
