"""The lock by folders; tests/test_submit_lock.py has what a submit does with one."""

import pytest

from wattflow.errors import RefusedError
from wattflow.store.lock import LostLockError, folder_lock


def test_a_place_is_held_by_one_and_says_what_its_holder_does(tmp_path):
    """A second holder is refused in the words of the second; another place is free; after the end it is free."""
    with folder_lock(tmp_path / "a", "collecting", 0.0) as mine:
        mine.check()
        with (
            pytest.raises(RefusedError, match="another process is just baking"),
            folder_lock(tmp_path / "a", "baking", 0.0),
        ):
            pass
        with folder_lock(tmp_path / "b", "baking", 0.0) as other:
            assert other.folder == tmp_path / "b" / "1"
    with folder_lock(tmp_path / "a", "baking", 0.0) as mine:
        assert mine.folder == tmp_path / "a" / "2"


def test_a_lock_that_was_taken_over_is_lost(tmp_path):
    """Another process took a higher number: whoever checks is stopped."""
    with folder_lock(tmp_path / "a", "collecting", 0.0) as mine:
        (tmp_path / "a" / "2").mkdir()
        with pytest.raises(
            LostLockError, match="silent for 120 s while collecting, and another one"
        ):
            mine.check()
