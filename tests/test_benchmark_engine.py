"""The benchmark of the fast engine, and the page that is made of its numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_benchmark_runs_without_a_gpu(tmp_path):
    """In a dry run every stage ends without an error, each has its numbers, and the page can be made of them."""
    script = Path(__file__).parent / "benchmarks" / "engine.py"
    command = [sys.executable, str(script)]
    environment = {**os.environ, "DRY": "1", "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    told = json.loads((tmp_path / "engine.json").read_text())
    assert not [stage for stage in told.values() if "error" in stage]
    assert told["correctness"]["float32_tokens_equal_paper"] is True
    assert told["correctness"]["endings"]["cut_at_eos"] is True
    assert told["batch 64"]["j_per_token"] > 0
    assert told["against transformers"]["speed_ratio"] > 0
    maker = script.with_name("engine_page.py")
    page = subprocess.run(
        [sys.executable, str(maker), str(tmp_path)], check=True, capture_output=True, text=True
    ).stdout
    assert page.startswith("# Performance")


def test_the_page_of_performance_is_what_was_measured():
    """docs/performance.md is, letter by letter, what its script makes of docs/measurements."""
    root = Path(__file__).parent.parent
    maker = root / "tests" / "benchmarks" / "engine_page.py"
    made = subprocess.run(
        [sys.executable, str(maker), str(root / "docs" / "measurements")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert (root / "docs" / "performance.md").read_text() == made
