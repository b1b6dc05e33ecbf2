"""What a stranger's file does to a library ends a child alone, and in one line."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from forgery import make_original

from wattflow.errors import RefusedError
from wattflow.publish import archive, confined
from wattflow.publish.confined import verify_confined
from wattflow.store.confined import Limits

H100 = Path(__file__).parent.parent / "docs" / "bundles" / "llama-7b-h100.zip"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A sweep, its bundle, and that unpacked; nobody writes there."""
    return make_original(tmp_path_factory.mktemp("original"))


@pytest.fixture
def packed(original, tmp_path):
    """A copy of the unpacked bundle, to be changed."""
    shutil.copytree(original / "b", tmp_path / "b")
    return tmp_path / "b"


def call(*words):
    return subprocess.run(
        [sys.executable, "-m", "wattflow.cli", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_child_finds_what_this_process_would(original):
    """Verdict, table, lines and document of a sweep, of its bundle and of that unpacked; a refusal stays one."""
    for path in (original / "s", original / "b.zip", original / "b"):
        found = verify_confined(path)
        assert found.verified
        assert found.lines[-1].startswith("verified")
        assert len(found.table) == 2
        assert found.document["verified"]
    with pytest.raises(RefusedError, match="no such file"):
        verify_confined(original / "none.zip")


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("os.abort()", "its reader was ended by SIGABRT."),
        ("os.kill(os.getpid(), 11)", "its reader was ended by SIGSEGV."),
        ("time.sleep(60)", "it takes longer than 3 s."),
        ("while True: pass", "it takes more than 1 s of a CPU"),
        ("1 / 0", "its reader ended with code 1 (ZeroDivisionError: division by zero)."),
    ],
)
def test_a_child_that_dies_is_one_line_and_not_verified(
    original, tmp_path, monkeypatch, end, words
):
    """A crash, a limit of time and an error of ours alike: what, why, and no traceback; nothing stays in /tmp."""
    (tmp_path / "broken.py").write_text(f"import os, time\ndef answer(_):\n    {end}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(
        confined, "_limits", lambda _: Limits(cpu_s=1, wall_s=3.0 if "sleep" in end else 100.0)
    )
    monkeypatch.setattr(confined, "__name__", "broken")
    found = verify_confined(original / "b.zip")
    assert not found.verified
    (line,) = found.lines
    assert line.startswith(f"NOT VERIFIED: {original / 'b.zip'} cannot be read: ")
    assert words in line
    assert found.document["problems"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("wattflow-")] == []


def test_a_grid_that_names_a_point_often_is_refused_at_once(packed):
    """2,000 rows of one point are not recomputed 2,000 times."""
    path = packed / "sweep" / "grid.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take([0] * 2000), path)
    archive.write_sums(packed)
    began = time.monotonic()
    done = call("verify", packed)
    assert time.monotonic() - began < 10.0
    assert done.returncode == 2
    point_id = table["point_id"][0]
    assert f"names point '{point_id}' twice" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("seed", range(12))
def test_a_changed_byte_of_a_footer_is_never_a_traceback(packed, seed):
    """Hashes made anew, any byte of the footer of a table: a verdict or a refusal in words, and never a signal."""
    rng = random.Random(seed)
    tables = sorted(packed.rglob("*.parquet"))
    path = tables[seed % len(tables)]
    data = bytearray(path.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little")
    for _ in range(1 + seed % 3):
        data[len(data) - 8 - rng.randrange(footer)] = rng.randrange(256)
    path.write_bytes(data)
    archive.write_sums(packed)
    done = call("verify", packed, "--json")
    assert done.returncode in (0, 1, 2), done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode != 2:
        assert json.loads(done.stdout)["verified"] == (done.returncode == 0)


def test_limits_grow_with_a_bundle_and_a_sweep_has_none(original):
    """Two minutes of a CPU for a small bundle, three times that by the clock, 16 GiB of addresses."""
    limits = confined._limits(original / "b.zip")
    assert (limits.cpu_s, limits.wall_s, limits.memory_bytes) == (120, 360.0, 16 * 2**30)
    assert confined._limits(original / "b").cpu_s == 120
    assert confined._limits(H100.parent).cpu_s is None
    assert confined._limits(original / "s") == Limits()
