"""Files that no reader ever sees half-written, and names that stay inside their folder."""

import stat

import pytest

from wattflow.errors import DamagedError, RefusedError
from wattflow.store import files


@pytest.mark.parametrize("name", ["a", "demo-1.b_c", "A" * 100])
def test_a_name_of_one_path_component_is_kept(name):
    """Letters, digits, dots, dashes and underscores, up to 100."""
    assert files.check_name(name, "sweep") == name


@pytest.mark.parametrize(
    "name", ["", "..", "a/b", "-a", ".a", "a..b", "a b", "\u00dcbung", "A" * 101, "a\n"]
)
def test_a_name_that_leads_elsewhere_is_refused(name):
    """Slashes, two dots, a dash or dot in front, spaces and longer names: what it was for is named."""
    with pytest.raises(RefusedError, match=r"^sweep "):
        files.check_name(name, "sweep")


def test_a_file_is_replaced_whole_and_private(tmp_path):
    """JSON goes in and comes out again, mode 0600, and nothing else lies in the folder."""
    path = tmp_path / "record.json"
    files.write_json(path, {"b": 1, "a": [None]})
    files.write_json(path, {"b": 2, "a": [None]})
    assert path.read_text() == '{\n "b": 2,\n "a": [\n  null\n ]\n}\n'
    assert files.read_json(path) == {"b": 2, "a": [None]}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    """What raises in the middle changes nothing, and its own file is gone."""
    path = tmp_path / "record.json"
    path.write_text("old")

    def fail():
        with files.replacing(path) as file:
            file.write(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_at_once_do_not_share_a_file(tmp_path):
    """Two open replacements of one path, as by equal pids of two containers: the last to end is there, whole."""
    path = tmp_path / "record.json"
    with files.replacing(path) as slow:
        slow.write(b"slow ")
        with files.replacing(path) as quick:
            quick.write(b"quick")
        assert path.read_bytes() == b"quick"
        slow.write(b"writer")
    assert path.read_bytes() == b"slow writer"


def test_a_link_in_the_way_is_replaced_and_not_followed(tmp_path):
    """A path that is a link to somebody's file becomes a file of our own; the other keeps its bytes."""
    (tmp_path / "private").write_text("key")
    path = tmp_path / "results.json"
    path.symlink_to(tmp_path / "private")
    files.write_json(path, {})
    assert not path.is_symlink()
    assert (tmp_path / "private").read_text() == "key"


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 100_000, b""])
def test_what_is_no_json_names_its_file(data, tmp_path):
    """A cut document, bytes that are no text, one nested without end, an empty one: DamagedError with the path."""
    path = tmp_path / "record.json"
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=r"record\.json: not a JSON document"):
        files.read_json(path)
