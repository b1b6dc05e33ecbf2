"""`wattflow prune` gives disk back: results stay as they were, and every verb says what is gone."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
from commands import call as command_line
from local_runs import SMALL, call
from processes import until
from sweeps import Gpu, Made, choices, constant, id_of, make_attempt, make_sweep

import wattflow
from wattflow import process
from wattflow.collect.collect import collect
from wattflow.errors import DamagedError, RefusedError
from wattflow.process import LOCAL
from wattflow.prune import prune as removing
from wattflow.prune.prune import KINDS, prune
from wattflow.publish.bundle import bundle
from wattflow.publish.verdict import lines, table
from wattflow.publish.verify import verify
from wattflow.store.kept import Kept
from wattflow.store.layout import SweepDir
from wattflow.submit import journal
from wattflow.submit.lock import submit_lock
from wattflow.submit.status import states

POINTS = [choices(seed=seed) for seed in range(3)]
TEMPORARY = ".record.json.0123456789abcdef.tmp"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Two points that count, the first at its second attempt after a failed one, and a third that failed."""
    path = tmp_path_factory.mktemp("original")
    sweep = make_sweep(path / "s", POINTS)
    failed = Made([Gpu("GPU-a")], status="failed", started_s=300.0)
    make_attempt(sweep, POINTS[0], failed)
    make_attempt(sweep, POINTS[2], failed)
    for i, point in enumerate(POINTS[:2]):
        made = Made([Gpu("GPU-a", constant(80.0 + 40.0 * i))], started_s=100.0 * i)
        attempt = make_attempt(sweep, point, made)
        (attempt.logs / "rank0.log").write_text("done\n")
    collect(sweep)
    return path


@pytest.fixture
def sweep(original, tmp_path):
    """A copy, to be pruned."""
    shutil.copytree(original / "s", tmp_path / "s")
    return SweepDir(tmp_path / "s")


def files_of(sweep):
    """All files of a sweep but those of locks, with their bytes."""
    return {
        str(path.relative_to(sweep.path)): path.read_bytes()
        for path in sweep.path.rglob("*")
        if path.is_file() and path.relative_to(sweep.path).parts[0] not in ("turns", "collecting")
    }


def results(sweep):
    """The rows of both tables; the mark of a pruned attempt apart."""
    rows = pq.read_table(sweep.points_path).to_pylist()
    plain = [{**row, "reasons": [r for r in row["reasons"] if r != "pruned"]} for row in rows]
    marks = [row["attempt"] for row in rows if "pruned" in row["reasons"]]
    return plain, pq.read_table(sweep.phases_path).to_pylist(), marks


def test_a_dry_run_says_what_would_go_and_changes_nothing(sweep):
    """Two raw traces, the failed attempt's three files, two logs, two or more files of copies; nothing is touched."""
    before = files_of(sweep)
    found = prune(sweep, KINDS)
    counts = {part.kind: len(part.files) for part in found.parts}
    assert counts == {
        "copies": len(list(sweep.traces.iterdir())),
        "traces": 2,
        "superseded": 3,  # trace, spans, requests
        "logs": 2,
        "leftovers": 0,
        "loose": 7,  # what the others leave: three records, spans and requests of two
    }
    sizes = {part.kind: part.size_bytes for part in found.parts}
    traces = [path.stat().st_size for path in sweep.path.glob("points/*/attempt-*/traces/*")]
    assert sizes["logs"] == 2 * len("done\n")
    assert 0 < sizes["traces"] < sum(traces)
    assert (found.counting, found.recomputable) == (2, 0)
    assert prune(sweep, ["copies", "superseded", "logs"]).recomputable == 2
    assert files_of(sweep) == before


def test_results_stay_and_verify_says_which_points_are_kept(sweep):
    """After --traces all rows are as before; verify accepts them and calls both points kept, not recomputable."""
    plain, phases, _ = results(sweep)
    found = prune(sweep, ["traces"], apply=True)
    assert (found.files, len(found.newly_kept)) == (2, 2)
    gone = [sweep.attempts(id_of(point))[-1] for point in POINTS[:2]]
    assert not any((attempt.path / "traces").exists() for attempt in gone)
    assert all(attempt.is_finished() for attempt in gone)
    for _ in range(2):
        assert results(sweep) == (plain, phases, [2, 1])
        summary = collect(sweep)
        assert (summary.pruned, summary.gone, summary.new, summary.counting) == (2, 0, 0, 2)
    verdict = verify(sweep.path)
    assert verdict.verified
    assert (verdict.kept, len(verdict.attempts)) == (2, 4)
    words = [row[-1] for row in table(verdict)]
    assert words.count("kept, not recomputable") == 2
    assert lines(verdict)[-1].startswith("verified in part: 2 of 2 points that count are kept")
    # what their spans and records say was recomputed all the same
    assert all(one.figures > 60 for one in verdict.attempts if one.kept)


def test_results_can_be_made_anew_after_a_prune(sweep):
    """Without results, or with damaged ones, kept rows come from pruned/: no figure is lost."""
    plain, phases, _ = results(sweep)
    prune(sweep, ["traces", "superseded"], apply=True)
    for damage in (shutil.rmtree, lambda path: (path / "points.parquet").write_text("none")):
        damage(sweep.results)
        collect(sweep)
        assert results(sweep) == (plain, phases, [1, 2, 1])
    (sweep.pruned / "points.parquet").write_text("none")
    before = sweep.points_path.read_bytes()
    with pytest.raises(DamagedError, match=r"pruned/points.parquet"):
        collect(sweep)
    assert sweep.points_path.read_bytes() == before


def test_a_superseded_attempt_leaves_its_record_and_its_number(sweep):
    """Its row stays; verify holds what the record says; a new attempt gets number 3; the sweep can be bundled."""
    plain, phases, _ = results(sweep)
    prune(sweep, ["superseded"], apply=True)
    first, second = sweep.attempts(id_of(POINTS[0]))
    assert sorted(path.name for path in first.path.iterdir()) == ["logs", "record.json"]
    assert len(list((second.path / "traces").iterdir())) == 1
    assert results(sweep) == (plain, phases, [1])
    verdict = verify(sweep.path)
    assert (verdict.verified, verdict.kept) == (True, 0)
    assert lines(verdict)[-1] == "verified: every published figure follows from the traces."
    made = bundle(sweep, sweep.path.parent / "b.zip")
    assert made.left_out == []
    verdict = verify(made.path)
    assert verdict.verified, lines(verdict)
    assert sweep.claim_attempt(id_of(POINTS[0])).number == 3


def test_a_bundle_of_points_without_traces_is_refused(sweep):
    """Nobody could check it; and one that somebody made so all the same is not verified."""
    prune(sweep, ["traces"], apply=True)
    with pytest.raises(RefusedError, match="the traces of 2 points that count were pruned"):
        bundle(sweep, sweep.path.parent / "b.zip")


def test_copies_go_and_all_figures_can_still_be_recomputed(sweep):
    """Collect does not make them again; a timeline is drawn from the raw traces; verify says what it lacks."""
    plain, phases, _ = results(sweep)
    opened = wattflow.open_sweep(sweep.path)
    before = opened.power(id_of(POINTS[0])).to_dicts()
    found = prune(sweep, ["copies"], apply=True)
    assert found.recomputable == 2
    assert collect(sweep).new == 0
    assert sum(pq.read_metadata(path).num_rows for path in sweep.traces.iterdir()) == 0
    assert results(sweep) == (plain, phases, [])
    assert wattflow.open_sweep(sweep.path).power(id_of(POINTS[0])).to_dicts() == before
    verdict = verify(sweep.path)
    assert verdict.verified
    assert "the second copies of the traces of 4 attempts were pruned" in " ".join(verdict.notes)
    # an attempt that comes later has a copy
    make_attempt(sweep, POINTS[2], Made([Gpu("GPU-a")], started_s=900.0))
    collect(sweep)
    assert sum(pq.read_metadata(path).num_rows for path in sweep.traces.iterdir()) > 0
    assert verify(sweep.path).verified
    assert [len(part.files) for part in prune(sweep, ["copies"]).parts] == [1]


def test_the_last_copy_of_a_trace_stays(sweep):
    """Where somebody removed points/ the copies are all there is: no file of them goes, and nothing is recomputable."""
    shutil.rmtree(sweep.path / "points")
    rows = {path: pq.read_metadata(path).num_rows for path in sweep.traces.iterdir()}
    assert sum(rows.values()) > 0
    for _ in range(2):  # before and after the rows say so
        found = prune(sweep, ["copies"], apply=True)
        assert (found.counting, found.recomputable) == (2, 0)
        assert found.last_copies >= 2
        assert {path: pq.read_metadata(path).num_rows for path in sweep.traces.iterdir()} == rows
        collect(sweep)


def test_a_second_prune_has_nothing_to_do(sweep):
    """All kinds twice: the second changes no file."""
    prune(sweep, KINDS, apply=True)
    before = files_of(sweep)
    again = prune(sweep, KINDS, apply=True)
    assert (again.files, again.size_bytes, again.recomputable) == (0, 0, 0)
    assert files_of(sweep) == before
    assert verify(sweep.path).verified


def test_points_that_did_not_settle_keep_all(sweep):
    """Files of a point without an attempt that counts stay: its log explains, its batches may go on."""
    failed = sweep.attempts(id_of(POINTS[2]))[0]
    before = sorted(str(path) for path in failed.path.rglob("*"))
    prune(sweep, KINDS, apply=True)
    assert sorted(str(path) for path in failed.path.rglob("*")) == before


def test_leftovers_are_temporary_files_that_nobody_writes(sweep):
    """An old one in any folder goes, a young one, and one whose name is not ours, stay."""
    attempt = sweep.attempts(id_of(POINTS[2]))[0]
    old, named = attempt.path / "traces" / TEMPORARY, attempt.path / ".record.json.tmp"
    young = sweep.results / TEMPORARY
    of_archive = sweep.path / "packed" / TEMPORARY
    of_archive.parent.mkdir()
    for path in (old, of_archive, named, young):
        path.write_text("half")
    then_s = time.time() - 7200
    for path in (old, of_archive, named):
        os.utime(path, (then_s, then_s))
    assert prune(sweep, ["leftovers"], apply=True).files == 2
    assert [path.exists() for path in (old, of_archive, named, young)] == [False, False, True, True]


# --- refused --------------------------------------------------------------------------------------


def test_what_is_not_collected_is_refused(sweep):
    """An attempt without a row, one whose record changed since, no results at all; nothing is removed."""
    make_attempt(sweep, POINTS[2], Made([Gpu("GPU-a")], started_s=900.0))
    with pytest.raises(RefusedError, match=r"attempt 2 is not collected, or has changed since"):
        prune(sweep, ["traces"], apply=True)
    collect(sweep)
    record = sweep.attempts(id_of(POINTS[1]))[0].record_path
    os.utime(record, (1, 1))
    before = files_of(sweep)
    with pytest.raises(RefusedError, match="has changed since"):
        prune(sweep, KINDS, apply=True)
    sweep.points_path.unlink()
    with pytest.raises(RefusedError, match="no results yet"):
        prune(sweep, KINDS)
    assert {**files_of(sweep), "results/points.parquet": before["results/points.parquet"]} == before


def test_an_attempt_that_runs_is_refused(sweep):
    """By its heartbeat: of a living process here, or a young one of another machine; a dead one's is none."""
    attempt = sweep.attempts(id_of(POINTS[2]))[0]
    beat = attempt.path / "heartbeat.json"
    for by in (process.job_id(os.getpid()), f"{LOCAL}elsewhere:1:1"):
        beat.write_text(json.dumps({"by": by}))
        with pytest.raises(RefusedError, match=r"attempt 1 runs"):
            prune(sweep, ["logs"])
    then_s = time.time() - 600
    os.utime(beat, (then_s, then_s))
    assert prune(sweep, ["logs"]).files == 2


def test_tasks_that_wait_are_refused(fake, sweep):
    """A forced point of the sweep waits in Slurm's queue, though all its attempts have ended."""
    sent = journal.begin(sweep, "points", [[id_of(POINTS[0])]])
    journal.write(sweep, "submitted", sent.name, job_id="100")
    fake.queue(f"100|PENDING|Priority|{sent.name}")
    with pytest.raises(RefusedError, match=r"1 tasks wait or run, such as 100"):
        prune(sweep, ["logs"])
    fake.queue()
    assert prune(sweep, ["logs"]).files == 2


@pytest.mark.parametrize("where", ["points", "results", ".", "submitit/link"])
def test_a_journal_that_names_another_folder_as_a_jobs_removes_nothing_of_it(
    sweep, tmp_path, where
):
    """Only folders in submitit/ are a job's; a link there is refused. A refused submission asks Slurm nothing."""
    if "link" in where:
        (sweep.path / where).symlink_to(tmp_path)
    (tmp_path / "mine").write_text("precious")
    sent = journal.Submission("odd", "points", [[id_of(POINTS[0])]], sweep.path / where, 1)
    journal.intend(sweep, sent)
    journal.write(sweep, "failed", "odd", error="refused")
    before = set(files_of(sweep))
    logs = {name for name in before if "/logs/" in name}
    with contextlib.suppress(DamagedError):
        prune(sweep, ["logs"], apply=True)
    assert before - set(files_of(sweep)) in (logs, set())
    assert (tmp_path / "mine").read_text() == "precious"


def test_somebody_who_submits_is_waited_for(sweep, monkeypatch):
    """The submit lock and that of collections are held: nothing is sent or collected meanwhile."""
    seen = []
    real = removing.remove

    def remove(*args):
        with pytest.raises(RefusedError, match="just submitting"), submit_lock(sweep, 0.0):
            pass
        seen.append(sorted(path.name for path in (sweep.path / "collecting").iterdir()))
        real(*args)

    monkeypatch.setattr(removing, "remove", remove)
    prune(sweep, ["logs"], apply=True)
    (numbers,) = seen
    assert not (sweep.path / "collecting" / numbers[-1] / "ended").exists() or len(numbers) == 1


@pytest.mark.parametrize(
    "place", ["points", "points/{0}", "points/{0}/attempt-2", "points/{0}/attempt-2/traces"]
)
def test_no_link_is_followed(sweep, tmp_path, place):
    """A link in the place of a folder: refused or passed over; what it leads to stays whole."""
    at = sweep.path / place.format(id_of(POINTS[0]))
    home = tmp_path / "home"
    at.rename(home)
    at.symlink_to(home)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    with contextlib.suppress(RefusedError, DamagedError):
        prune(sweep, KINDS, apply=True)
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def test_a_link_among_files_stays_and_so_does_its_target(sweep, tmp_path):
    """Only regular files are removed."""
    target = tmp_path / "mine"
    target.write_text("precious")
    link = sweep.attempts(id_of(POINTS[0]))[1].path / "traces" / "more.parquet"
    link.symlink_to(target)
    assert prune(sweep, ["traces"], apply=True).files == 2
    assert link.is_symlink()
    assert target.read_text() == "precious"


# --- killed in the middle -------------------------------------------------------------------------

KILL = """
import os, signal, sys
from pathlib import Path
from wattflow.prune.prune import KINDS, prune
from wattflow.store.layout import SweepDir
left = int(sys.argv[2])
def watch(event, args):
    global left
    changes = event in ("os.remove", "os.rename", "os.rmdir") or (
        event == "open" and isinstance(args[2], int) and args[2] & (os.O_CREAT | os.O_APPEND))
    path = str(args[0])
    lock = isinstance(args[0], int) or path in ("by", "ended") or "/turns/" in path or "/collecting/" in path
    if changes and not lock:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
prune(SweepDir(Path(sys.argv[1])), KINDS, apply=True)
"""


def test_a_prune_killed_at_any_change_leaves_a_sweep_that_the_next_one_finishes(original, tmp_path):
    """At each of some moments: all verbs read what is left with the same figures, and a second prune ends alike."""
    whole = SweepDir(tmp_path / "whole")
    shutil.copytree(original / "s", whole.path)
    plain, phases, _ = results(whole)
    prune(whole, KINDS, apply=True)
    names = {name for name in files_of(whole) if name != "journal.jsonl"}
    killed = 0
    for moment in range(0, 200, 7):
        sweep = SweepDir(tmp_path / "s")
        shutil.copytree(original / "s", sweep.path)
        done = subprocess.run(
            [sys.executable, "-c", KILL, str(sweep.path), str(moment)],
            check=False,
            capture_output=True,
        )
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        killed += 1
        if journal.unfinished_prune(sweep):
            assert journal.unfinished_prune(sweep) == sorted(KINDS)
        verdict = verify(sweep.path)
        assert verdict.verified, (moment, lines(verdict))
        assert [row.state for row in states(sweep)] == ["done", "done", "failed"]
        collect(sweep)
        assert results(sweep)[:2] == (plain, phases)
        prune(sweep, KINDS, apply=True)
        assert journal.unfinished_prune(sweep) == []
        left = {name for name in files_of(sweep) if name != "journal.jsonl" and "tmp" not in name}
        assert left == names, moment
        assert results(sweep) == results(whole)
        shutil.rmtree(sweep.path)
    assert killed > 3


# --- from one end to the other --------------------------------------------------------------------


def test_every_verb_after_a_prune_of_a_sweep_that_ran(tmp_path):
    """Run here, pruned by the command line: verify, report, export, status, resume, list and collect still answer."""
    call(
        "submit",
        "sweep=s",
        "batch_size=2,3",
        *SMALL[:2],
        *SMALL[3:],
        "sweep.repeats=1",
        "--wait",
        cwd=tmp_path,
    )
    sweep = SweepDir(tmp_path / "sweeps" / "s")
    plain, phases, _ = results(sweep)
    size = sum(len(data) for data in files_of(sweep).values())
    # the process of the task ends a moment after its last point
    until(lambda: command_line("prune", "s", cwd=tmp_path).returncode == 0, 120)
    dry = call("prune", "s", cwd=tmp_path)
    assert "Nothing was changed" in dry.stderr
    done = call("prune", "s", *(f"--{kind}" for kind in KINDS), "--apply", cwd=tmp_path)
    assert "2 are kept as they were collected" in done.stderr
    freed = int(done.stderr.split(" bytes removed")[0].rsplit(" ", 1)[-1].replace(",", ""))
    assert freed > 0.1 * size
    said = call("verify", "s", cwd=tmp_path)
    assert "verified in part: 2 of 2 points that count are kept" in said.stderr
    assert json.loads(call("verify", "s", "--json", cwd=tmp_path).stdout)["kept"] == 2
    assert "2 attempts were pruned" in call("collect", "s", cwd=tmp_path).stderr
    assert results(sweep)[:2] == (plain, phases)
    page = call("report", "s", cwd=tmp_path).stdout.strip()
    assert "cannot be recomputed" in (tmp_path / page).read_text()
    assert "verified in part" in call("verify", "s", cwd=tmp_path).stderr  # the report too
    assert call("status", "s", cwd=tmp_path).stdout.count("done") == 3
    assert "0 points sent" in call("resume", "s", cwd=tmp_path).stderr
    call("export", "s", cwd=tmp_path)
    assert "were pruned" in call("bundle", "s", cwd=tmp_path, code=2).stderr
    assert "no log" in call("logs", "s", plain[0]["point_id"], cwd=tmp_path, code=2).stderr
    point = plain[0]["point_id"]
    call("resume", "s", "--only", point, "--force", cwd=tmp_path)
    until(lambda: len(pq.read_table(sweep.points_path)) == 3, 400)
    assert [a.number for a in sweep.attempts(point)] == [1, 2]
    assert Kept.read(sweep).keys == {(row["point_id"], 1) for row in plain}
    call("report", "s", cwd=tmp_path)
    assert "verified in part: 1 of 2" in call("verify", "s", cwd=tmp_path).stderr
