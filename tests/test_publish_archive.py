"""A bundle's container: the same bytes for the same files, hashes that sha256sum reads, and nothing written over."""

import os
import stat
import struct
import subprocess
import zipfile

import pytest

from wattflow.errors import RefusedError
from wattflow.publish import archive


@pytest.fixture
def folder(tmp_path):
    """Two files, one of them in a folder."""
    made = tmp_path / "made"
    (made / "sweep").mkdir(parents=True)
    (made / "README.md").write_text("hello\n")
    (made / "sweep" / "grid.parquet").write_bytes(bytes(1000))
    return made


def test_files_are_named_as_in_the_zip_and_sorted(folder):
    """Names have forward slashes; folders are none."""
    assert archive.files(folder) == ["README.md", "sweep/grid.parquet"]


def test_sums_are_what_sha256sum_writes(folder):
    """`sha256sum --check` passes; the hash of "hello\\n" is the known one; reading gives what was written."""
    archive.write_sums(folder)
    subprocess.run(
        ["sha256sum", "--check", "--strict", "sha256sums"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    sums = archive.read_sums(folder)
    assert sums["README.md"] == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert sums["README.md"] == archive.sha256(folder / "README.md")
    assert archive.wrong_sums(folder, sums) == []


def test_a_file_that_is_gone_new_or_changed_is_named(folder):
    """One line each."""
    archive.write_sums(folder)
    sums = archive.read_sums(folder) | {"gone.txt": "0" * 64}
    (folder / "README.md").write_text("hullo\n")
    (folder / "new.txt").write_text("")
    assert archive.wrong_sums(folder, sums) == [
        "gone.txt: not there",
        "new.txt: not in sha256sums",
        "README.md: changed since it was packed",
    ]


@pytest.mark.parametrize("text", [None, b"\xff\xfe", b"not a hash  README.md\n"])
def test_sums_that_are_none_are_refused(folder, text):
    """A file that is not there, is no text, or has a line of another form."""
    if text is not None:
        (folder / archive.SUMS).write_bytes(text)
    with pytest.raises(RefusedError, match="sha256sums"):
        archive.read_sums(folder)


def test_the_same_files_make_the_same_bytes_for_their_owner_alone(folder, tmp_path):
    """When and in which order files were made is no part of the zip; its mode is 0600; nothing else is left behind."""
    archive.pack(folder, tmp_path / "1.zip")
    grid = (folder / "sweep" / "grid.parquet").read_bytes()
    (folder / "sweep" / "grid.parquet").unlink()
    (folder / "sweep" / "grid.parquet").write_bytes(grid)
    archive.pack(folder, tmp_path / "2.zip")
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    assert stat.S_IMODE((tmp_path / "1.zip").stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"made", "1.zip", "2.zip"}


def test_unpacking_gives_the_files_back(folder, tmp_path):
    """Byte for byte, in folders of the owner's alone."""
    archive.pack(folder, tmp_path / "b.zip")
    archive.unpack(tmp_path / "b.zip", tmp_path / "back")
    assert archive.files(tmp_path / "back") == archive.files(folder)
    assert (tmp_path / "back" / "README.md").read_text() == "hello\n"
    assert stat.S_IMODE((tmp_path / "back" / "sweep").stat().st_mode) == 0o700


def test_more_than_unpack_takes_is_not_packed(folder, tmp_path, monkeypatch):
    """Neither too many files nor too many bytes; no file is begun."""
    monkeypatch.setattr(archive, "MOST_MEMBERS", 1)
    with pytest.raises(RefusedError, match="2 files"):
        archive.pack(folder, tmp_path / "b.zip")
    monkeypatch.setattr(archive, "MOST_MEMBERS", 2)
    monkeypatch.setattr(archive, "MOST_BYTES", 2**26 + 1000)
    with pytest.raises(RefusedError, match="1006 bytes"):
        archive.pack(folder, tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


def test_a_pack_that_fails_leaves_no_half_bundle(folder, tmp_path, monkeypatch):
    """The disk is full once the zip is closed: the error goes on, and nothing lies there."""

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        archive.pack(folder, tmp_path / "b.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_member_that_is_a_file_and_a_folder_is_refused(tmp_path):
    """Nothing is written."""
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as packed:
        packed.writestr("a", "file")
        packed.writestr("a/b", "below it")
    with pytest.raises(RefusedError, match="file and a folder at once"):
        archive.unpack(tmp_path / "b.zip", tmp_path / "to")
    assert not (tmp_path / "to").exists()


# --- what a file manager does ---------------------------------------------------------------------

LEFT = [
    *(".DS_Store", "sweep/.DS_Store", "._README.md", "sweep/._grid.parquet", "__MACOSX/._README.md"),
    *("Thumbs.db", "sweep/desktop.ini", "sweep/ehthumbs.db", ".Trash-1000/x", "@eaDir/README.md@SynoEAStream"),
    *(".directory", ".nfs000000000012", "Icon\r", "$RECYCLE.BIN/x", ".Spotlight-V100/Store"),
]  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_a_file_manager_left_is_named_and_not_unpacked(folder, tmp_path, name):
    """In a folder it is no additional file, in a zip no member; a real additional file beside it is."""
    archive.write_sums(folder)
    sums = archive.read_sums(folder)
    packed = [(one, (folder / one).read_bytes()) for one in archive.files(folder)]
    path = zip_of(tmp_path / "m.zip", [*packed, (name, b"\0" * 9)])
    assert archive.unpack(path, tmp_path / "to") == [name]
    assert archive.files(tmp_path / "to") == archive.files(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(bytes(9))
    (folder / "._x").mkdir()
    assert archive.wrong_sums(folder, sums) == []
    (folder / "sweep" / "x.DS_Store").write_bytes(b"")
    assert archive.wrong_sums(folder, sums) == ["sweep/x.DS_Store: not in sha256sums"]


def test_a_bundles_own_file_of_such_a_name_is_the_bundles(folder):
    """What sha256sums names is checked, whatever it is called."""
    (folder / "Thumbs.db").write_text("a")
    archive.write_sums(folder)
    sums = archive.read_sums(folder)
    (folder / "Thumbs.db").write_text("b")
    assert archive.wrong_sums(folder, sums) == ["Thumbs.db: changed since it was packed"]


def test_entries_for_folders_say_nothing(folder, tmp_path):
    """Other packers add them, at times with a byte in them; those of no folder that has members are refused."""
    packed = [(one, (folder / one).read_bytes()) for one in archive.files(folder)]
    path = zip_of(tmp_path / "f.zip", [("sweep/", b"\0"), ("empty/", b""), *packed])
    assert archive.unpack(path, tmp_path / "to") == []
    assert archive.files(tmp_path / "to") == archive.files(folder)


def test_changed_line_ends_are_named(folder):
    """A transfer as text changes a file, and the line says how."""
    archive.write_sums(folder)
    (folder / "README.md").write_bytes(b"hello\r\n")
    wrong = archive.wrong_sums(folder, archive.read_sums(folder))
    assert wrong == ["README.md: changed since it was packed: its line ends alone"]


def test_a_bundle_one_folder_below(folder, tmp_path):
    """The only folder in a folder is looked into where it has the marker, whatever a file manager left beside it."""
    (tmp_path / ".DS_Store").write_text("")
    assert archive.inside(tmp_path, "README.md") == folder
    assert archive.inside(folder, "README.md") == folder
    (tmp_path / "other").mkdir()
    assert archive.inside(tmp_path, "README.md") == tmp_path


# --- files of strangers ---------------------------------------------------------------------------


def zip_of(path, members, mode=zipfile.ZIP_STORED, attributes=0):
    with zipfile.ZipFile(path, "w", mode) as packed:
        for name, data in members:
            about = zipfile.ZipInfo(name)
            about.compress_type = mode
            about.external_attr = attributes
            packed.writestr(about, data)
    return path


@pytest.mark.parametrize(
    "name", ["../out", "/etc/out", "a/../../out", "a\\..\\out", "C:out", ".hidden", "a//b", "a/"]
)
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    """No member is written outside of the folder; nothing is written at all."""
    path = zip_of(tmp_path / "x.zip", [("a.txt", b""), (name, b"x")])
    (tmp_path / "to").mkdir()
    with pytest.raises(RefusedError):
        archive.unpack(path, tmp_path / "to")
    assert list((tmp_path / "to").iterdir()) == []


def test_links_are_refused(tmp_path):
    """A member that would become a symbolic link is refused."""
    link = zip_of(
        tmp_path / "l.zip", [("a", b"/etc/passwd")], attributes=(stat.S_IFLNK | 0o777) << 16
    )
    with pytest.raises(RefusedError, match="is a link"):
        archive.unpack(link, tmp_path / "to")


def test_a_compressed_bomb_is_refused_unread(tmp_path):
    """64 MiB of zeros in a file of 64 KiB are not unpacked."""
    bomb = zip_of(tmp_path / "b.zip", [("sha256sums", bytes(2**26))], zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 2**17
    with pytest.raises(RefusedError, match="is compressed"):
        archive.unpack(bomb, tmp_path / "to")


def test_overlapping_members_are_refused(tmp_path):
    """Two entries that share one stretch of the file together claim more than it has."""
    path = zip_of(tmp_path / "o.zip", [("a", bytes(5000)), ("b", bytes(5000))])
    data = path.read_bytes()
    # the second entry of the directory is made to point to the first one's bytes, which are then cut out
    at = data.rindex(b"PK\x01\x02")
    second = data.index(b"PK\x03\x04", 4)
    start = data.index(b"PK\x01\x02")
    moved = data[:second] + data[start : at + 42] + struct.pack("<I", 0) + data[at + 46 :]
    end = moved.rindex(b"PK\x05\x06")
    moved = moved[: end + 16] + struct.pack("<I", second) + moved[end + 20 :]
    path.write_bytes(moved)
    with pytest.raises(RefusedError, match="overlap"):
        archive.unpack(path, tmp_path / "to")


def test_two_members_of_one_name_are_refused(tmp_path):
    """Which of two would be checked is never a question."""
    with pytest.warns(UserWarning, match="Duplicate"):
        path = zip_of(tmp_path / "t.zip", [("a", b"1"), ("a", b"2")])
    with pytest.raises(RefusedError, match="one name"):
        archive.unpack(path, tmp_path / "to")
