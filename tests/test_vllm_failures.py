"""What ends under the real vLLM: a rank that is killed, Ctrl-C, a time limit in mid-batch, a refused model.

Each leaves a reason in one line and no process, and what `resume` then runs is what was left, exactly. `make vllm`.
"""

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

import polars as pl
import pytest
from processes import gone, until
from test_real_vllm import PYTHON, ROOT, SMALL, pytestmark, wattflow
from test_run_local import _rank

from wattflow.errors import DamagedError
from wattflow.store.tables import read_stream

__all__ = ["pytestmark"]
PROMPTS = 48
LONG = (*SMALL, "max_gen_len=400", "temperature=0", "max_seq_len=900", "sweep=s")


@pytest.fixture
def where(tmp_path):
    """A folder with a spool in it."""
    (tmp_path / "spool").mkdir()
    return tmp_path


def begun(where, *words):
    """`wattflow run` in a group of its own, seen in the third of its batches or later, and its ranks' pids."""
    log = (where / "run.log").open("w")
    own = (f"n_prompts={PROMPTS}", f"cluster.spool_dir={where / 'spool'}")
    command = [str(PYTHON), "-m", "wattflow.cli", "run", *LONG, *own, *words]
    running = subprocess.Popen(
        command,
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    log.close()
    until(lambda: running.poll() is not None or _batches(where) >= 2, 400)
    assert running.poll() is None, (where / "run.log").read_text()
    sweep = where / "sweeps" / "s"
    return running, [pid for rank in (0, 1) if (pid := _rank(sweep, rank)) is not None]


def _batches(where):
    """How many batches rank 0 has finished so far."""
    for path in (where / "spool").glob("wattflow-*/*/spans-rank0.arrow"):
        with contextlib.suppress(DamagedError):  # it has not begun
            return read_stream(path)["phase"].to_pylist().count("decode")
    return 0


def ended(where, running, pids):
    """The record once the command is over, which leaves none of its processes."""
    running.wait(120)
    until(lambda: all(map(gone, pids)), 60)
    assert "Traceback" not in (where / "run.log").read_text()
    (record,) = (where / "sweeps" / "s").glob("points/*/attempt-1/record.json")
    return json.loads(record.read_text())


def resumed(where):
    """The attempts after `resume`: what each answered, and whether the point counts."""
    wattflow("resume", "sweeps/s", "--wait", cwd=where)
    points = pl.read_parquet(where / "sweeps/s/results/points.parquet")
    requests = [
        pl.read_parquet(path)
        for path in sorted((where / "sweeps/s").glob("points/*/attempt-*/requests.parquet"))
    ]
    return points, requests


def test_a_rank_that_dies_inside_vllm_ends_the_attempt(where):
    """kill -9 of the second of two shards: the other leaves its collective, the record names the cause."""
    running, pids = begun(where, "shards=2", "cluster.gpus_per_node=2")
    assert len(pids) == 2
    os.kill(pids[1], signal.SIGKILL)
    record = ended(where, running, pids)
    assert (record["status"], record["error"]) == ("failed", "rank 1 was killed: SIGKILL.")
    points, requests = resumed(where)
    assert points.filter(pl.col("counts"))["tokens_kept"].to_list() == [PROMPTS * 400]
    assert requests[-1].height == PROMPTS


def test_a_time_limit_in_mid_batch_is_continued_exactly(where):
    """The warning of a limit: finished batches are kept, and the next attempt answers each other prompt once."""
    running, pids = begun(where, "sweep.on_interrupt=continue")
    os.kill(pids[0], signal.SIGUSR2)
    record = ended(where, running, pids)
    assert record["status"] == "interrupted"
    assert "near its time limit (SIGUSR2)" in record["error"]
    _, (first, second) = resumed(where)
    answered = first["prompt"].to_list() + second["prompt"].to_list()
    assert answered == list(range(PROMPTS))
    assert first.height >= 8
    assert set(first["tokens_kept"]) == set(second["tokens_kept"]) == {400}


def test_ctrl_c_ends_all(where):
    """The whole group gets SIGINT, as from a terminal: interrupted, and nothing goes on."""
    running, pids = begun(where, "workload.mode=static")
    os.killpg(running.pid, signal.SIGINT)
    record = ended(where, running, pids)
    assert record["status"] == "interrupted"
    assert "SIGINT" in record["error"]


def test_a_model_that_vllm_does_not_have_is_one_line(where):
    """A family of nobody's: the plan leaves it to the engine, and the engine's sentence is the reason."""
    folder = where / "model"
    folder.mkdir()
    shapes = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 300,
    }
    settings = {"model_type": "nonesuch", "architectures": ["NonesuchForCausalLM"], **shapes}
    Path(folder / "config.json").write_text(json.dumps(settings))
    words = (f"model.path={folder}", "weights=dummy", "n_prompts=4")
    done = wattflow("run", *LONG, *words, cwd=where, code=1)
    (record,) = (where / "sweeps/s").glob("points/*/attempt-1/record.json")
    error = json.loads(record.read_text())["error"]
    assert error.startswith("vLLM 0.")
    assert "nonesuch" in error.lower()
    assert "Traceback" not in done.stdout + done.stderr
