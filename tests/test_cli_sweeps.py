"""The verbs of sweeps."""

import json
import subprocess
import sys

import pytest
from commands import call
from fake_slurm import FakeSlurm
from sent_sweeps import attempt, name_of, sent
from sweeps import Gpu, Made, make_attempt, make_sweep
from typer.testing import CliRunner

from wattflow.analysis.resolve import resolvable
from wattflow.cli.app import app
from wattflow.collect import collect
from wattflow.errors import RefusedError
from wattflow.submit import journal, send


def test_resume_by_state_sends_the_points_in_that_state(fake, tmp_path):
    """One point failed and one was cancelled: --state failed sends the first; a word that is no state is refused."""
    made = sent(tmp_path, 2)
    fake.accounting("101_0|FAILED|None", "101_1|CANCELLED by 0|None")
    words = ["resume", str(made.sweep.path), "--state"]
    assert CliRunner().invoke(app, [*words, "failed"]).exit_code == 0
    again = journal.read(made.sweep)[2]
    assert again.tasks == [[made.points[0].point_id]]
    refused = CliRunner().invoke(app, [*words, "broken"])
    assert isinstance(refused.exception, RefusedError)
    assert "no state of a point" in str(refused.exception)


def test_resume_with_a_new_limit_is_sent_and_said(fake, tmp_path):
    """The words of the issue: an exit code of 0, the limit in the script, and that later resumes keep it."""
    made = sent(tmp_path, 1)
    fake.accounting("101|TIMEOUT|None")
    done = CliRunner().invoke(app, ["resume", str(made.sweep.path), "cluster.time_min=10"])
    assert done.exit_code == 0, done.output
    assert "cluster.time_min=10: asked for these points, also by later resumes." in done.output
    assert "#SBATCH --time=10\n" in list(fake.scripts().values())[2]


def test_nothing_sent_is_0_where_all_finished_and_2_with_the_reason_else(fake, tmp_path):
    """For resume and, by its plan, for submit."""
    made = sent(tmp_path, 1)
    fake.queue(f"101|RUNNING|None|{name_of(made)}")
    waits = CliRunner().invoke(app, ["resume", str(made.sweep.path)])
    assert isinstance(waits.exception, RefusedError)
    assert "0 points sent: 1 points wait or run now" in str(waits.exception)
    assert "sent before and have not finished" in send.submit(made).left[0]
    attempt(made, 0, "finished", "101")
    done = CliRunner().invoke(app, ["resume", str(made.sweep.path)])
    assert done.exit_code == 0, done.output
    assert send.submit(made).left == []


def test_a_submit_of_points_that_cannot_run_says_why(tmp_path):
    """With exit code 2, as nothing was sent."""
    done = call("submit", "shards=16", "cluster=local", "model=tiny", "n_prompts=2", cwd=tmp_path)
    assert done.returncode == 2
    assert "0 points sent: 3 points cannot run: " in done.stderr
    assert "cannot be split into 16 shards" in done.stderr


def test_a_submit_says_that_points_in_pieces_do_not_count(tmp_path):
    """Of continue, and of nothing else."""
    words = ["submit", "-n", "cluster=local", "model=tiny", "n_prompts=2"]
    done = call(*words, "sweep.on_interrupt=continue", cwd=tmp_path)
    assert "a point that is cut short and goes on counts in no figure" in done.stderr
    assert "counts in no figure" not in call(*words, cwd=tmp_path).stderr


def test_cancel_takes_the_filters_of_status(fake, tmp_path):
    """Of four waiting points those of seed 1 and 2 are ended."""
    made = sent(tmp_path, 4)
    send.keep(made)
    fake.queue(*(f"101_{i}|PENDING|None|{name_of(made)}" for i in range(4)))
    words = ["cancel", str(made.sweep.path), "seed=1,2", "--state", "waiting"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == ["101_1", "101_2"]
    assert fake.calls("scancel") == ["101_[1-2]"]


BAD = [
    ("unknown model", ["model=gpt-5"], "gpt-5"),
    ("unknown key", ["batchsize=8"], "batchsize"),
    ("wrong type", ["batch_size=lots"], "lots"),
    ("value out of range", ["batch_size=0"], "at least 1"),
    ("unknown grid", ["grid=nothing"], "nothing"),
    ("interpolation", ["dataset.name=${oc.env:HOME}"], "${"),
    ("target", ["engine._target_=os.system"], "_target_"),
    ("backtick", ["dataset.name=`touch sentinel`"], "`"),
    ("semicolon", ["dataset.name='x;touch sentinel'"], ";"),
    ("newline", ["dataset.name='x\ntouch sentinel'"], "refused"),
    ("path in a name", ["sweep=../../tmp/x"], "../"),
    ("absolute name", ["sweep=/tmp/x"], "letters"),
    ("missing dataset", ["dataset.path=/nowhere/prompts.json"], "/nowhere/prompts.json"),
    ("too many prompts", ["n_prompts=4096", "dataset.cycle=false"], "n_prompts"),
    ("missing checkpoint", ["weights=hf", "model.path=/nowhere/model"], "/nowhere/model"),
    ("checkpoint not named", ["weights=meta"], "model.path"),
]


@pytest.mark.parametrize(("words", "told"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_one_line_and_exit_code_2(words, told, tmp_path):
    """What is wrong is named on stderr in one line, without traceback, and nothing is written."""
    few = [] if any(word.startswith("n_prompts") for word in words) else ["n_prompts=8"]
    done = call("submit", *few, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert told in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b"{", "line 1"),
        (b'{"prompt": ""}\n', "empty"),
        (b'{"prompt": "' + b"long " * 20_000 + b'"}\n', "tokens"),
        (b'{"prompt": "\xff"}\n', "UTF-8"),
        (b'{"question": 1}\n', "prompt"),
    ],
    ids=["empty file", "malformed", "empty prompt", "100 kB prompt", "not UTF-8", "other format"],
)
def test_bad_prompts_are_refused_before_anything_is_sent(content, told, tmp_path):
    """A file of prompts that cannot be used stops the submit, with the file's name."""
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    words = [f"dataset.path={file}", "dataset.format=jsonl", "n_prompts=1", "sweep.repeats=1"]
    done = call("submit", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert "prompts.jsonl" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == [file]


def test_truncated_checkpoint_is_refused_before_anything_is_sent(tmp_path):
    """A safetensors file shorter than its header says stops the submit."""
    folder = tmp_path / "model"
    folder.mkdir()
    header = json.dumps({"x": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}).encode()
    (folder / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + b"\0" * 10
    )
    words = ["n_prompts=8", "weights=hf", f"model.path={folder}", "sweep.repeats=1"]
    done = call("submit", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert "model.safetensors" in done.stderr or str(folder) in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == [folder]


def test_what_is_no_sweep_is_said_so(tmp_path):
    """Verbs that take a sweep say where they looked and what makes one."""
    for verb in ("status", "resume", "cancel", "collect", "report"):
        done = call(verb, "nothing-here", cwd=tmp_path)
        assert done.returncode == 2
        assert "wattflow submit" in done.stderr
        assert done.stderr.count("\n") == 1


def test_plan_prints_points_and_the_exact_script(tmp_path):
    """plan lists each point with its id, tells data from talk, and --script prints what sbatch would get."""
    done = call("plan", "grid=demo", cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert lines[0].split("\t") == ["point_id", "shards", "batch_size", "repeat", "note"]
    assert len(lines) == 9
    assert "8 points to run" in done.stderr
    script = call("plan", "grid=demo", "cluster=testcluster", "--script", cwd=tmp_path).stdout
    capped = (
        "control.power_limit_w=300",
        "n_prompts=8",
        "model=tiny",
    )  # which this cluster does not offer
    none = call("plan", "cluster=testcluster", *capped, "--script", cwd=tmp_path)
    assert none.stdout == ""
    assert "no point can run" in none.stderr
    assert "#SBATCH --gpus-per-node=2" in script
    as_json = json.loads(call("plan", "grid=demo", "--json", cwd=tmp_path).stdout)
    assert len(as_json["points"]) == 8
    assert list(tmp_path.iterdir()) == []


def test_plan_says_what_is_expected_and_on_what_it_rests(tmp_path):
    """Before anything finished the time is unknown; a collected attempt of 60 s makes two repeats 2 minutes."""
    words = ["n_prompts=8", "sweep.repeats=2", "cluster=testcluster", "cluster.time_min=1"]
    before = call("plan", *words, cwd=tmp_path)
    assert "time unknown: no finished point of this shape" in before.stderr
    points = json.loads(call("plan", *words, "--json", cwd=tmp_path).stdout)["points"]
    done = {key: value for key, value in points[0].items() if key not in ("point_id", "reason")}
    sweep = make_sweep(tmp_path / "sweeps" / "earlier", [done])
    make_attempt(sweep, done, Made([Gpu("GPU-1")]))
    collect.collect(sweep)
    told = call("plan", *words, "cluster.points_per_task=2", cwd=tmp_path).stderr
    assert "estimate: 0.0333 GPU-hours" in told
    assert "2 points by finished ones with the same choices, 0 by" in told
    assert "the longest task 2 min, more than its limit of 1 min" in told


def test_plan_test_prints_slurms_answers(tmp_path, monkeypatch):
    """A table on stdout with exit code 0, or 1 where an array would be refused; nothing is written."""
    fake = FakeSlurm(tmp_path / "slurm", monkeypatch)
    where = tmp_path / "here"
    where.mkdir()
    words = ["plan", "n_prompts=8", "sweep.repeats=2", "cluster=testcluster", "--test"]
    done = call(*words, cwd=where)
    assert done.returncode == 0, done.stderr
    assert "True\tJob 7 to start at 2030-01-01T00:00:00" in done.stdout
    fake.refuse("sbatch: error: Invalid account")
    refused = call(*words, cwd=where)
    assert refused.returncode == 1
    assert "False\terror: Invalid account" in refused.stdout
    assert "would refuse 1 of 1 arrays" in refused.stderr
    assert list(where.iterdir()) == []


def test_points_that_cannot_run_are_listed_with_figures(tmp_path):
    """plan shows why a point is left out, with the numbers."""
    words = [
        "model=llama-65b",
        "n_prompts=8",
        "sweep.repeats=1",
        "cluster=example-a100",
        "shards=1",
    ]
    done = call("plan", *words, cwd=tmp_path)
    assert "GiB" in done.stdout
    assert "0 points to run" in done.stderr


def test_keys_lists_groups_and_defaults(tmp_path):
    """A person who mistyped a key finds the right one."""
    done = call("keys", cwd=tmp_path)
    assert "batch_size\t64" in done.stdout
    assert "tiny" in call("keys", "model", cwd=tmp_path).stdout
    assert call("keys", "modle", cwd=tmp_path).returncode == 2


def test_plan_and_submit_import_nothing_slow_that_they_do_not_use():
    """The collector, the runner, torch, polars and Arrow's functions take tenths of seconds on a login node."""
    slow = (
        "{'torch', 'polars', 'pyarrow.compute', 'wattflow.collect.collect', 'wattflow.run.local'}"
    )
    program = f"import sys, wattflow.cli.sweeps; print({slow} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_plan_says_what_its_repeats_can_establish(tmp_path):
    """On GPUs: 1.1 % with three repeats at equal watts, 4.6 % at 300 against 150 W, by the code of compare."""
    words = [
        "cluster=local",
        "cluster.gpu_model=h200",
        "model=llama-7b",
        "shards=1",
        "sweep.repeats=3",
    ]
    done = call("plan", *words, "batch_size=1,2", cwd=tmp_path)
    least = [100 * resolvable(watts, 1, 3) for watts in ((300.0, 300.0), (300.0, 150.0))]
    said = f"with 3 repeats on one board differences below {least[0]:.1f} % cannot be established"
    assert said in done.stderr
    assert f"nor below {least[1]:.1f} % where one setting takes 300 W" in done.stderr
    assert (
        "no difference can be established"
        in call("plan", *words[:-1], "sweep.repeats=1", cwd=tmp_path).stderr
    )
    assert "established" not in call("plan", "model=tiny", cwd=tmp_path).stderr


def test_submit_keeps_tags_and_a_note(tmp_path, monkeypatch):
    """With what was sent; a dry run keeps nothing, and a tag that is no name is refused before anything is sent."""
    from typer.testing import CliRunner

    from wattflow.cli import sweeps as verbs
    from wattflow.cli.app import app
    from wattflow.store.layout import SweepDir
    from wattflow.store.notes import Notes, read
    from wattflow.submit.send import SubmitResult

    def submit(made, *, dry_run, announce):
        if not dry_run:
            made.sweep.make()
        return SubmitResult(made.sweep, [], points=0, tried=1, infeasible=0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verbs.send, "submit", submit)
    words = [
        "submit",
        "model=tiny",
        "cluster=local",
        "sweep=s",
        "--tag",
        "paper",
        "--note",
        "first",
    ]
    sweep = SweepDir(tmp_path / "sweeps" / "s")
    assert CliRunner().invoke(app, [*words, "--dry-run"]).exit_code == 0
    assert not sweep.path.exists()
    assert CliRunner().invoke(app, words).exit_code == 0
    assert read(sweep) == Notes(("paper",), ("first",))
    refused = CliRunner().invoke(app, [*words, "--tag", "a b"])
    assert "--tag" in str(refused.exception)
