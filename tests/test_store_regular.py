"""What is opened is looked at by its descriptor: a regular file of its size, a folder that is no link."""

import os

import pytest

from wattflow.errors import DamagedError
from wattflow.store.regular import check_folder, not_regular, open_regular, read_whole


def test_a_file_is_opened_and_nothing_else(tmp_path):
    """A folder and a link are refused with what they are; a missing file is FileNotFoundError."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    flags = os.O_RDONLY | os.O_NOFOLLOW
    held = open_regular(tmp_path / "file", flags, DamagedError)
    assert os.read(held, 9) == b"x"
    os.close(held)
    for name, what in (("link", "a link"), (".", "a folder")):
        with pytest.raises(DamagedError, match=what):
            open_regular(tmp_path / name, flags, DamagedError)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none", flags, DamagedError)
    assert not_regular(tmp_path / "link").endswith("link: a link, not a regular file.")


def test_a_file_is_read_whole_up_to_its_most_bytes(tmp_path):
    """Three bytes of three are read, three of two are refused with both numbers."""
    path = tmp_path / "file"
    path.write_text("abc")
    with path.open("rb") as file:
        assert read_whole(file, path, 3, DamagedError) == b"abc"
    with path.open("rb") as file, pytest.raises(DamagedError, match=r"3 bytes; .* at most 2"):
        read_whole(file, path, 2, DamagedError)


def test_a_folder_may_be_missing_and_is_no_link(tmp_path):
    """A link to a folder and a file are refused."""
    check_folder(tmp_path / "none")
    check_folder(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").write_text("")
    for name, what in (("link", "a link"), ("file", "a file")):
        with pytest.raises(DamagedError, match=what):
            check_folder(tmp_path / name)
