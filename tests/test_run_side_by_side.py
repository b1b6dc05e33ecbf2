"""Slots of a node: what runs in them, and what becomes of a step's points when it ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sweeps import choices, id_of, make_sweep

from wattflow.config.choices import from_dict
from wattflow.errors import PowerError
from wattflow.run import side_by_side
from wattflow.run.side_by_side import Slot, Slots, devices_of, slots_of, stages_of
from wattflow.run.signals import InterruptedRunError, Signals
from wattflow.run.task import Todo

# a step that makes an attempt at each of its points and ends as it is asked: finish, fail, die (by SIGKILL), nothing
STEP = """
import json, os, signal, sys, time
from pathlib import Path
from wattflow.store.layout import SweepDir
sweep, spool, does = SweepDir(Path(sys.argv[1])), Path(sys.argv[2]), json.loads(sys.argv[3])
signal.signal(signal.SIGUSR2, lambda *_: sys.exit(3))
for point_id, what in does.items():
    if what == "give way":
        continue
    if what == "nothing":
        print("no such account", file=(spool / "rank0.log").open("w"))
        sys.exit(5)
    if what == "replaced":
        elsewhere = sweep.path.parent / "elsewhere"
        elsewhere.mkdir()
        sweep.point_path(point_id).parent.mkdir(exist_ok=True)
        sweep.point_path(point_id).symlink_to(elsewhere)
        sys.exit(1)
    attempt = sweep.claim_attempt(point_id)
    record = {"schema_version": 1, "point_id": point_id, "attempt": attempt.number, "status": "running"}
    attempt.write_record(record)
    if what == "wait":
        (spool.parent / "waits").touch()
        time.sleep(600)
    if what == "long log":
        with (spool / "rank0.log").open("w") as log:
            log.truncate(300 * 2**20)
    if what == "link":
        os.symlink("/etc/hostname", spool / "rank0.log")
    if what == "damage":
        attempt.record_path.write_text("{")
        print("half a record", file=(spool / "rank0.log").open("w"))
    if what == "fifo":
        os.mkfifo(spool / "rank0.log")
    if what in ("die", "long log", "link", "damage", "fifo"):
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "fail":
        attempt.write_record({**record, "status": "failed", "error": "of its own"})
        sys.exit(1)
    attempt.write_record({**record, "status": "finished"})
"""


def todo_of(folder: Path, count: int, **over) -> Todo:
    points = [choices(seed=seed, **over) for seed in range(count)]
    folder.mkdir(exist_ok=True)
    sweep = make_sweep(folder / "s", points)
    return Todo(sweep, [id_of(point) for point in points], {})


class Node:
    """Two slots whose steps are processes of the test's own making."""

    def __init__(self, todo: Todo, spool: Path, does: dict[str, str], slots: int = 2):
        self.todo, self.does, self.began = todo, does, []
        spool.mkdir()
        self.lost = ""  # why there is no sidecar
        self.signals = Signals()
        self.signals.together = True
        self.count = slots
        parts = [Slot(k, [k], [f"GPU-{k}"], []) for k in range(slots)]
        self.slots = Slots(todo, parts, spool, self.start, self.signals, check=self.check)

    def check(self):
        if self.lost:
            raise PowerError(self.lost)

    def start(self, slot, point_ids, spool):
        self.began.append((slot.number, point_ids))
        does = json.dumps({point_id: self.does.get(point_id, "finish") for point_id in point_ids})
        words = [sys.executable, "-c", STEP, str(self.todo.sweep.path), str(spool), does]
        return subprocess.Popen(words)

    def run(self):
        for stage in stages_of(self.todo, self.count):
            self.slots.run(stage)
        return self.slots.failed

    def record(self, point_id):
        return self.todo.sweep.attempts(point_id)[-1].read_record()


def test_a_sidecar_that_never_comes_ends_the_task(tmp_path, monkeypatch):
    """Steps that wait for it are ended; the reason is the task's."""
    monkeypatch.setattr(side_by_side, "_CLOSE_S", 0.1)
    todo = todo_of(tmp_path, 2)
    node = Node(todo, tmp_path / "spool", dict.fromkeys(todo.point_ids, "wait"))
    node.lost = "the common sidecar of n1: no GPU is visible"
    with pytest.raises(PowerError, match="no GPU is visible"):
        node.run()
    assert all(step.process.poll() is not None for step in node.slots._running)


def test_whatever_ends_a_step_frees_its_slot(tmp_path):
    """Of five points one is killed, one fails with a reason, one's step never begins: the other two finish."""
    todo = todo_of(tmp_path, 5)
    a, b, c, d, e = todo.point_ids
    node = Node(todo, tmp_path / "spool", {a: "die", b: "fail", c: "nothing"})
    failed = node.run()
    assert sorted(failed) == sorted([a, b, c])
    assert all(todo.is_finished(point) for point in (d, e))
    assert node.record(a)["error"] == "its step in slot 0 ended by SIGKILL."
    assert node.record(b)["error"] == "of its own"
    assert node.record(c)["error"].endswith("ended with code 5. no such account")
    assert {slot for slot, _ in node.began} == {0, 1}
    assert list((tmp_path / "spool").iterdir()) == []
    assert [path.name for path in todo.sweep.attempts(c)[-1].logs.iterdir()] == ["rank0.log"]


@pytest.mark.parametrize("what", ["long log", "link", "fifo"])
def test_no_log_of_a_slot_ends_the_node(tmp_path, what):
    """300 MiB of a log, or what is none: its point fails with its reason, and the other three finish."""
    todo = todo_of(tmp_path, 4)
    first, *others = todo.point_ids
    node = Node(todo, tmp_path / "spool", {first: what})
    assert node.run() == [first]
    assert all(todo.is_finished(point) for point in others)
    assert node.record(first)["status"] == "failed"
    assert node.record(first)["error"] == "its step in slot 0 ended by SIGKILL."
    logs = {log.name: log.stat().st_size for log in todo.sweep.attempts(first)[-1].logs.iterdir()}
    assert logs == ({"rank0.log": 2**26 + 29} if what == "long log" else {})


def test_a_damaged_record_of_a_slot_ends_no_other_point(tmp_path, capsys):
    """It stays as it is, beside its log, and is named; the other three finish."""
    todo = todo_of(tmp_path, 4)
    first, *others = todo.point_ids
    node = Node(todo, tmp_path / "spool", {first: "damage"})
    assert node.run() == [first]
    assert all(todo.is_finished(point) for point in others)
    (attempt,) = todo.sweep.attempts(first)
    assert attempt.record_path.read_text() == "{"
    assert (attempt.logs / "rank0.log").read_text() == "half a record\n"
    assert (
        f"point {first} failed; its step in slot 0 ended by SIGKILL, and" in capsys.readouterr().out
    )


def test_a_point_whose_folder_is_a_link_fails_alone(tmp_path):
    """Put there while its step ran, which began nothing: no attempt can be made, and the other point finishes."""
    todo = todo_of(tmp_path, 2)
    first, other = todo.point_ids
    node = Node(todo, tmp_path / "spool", {first: "replaced"})
    assert node.run() == [first]
    assert todo.is_finished(other)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    again = Node(todo, tmp_path / "again", {})
    assert (again.run(), again.began) == ([first], [])


def test_points_after_one_that_killed_its_step_run_in_a_new_step(tmp_path):
    """Three points share a load in one slot; the second dies, and the third is run all the same."""
    todo = todo_of(tmp_path, 3, sweep__load_shared_by=3)
    a, b, c = todo.point_ids
    node = Node(todo, tmp_path / "spool", {b: "die"}, slots=1)
    assert node.run() == [b]
    assert [points for _, points in node.began] == [[a, b, c], [c]]
    assert todo.is_finished(a)
    assert todo.is_finished(c)


def test_finished_points_are_left_alone(tmp_path):
    """As after a requeue: no step is begun for them."""
    todo = todo_of(tmp_path, 2)
    Node(todo, tmp_path / "spool", {}).run()
    again = Node(todo, tmp_path / "again", {})
    assert again.run() == []
    assert again.began == []


def test_a_step_that_gives_way_leaves_the_point_to_its_process(tmp_path):
    """As where Slurm begins a task again beside its living old steps: no attempt is made, and none is failed."""
    todo = todo_of(tmp_path, 2)
    a, b = todo.point_ids
    node = Node(todo, tmp_path / "spool", {a: "give way"})
    assert node.run() == []
    assert todo.sweep.attempts(a) == []
    assert todo.is_finished(b)


def test_a_warning_reaches_the_steps_and_no_further_point_begins(tmp_path):
    """SIGUSR2 to the task: the step that runs hears it, its attempt is left to its own word, the next is not begun."""
    todo = todo_of(tmp_path, 2)
    a, _b = todo.point_ids
    node = Node(todo, tmp_path / "spool", {a: "wait"}, slots=1)
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    try:
        node.signals.install()
        code = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.02)\n"
        code += "os.kill(int(sys.argv[2]), 12)"
        waits = str(tmp_path / "spool" / "waits")
        with (
            subprocess.Popen([sys.executable, "-c", code, waits, str(os.getpid())]),
            pytest.raises(InterruptedRunError, match="SIGUSR2"),
        ):
            node.run()
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert [points for _, points in node.began] == [[a]]
    assert node.record(a)["status"] == "running"  # Slurm's word says the rest


def test_a_node_is_parted_by_its_gpus():
    """Five GPUs for two slots are two each; fewer than slots are none."""
    first, second = slots_of([f"GPU-{k}" for k in range(5)], 2)
    assert (first.gpus, first.devices) == ([0, 1], ["GPU-0", "GPU-1"])
    assert (second.gpus, second.devices) == ([2, 3], ["GPU-2", "GPU-3"])
    with pytest.raises(PowerError, match="1 GPUs are visible for 2 slots"):
        list(slots_of(["GPU-0"], 2))


def test_a_host_cannot_be_parted():
    """Its joules are those of all points together, so none can be billed."""
    config = from_dict(choices(power__meter="simulated"))
    with pytest.raises(PowerError, match="cannot be separated"):
        devices_of(config, "n1")


def units(todo: Todo, slots: int) -> list[list[str]]:
    (stage,) = stages_of(todo, slots)
    return [unit.point_ids for unit in stage]


def test_units_keep_blocks_and_shared_loads_together_and_no_slot_idle(tmp_path):
    """A block a repeat; loads shared by four points of six are shared by three, so that both slots have some."""
    shared = todo_of(tmp_path / "a", 6, sweep__load_shared_by=4)
    assert [len(unit) for unit in units(shared, 2)] == [3, 3]
    assert [len(unit) for unit in units(todo_of(tmp_path / "b", 5), 2)] == [1] * 5
    points = [choices(batch_size=b, repeat=r, sweep__block="board") for r in (0, 1) for b in (1, 2)]
    sweep = make_sweep(tmp_path / "c", points)
    todo = Todo(sweep, [id_of(point) for point in points], {})
    assert units(todo, 2) == [todo.point_ids[:2], todo.point_ids[2:]]


def test_a_control_runs_each_slot_alone_then_all_and_the_other_way_round(tmp_path):
    """Eight repeats in two slots are two rounds, as they come; each repeat has the slot of its place."""
    asked = {"sweep__block": "neighbours", "cluster__side_by_side": True}
    asked |= {"cluster__gpus_per_node": 2}
    points = [choices(repeat=r, **asked) for r in (5, 0, 3, 6, 1, 7, 2, 4)]
    sweep = make_sweep(tmp_path / "s", points)
    todo = Todo(sweep, [id_of(point) for point in points], {})
    repeat_of = {id_of(point): point["repeat"] for point in points}
    found = [
        [(repeat_of[unit.point_ids[0]], unit.slot) for unit in stage]
        for stage in stages_of(todo, 2)
    ]
    assert found == [
        *([(6, 0), (7, 1)], [(5, 1)], [(4, 0)]),
        *([(0, 0)], [(1, 1)], [(2, 0), (3, 1)]),
    ]
    node = Node(todo, tmp_path / "spool", {})
    assert node.run() == []
    assert [slot for slot, _ in node.began[2:4]] == [1, 0]


def test_how_a_step_ended_in_words():
    """srun's codes above 128 are signals, and so are those of a step that was killed itself."""
    assert side_by_side._in_words(137) == "by SIGKILL"
    assert side_by_side._in_words(-15) == "by SIGTERM"
    assert side_by_side._in_words(2) == "with code 2"
    assert side_by_side._in_words(255) == "with code 255"
