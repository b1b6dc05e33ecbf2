"""The verbs run and collect, as a person calls them."""

from commands import call
from sweeps import Gpu, Made, choices, demo, make_attempt, make_sweep, plan_point


def test_collect_counts_what_it_found_and_names_what_is_damaged(tmp_path):
    """Two attempts, the record of one cut short: the line of the other stands, exit code 0."""
    whole, cut_short = choices(seed=0), choices(seed=1)
    sweep = make_sweep(tmp_path / "sweep", [whole, cut_short])
    make_attempt(sweep, whole, Made([Gpu("GPU-1")]))
    damaged = sweep.claim_attempt(plan_point(cut_short).point_id)
    damaged.record_path.write_text('{"schema_')
    done = call("collect", str(sweep.path), cwd=tmp_path)
    assert done.returncode == 0
    assert "2 points, 2 attempts (2 new), 1 points count" in done.stderr
    assert f"damaged: point {damaged.point_id}, attempt 1: {damaged.record_path}" in done.stderr


def test_run_refuses_what_needs_submit(tmp_path):
    """A grid without -m, repeats, zip, exclude and Slurm profiles are sent to submit."""
    cases = [
        (["n_prompts=8", "shards=1,2"], "-m"),
        (["-m", "grid=demo"], "submit cluster=local"),
        (
            [
                "-m",
                "n_prompts=8",
                "sweep.zip=[[shards,batch_size]]",
                "shards=1,2",
                "batch_size=1,2",
            ],
            "zip",
        ),
        (["n_prompts=8", "cluster=testcluster"], "wattflow submit"),
    ]
    for words, told in cases:
        done = call("run", *words, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert told in done.stderr
        assert list(tmp_path.iterdir()) == []


def test_collect_takes_several_sweeps_and_one_bad_one_keeps_none_back(tmp_path):
    """A pattern; the damaged one is named, and the exit code says so."""
    for name in ("a", "b", "c"):
        demo(tmp_path / "sweeps" / name)
    (tmp_path / "sweeps" / "b" / "grid.parquet").write_bytes(b"none")
    done = call("collect", "sweeps/*", cwd=tmp_path)
    assert done.returncode == 1
    assert "1 of 3 sweeps could not be collected" in done.stderr
    assert all(
        (tmp_path / "sweeps" / name / "results" / "points.parquet").is_file() for name in "ac"
    )
