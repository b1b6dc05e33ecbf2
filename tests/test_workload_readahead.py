"""Reading a checkpoint ahead of its use: how far it goes, and that it ends."""

import time

from processes import until

from wattflow.workload import readahead
from wattflow.workload.readahead import Ahead, Range


def test_reading_stays_near_its_use(tmp_path, monkeypatch):
    """Ten matrices of 100 bytes and 250 bytes ahead: three are read at first, and one more as each is used."""
    monkeypatch.setattr(readahead, "AHEAD_BYTES", 250)
    (tmp_path / "file").write_bytes(bytes(1000))
    parts = [Range(f"m{k}", tmp_path / "file", 100 * k, 100 * k + 100) for k in range(10)]
    with readahead.reading(parts) as made:
        until(lambda: made.read == 300)
        time.sleep(0.05)
        assert made.read == 300
        made.use("m0")
        until(lambda: made.read == 400)
        made.use("m9")
        until(lambda: made.read == 1000)


def test_leaving_ends_the_thread_though_nothing_was_used(tmp_path, monkeypatch):
    """Whoever fails in the middle of a load is not waited for."""
    monkeypatch.setattr(readahead, "AHEAD_BYTES", 10)
    (tmp_path / "file").write_bytes(bytes(1000))
    with readahead.reading([Range("m", tmp_path / "file", 0, 1000)] * 3) as made:
        until(lambda: made.read > 0)
    assert made.ended


def test_a_file_that_is_gone_is_left_to_its_user(tmp_path):
    """The thread ends without a word; who maps the file says what is wrong."""
    Ahead([Range("m", tmp_path / "none", 0, 100)]).run()
