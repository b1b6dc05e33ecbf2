"""The files and bytes that a sweep leaves, as `plan` says before: against a real sweep on this machine, and by hand."""

import subprocess
import sys
from pathlib import Path

import pytest
from submissions import plan, point, seeds
from sweeps import choices

from wattflow.config.choices import from_dict
from wattflow.plan.estimate import Finished, Past
from wattflow.slurm.shapes import shapes
from wattflow.submit.footprint import footprint


def left(made, past=None):
    """What a plan's points leave."""
    configs = {one.point_id: one.config for one in made.points}
    return footprint(shapes(list(configs.items())), configs, past or Past([]))


def test_each_rank_and_task_has_files(tmp_path):
    """Two points of two nodes with two GPUs each: 3 of a script, 13 of each task, 13 of each attempt, 2 buckets."""
    made = plan(tmp_path, *seeds(2, shards=4, cluster__gpus_per_node=2))
    found = left(made)
    task = 1 + 3 * 4  # a link; two logs and a result a rank
    attempt = 5 + 2 + 2 + 4  # folders, record and requests, spans a node, a trace a GPU
    assert found.files == 16 + 3 + 2 * task + 6 + 2 * attempt + 2
    assert found.unknown == 2
    assert "2 points of unknown time" in found.size_words()


def test_traces_grow_with_time(tmp_path):
    """100 s of one GPU at 53 samples/s of 8 bytes, twice: 85 kB more than 0 s."""
    made = plan(tmp_path, point())
    config = made.points[0].config
    sizes = [left(made, Past([Finished(config, s, None)])).bytes for s in (1e-9, 100.0)]
    assert sizes[1] - sizes[0] == pytest.approx(100 * 53 * 8 * 2, abs=2)
    assert left(made).bytes_per_s == pytest.approx(53 * 8 * 2)


def test_many_points_are_counted_in_little_time(tmp_path):
    """1,000 points share an array, its one pickle, and 256 files of collected traces at most."""
    found = left(plan(tmp_path, *seeds(1000)))
    assert found.files == pytest.approx(1000 * (4 + 9) + 256 + 28, abs=10)


def test_a_real_sweep_leaves_what_was_said(tmp_path):
    """cluster=local, three points of the synthetic engine: within 10 % of the files, a factor of 1.5 of the bytes."""
    words = ["model=tiny", "engine=synthetic", "n_prompts=8", "batch_size=4,8,2", "sweep=s"]
    words += ["max_gen_len=4", "max_seq_len=600", "power.idle_s=0.1", "sweep.repeats=1"]
    wattflow = [sys.executable, "-m", "wattflow"]
    subprocess.run([*wattflow, "submit", *words, "--wait"], cwd=tmp_path, check=True)
    shown = subprocess.run(
        [*wattflow, "plan", *words], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    import re

    files, size, unit = re.search(
        r"no hours billed, (\d+) files and folders, about ([\d.]+) (kB|MB),", shown.stderr
    ).groups()
    there = list(Path(tmp_path / "sweeps" / "s").rglob("*"))
    assert len(there) + 1 == pytest.approx(int(files), rel=0.1)
    real = sum(path.stat().st_size for path in there if path.is_file())
    assert real / 1.5 < float(size) * {"kB": 1e3, "MB": 1e6}[unit] < real * 1.5


def test_text_of_real_weights_is_counted():
    """256 tokens of 3 bytes for each of 1,000 prompts: 0.77 MB."""
    sizes = []
    for weights in ("dummy", "hf"):
        config = from_dict(choices(weights=weights, n_prompts=1000, max_gen_len=256))
        found = footprint(shapes([("a" * 12, config)]), {"a" * 12: config}, Past([]))
        sizes.append(found.bytes)
    assert sizes[1] - sizes[0] == 1000 * 256 * 3


def test_packed_points_leave_an_archive_a_task(tmp_path):
    """Eight points in two tasks: two archives in the place of eight attempts of nine files and folders."""
    tasks = {"cluster__points_per_task": 4}
    alone = left(plan(tmp_path, *seeds(8, **tasks))).files
    assert alone - left(plan(tmp_path, *seeds(8, cluster__pack=True, **tasks))).files == 8 * 9 - 2
