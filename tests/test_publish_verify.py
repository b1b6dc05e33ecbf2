"""`wattflow verify` finds what was changed in a sweep or bundle since it was measured, and nothing where nothing is."""

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forgery import TWO, add_watts, change_choice, edit, first_trace, make_original, said, set_cell
from partial_attempts import three_attempts
from sweeps import Gpu, Made, choices, constant, demo, make_attempt, make_sweep

from wattflow.collect.collect import collect
from wattflow.errors import RefusedError
from wattflow.publish import archive
from wattflow.publish.bundle import bundle
from wattflow.publish.verdict import lines, table
from wattflow.publish.verify import verify
from wattflow.store.layout import SweepDir


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The sweep, its bundle, and that unpacked; nobody writes there."""
    return make_original(tmp_path_factory.mktemp("original"))


@pytest.fixture
def sweep(original, tmp_path):
    """A copy of the sweep, to be changed."""
    shutil.copytree(original / "s", tmp_path / "s")
    return SweepDir(tmp_path / "s")


@pytest.fixture
def packed(original, tmp_path):
    """A copy of its bundle, unpacked into a folder; `b.zip` lies beside it."""
    shutil.copy(original / "b.zip", tmp_path)
    shutil.copytree(original / "b", tmp_path / "b")
    return tmp_path / "b"


# --- nothing changed ------------------------------------------------------------------------------


def test_an_untouched_sweep_passes(sweep):
    """1,700 J come out again to the last bit, in both points; all point_ids are the hash of their choices."""
    verdict = verify(sweep.path)
    assert verdict.verified
    assert [one.energy_j for one in verdict.attempts] == pytest.approx([1700.0] * 2)
    assert [one.recomputed_j for one in verdict.attempts] == [
        one.energy_j for one in verdict.attempts
    ]
    assert (verdict.right_ids, verdict.points) == (2, 2)
    assert all(one.ok and one.largest == 0.0 and one.figures > 100 for one in verdict.attempts)
    assert [one.gpus for one in verdict.attempts] == [2, 2]
    assert verdict.notes == []


def test_an_untouched_bundle_passes_packed_and_unpacked(packed, tmp_path):
    """As a file and as a folder; the file's hash is told, every member is in its sums."""
    verdict = verify(tmp_path / "b.zip")
    assert verdict.verified, said(verdict)
    assert verdict.kind == "bundle of a sweep"
    assert verdict.sha256 == archive.sha256(tmp_path / "b.zip")
    assert verdict.hashed_files == len(archive.files(packed)) - 1
    assert verify(packed).verified


def test_failed_infeasible_and_untried_points_pass_too(tmp_path):
    """Points without a figure are held to their reasons, and told apart from those that count."""
    made = demo(tmp_path / "d")
    collect(made)
    verdict = verify(made.path)
    assert verdict.verified, said(verdict)
    verdicts = [row[-1] for row in table(verdict)]
    assert verdicts.count("ok") == 9
    assert verdicts.count("ok, failed, does not count") == 1


def test_two_nodes_with_hosts_pass_as_a_sweep_and_as_a_bundle(tmp_path):
    """Two nodes whose clocks are 3 s apart, with RAPL and Cray: all that was beside the GPUs is packed."""
    point = choices(shards=2, nodes=2)
    made = make_sweep(tmp_path / "s", [point])
    gpus = [Gpu(TWO[0], constant(80.0)), Gpu(TWO[1], constant(120.0), node="node2")]
    hosts = {node: constant(50.0) for node in ("node1", "node2")}
    others = {f"node-{node}": ("cray_node", constant(400.0)) for node in hosts}
    others["accel0-node1"] = ("cray_accelerator", constant(120.0))
    make_attempt(made, point, Made(gpus, hosts=hosts, others=others, offset_s={"node2": 3.0}))
    collect(made)
    bundle(made, tmp_path / "b.zip")
    for path in (made.path, tmp_path / "b.zip"):
        verdict = verify(path)
        assert verdict.verified, said(verdict)
        assert verdict.attempts[0].recomputed_j == pytest.approx(1700.0)
    with zipfile.ZipFile(tmp_path / "b.zip") as packed:
        assert sum("/traces/" in name for name in packed.namelist()) == 7


def test_a_point_in_pieces_passes_as_a_sweep_and_as_a_bundle(tmp_path):
    """A point that three attempts measured one after another: its row is summed over all their traces, in both."""
    made, attempts, _ = three_attempts(tmp_path)
    collect(made)
    bundle(made, tmp_path / "b.zip")
    for path in (made.path, tmp_path / "b.zip"):
        verdict = verify(path)
        assert verdict.verified, said(verdict)
        assert len(verdict.attempts) == len(attempts) == 3
        assert verdict.attempts[-1].recomputed_j > 0
    edit(first_trace(made.path), add_watts(3.0))
    assert not verify(made.path).verified


def test_verify_writes_nothing(sweep):
    """Not one file of a sweep is touched; a read-only copy of somebody else's can be verified."""

    def state():
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sweep.path.rglob("*")
        }

    before = state()
    verify(sweep.path)
    assert state() == before


# --- the same in a bundle -------------------------------------------------------------------------


def edits(folder):
    """What a forger may do to an unpacked bundle, by the words by which it is told once hashed anew."""
    sweep = folder / "sweep"
    trace = first_trace(sweep)
    return {
        "energy_j 1700, recomputed 1700.0": lambda: edit(trace, add_watts(3.0)),
        "of the record has no trace": trace.unlink,
        "they hash to": lambda: edit(sweep / "grid.parquet", change_choice("batch_size", 16)),
        "energy_j 1690, recomputed 1700": lambda: edit(
            sweep / "results/points.parquet", set_cell("energy_j", 1690.0)
        ),
        "points.csv: energy_j 170, recomputed 1700": lambda: edit_csv(folder / "points.csv"),
        "METHODS.md: | 4 | 1 | 23.529 | 170 ± 17 |": lambda: replace(
            folder / "METHODS.md", "| 23.529 | 200 ± 17 |", "| 23.529 | 170 ± 17 |"
        ),
        "README.md: does not state": lambda: replace(
            folder / "README.md", "00 ± 280 J", "99 ± 280 J"
        ),
        "lock.txt: its versions": lambda: replace(
            folder / "lock.txt", "torch==2.13", "torch==2.12"
        ),
    }


def replace(path, text, other):
    assert text in path.read_text()
    path.write_text(path.read_text().replace(text, other, 1))


def edit_csv(path):
    heading, *rows = list(csv.reader(path.read_text().splitlines()))
    rows[0][heading.index("energy_j")] = "170.0"
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([heading, *rows])


@pytest.mark.parametrize("which", range(8))
def test_a_forged_bundle(packed, tmp_path, which):
    """A changed file is named by its hash; once the forger has hashed all anew, the figures still tell."""
    words, change = list(edits(packed).items())[which]
    change()
    verdict = verify(packed)
    assert not verdict.verified
    assert len(verdict.wrong_files) == 1
    archive.write_sums(packed)
    archive.pack(packed, tmp_path / "forged.zip")
    verdict = verify(tmp_path / "forged.zip")
    assert verdict.wrong_files == []
    assert not verdict.verified
    assert words in said(verdict)


def test_a_bundle_with_a_cut_table_is_told_by_its_hash(packed):
    """Results that cannot be read any more are a changed file, and not verified."""
    path = packed / "sweep/results/points.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    verdict = verify(packed)
    assert not verdict.verified
    assert verdict.wrong_files == ["sweep/results/points.parquet: changed since it was packed"]


def test_a_whole_attempt_that_is_called_damaged(packed):
    """Nobody takes a dear attempt out of the figures by calling it damaged: its files are there, and whole."""
    path = packed / "sweep/results/points.parquet"
    edit(path, set_cell("reasons", ["damaged"]))
    edit(path, set_cell("counts", False))
    archive.write_sums(packed)
    (bad,) = [one for one in verify(packed).attempts if not one.ok]
    assert {"reasons", "counts"} <= {d.what for d in bad.differences}


def test_a_file_added_to_a_bundle(packed):
    """What is not in sha256sums is told."""
    (packed / "more.txt").write_text("x")
    found = verify(packed)
    assert found.wrong_files == ["more.txt: not in sha256sums"]
    assert lines(found)[-1].endswith(": 1 thing beside the attempts; see above.")


def test_a_bundle_with_files_in_an_archive_of_their_own_is_refused(packed):
    """There their sizes would be looked at by nobody."""
    (packed / "sweep" / "packed").mkdir()
    (packed / "sweep" / "packed" / f"{'a' * 12}.zip").write_bytes(b"")
    archive.write_sums(packed)
    with pytest.raises(RefusedError, match="archive of their own"):
        verify(packed)


def test_a_bundle_that_a_file_manager_touched(packed, sweep, tmp_path):
    """Its own files are named in notes and the rest verifies, also as a zip with a folder around; in a sweep too."""
    left = [".DS_Store", "sweep/Thumbs.db", "__MACOSX/._README.md"]
    left += [f"{first_trace(packed / 'sweep').parent.relative_to(packed)}/._x.parquet"]
    timings = next(packed.glob("sweep/points/*/attempt-1/timings"))
    left += [f"{timings.relative_to(packed)}/._node.json"]
    for name in left:
        (packed / name).parent.mkdir(exist_ok=True)
        (packed / name).write_bytes(b"\0\5\x16\7")
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as other:
        for path in packed.rglob("*"):
            other.write(path, f"bundle/{path.relative_to(packed)}")
    for where in (packed, packed.parent / "only", tmp_path / "m.zip"):
        if where.name == "only":
            where.mkdir()
            shutil.copytree(packed, where / "bundle")
        verdict = verify(where)
        assert verdict.verified, said(verdict)
        for name in left:
            assert f"{name}: a file manager's, not the bundle's" in said(verdict)
    first_trace(sweep.path).with_name("._node1-GPU-x.parquet").write_bytes(b"\0")
    collect(sweep)
    assert verify(sweep.path).verified
    (packed / "sweep" / "more.parquet").write_bytes(b"")
    assert verify(packed).wrong_files == ["sweep/more.parquet: not in sha256sums"]


def test_a_damaged_attempt_has_no_figures_to_verify(sweep, tmp_path):
    """A cut trace was collected as damaged; the sweep and its bundle pass, the bundle with a note."""
    trace = first_trace(sweep.path)
    trace.write_bytes(trace.read_bytes()[:-100])
    os.utime(trace.parents[1] / "record.json")
    collect(sweep)
    assert verify(sweep.path).verified
    bundle(sweep, tmp_path / "d.zip")
    verdict = verify(tmp_path / "d.zip")
    assert verdict.verified, said(verdict)
    assert "not whole when it was packed" in verdict.notes[0]


@pytest.mark.parametrize("fault", ["no JSON", "no ranks", "odd versions"])
def test_a_record_that_is_none_costs_its_attempt_alone(sweep, tmp_path, fault):
    """The other point's joules are packed and verified; the attempt is named, and has no figures."""
    path = next(sweep.path.glob("points/*/attempt-1/record.json"))
    record = json.loads(path.read_text())
    changed = {**record, "ranks": 7} if fault == "no ranks" else {**record, "versions": 7}
    path.write_text("{" if fault == "no JSON" else json.dumps(changed))
    if fault != "odd versions":  # of which `collect` has no opinion
        collect(sweep)
    assert verify(sweep.path).verified == (fault != "odd versions")
    bundle(sweep, tmp_path / "d.zip")
    verdict = verify(tmp_path / "d.zip")
    assert verdict.verified == (fault != "odd versions")
    assert [one.ok for one in verdict.attempts].count(True) >= 1
    assert any("not whole when it was packed" in note for note in verdict.notes)


# --- files of strangers ---------------------------------------------------------------------------


def test_a_table_of_too_many_rows_is_refused_unread(packed):
    """Eleven million nulls in a few KiB of Parquet are not read."""
    table = pa.table({"point_id": pa.nulls(11_000_000, pa.string())})
    pq.write_table(table, packed / "sweep" / "grid.parquet")
    assert (packed / "sweep" / "grid.parquet").stat().st_size < 2**16
    archive.write_sums(packed)
    with pytest.raises(RefusedError, match="11000000 rows"):
        verify(packed)


@pytest.mark.slow
def test_one_long_text_told_a_million_times_ends_in_a_line(packed, tmp_path):
    """35 kB that would unpack to 500 GB of text end with exit code 2 and one line once 8 GiB are taken."""
    rows = 1_000_000
    text = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), ["x" * 500_000])
    columns = {
        "point_id": ["a" * 12] * rows,
        "position": pa.array([0] * rows, pa.int32()),
        "reason": text,
        "choices": ["{}"] * rows,
    }
    table = pa.table(columns).replace_schema_metadata({"schema_version": "1"})
    pq.write_table(table, packed / "sweep" / "grid.parquet", store_schema=False)
    archive.write_sums(packed)
    archive.pack(packed, tmp_path / "bomb.zip")
    assert (tmp_path / "bomb.zip").stat().st_size < 2**20
    done = call("verify", tmp_path / "bomb.zip")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_table_that_takes_too_much_memory_ends_in_a_line(packed, tmp_path):
    """A million rows of nulls, few bytes in the bundle, take more than 1 GB as Python's: exit code 2 and one line."""
    path = packed / "sweep" / "results" / "phases.parquet"
    schema = pq.read_schema(path)
    columns = [
        pa.array(["x"] * 1_000_000)
        if pa.types.is_string(field.type)
        else pa.nulls(1_000_000, field.type)
        for field in schema
    ]
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), path)
    archive.write_sums(packed)
    archive.pack(packed, tmp_path / "large.zip")
    assert (tmp_path / "large.zip").stat().st_size < 2**20
    done = call("verify", tmp_path / "large.zip", before=["prlimit", f"--data={10**9}"])
    assert done.returncode == 2
    assert "memory" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_node_that_is_a_path_is_refused(packed):
    """A record cannot have files outside of the bundle read as its traces."""
    path = next(packed.glob("sweep/points/*/attempt-1/record.json"))
    record = json.loads(path.read_text())
    record["ranks"][0]["node"] = "../../../../../secret"
    path.write_text(json.dumps(record))
    archive.write_sums(packed)
    with pytest.raises(RefusedError, match="not a name"):
        verify(packed)


def test_what_is_no_bundle_is_refused(tmp_path, sweep):
    """Text, a zip of something, an empty folder, a sweep without results: exit code 2, one line."""
    (tmp_path / "text.zip").write_text("hello")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as packed:
        packed.writestr("a.txt", b"x")
    shutil.rmtree(sweep.results)
    for path in (tmp_path / "text.zip", tmp_path / "other.zip", tmp_path / "none", sweep.path):
        with pytest.raises(RefusedError):
            verify(path)
    with pytest.raises(RefusedError, match="no such file"):
        verify(tmp_path / "none.zip")


# --- what ships -----------------------------------------------------------------------------------

BUNDLES = sorted((Path(__file__).parent.parent / "docs" / "bundles").glob("*.zip"))
H100 = next(path for path in BUNDLES if "h100" in path.name)


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.name)
def test_a_shipped_bundle_verifies(path):
    """Each bundle in docs/ is small, measured and not simulated, and all of its figures follow from its traces.

    Where a rule of measurement was changed on purpose, docs/contributing.md says how they are made anew.
    """
    assert path.stat().st_size < 5e6
    assert archive.sha256(path) in (path.parents[1] / "verify.md").read_text()
    verdict = verify(path)
    assert verdict.verified, said(verdict)
    assert all(one.counts and not one.simulated for one in verdict.attempts)
    assert all(one.largest < 1e-12 for one in verdict.attempts)
    assert verdict.right_ids == verdict.points > 0


def test_the_h100_bundle_is_a_real_run():
    """Two engines, two repeats, on one H100 by the driver's buffer, integral and counter within 1 %."""
    with zipfile.ZipFile(H100) as packed:
        rows = pq.read_table(
            pa.BufferReader(packed.read("sweep/results/points.parquet"))
        ).to_pylist()
    assert sorted(row["engine"] for row in rows) == ["fast", "fast", "paper", "paper"]
    for row in rows:
        assert row["gpu_name"] == "NVIDIA H100 80GB HBM3"
        assert row["power_source"] == "nvml_buffer"
        assert row["counter_ratio"] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("which", ["a sample", "a GPU", "a choice", "a joule"])
def test_a_forged_h100_bundle(tmp_path, which):
    """In the real run's bundle each forgery is found by the figures alone, all hashes made anew."""
    archive.unpack(H100, tmp_path / "b")
    sweep = tmp_path / "b" / "sweep"
    trace = first_trace(sweep)
    if which == "a sample":
        middle = middle_of_the_first_decode(trace.parents[1])
        edit(trace, lambda rows: nearest_power(rows, middle).__setitem__("power_w", 500.0))
    elif which == "a GPU":
        trace.unlink()
    elif which == "a choice":
        edit(sweep / "grid.parquet", change_choice("batch_size", 32))
    else:
        cheaper = set_cell("energy_per_token_j", lambda value: 0.999 * value)
        edit(sweep / "results/points.parquet", cheaper)
    archive.write_sums(tmp_path / "b")
    verdict = verify(tmp_path / "b")
    assert verdict.wrong_files == []
    assert [one.ok for one in verdict.attempts].count(False) == 1
    (bad,) = [one for one in verdict.attempts if not one.ok]
    told = {
        "a sample": "energy_j",
        "a GPU": "has no trace",
        "a choice": "hash to",
        "a joule": "energy_per_token_j",
    }
    assert told[which] in "; ".join([*bad.problems, *(d.what for d in bad.differences)])


def middle_of_the_first_decode(attempt):
    (path,) = (attempt / "timings").glob("*.parquet")
    decode = next(row for row in pq.read_table(path).to_pylist() if row["phase"] == "decode")
    return (decode["start_ns"] + decode["end_ns"]) // 2


def nearest_power(rows, at_ns):
    """The power sample next to an instant."""
    told = [row for row in rows if row["power_w"] is not None]
    return min(told, key=lambda row: abs(row["time_ns"] - at_ns))


# --- the command line -----------------------------------------------------------------------------


def call(*words, before=()):
    return subprocess.run(
        [*before, sys.executable, "-m", "wattflow.cli", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_exit_codes_and_json(sweep, tmp_path):
    """0 where all follows, 1 where a figure does not, 2 where there is nothing to verify; JSON has each difference."""
    done = call("verify", sweep.path)
    assert done.returncode == 0, done.stderr
    head, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[head.index("verdict")] for row in rows] == ["ok", "ok"]
    assert (
        done.stderr.splitlines()[-1] == "verified: every published figure follows from the traces."
    )
    edit(sweep.points_path, set_cell("energy_j", 1690.0))
    done = call("verify", sweep.path, "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert not told["verified"]
    (bad,) = [one for one in told["attempts"] if not one["ok"]]
    assert bad["differences"][0]["published"] == 1690.0
    done = call("verify", tmp_path / "nothing")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


STRANGE = {
    "node extra: measured no device": {},
    "power came from '<script>', which is no sensor": {"source": "<script>"},
    "nvml_buffer does not measure a '<b>'": {"boundary": "<b>"},
}


@pytest.mark.parametrize("words", STRANGE)
def test_a_record_with_one_more_node_without_devices(sweep, words):
    """It could name any sensor and boundary: it is refused, though results that were made anew agree with it."""
    path = min(sweep.path.glob("points/*/attempt-1/record.json"))
    record = json.loads(path.read_text())
    extra = {**record["nodes"][0], "node": "extra", "devices": [], **STRANGE[words]}
    path.write_text(json.dumps({**record, "nodes": [*record["nodes"], extra]}))
    collect(sweep)
    verdict = verify(sweep.path)
    assert not verdict.verified
    assert words in said(verdict)
