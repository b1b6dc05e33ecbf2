"""A packed sweep reads as the same sweep did, and a packing that is killed leaves nothing in doubt."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sweeps import Gpu, Made, choices, id_of, make_attempt, make_sweep

from wattflow.analysis.sweep import open_sweep
from wattflow.collect.collect import collect, collect_task
from wattflow.errors import DamagedError
from wattflow.prune.prune import prune
from wattflow.publish.bundle import bundle
from wattflow.publish.verify import verify
from wattflow.store import heartbeat, packing
from wattflow.store.layout import SweepDir
from wattflow.store.packing import Packed, drop, pack
from wattflow.submit import logs
from wattflow.submit.status import states

POINTS = [choices(seed=seed) for seed in range(3)]
IDS = [id_of(point) for point in POINTS]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Two finished points, the first at its second attempt, and one that failed; collected."""
    sweep = make_sweep(tmp_path_factory.mktemp("original") / "s", POINTS)
    failed = Made([Gpu("GPU-a")], status="failed", started_s=300.0)
    make_attempt(sweep, POINTS[0], failed)
    make_attempt(sweep, POINTS[2], failed)
    for point in POINTS[:2]:
        attempt = make_attempt(sweep, point, Made([Gpu("GPU-a"), Gpu("GPU-b", node="node2")]))
        (attempt.logs / "rank0.log").write_text("said\n")
    collect(sweep)
    return sweep


@pytest.fixture
def sweep(original, tmp_path):
    """A copy, to be packed."""
    shutil.copytree(original.path, tmp_path / "s")
    return SweepDir(tmp_path / "s")


def files_of(sweep):
    """The names of all files and folders below points/ and packed/."""
    return sorted(
        str(path.relative_to(sweep.path))
        for part in ("points", "packed")
        for path in (sweep.path / part).rglob("*")
    )


def seen(sweep):
    """What the readers have of a sweep: states, rows, logs, a point's power and spans."""
    collect(sweep)
    rows = pq.read_table(sweep.points_path).to_pylist()
    opened = open_sweep(sweep.path)
    return (
        [(row.point_id, row.state, row.attempts) for row in states(sweep)],
        rows,
        pq.read_table(sweep.phases_path).to_pylist(),
        [log.text for log in logs.logs(sweep, IDS[0])],
        opened.power(IDS[0]).to_dicts(),
        opened.spans(IDS[0]).to_dicts(),
        sweep.last_number(IDS[0]),
        sorted(sweep.points_on_disk()),
    )


def test_every_reader_sees_what_it_saw(original, sweep):
    """Finished points leave points/ for one archive, the failed one stays; nothing is read anew for it."""
    before = seen(sweep)
    assert pack(sweep, IDS) == Packed(attempts=3, files=4 + 2 * 7, archives=1)
    found = files_of(sweep)
    assert [name for name in found if name.startswith("packed/")] == [
        f"packed/{path.name}" for path in (sweep.path / "packed").iterdir()
    ]
    assert {name.split("/")[1] for name in found if name.startswith("points/")} == {IDS[2]}
    assert collect(sweep).new == 0
    assert seen(sweep) == before
    for path in sweep.path.glob("results/**/*.parquet"):
        path.unlink()
    assert seen(sweep) == before  # from the archive alone
    assert pack(sweep, IDS).files == 0


def test_verify_and_bundle_read_archives(sweep, tmp_path):
    """Every figure is recomputed from packed traces as from those alone; so too of a bundle that is made of them."""
    loose = verify(sweep.path).attempts
    assert loose
    pack(sweep, IDS)
    assert verify(sweep.path).attempts == loose
    bundle(sweep, tmp_path / "b.zip")
    found = verify(tmp_path / "b.zip")
    assert [one.ok for one in found.attempts] == [one.ok for one in loose]


def test_a_new_attempt_at_a_packed_point_has_the_next_number(sweep):
    """It lies alone until its point is packed again; the older ones stay where they are."""
    pack(sweep, IDS)
    attempt = make_attempt(sweep, POINTS[0], Made([Gpu("GPU-a")]))
    assert attempt.number == 3
    assert [one.number for one in sweep.attempts(IDS[0])] == [1, 2, 3]
    assert pack(sweep, IDS).attempts == 1
    assert len(list((sweep.path / "packed").iterdir())) == 2
    assert sweep.claim_attempt(IDS[0]).number == 4


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


@pytest.mark.parametrize("after", [0, 1, 4, 9, "rename"])
def test_a_packing_killed_at_any_moment_leaves_nothing_in_doubt(after, sweep, monkeypatch):
    """After so many removals, or just before the archive has its name: the same is read, and packed once more goes."""
    before = seen(sweep)
    with monkeypatch.context() as patched:
        if after == "rename":

            def never(*_):
                raise Killed

            patched.setattr(Path, "replace", never)
        else:

            def some(root, files, may_go, remove=packing.remove):
                remove(root, files[:after], may_go)
                raise Killed

            patched.setattr(packing, "remove", some)
        with pytest.raises(Killed):
            pack(sweep, IDS)
    assert seen(sweep) == before
    pack(sweep, IDS)
    assert seen(sweep) == before
    assert {name.split("/")[1] for name in files_of(sweep) if name.startswith("points/")} == {
        IDS[2]
    }
    assert len(list((sweep.path / "packed").iterdir())) == 1


def test_what_may_still_change_or_is_no_file_of_ours_stays(sweep):
    """A person's note, a writer's temporary file, an attempt that runs: none of those is packed."""
    note = sweep.attempt(IDS[0], 2).path / "deep" / "er"
    note.mkdir(parents=True)
    (note / "note.txt").write_text("mine")
    (sweep.attempt(IDS[1], 1).path / "heartbeat.json").write_text("{}")
    assert pack(sweep, IDS).attempts == 1
    assert (note / "note.txt").read_text() == "mine"
    assert sweep.attempt(IDS[1], 1).record_path.is_file()
    assert heartbeat.read(sweep.attempt(IDS[1], 1)) is None


def test_a_file_that_changed_after_it_was_packed_stays_and_is_what_is_read(sweep):
    """Two files of one name with other bytes: the one that lies alone is newer."""
    attempt = sweep.attempt(IDS[1], 1)
    kept = attempt.record_path.read_bytes()
    pack(sweep, IDS)
    attempt.path.mkdir(parents=True)
    attempt.record_path.write_bytes(kept.replace(b'"finished"', b'"failed"  '))
    assert attempt.read_record()["status"] == "failed"
    assert pack(sweep, IDS).files == 0
    assert attempt.record_path.is_file()


def test_prune_takes_files_out_of_archives(sweep):
    """Raw traces of points that count, and what a failed attempt has but its record; rows stay."""
    pack(sweep, IDS)
    rows = pq.read_table(sweep.points_path, columns=["point_id", "energy_j"]).to_pylist()
    prune(sweep, ["traces", "superseded"], apply=True)
    assert [path.name for path in (sweep.path / "packed").iterdir()]
    names = [member.name for path in (sweep.path / "packed").iterdir() for member in members(path)]
    assert not [name for name in names if "/traces/" in name]
    assert f"{IDS[0]}/attempt-1/record.json" in names
    assert pq.read_table(sweep.points_path, columns=["point_id", "energy_j"]).to_pylist() == rows


def members(path):
    """The members of an archive."""
    return packing.packed.of_archive(path)


def test_prune_packs_what_lies_alone(sweep):
    """`--loose` by hand, for a sweep that ran without cluster.pack."""
    found = prune(sweep, ["loose"])
    assert found.files > 10
    assert found.size_bytes == 0
    prune(sweep, ["loose"], apply=True)
    assert {name.split("/")[1] for name in files_of(sweep) if name.startswith("points/")} == {
        IDS[2]
    }
    assert prune(sweep, ["loose"]).files == 0


def test_an_archive_that_loses_all_goes(sweep):
    """One without members would be a file for nothing."""
    pack(sweep, IDS)
    (path,) = (sweep.path / "packed").iterdir()
    drop(sweep, [("points", *member.name.split("/")) for member in members(path)])
    assert not path.exists()
    assert sweep.attempts(IDS[0]) == []


def test_what_two_archives_have_leaves_both(sweep):
    """Two who pack at once, each other points, may both put the same attempt into an archive."""
    pack(sweep, IDS[:1])
    (path,) = (sweep.path / "packed").iterdir()
    shutil.copyfile(path, path.with_name(f"{'0' * 12}.zip"))
    shutil.copyfile(path, path.with_name(f"{'f' * 12}.zip"))
    trace = next(member.name for member in members(path) if "/traces/" in member.name)
    drop(sweep, [("points", *trace.split("/"))])
    assert not packing.packed.find(sweep.path / "points" / trace)
    assert sweep.attempt(IDS[0], 2).is_finished()


def test_the_collect_job_packs_what_tasks_left_where_asked(tmp_path):
    """A task that was killed never packed; without cluster.pack all stays."""
    for asked in (True, False):
        point = choices(cluster__pack=asked)
        sweep = make_sweep(tmp_path / str(asked), [point])
        make_attempt(sweep, point, Made([Gpu("GPU-a")]))
        collect_task(str(sweep.path))
        assert (sweep.path / "packed").is_dir() == asked


def test_a_full_disk_costs_no_attempt(sweep, monkeypatch, capsys):
    """The files stay as they are, and a line says so."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "replacing", full)
    before = files_of(sweep)
    packing.pack_or_say(sweep, IDS)
    assert "not packed: " in capsys.readouterr().out
    assert [name for name in files_of(sweep) if name != "packed"] == before


def test_modes_are_the_owners_alone(sweep):
    """The archive and its folder; results/ are what cluster.group_readable opens."""
    pack(sweep, IDS)
    (path,) = (sweep.path / "packed").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert (sweep.path / "packed").stat().st_mode & 0o777 == 0o700


def test_a_damaged_archive_is_one_line_that_says_what_to_do(sweep):
    """Rather than points that seem never tried, and run again."""
    pack(sweep, IDS)
    (path,) = (sweep.path / "packed").iterdir()
    path.write_bytes(path.read_bytes()[:-99])
    with pytest.raises(DamagedError, match="Put a whole copy back"):
        states(sweep)
