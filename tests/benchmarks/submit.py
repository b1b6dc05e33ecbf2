"""How long planning, submitting and asking take at thousands of points; ratios against hydra-submitit-launcher.

    python tests/benchmarks/submit.py                     # plan, submit and status of 10,080 points
    python tests/benchmarks/submit.py --launcher FOLDER   # and the ratio; FOLDER from
                                                          # pip install --target FOLDER hydra-submitit-launcher

sbatch, squeue, sacct and scontrol are the model of tests/chaos, which remembers and runs nothing. Each number is the
median of three; what is compared is measured in turns.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a program: what the tests share

from chaos.model_slurm import ModelSlurm

WORDS = [
    "cluster=testcluster",
    "cluster.gpus_per_node=8",
    "cluster.gpu_request=none",
    "engine.device=cpu",
    "model=llama-7b",
    "model.path=null",
    "n_prompts=64",
    "sweep.repeats=1",
]
SHAPES = "shards=1,2,4,8,16,32"  # 1, 2, 4 and 8 ranks on a node, and 2 and 4 nodes of 8


def words(points: int, folder: Path) -> list[str]:
    """A grid of so many points, a multiple of six, over six shapes; each seed draws and checks prompts of its own."""
    seeds = ",".join(map(str, range(points // 6)))
    axes = ["batch_size=64", f"seed={seeds}"]
    return [*WORDS, SHAPES, *axes, f"sweeps_dir={folder}", "sweep=bench"]


def in_a_process(task: str, *arguments: str) -> dict[str, Any]:
    """What a fresh Python says of one task: seconds, peak memory and counts."""
    command = [sys.executable, __file__, "--task", task, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def timed(work: Callable[[], object]) -> dict[str, Any]:
    """How long work took and the most memory that this process ever had."""
    began, cpu = time.monotonic(), time.process_time()
    work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": time.monotonic() - began,
        "cpu_s": time.process_time() - cpu,
        "peak_mb": peak,
    }


def task_plan(folder: Path, points: int) -> dict[str, Any]:
    from wattflow import grid

    made: list[Any] = []
    told = timed(lambda: made.append(grid.plan(words(points, folder))))
    return {**told, "points": len(made[0].feasible)}


def task_submit(folder: Path, points: int) -> dict[str, Any]:
    from wattflow import grid, submit

    model = ModelSlurm(folder / "slurm")
    model.use()
    made = grid.plan(words(points, folder))
    told = timed(lambda: submit.submit(made))
    calls = (model.folder / "calls").read_text().splitlines()
    tasks = sum(
        len(shape.tasks)
        for shape in submit.shapes([(p.point_id, p.choices) for p in made.feasible])
    )
    files = sum(len(names) for _, _, names in os.walk(made.sweep.path))
    return {
        **told,
        "sbatch": sum(call.startswith("sbatch") for call in calls),
        "tasks": tasks,
        "files_per_task": files / tasks,
    }


def task_status(folder: Path, points: int) -> dict[str, Any]:
    """Of a submitted sweep of which 99 % finished, written by the project's own writers and collected."""
    from sweeps import Gpu, Made, make_attempt

    from wattflow import collect, grid, slurm, status, submit
    from wattflow.sweepdir import SweepDir

    model = ModelSlurm(folder / "slurm")
    model.use()
    made = grid.plan(words(points, folder))
    submit.submit(made)
    sweep = SweepDir(made.sweep.path)
    finished = made.feasible[: points - points // 100]
    for point in finished:
        make_attempt(sweep, point.choices, Made([Gpu("GPU-0")], batches=1, period_s=1.0))
    slurm.forget()
    before = (model.folder / "calls").read_text().count("\n")
    rows: list[Any] = []
    cold = timed(lambda: rows.extend(status.states(sweep)))
    asked = (model.folder / "calls").read_text().splitlines()[before:]
    collect.collect(sweep)
    slurm.forget()
    after = timed(lambda: status.states(sweep))
    return {
        "seconds": cold["seconds"],
        "cpu_s": cold["cpu_s"],
        "collected_seconds": after["seconds"],
        "done": sum(row.state == "done" for row in rows),
        "calls": [call.split()[0] for call in asked],
    }


TASKS = {"plan": task_plan, "submit": task_submit, "status": task_status}


def launcher_seconds(target: Path, points: int) -> float:
    """How long hydra-submitit-launcher takes until Slurm has all jobs of a one-parameter grid."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = ModelSlurm(folder / "slurm")
        (folder / "conf").mkdir()
        (folder / "conf" / "config.yaml").write_text("seed: 0\n")
        (folder / "app.py").write_text(
            "import hydra\n"
            "@hydra.main(version_base=None, config_path='conf', config_name='config')\n"
            "def main(config): pass\n"
            "main()\n"
        )
        seeds = ",".join(map(str, range(points)))
        command = [sys.executable, "app.py", "-m", "hydra/launcher=submitit_slurm", f"seed={seeds}"]
        environment = {
            **os.environ,
            "PYTHONPATH": str(target),
            "PATH": f"{model.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "MODEL": str(model.folder),
            "WATTFLOW_KILL": "",
        }
        (model.folder / "calls").write_text("")
        began = time.monotonic()
        # it waits for its jobs, which never run: its work is done once sbatch was called and its pickles lie ready
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL
        ) as run:
            while len(list(folder.glob("multirun/**/*_submitted.pkl"))) < points:
                assert run.poll() is None, "the launcher ended early"
                time.sleep(1.0)
            took = time.monotonic() - began
            run.kill()
        return took


def ours_seconds(points: int) -> float:
    """How long a fresh `wattflow submit` takes for as many points, its start included."""
    with tempfile.TemporaryDirectory() as name:
        began = time.monotonic()
        in_a_process("submit", "--folder", name, "--points", str(points))
        return time.monotonic() - began


def main() -> None:
    """Print each measurement as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--points", type=int, default=10080)
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--launcher", type=Path)
    given = parser.parse_args()
    if given.task:
        print(json.dumps(TASKS[given.task](given.folder, given.points)))
        return
    for task in TASKS:
        runs = []
        for _ in range(1 if task == "status" else 3):
            with tempfile.TemporaryDirectory() as name:
                runs.append(in_a_process(task, "--folder", name, "--points", str(given.points)))
        told = {
            key: round(statistics.median(run[key] for run in runs), 3)
            if isinstance(value, float)
            else value
            for key, value in runs[0].items()
        }
        print(json.dumps({"task": task, "points": given.points, **told}), flush=True)
    if given.launcher:
        points = 1008
        pairs = [(launcher_seconds(given.launcher, points), ours_seconds(points)) for _ in range(3)]
        theirs, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        told = {"launcher_s": round(theirs, 2), "wattflow_s": round(ours, 2)}
        print(
            json.dumps(
                {"task": "launcher", "points": points, **told, "ratio": round(theirs / ours, 1)}
            )
        )


if __name__ == "__main__":
    main()
