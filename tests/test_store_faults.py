"""Errors of the system in words: a colleague's sweep, a full disk, one that cannot be written."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from sweeps import Gpu, Made, choices, make_attempt, make_sweep

from wattflow.collect.collect import collect
from wattflow.store import faults
from wattflow.store.files import open_append, write_json

ROOT_ONLY = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: to become another user, and to mount a small disk"
)


def test_a_disk_that_is_full_is_named():
    """What is full, where, and what to do; a quota is one's own."""
    full = OSError(errno.ENOSPC, "No space left on device", "/disk/record.json")
    assert faults.in_words(full) == (
        "/disk/record.json: not written, as the disk is full (No space left on device). Make room there, "
        "then run the same command again."
    )
    assert "your quota is full" in faults.in_words(OSError(errno.EDQUOT, "quota", "/disk/a"))
    assert "the disk is full" in faults.in_words(OSError(errno.ENOSPC, "No space left"))
    assert "that disk is read-only" in faults.in_words(OSError(errno.EROFS, "read-only", "/disk/a"))
    assert faults.in_words(OSError(errno.EIO, "I/O error", "/a")) == "[Errno 5] I/O error: '/a'"


def test_ones_own_file_is_not_asked_of_somebody_else(tmp_path):
    """Its mode is named instead."""
    assert "It is your own" in faults.denied(tmp_path / "missing")


def test_a_disk_with_room_is_not_full(tmp_path, monkeypatch):
    """Room for some records is room; what cannot be asked says nothing."""
    assert faults.full_disk(tmp_path) is None
    assert faults.full_disk(tmp_path / "missing") is None
    usage = faults.shutil.disk_usage(tmp_path)._replace(free=4096)
    monkeypatch.setattr(faults.shutil, "disk_usage", lambda _: usage)
    assert faults.full_disk(tmp_path) == f"the disk of {tmp_path} is full"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("needs to mount a tmpfs")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@ROOT_ONLY
def test_a_write_to_a_full_disk_names_its_file_and_leaves_the_old_one(small_disk):
    """The error carries the path of what was to be written, not a temporary one's; nothing half-written stays."""
    write_json(small_disk / "record.json", {"old": 1})
    with open_append(small_disk / "filler") as filler:
        while faults.full_disk(small_disk) is None or os.statvfs(small_disk).f_bavail:
            os.write(filler.fileno(), b"x" * 4096)
    with pytest.raises(OSError, match="No space left") as found:
        write_json(small_disk / "record.json", {"new": "x" * 9000})
    assert found.value.filename == str(small_disk / "record.json")
    assert faults.in_words(found.value).startswith(f"{small_disk}/record.json: not written, as the")
    assert (small_disk / "record.json").read_text() == '{\n "old": 1\n}\n'
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "record.json"]
    assert faults.full_disk(small_disk) == f"the disk of {small_disk} is full"


# run twice: first as the owner, so that all is imported before the files of Python may be closed to us
COLLEAGUE = """
import os, sys
from chaos.fuzz_inputs import ended
sweep, group, verbs = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
for verb in verbs:
    ended(*verb.split(), sweep)
os.setgroups([group]), os.setgid(65534), os.setuid(65534)
for verb in verbs:
    code, out, err = ended(*verb.split(), sweep)
    print(code, bool(out), err.strip().replace(chr(10), "\\\\"))
"""


@pytest.fixture
def open_folder():
    """A folder that others reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="wattflow-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@ROOT_ONLY
@pytest.mark.parametrize("shared", [False, True])
def test_a_colleague_is_answered_with_whose_it_is_and_what_to_ask_for(shared, open_folder):
    """Closed, each verb is one line; group-readable, results are read, and what needs more says what does not."""
    point = choices()
    point["cluster"] = {**point["cluster"], "group_readable": shared}
    sweep = make_sweep(open_folder / "theirs", [point])
    make_attempt(sweep, point, Made([Gpu("GPU-0")]))
    collect(sweep)
    for path in [sweep.path, sweep.results, *sweep.results.rglob("*")]:
        os.chown(path, -1, 4242)
    verbs = ["cost --json", "usage --json", "status", "report", "verify"]
    done = subprocess.run(
        [sys.executable, "-c", COLLEAGUE, str(sweep.path), "4242", *verbs],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "HOME": str(open_folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [line.split(" ", 2) for line in done.stdout.splitlines()]
    assert len(answers) == len(verbs)
    for verb, (code, has_out, err) in zip(verbs, answers, strict=True):
        if shared and verb in ("cost --json", "usage --json"):
            assert (code, has_out) == ("0", "True"), err
            continue
        assert code in ("1", "2"), (verb, err)
        assert err.startswith("wattflow: "), err
        assert "\\" not in err, err
        assert ": it belongs to root." in err
        assert "not a Parquet file" not in err
        wanted = "results/ alone is open to you" if shared else "cluster.group_readable=true"
        assert wanted in err, (verb, err)
