"""Files that no reader ever sees half-written, and names that stay inside their folder."""

import ast
import os
import socket
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from wattflow import process
from wattflow.errors import DamagedError, RefusedError
from wattflow.store import files
from wattflow.store.schema import TRACE
from wattflow.store.tables import GroupedTable, read_schema, read_stream, read_table


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


# --- the door: links, FIFOs, sizes ----------------------------------------------------------------


def planted(tmp_path, kind):
    """A path at which something other than a regular file stands."""
    path = tmp_path / "file"
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as held:
            held.bind(str(path))
    elif kind == "a device":
        return Path("/dev/zero")
    elif kind == "a link":
        (tmp_path / "private").write_text("key")
        path.symlink_to(tmp_path / "private")
    return path


@pytest.mark.parametrize("kind", ["a FIFO", "a folder", "a socket", "a device", "a link"])
def test_a_sweeps_file_that_is_no_file_is_named_at_once(kind, tmp_path):
    """What stands in its place is said without waiting for a FIFO's other end or a device's, to readers and writers."""
    path = planted(tmp_path, kind)
    for opened in (files.open_own, files.read_own, files.read_json, files.open_append):
        with pytest.raises(DamagedError, match=rf"{path.name}: {kind}, not a regular file"):
            opened(path)
    for read in (read_stream, lambda at: read_table(at, TRACE), read_schema, GroupedTable):
        with pytest.raises(DamagedError, match=rf"{path.name}: {kind}, not a regular file"):
            read(path)


@pytest.mark.parametrize("kind", ["a FIFO", "a folder", "a socket", "a device"])
def test_a_file_that_somebody_named_is_a_file(kind, tmp_path):
    """The same for what was named on the command line, which may be a link."""
    path = planted(tmp_path, kind)
    with pytest.raises(RefusedError, match=rf"{path.name}: {kind}, not a regular file"):
        files.read_given(path)
    (tmp_path / "to").write_text("text")
    (tmp_path / "named").symlink_to(tmp_path / "to")
    assert files.read_given(tmp_path / "named") == b"text"


def test_a_file_of_many_bytes_is_not_read(tmp_path):
    """A file that says it has more than its limit is refused before it is read, one that grows meanwhile after."""
    path = tmp_path / "record.json"
    with path.open("wb") as file:
        file.truncate(files.MOST_BYTES + 1)
    with pytest.raises(DamagedError, match=f"{files.MOST_BYTES + 1} bytes"):
        files.read_json(path)
    path.write_bytes(b"12345")
    assert files.read_own(path, 5) == b"12345"
    with pytest.raises(DamagedError, match="at most 4"):
        files.read_own(path, 4)


@pytest.mark.parametrize("name", ["points", "results", "traces", "timings", "logs"])
def test_a_folder_of_a_sweep_that_is_a_link_is_not_followed(name, tmp_path):
    """Nothing is read, made or opened below it; the sweep's own folder may be one."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "file").write_text("{}")
    folder = tmp_path / name
    folder.symlink_to(tmp_path / "home")
    for use in (files.check_folder, files.make_folder, lambda at: files.read_json(at / "file")):
        with pytest.raises(DamagedError, match=rf"{name}: a link in the place of a folder"):
            use(folder)
    (tmp_path / "disk").symlink_to(tmp_path / "home")
    assert files.read_json(tmp_path / "disk" / "file") == {}


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o277])
def test_modes_do_not_follow_the_umask(mask, tmp_path):
    """A file has the mode that was asked for, a folder made on the way to one is no wider than 0755."""
    before = os.umask(mask)
    try:
        files.write_json(tmp_path / "a.json", {}, 0o640)
        if mask != 0o277:
            files.make_folder(tmp_path / "sweeps" / "demo")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640
    if mask != 0o277:
        assert stat.S_IMODE((tmp_path / "sweeps").stat().st_mode) == 0o755 & ~mask
        assert stat.S_IMODE((tmp_path / "sweeps" / "demo").stat().st_mode) == 0o700


def test_what_a_killed_writer_left_is_cleared_a_day_later(tmp_path):
    """An old temporary file goes; a new one, another's name and a link stay."""
    old, new, other = ".a.json.0123456789abcdef.tmp", ".a.json.0123456789abcdee.tmp", ".a.json.tmp"
    for name in (old, new, other):
        (tmp_path / name).write_text("half")
    for name in (old, other):
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".b.0123456789abcdef.tmp").symlink_to(tmp_path / other)
    files.clear_temporaries(tmp_path)
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {new, other, ".b.0123456789abcdef.tmp"}
    files.clear_temporaries(tmp_path / "missing")


# --- the door: rights -----------------------------------------------------------------------------


def modes(folder):
    return {
        p.relative_to(folder).as_posix(): stat.S_IMODE(p.lstat().st_mode) for p in folder.rglob("*")
    }


def test_a_folder_is_opened_to_the_group_with_all_in_it(tmp_path):
    """Folders become 0750 and files 0640, at each depth."""
    results = tmp_path / "results"
    (results / "traces").mkdir(parents=True)
    for path in (results / "points.parquet", results / "traces" / "ab.parquet"):
        path.write_text("")
        path.chmod(0o600)
    files.open_to_group(results)
    assert modes(results) == {"traces": 0o750, "traces/ab.parquet": 0o640, "points.parquet": 0o640}


@pytest.mark.parametrize("way", ["link", "link to a folder", "second name", "FIFO"])
def test_no_private_file_is_opened_to_the_group(way, tmp_path):
    """A link or a second name in results/, as somebody's tar may hold, leaves a private key as private as it was."""
    key = tmp_path / "home" / "id_ed25519"
    key.parent.mkdir(mode=0o700)
    key.write_text("private")
    key.chmod(0o600)
    results = tmp_path / "results"
    results.mkdir()
    if way == "second name":
        (results / "a").hardlink_to(key)
    elif way == "FIFO":
        os.mkfifo(results / "a")
    else:
        (results / "a").symlink_to(key if way == "link" else key.parent)
    with pytest.raises(DamagedError, match=r"results/a: "):
        files.open_to_group(results)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    results_link = tmp_path / "linked"
    results_link.symlink_to(key.parent)
    with pytest.raises(OSError, match="linked"):
        files.open_to_group(results_link)
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700


def test_a_folder_that_others_can_replace_is_not_safe(tmp_path):
    """Above a sweep a folder that a group may write to is refused by name; with the sticky bit it is safe."""
    shared = tmp_path / "lab"
    sweep = shared / "sweeps" / "demo"
    sweep.mkdir(parents=True)
    files.check_safe(sweep)
    for mode, safe in [(0o777, False), (0o1777, True), (0o702, False), (0o755, True)]:
        shared.chmod(mode)
        if safe:
            files.check_safe(sweep)
        else:
            with pytest.raises(RefusedError, match=r"lab: others may write to it .*chmod \+t"):
                files.check_safe(sweep)
    sweep.chmod(0o1777)  # the bit keeps nobody from adding files to the sweep itself
    with pytest.raises(RefusedError, match=r"demo: others may write"):
        files.check_safe(sweep)


def test_a_link_on_the_way_is_looked_at_like_its_target(tmp_path):
    """A sweeps folder that is a link needs both its own folder and its target's to be safe."""
    for name in ("home", "disk"):
        (tmp_path / name).mkdir()
    (tmp_path / "disk" / "sweeps").mkdir()
    (tmp_path / "home" / "sweeps").symlink_to(tmp_path / "disk" / "sweeps")
    files.check_safe(tmp_path / "home" / "sweeps")
    for name in ("home", "disk"):
        (tmp_path / name).chmod(0o777)
        with pytest.raises(RefusedError, match=rf"{name}: others may write"):
            files.check_safe(tmp_path / "home" / "sweeps")
        (tmp_path / name).chmod(0o755)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only root makes files of other users")
def test_another_users_folder_above_a_sweep_is_not_safe(tmp_path):
    """Whoever owns a folder may rename what is in it: their sticky bit alone lets it pass."""
    shared = tmp_path / "lab"
    (shared / "demo").mkdir(parents=True)
    os.chown(shared, 65534, 65534)
    with pytest.raises(RefusedError, match=r"lab: belongs to (nobody|65534)"):
        files.check_safe(shared / "demo")
    shared.chmod(0o1755)
    files.check_safe(shared / "demo")
    os.chown(shared / "demo", 65534, 65534)
    (shared / "demo").chmod(0o1755)
    with pytest.raises(RefusedError, match=r"demo: belongs to (nobody|65534)"):
        files.check_safe(shared / "demo")


def test_a_group_of_ones_own_is_no_other(tmp_path, monkeypatch):
    """Where a umask of 002 is the site's, folders are writable to the user's own group: it has nobody else in it."""
    (tmp_path / "lab").mkdir()
    if os.geteuid() == 0:  # root's own group is trusted whatever its name
        os.chown(tmp_path / "lab", -1, 4242)
    (tmp_path / "lab").chmod(0o775)
    me = process.user_name()
    for group, safe in [
        (("", []), False),
        ((me, []), True),
        ((me, [me]), True),
        ((me, ["eve"]), False),
    ]:
        monkeypatch.setattr(
            files.grp, "getgrgid", lambda _, g=group: SimpleNamespace(gr_name=g[0], gr_mem=g[1])
        )
        if safe:
            files.check_safe(tmp_path / "lab")
        else:
            with pytest.raises(RefusedError, match="others may write"):
                files.check_safe(tmp_path / "lab")


def test_a_users_home_that_there_is_none_of_is_refused(monkeypatch, tmp_path):
    """`~nosuchuser` is one line and no folder of that name; `~` is the home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.expanded("~/sweeps") == tmp_path / "sweeps"
    with pytest.raises(RefusedError, match=r"^~no-such-user/x: this machine knows no such user"):
        files.expanded("~no-such-user/x")


# --- no module goes around it ---------------------------------------------------------------------

OPENS = {
    *("open", "read_text", "read_bytes", "write_text", "write_bytes", "chmod", "fchmod", "fdopen"),
    *("ParquetFile", "ParquetWriter", "scan_parquet", "read_parquet", "OSFile", "memory_map"),
    *("copy", "copyfile", "copy2", "copytree", "move", "mkfifo", "mkstemp", "NamedTemporaryFile"),
}
# what opens files by itself, and which
AROUND = {
    "store.files": "the door",
    "store.regular": "its hinges",
    "store.packed": "archives of what the door opens",
    "power.protocol": "the spool's own folder, to give its socket a short name",
    "store.tables": "the door for tables",
    "store.removal": "folders alone, to remove what is in them",
    "process": "/proc; below the store",
    "spans": "/proc, and the spans that the user's own program reports",
    "store.schema": "columns.csv, which is the package's",
    "store.columns": "reasons.csv, which is the package's",
    "report.html": "scripts and styles, which are the package's",
    "paper.published": "published.csv, which is the package's",
    "workload.prompts": "the prompts that the package ships",
    "workload.prompt_files": "Arrow reads files of prompts that the door has opened",
    "analysis.sweep": "polars reads traces that the door has opened just before",
    "submit.local": "a pipe of its own",
    "run.local": "its own standard output",
}


def opened_around(tree):
    """The calls in a module's source that open a file by its path; `archive.open(member)` has none."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name):
            name, owner = node.func.id, ""
        elif isinstance(node.func, ast.Attribute):
            name = node.func.attr
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else "?"
        else:
            continue
        mode = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        if name == "open" and owner not in ("", "os") and node.args and not isinstance(mode, str):
            continue
        if name in ("copy", "move") and owner != "shutil":
            continue
        if name in OPENS:
            yield f"line {node.lineno}: {owner}.{name}"


def test_no_module_goes_around_the_door():
    """Files are opened by store/files.py and store/tables.py; elsewhere only for a reason that is given."""
    package = Path(files.__file__).parents[1]
    found = {}
    for path in sorted(package.rglob("*.py")):
        name = ".".join(path.relative_to(package).with_suffix("").parts)
        if calls := list(opened_around(ast.parse(path.read_text()))):
            found[name] = calls
    assert {name: calls for name, calls in found.items() if name not in AROUND} == {}
    assert set(AROUND) <= set(found)


def test_a_home_that_nobody_knows_stays_as_it_is_written(monkeypatch):
    """A user without HOME and without an entry: no such path, and no traceback."""
    monkeypatch.setenv("HOME", "/home/me")
    assert files.expanded("~/sweeps") == Path("/home/me/sweeps")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert files.expanded("~/sweeps") == Path("~/sweeps")


def by_locale(tree):
    """The calls in a module's source that depend on a home that may not be there, or on the locale's letters."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        given = {word.arg: word.value for word in node.keywords}
        name, text = node.func.attr, given.get("text") or given.get("universal_newlines")
        if name == "encode":  # a chart's, whose `text` is a column
            continue
        if name in ("expanduser", "home", "getuser", "getlogin"):
            yield f"line {node.lineno}: {name}, which raises where there is none"
        elif isinstance(text, ast.Constant) and text.value and "errors" not in given:
            yield f"line {node.lineno}: {name}, which raises on bytes that are no text: errors="
        elif (name in ("read_text", "write_text") and not ("encoding" in given or node.args)) or (
            name == "open" and given.keys() & {"newline", "errors"} and "encoding" not in given
        ):
            yield f"line {node.lineno}: {name}, by the locale: encoding="


def test_no_module_depends_on_a_home_or_on_the_locales_letters():
    """Where one is not there, or a byte is none of its letters, a verb would end in a traceback."""
    package = Path(files.__file__).parents[1]
    found = {
        path.relative_to(package).as_posix(): calls
        for path in sorted(package.rglob("*.py"))
        if (calls := list(by_locale(ast.parse(path.read_text()))))
    }
    (door,) = found.pop("store/files.py")  # `expanded`, by os.path, which does not raise
    assert door.endswith("expanduser, which raises where there is none")
    assert found == {}


def test_the_end_of_a_file_is_read_alone(tmp_path):
    """So many bytes at most, and whether some were left; no link is followed."""
    path = tmp_path / "log"
    path.write_bytes(b"0123456789")
    assert files.read_end(path, 4) == (b"6789", True)
    assert files.read_end(path, 10) == (b"0123456789", False)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(DamagedError, match="a link"):
        files.read_end(tmp_path / "link", 4)
