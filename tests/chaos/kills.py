"""Kill submit and resume at named moments, resume, and count the points that are lost or would run twice.

python tests/chaos/kills.py --kills 40 --seed 1          # in each window; 0 lost and 0 twice, or it exits with 1
python tests/chaos/kills.py --kills 5 --without-intent   # the same with the journal's INTENT lines left out

A shim of sbatch, squeue, scontrol or scancel kills the process that called it. The rename and the journal's line are
calls of the victim itself, at which no shim stands: there an audit hook has it killed just before the very call.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a program: what the tests share

from sweeps import choices, plan_point

from chaos.model_slurm import ModelSlurm
from wattflow.plan.points import Plan
from wattflow.store.layout import SweepDir
from wattflow.submit import resume
from wattflow.submit import send as submit_send

WINDOWS = (
    "after sbatch accepted",
    "before the rename",
    "before the journal line",
    "before the release",
    "during resume",
)


@dataclass
class Counts:
    """What the kills in one window led to."""

    kills: int = 0
    missed: int = 0  # trials in which the moment did not come, so nothing was killed
    lost: int = 0
    twice: int = 0
    held: int = 0  # jobs left in the queue that nobody will ever release


def demo(folder: Path, points: int, **settings: Any) -> Plan:
    """A plan whose points need arrays of two tasks."""
    over = {"cluster__launcher": "slurm", "cluster__name": "site", "cluster__max_array_size": 2}
    made = [choices(seed=seed, **over, **settings) for seed in range(points)]
    return Plan(
        "demo",
        SweepDir(folder / "demo"),
        ["seed"],
        [plan_point(m) for m in made],
        0,
    )


def die_at(event: str, fits: Callable[[tuple[Any, ...]], bool], number: int) -> None:
    """This process ends by kill -9 just before its number-th call of that kind."""
    left = [number]

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name == event and fits(arguments):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def in_a_child(work: Callable[[], object]) -> int:
    """How a process of its own that did the work ended: 0, 1 after an error, or minus the signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 (whatever it is, this child must end here)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def arm(window: str, slurm: ModelSlurm, random_: random.Random) -> None:
    """Have this process die in a window, at one of the moments that are in it."""
    number = random_.randint(1, 4)  # three arrays and a collect job
    if window == "after sbatch accepted":
        slurm.use(f"sbatch {number} after")
        return
    if window == "before the release":
        slurm.use(f"scontrol 1 {random_.choice(['before', 'before', 'after'])}")
        return
    if window == "before the rename" and random_.random() < 0.5:
        slurm.use(f"sbatch {number} answered")
        return
    slurm.use()
    if window == "before the rename":
        die_at(
            "os.rename",
            lambda a: str(a[1]).endswith("_submitted.pkl"),
            number,
        )
    elif window == "before the journal line":
        # four INTENTs, then what became of them
        die_at(
            "open",
            lambda a: str(a[0]).endswith("journal.jsonl") and bool(a[2] & os.O_APPEND),
            random_.randint(4, 12),
        )


def arm_resume(slurm: ModelSlurm, random_: random.Random) -> None:
    """Have this process die somewhere in a resume: while it asks, takes back, sends or releases."""
    own = ["squeue 1 before", "squeue 1 after", "scancel 1 before", "scancel 1 after"]
    if random_.random() < 0.5:
        slurm.use(random_.choice(own))
    else:
        arm(random_.choice(WINDOWS[:4]), slurm, random_)


def drop_intents(sweep: SweepDir) -> None:
    """Leave the journal as it would be without its INTENT lines."""
    if sweep.journal_path.is_file():
        lines = sweep.journal_path.read_text().splitlines(keepends=True)
        sweep.journal_path.write_text("".join(x for x in lines if '"event": "intent"' not in x))


def trial(window: str, seed: int, *, without_intent: bool, counts: Counts) -> None:
    """One submit that is killed, what mends it, and what would run then."""
    random_ = random.Random(f"{seed} {window}")
    with tempfile.TemporaryDirectory(prefix="wattflow-kills-") as name:
        folder = Path(name)
        made = demo(folder, 6)
        slurm = ModelSlurm(folder / "slurm")
        first = random_.choice(WINDOWS[:4]) if window == "during resume" else window

        def send() -> None:
            arm(first, slurm, random_)
            submit_send.submit(made)

        def mend_and_die() -> None:
            arm_resume(slurm, random_)
            resume.resume(made.sweep)

        def mend() -> None:
            slurm.use()
            resume.resume(made.sweep)

        killed = in_a_child(send) == -signal.SIGKILL
        if without_intent:
            drop_intents(made.sweep)
        if window == "during resume":
            killed = in_a_child(mend_and_die) == -signal.SIGKILL
        counts.kills += killed
        counts.missed += not killed
        assert in_a_child(mend) == 0, (
            f"{window}, seed {seed}: what the kill left could not be mended"
        )
        runs = slurm.runs()
        counts.lost += sum(runs[point.point_id] == 0 for point in made.points)
        counts.twice += sum(runs[point.point_id] > 1 for point in made.points)
        counts.held += slurm.states()["held"]


def kill_in(window: str, kills: int, seed: int, *, without_intent: bool = False) -> Counts:
    """Trials in one window until so many submits or resumes were killed.

    Without INTENT lines a resume finds nothing to do and so no moment to die at: such trials count as well then.
    """
    counts = Counts()
    while counts.kills + without_intent * counts.missed < kills:
        assert without_intent or counts.missed < 3 * kills + 10, (
            f"{window}: its moment does not come"
        )
        trial(window, seed, without_intent=without_intent, counts=counts)
        seed += 1
    return counts


def main() -> int:
    """Print the counts of each window; 1 when a point was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without-intent", action="store_true")
    parser.add_argument("--window", choices=WINDOWS, action="append")
    given = parser.parse_args()
    total: Counter[str] = Counter()
    for window in given.window or WINDOWS:
        counts = kill_in(window, given.kills, given.seed, without_intent=given.without_intent)
        print(f"{window:25} {vars(counts)}", flush=True)
        total.update(vars(counts))
    print(f"{'in all':25} {dict(total)}, seed {given.seed}")
    return 1 if total["lost"] or total["twice"] else 0


if __name__ == "__main__":
    sys.exit(main())
