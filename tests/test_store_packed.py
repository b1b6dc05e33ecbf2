"""Packed files are found by the paths that they had, and an archive of another's making leads nowhere."""

import os
import stat
import zipfile

import pytest

from wattflow.errors import DamagedError
from wattflow.store import packed
from wattflow.store.files import changed_ns, has_own, open_own, own_files, read_end, read_own

POINT = "0123456789ab"
AT = f"{POINT}/attempt-1"


def archive(sweep, members, name="a" * 12, **options):
    """An archive in packed/ of a sweep's folder."""
    (sweep / "packed").mkdir(exist_ok=True)
    path = sweep / "packed" / f"{name}.zip"
    with zipfile.ZipFile(path, "w", **options) as file:
        for member, data in members.items():
            info = zipfile.ZipInfo(member, (2026, 1, 2, 3, 4, 6))
            info.comment = b"1760000000123456789"
            info.compress_type = file.compression
            file.writestr(info, data)
    return path


@pytest.fixture
def sweep(tmp_path):
    """An attempt with a record and two traces, packed."""
    archive(
        tmp_path,
        {
            f"{AT}/record.json": b"{}",
            f"{AT}/traces/b.parquet": b"bb",
            f"{AT}/traces/a.parquet": b"a",
        },
    )
    return tmp_path


def test_a_packed_file_is_read_as_one_that_lies_alone(sweep):
    """Its bytes, its end, its time to the nanosecond, and as a regular file with a descriptor."""
    record = sweep / "points" / AT / "record.json"
    assert read_own(record) == b"{}"
    assert read_end(record, 1) == (b"}", True)
    assert has_own(record)
    assert changed_ns(record) == 1760000000123456789
    with open_own(record) as file:
        assert stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    with pytest.raises(FileNotFoundError):
        read_own(record.with_name("requests.parquet"))
    assert not has_own(sweep / "points" / "fedcba987654" / "attempt-1" / "record.json")


def test_the_files_of_a_folder_are_those_alone_and_packed(sweep):
    """By name and pattern; one that is both is there once, and what lies alone is what is read."""
    folder = sweep / "points" / AT / "traces"
    assert [path.name for path in own_files(folder, "*.parquet")] == ["a.parquet", "b.parquet"]
    folder.mkdir(parents=True)
    (folder / "b.parquet").write_bytes(b"alone")
    (folder / "c.parquet").write_bytes(b"c")
    names = [path.name for path in own_files(folder, "*.parquet")]
    assert names == ["a.parquet", "b.parquet", "c.parquet"]
    assert own_files(folder, "*.arrow") == []
    assert read_own(folder / "b.parquet") == b"alone"
    assert own_files(sweep / "points" / AT, "*.parquet") == []


def test_a_new_archive_is_seen_at_once(sweep):
    """A folder that has just changed is listed each time, as its stamp may be the same."""
    assert packed.attempts(sweep, POINT) == [1]
    for k in range(2, 5):
        archive(sweep, {f"{POINT}/attempt-{k}/record.json": b"{}"}, f"{k:012x}")
        assert packed.attempts(sweep, POINT) == list(range(1, k + 1))
    assert packed.points(sweep) == [POINT]
    (sweep / "packed" / f"{2:012x}.zip").unlink()
    assert packed.attempts(sweep, POINT) == [1, 3, 4]


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        f"{AT}/../../x",
        f"{AT}/..",
        f"{AT}/traces/../x",
        f"{AT}/a/b/c",
        f"{AT}/.hidden",
        f"{AT}/a\\b",
        f"{POINT}/attempt-0/record.json",
        f"{AT}/",
        "record.json",
    ],
)
def test_a_strange_name_refuses_the_archive(name, tmp_path):
    """Names are never paths here, and are refused all the same."""
    archive(tmp_path, {f"{AT}/record.json": b"{}", name: b"x"})
    with pytest.raises(DamagedError, match="none of ours"):
        packed.attempts(tmp_path, POINT)


def test_what_is_compressed_twice_there_or_cut_is_refused(tmp_path):
    """A compressed member could unpack to any size; a cut file has no list of members."""
    path = archive(tmp_path, {f"{AT}/record.json": b"0" * 999}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DamagedError, match="none of ours"):
        packed.of_archive(path)
    path = archive(tmp_path, {f"{AT}/record.json": b"{}"})
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as file:
        file.writestr(f"{AT}/record.json", b"other")
    with pytest.raises(DamagedError, match="two of one name"):
        packed.of_archive(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DamagedError, match=r"not a whole archive.*Put a whole copy back"):
        packed.attempts(tmp_path, POINT)


def test_members_that_share_bytes_or_begin_before_the_file_are_refused(tmp_path):
    """Many members of the same bytes would be read as far more than the archive has."""
    whole = archive(tmp_path, {f"{AT}/a": b"x" * 500, f"{AT}/b": b"y" * 500}).read_bytes()
    first = whole.index(b"PK\x01\x02")
    for at, size, words in ((first, 1000, "overlap"), (first, 500, "none of ours")):
        changed = bytearray(whole)
        changed[at + 20 : at + 28] = 2 * size.to_bytes(4, "little")
        if words == "none of ours":  # the list says that it lies further on: all begins earlier
            changed[-6:-2] = (int.from_bytes(whole[-6:-2], "little") + 999).to_bytes(4, "little")
        (tmp_path / "packed" / f"{'a' * 12}.zip").write_bytes(changed)
        with pytest.raises(DamagedError, match=words):
            packed.attempts(tmp_path, POINT)


def test_changed_bytes_of_a_member_are_found(sweep):
    """By its checksum, when it is read."""
    (path,) = (sweep / "packed").glob("*.zip")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"{}", b"[]", 1))
    with pytest.raises(DamagedError, match=r"record\.json in it is damaged"):
        read_own(sweep / "points" / AT / "record.json")


def test_no_link_is_followed(sweep, tmp_path_factory):
    """Neither an archive nor the folder of archives may be one."""
    (path,) = (sweep / "packed").glob("*.zip")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    moved = path.rename(elsewhere / path.name)
    path.symlink_to(moved)
    with pytest.raises(DamagedError, match="a link"):
        packed.attempts(sweep, POINT)
    path.unlink()
    (sweep / "packed").rmdir()
    (sweep / "packed").symlink_to(elsewhere)
    with pytest.raises(DamagedError, match="a link in the place of a folder"):
        packed.attempts(sweep, POINT)


def test_other_files_of_the_folder_are_no_archives(sweep):
    """Temporary ones of a writer, and a person's notes."""
    for name in (f".{'b' * 12}.zip.0123456789abcdef.tmp", "notes.txt", "mine.zip"):
        (sweep / "packed" / name).write_text("?")
    assert packed.points(sweep) == [POINT]


def test_a_name_that_can_be_packed_is_one_of_an_attempt():
    """Of a file in it or in one of its folders."""
    assert packed.is_packable(f"{AT}/traces/node1-GPU-0.parquet")
    assert not packed.is_packable(f"{AT}/.record.json.0123456789abcdef.tmp")
    assert not packed.is_packable(f"{AT}/traces/deep/er")
    assert not packed.is_packable(f"{AT}/no\udcfftext")  # which no zip can name
