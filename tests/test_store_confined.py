"""A child under limits answers, or says in a line what ended it."""

from pathlib import Path

import pytest

from wattflow.store import confined


def double(text):
    """For a child: twice what it is given."""
    print("a library prints")
    return text * 2


def addresses(n_bytes):
    """For a child: whether it can take so many bytes."""
    try:
        return str(len(bytearray(int(n_bytes))))
    except MemoryError:
        return "none"


def test_a_child_under_limits_answers(monkeypatch, tmp_path):
    """What it returns comes back, what is printed does not; a file of the working folder stands in for nothing."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    (tmp_path / "resource.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    assert confined.confined("test_store_confined:double", "ab\n", confined.Limits()) == "ab\nab\n"
    small = confined.Limits(memory_bytes=2**31)
    assert confined.confined("test_store_confined:addresses", str(2**20), small) == str(2**20)
    assert confined.confined("test_store_confined:addresses", str(2**32), small) == "none"
    with pytest.raises(confined.ConfinedError, match="ended with code 1"):
        confined.confined("test_store_confined:nothing", "", small)
