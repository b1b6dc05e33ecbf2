"""How long planning, submitting and asking take at thousands of points; ratios against hydra-submitit-launcher.

    python tests/benchmarks/submit.py                     # plan, submit and status of 10,080 points
    python tests/benchmarks/submit.py --launcher PYTHON   # and the ratio, against a virtual environment with
                                                          # hydra-submitit-launcher==1.2.0 and the same hydra-core

sbatch, squeue, sacct and scontrol are the model of tests/chaos, which remembers and runs nothing. Each number is the
median of three; what is compared is measured in turns, from the start of the program to the last of its files.
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


def words(points: int, folder: Path, axis: str = "seed") -> list[str]:
    """A grid of so many points, a multiple of 168, over six shapes.

    Along `seed` each of the values draws and checks prompts of its own; along `size` all share them.
    """
    if axis == "seed":
        axes = ["batch_size=64", f"seed={_numbers(0, points // 6)}"]
    else:
        axes = [f"batch_size={_numbers(1, points // 168)}", f"max_gen_len={_numbers(100, 28)}"]
    return [*WORDS, SHAPES, *axes, f"sweeps_dir={folder}", "sweep=bench"]


def _numbers(first: int, count: int) -> str:
    return ",".join(map(str, range(first, first + count)))


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


def task_plan_seeds(folder: Path, points: int) -> dict[str, Any]:
    return plan_along("seed", folder, points)


def task_plan_sizes(folder: Path, points: int) -> dict[str, Any]:
    return plan_along("size", folder, points)


def plan_along(axis: str, folder: Path, points: int) -> dict[str, Any]:
    """Expand, check and hash, and put the points into shapes."""
    from wattflow.plan import grid
    from wattflow.slurm import shapes

    def work() -> None:
        made = grid.plan(words(points, folder, axis))
        assert len(made.feasible) == points
        assert len(shapes.shapes([(p.point_id, p.config) for p in made.feasible])) == 6

    return timed(work)


def task_submit(folder: Path, points: int) -> dict[str, Any]:
    from wattflow.plan import grid
    from wattflow.slurm import shapes
    from wattflow.submit import send

    model = ModelSlurm(folder / "slurm")
    model.use()
    made = grid.plan(words(points, folder))
    told = timed(lambda: send.submit(made))
    calls = (model.folder / "calls").read_text().splitlines()
    tasks = sum(
        len(shape.tasks) for shape in shapes.shapes([(p.point_id, p.config) for p in made.feasible])
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

    from wattflow.collect import collect
    from wattflow.config.choices import to_dict
    from wattflow.plan import grid
    from wattflow.slurm import client
    from wattflow.store.layout import SweepDir
    from wattflow.submit import send, status

    model = ModelSlurm(folder / "slurm")
    model.use()
    made = grid.plan(words(points, folder))
    send.submit(made)
    sweep = SweepDir(made.sweep.path)
    finished = made.feasible[: points - points // 100]
    for point in finished:
        make_attempt(sweep, to_dict(point.config), Made([Gpu("GPU-0")], batches=1, period_s=1.0))
    client.forget()
    before = (model.folder / "calls").read_text().count("\n")
    rows: list[Any] = []
    cold = timed(lambda: rows.extend(status.states(sweep)))
    asked = (model.folder / "calls").read_text().splitlines()[before:]
    collect.collect(sweep)
    client.forget()
    after = timed(lambda: status.states(sweep))
    return {
        "seconds": cold["seconds"],
        "cpu_s": cold["cpu_s"],
        "collected_seconds": after["seconds"],
        "done": sum(row.state == "done" for row in rows),
        "calls": [call.split()[0] for call in asked],
    }


TASKS = {
    "plan seeds": task_plan_seeds,
    "plan sizes": task_plan_sizes,
    "submit": task_submit,
    "status": task_status,
}


def launcher_seconds(python: Path, points: int) -> float:
    """How long hydra-submitit-launcher takes until all jobs of a one-parameter grid are sent and have their files."""
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
        settings = ["hydra/launcher=submitit_slurm", f"hydra.sweep.dir={folder / 'out'}"]
        command = [python, "app.py", "-m", *settings, f"seed={_numbers(0, points)}"]
        environment = {
            **os.environ,
            "PATH": f"{model.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "MODEL": str(model.folder),
            "WATTFLOW_KILL": "",
        }
        (model.folder / "calls").write_text("")
        # it waits for its jobs, which never run: its work is done once the last task has its pickle
        last = (
            folder / "out" / ".submitit" / f"101_{points - 1}" / f"101_{points - 1}_submitted.pkl"
        )
        began = time.monotonic()
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL
        ) as run:
            while not last.is_file():
                assert run.poll() is None, "the launcher ended early"
                time.sleep(0.01)
            took = time.monotonic() - began
            run.kill()
        return took


def ours_seconds(points: int) -> float:
    """How long `wattflow submit` takes, from the start of its Python to its end, for as many points of six shapes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = ModelSlurm(folder / "slurm")
        environment = {
            **os.environ,
            "PATH": f"{model.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "MODEL": str(model.folder),
            "WATTFLOW_KILL": "",
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        (model.folder / "calls").write_text("")
        command = [str(Path(sys.executable).with_name("wattflow")), "submit"]
        began = time.monotonic()
        subprocess.run(
            [*command, *words(points, folder)],
            env=environment,
            check=True,
            capture_output=True,
            cwd=folder,
        )
        return time.monotonic() - began


def main() -> None:
    """Print each measurement as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--points", type=int, default=10080)
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--launcher", type=Path, metavar="PYTHON")
    parser.add_argument("--only-launcher", action="store_true")
    given = parser.parse_args()
    if given.task:
        print(json.dumps(TASKS[given.task](given.folder, given.points)))
        return
    for task in () if given.only_launcher else TASKS:
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
        compare(given.launcher, given.points)


def compare(launcher: Path, points: int) -> None:
    """The launcher at 1,008 points, ours at as many and at all, three times in turns."""
    runs = [
        (launcher_seconds(launcher, 1008), ours_seconds(1008), ours_seconds(points))
        for _ in range(3)
    ]
    theirs, ours, all_ours = (statistics.median(column) for column in zip(*runs, strict=True))
    told = {
        "launcher_s": round(theirs, 2),
        "wattflow_s": round(ours, 2),
        "ratio": round(theirs / ours, 1),
        "wattflow_all_s": round(all_ours, 2),
        "ratio_a_point": round((theirs / 1008) / (all_ours / points), 1),
    }
    print(json.dumps({"task": "launcher", "points": 1008, "all": points, **told}))


if __name__ == "__main__":
    main()
