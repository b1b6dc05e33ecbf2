"""Damage the files of a sweep by the thousand: no traceback but our own errors, and no number that is not the true one.

    python tests/chaos/fuzz.py --cases 100000 --seed 1       # prints its counts; 1 at the first case that breaks a rule

What is damaged: journal lines, records, pieces, heartbeats, traces, spans, requests, the grid and configs in YAML; all
files of a collected sweep as each verb reads them; bundles, headers of checkpoints, price tables, reported spans, and
what squeue, sacct and dcgmi print. Words of the command line are drawn at random.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a program: what the tests share

import numpy as np
from sweeps import Gpu, Made, choices, id_of, make_attempt, make_sweep

from chaos import fuzz_inputs
from wattflow.collect.attempt import collect_attempt
from wattflow.collect.row import Choices
from wattflow.config import identity
from wattflow.errors import WattflowError
from wattflow.plan import grid
from wattflow.run import continuation
from wattflow.store import heartbeat
from wattflow.store.tables import read_table
from wattflow.submit import journal, status

KEYS = sorted(identity.DEFAULTS)
YAML = """# @package _global_
defaults:
  - override /model: tiny
hydra:
  sweeper:
    params:
      shards: 1,2
      batch_size: 1,2
n_prompts: 2
sweep:
  repeats: 1
  exclude:
    - when: {shards: 2, batch_size: 2}
      reason: not wanted
"""


def ripple(seconds: np.ndarray) -> np.ndarray:
    """Watts of which no two are alike, so that no changed one goes unseen."""
    return 70.0 + 9.0 * np.sin(seconds * 3.7) + np.random.default_rng(1).normal(0, 1, len(seconds))


FOREIGN = (
    b"",
    b"\0" * 100,
    b"PAR1" + b"\0" * 40 + b"PAR1",
    b"[]",
    b"null",
    b"{}",
    b'{"schema_version": 1}',
    b'{"schema_version": 2}',
    b"[" * 100_000,
    b'{"a": NaN}',
    "\u00e9".encode("latin-1"),
)


def damage(data: bytes, random_: random.Random) -> bytes:
    """The same bytes cut, with some changed, doubled or left out, or none of them."""
    kind = random_.choice(["cut", "flip", "drop", "double", "swap", "foreign"])
    if kind == "foreign" or len(data) < 8:
        return random_.choice(FOREIGN)
    at = random_.randrange(len(data))
    upto = min(len(data), at + random_.choice([1, 4, 64]))
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        changed = bytes(random_.randrange(256) for _ in range(upto - at))
        return data[:at] + changed + data[upto:]
    if kind == "drop":
        return data[:at] + data[upto:]
    if kind == "double":
        return data[:upto] + data[at:]
    return data[upto:] + data[:upto]


def damage_json(data: bytes, random_: random.Random) -> bytes:
    """Now and then a JSON document that is whole, but has another value somewhere."""
    if random_.random() < 0.5:
        return damage(data, random_)
    lines = data.decode().splitlines()
    number = random_.randrange(len(lines)) if data.startswith(b'{"') else 0
    told = json.loads(lines[number] if data.startswith(b'{"') else data)
    key = random_.choice(list(told))
    value = random_.choice([None, "x", "../../x", -1, 1e308, [], {}, [["zz"]], True, "finished"])
    told[key] = value
    lines[number] = json.dumps(told)
    return ("\n".join(lines) + "\n" if data.startswith(b'{"') else json.dumps(told)).encode()


class Sweep:
    """A sweep of two finished points and the bytes of its files, to be damaged one at a time."""

    def __init__(self, folder: Path) -> None:
        points = [choices(seed=seed) for seed in (1, 2, 3)]
        self.sweep = make_sweep(folder / "demo", points)
        self.ids = [id_of(point) for point in points]
        gpus = [Gpu("GPU-0", ripple)]
        self.attempts = [make_attempt(self.sweep, p, Made(gpus)) for p in points[:2]]
        self.pieces = [
            make_attempt(self.sweep, points[2], Made(gpus, first_batch=2 * k)) for k in range(2)
        ]
        self._tell_pieces()
        self.true_j = collect_attempt(self.attempts[0], Choices.of(points[0])).point["energy_j"]
        self.true_in_pieces_j = collect_attempt(self.pieces[1], Choices.of(points[2])).point[
            "energy_j"
        ]
        assert self.true_in_pieces_j > 1.5 * self.true_j > 0
        profiles = folder / "site" / "conf" / "grid"
        profiles.mkdir(parents=True)
        self.yaml = profiles / "mine.yaml"
        self.yaml.write_text(YAML)
        name = "demo-1"
        sent = journal.Submission(
            name, "points", [[i] for i in self.ids], self.sweep.submitit / name, 0
        )
        journal.intend(self.sweep, sent)
        journal.write(self.sweep, "submitted", name, job_id="17")
        journal.write(self.sweep, "released", name)
        (self.attempts[0].path / "heartbeat.json").write_text('{"by": "local:x:1:1", "beat": 1}')
        self.others = fuzz_inputs.Others(folder, damage)

    def _tell_pieces(self) -> None:
        """Say in the records of the third point that its second attempt went on from its first."""
        told = [{"attempt": k, "first_batch": 2 * k - 2, "batches": 2} for k in (1, 2)]
        for number, attempt in enumerate(self.pieces, 1):
            record = attempt.read_record()
            assert record is not None
            record["pieces"] = told[:number]
            record["status"] = "interrupted" if number == 1 else "finished"
            attempt.write_record(record)


def case_journal(made: Sweep, random_: random.Random) -> None:
    """Reading tells of our own error or of submissions whose points are ids."""
    path = made.sweep.journal_path
    with fuzz_inputs.damaged(path, damage_json(path.read_bytes(), random_)):
        for sent in journal.read(made.sweep):
            assert all(isinstance(point, str) for task in sent.tasks for point in task)
            assert sent.folder.is_relative_to(made.sweep.path)
            sent.key(0)


def case_record(made: Sweep, random_: random.Random) -> None:
    """A damaged record makes its point neither done by mistake nor breaks the other's."""
    attempt = made.attempts[0]
    data = damage_json(attempt.record_path.read_bytes(), random_)
    with fuzz_inputs.damaged(attempt.record_path, data):
        made.sweep.is_finished(made.ids[0])
        rows = status.decisive_record(made.sweep.attempts(made.ids[0]))
        assert rows[0] is None or isinstance(rows[0]["status"], str)
        assert made.sweep.is_finished(made.ids[1])
        if random_.random() < 0.2:
            check_row(made, collect_attempt(attempt, Choices.of(choices(seed=1))).point)


def check_row(made: Sweep, row: dict) -> None:
    """A number that counts is the true one."""
    if row["valid"]:
        assert abs(row["energy_j"] - made.true_j) < 1e-9 * made.true_j, row["energy_j"]
        assert (row["tokens_kept"], row["responses"]) == (200, 8)


def case_pieces(made: Sweep, random_: random.Random) -> None:
    """Whatever of two pieces is damaged: no batch is gone on from that is not whole, and no other sum is told."""
    attempt = random_.choice(made.pieces)
    path = random_.choice(sorted(p for p in attempt.path.rglob("*") if p.is_file()))
    change = damage_json if path.suffix == ".json" else damage
    with fuzz_inputs.damaged(path, change(path.read_bytes(), random_)):
        assert continuation.find(made.sweep, made.ids[2]).batches in (0, 1, 2, 4)
        row = collect_attempt(made.pieces[1], Choices.of(choices(seed=3))).point
        assert not row["valid"] or "pieces" not in str(path), row
        if row["pieces"] == 2 and row["energy_j"] is not None and path.suffix != ".json":
            assert abs(row["energy_j"] - made.true_in_pieces_j) < 1e-9 * made.true_in_pieces_j


def case_heartbeat(made: Sweep, random_: random.Random) -> None:
    """A damaged heartbeat is none."""
    path = made.attempts[0].path / "heartbeat.json"
    with fuzz_inputs.damaged(path, damage_json(path.read_bytes(), random_)):
        beat = heartbeat.read(made.attempts[0])
        assert beat is None or isinstance(beat.by, str)


def case_trace(made: Sweep, random_: random.Random) -> None:
    """A damaged trace or spans file costs its attempt; a number that is still told is the true one."""
    attempt = made.attempts[0]
    path = random_.choice(sorted(attempt.path.rglob("*.parquet")))
    with fuzz_inputs.damaged(path, damage(path.read_bytes(), random_)):
        check_row(made, collect_attempt(attempt, Choices.of(choices(seed=1))).point)


def case_grid(made: Sweep, random_: random.Random) -> None:
    """A damaged grid is refused whole."""
    from wattflow.store.schema import GRID

    path = made.sweep.grid_path
    with fuzz_inputs.damaged(path, damage(path.read_bytes(), random_)):
        read_table(path, GRID)


PIECES = (
    *("seed", "=", "1", ",", "(", ")", "range", "[", "]", "{", "}", "'", '"', "\\", "${", "oc.env:HOME"),
    *("`id`", ";", "\n", "../x", "+", "~", "++", "@", "model", "tiny", "batch_size", "null", " ", "é"),
    *("glob(*)", "shards", "_target_"),
)  # fmt: skip
VALUES = (
    *("1", "2", "0", "-1", "1.5", "1e999", "nan", "null", "true", "x", "'a b'", "[]", "{}", "[1,2]"),
    *("{a: 1}", "1,2", "range(1,4)", "choice(1,2)", "sort(2,1)", "''", "tiny", "llama-7b", "9" * 30),
)  # fmt: skip


def case_words(made: Sweep, random_: random.Random) -> None:
    """Words are a plan or refused, and what could run something is always refused."""
    if random_.random() < 0.5:
        text = "".join(random_.choice(PIECES) for _ in range(random_.randint(1, 7)))
    else:
        text = f"{random_.choice(KEYS)}={random_.choice(VALUES)}"
    base = ["cluster=local", "model=tiny", "engine=synthetic", "n_prompts=2", "sweep.repeats=1"]
    grid.plan([*base, f"sweeps_dir={made.sweep.path.parent}", text])
    assert not {"${", "`", ";", "\n", "_target_"} & set(text), text


def case_yaml(made: Sweep, random_: random.Random) -> None:
    """A grid's file is a plan or refused."""
    before = Path.cwd()
    with fuzz_inputs.damaged(made.yaml, damage(made.yaml.read_bytes(), random_)):
        os.chdir(made.yaml.parents[2])
        try:
            grid.plan(["cluster=local", "grid=mine", "engine=synthetic"])
        finally:
            os.chdir(before)


CASES: dict[str, tuple[float, Callable[[Sweep, random.Random], None]]] = {
    "journal": (0.30, case_journal),
    "record": (0.28, case_record),
    "heartbeat": (0.15, case_heartbeat),
    "trace": (0.10, case_trace),
    "pieces": (0.10, case_pieces),
    "grid": (0.03, case_grid),
    "words": (0.02, case_words),
    "yaml": (0.02, case_yaml),
    **{
        name: (share, lambda made, random_, case=case: case(made.others, random_))
        for name, (share, case) in fuzz_inputs.CASES.items()
    },
}


def fuzz(cases: int, seed: int) -> tuple[Counter[str], Counter[str]]:
    """How many cases of each kind there were, and how many of them were refused with an error of ours."""
    tried: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    random_ = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="wattflow-fuzz-"))
    try:
        made = Sweep(folder)
        names, weights = list(CASES), [share for share, _ in CASES.values()]
        for number in range(cases):
            (name,) = random_.choices(names, weights)
            own = random.Random(f"{seed} {number}")
            tried[name] += 1
            try:
                CASES[name][1](made, own)
            except WattflowError:
                refused[name] += 1
            except Exception:
                print(f"case {number} of seed {seed}, {name}", flush=True)
                raise
    finally:
        shutil.rmtree(folder)
    return tried, refused


def main() -> None:
    """Print how many cases there were."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    tried, refused = fuzz(given.cases, given.seed)
    print(
        f"{sum(tried.values())} cases, seed {given.seed}: {dict(tried)}; told as damaged: {dict(refused)}"
    )


if __name__ == "__main__":
    main()
