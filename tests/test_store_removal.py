"""Files are found and removed by descriptors: what a link leads to, and the working folder, are never touched."""

import os

import pytest

from wattflow.errors import DamagedError
from wattflow.store.removal import File, all_below, files_below, folders_below, remove


@pytest.fixture
def root(tmp_path):
    """a/x of 3 bytes, a/b/y of 2, and a FIFO, a link and a second name among them."""
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "x").write_text("xxx")
    (root / "a" / "b" / "y").write_text("yy")
    os.mkfifo(root / "a" / "fifo")
    (tmp_path / "mine").write_text("precious")
    (root / "a" / "link").symlink_to(tmp_path / "mine")
    (root / "a" / "way").symlink_to(tmp_path)
    (root / "a" / "twice").hardlink_to(tmp_path / "mine")
    return root


def test_regular_files_are_found_with_what_their_removal_frees(root):
    """Links, FIFOs and folders are none; a file with another name elsewhere frees nothing."""
    found = {file.parts: file.size_bytes for file in all_below(root, ("a",))}
    assert found == {("a", "x"): 3, ("a", "twice"): 0, ("a", "b", "y"): 2}
    assert [file.parts for file in files_below(root, ("a",), "x".__eq__)] == [("a", "x")]
    assert folders_below(root, ("a",)) == ["b"]
    assert list(all_below(root, ("no", "such"))) == []


def test_files_go_and_folders_only_where_they_may(root, tmp_path):
    """An empty folder stays unless it may go; what is not empty stays."""
    remove(root, list(all_below(root, ("a",))), lambda parts: parts == ("a", "b"))
    assert sorted(path.name for path in (root / "a").iterdir()) == ["fifo", "link", "way"]
    assert (tmp_path / "mine").read_text() == "precious"
    (root / "c").mkdir()
    (root / "c" / "z").touch()
    remove(root, list(all_below(root, ("c",))), lambda _: False)
    assert list((root / "c").iterdir()) == []


def test_a_folder_that_is_gone_meanwhile_is_not_the_working_folder(root, tmp_path, monkeypatch):
    """A file of the same name in the working folder stays."""
    monkeypatch.chdir(tmp_path)
    remove(root, [File(("gone", "mine"), 0, 0.0), File(("a", "none"), 0, 0.0)], lambda _: True)
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize(
    "parts", [("a", "way"), ("a", "link"), ("a", "fifo"), ("a", "way", "root")]
)
def test_what_stands_in_a_folders_place_is_refused(root, parts):
    """A link to a folder, one to a file, a FIFO, and a folder behind a link."""
    with pytest.raises(DamagedError, match="a link or a file in the place of a folder"):
        list(files_below(root, parts))
    with pytest.raises(DamagedError):
        remove(root, [File((*parts, "mine"), 0, 0.0)], lambda _: True)
