"""`wattflow measure` around real commands: joules against known curves, exit codes, signals, and what goes wrong."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_nvml import curves
from measurements import (
    MEASURE,
    SEVENTY_W,
    THREE_LINES,
    UP,
    call,
    python,
    row,
    sidecars,
    spans,
)
from processes import gone, until

from wattflow import open_sweep
from wattflow.cli import app
from wattflow.config.choices import Power
from wattflow.errors import RefusedError
from wattflow.measure import command
from wattflow.power.sidecar_client import MOST_FAILURES
from wattflow.store.schema import SPAN, TRACE
from wattflow.store.tables import read_table

pytest_plugins = ("fake_nvml.fixtures",)


def test_without_spans_the_window_is_the_whole_command(where):
    """70 W for the command's time, all of it one phase; the row is valid and says what it does not know."""
    began_s = time.monotonic()
    call("sleep", "0.5")
    found = row()
    assert 0.5 <= found["duration_s"] < time.monotonic() - began_s
    assert found["energy_j"] == pytest.approx(70.0 * found["duration_s"], rel=1e-6)
    assert found["job_energy_j"] == found["energy_j"]
    assert found["valid"], found["reasons"]
    assert found["reasons"] == ["no_requests", "tokens_untold"]
    assert json.loads(found["command"]) == ["sleep", "0.5"]
    assert [phase for phase, _, _ in spans()] == ["command"]


def test_input_output_and_exit_code_are_the_commands_own(where):
    """What goes in comes out unchanged, stderr too, and 3 stays 3: its joules are known and count in no figure."""
    done = call("sh", "-c", "cat; echo to-stderr >&2; exit 3", input="line\n\nlast", code=3)
    assert done.stdout == "line\n\nlast"
    assert done.stderr.startswith("to-stderr\n")
    assert "~70.0 W; simulated (host)" in done.stderr
    found = row()
    assert (found["exit_code"], found["valid"]) == (3, False)
    assert "command_failed" in found["reasons"]
    assert found["energy_j"] is not None


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stopped_command_hears_the_signal_that_ends_it(where, signum):
    """One that was stopped is continued by it, so that neither the command nor `measure` stays behind."""
    process = subprocess.Popen([*MEASURE, "--out", "out", *SEVENTY_W, "--", *python(UP)])
    until(lambda: Path("up").exists() and Path("up").read_text())
    pid = int(Path("up").read_text())
    os.kill(pid, signal.SIGSTOP)
    until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    process.send_signal(signum)
    assert process.wait(timeout=60) == 128 + signum
    assert not Path(f"/proc/{pid}").exists()


def test_a_command_that_is_killed_ends_as_128_and_the_signal(where):
    """SIGKILL is 137, as shells say it."""
    call("sh", "-c", "kill -9 $$", code=137)
    assert row()["exit_code"] == 137


def test_a_command_that_is_not_found_is_127_with_one_line(where):
    """Nothing is written, and the line says which command."""
    done = call("no-such-command", "x", code=127)
    assert done.stderr == "wattflow: no-such-command: command not found.\n"
    assert not Path("out").exists()


def test_a_command_that_may_not_be_run_is_126(where):
    """A file without the right to execute it."""
    Path("script").write_text("#!/bin/sh\n")
    done = call("./script", code=126)
    assert done.stderr.count("\n") == 1
    assert not Path("out").exists()


def test_a_script_whose_interpreter_is_not_there_leaves_a_failed_attempt(where):
    """What only the kernel finds out ends with 127 too, without a traceback, and its attempt is closed."""
    Path("script").write_text("#!/no/such/interpreter\n")
    Path("script").chmod(0o700)
    done = call("./script", code=127)
    assert done.stderr.count("\n") == 1
    (record,) = Path("out").glob("points/*/attempt-1/record.json")
    assert json.loads(record.read_text())["status"] == "failed"


def test_words_of_the_command_are_never_options_of_measure():
    """Also without `--`, what follows the command's name is its own."""
    verb = app.command(app.VERBS["measure"])
    given = verb.make_context("measure", ["--out", "out", "echo", "--out", "x", "--help"])
    assert list(given.params["command"]) == ["echo", "--out", "x", "--help"]
    assert given.params["out"] == "out"


def test_spans_make_the_window_the_phases_and_the_tokens(where):
    """Two prefills, two decodes: their joules are 70 W x their times, and with the pauses they make up the window."""
    began_s = time.monotonic()
    call(*python(THREE_LINES))
    took_s = time.monotonic() - began_s
    found = row()
    assert (found["tokens_in"], found["tokens_kept"]) == (20, 64)
    assert found["decode_energy_j"] == pytest.approx(70.0 * found["decode_s"], rel=1e-6)
    assert found["prefill_energy_j"] == pytest.approx(70.0 * found["prefill_s"], rel=1e-6)
    parts = found["prefill_energy_j"] + found["decode_energy_j"] + found["other_energy_j"]
    assert parts == pytest.approx(found["energy_j"], rel=1e-6)
    assert found["energy_per_token_j"] == pytest.approx(found["energy_j"] / 64, rel=1e-9)
    assert 0.65 <= found["duration_s"] < took_s
    assert found["job_energy_j"] > found["energy_j"] + found["load_energy_j"]
    assert found["valid"], found["reasons"]


def test_phases_of_the_programs_own_naming_are_rows_of_phases(where):
    """A training loop's `forward` and `backward` stand beside `other`, and the sums are checked."""
    call(
        *python(
            "import time, wattflow\n"
            "for _ in range(3):\n"
            "    with wattflow.span('forward'): time.sleep(0.05)\n"
            "    with wattflow.span('backward'): time.sleep(0.1)\n"
        )
    )
    phases = {p["phase"]: p["energy_j"] for p in open_sweep(Path("out")).phases.to_dicts()}
    assert set(phases) == {"outside", "forward", "backward", "other"}
    within = sum(phases[name] for name in ("forward", "backward", "other"))
    assert within == pytest.approx(row()["energy_j"], rel=1e-6)
    assert row()["valid"], row()["reasons"]


def test_forked_children_report_spans_too(where):
    """4 children of one command decode at once: one phase of the node, all their tokens."""
    call(
        *python(
            "import os, time, wattflow\n"
            "began, begin = os.pipe()\n"
            "end, ended = os.pipe()\n"
            "children = []\n"
            "for _ in range(4):\n"
            "    pid = os.fork()\n"
            "    if not pid:\n"
            "        with wattflow.span('decode', tokens_out=25):\n"
            "            os.write(begin, b'x')\n"
            "            os.read(end, 1)\n"
            "        os._exit(0)\n"
            "    children.append(pid)\n"
            "for _ in children: os.read(began, 1)\n"
            "os.write(ended, b'xxxx')\n"
            "for pid in children: os.waitpid(pid, 0)\n"
        )
    )
    assert row()["tokens_kept"] == 100
    assert [phase for phase, _, _ in spans()].count("decode") == 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGUSR1])
def test_signals_go_to_the_commands_process_group(where, signum):
    """The command and its children get them, `measure` closes its files, and the code is the command's own."""
    code = (
        "import os, signal, sys, time\n"
        f"signal.signal({int(signum)}, lambda *_: sys.exit(7))\n"
        "if not os.fork(): signal.signal(signal.SIGALRM, signal.SIG_DFL)\n"
        "open(f'up-{os.getpid()}', 'w').close()\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([*MEASURE, "--out", "out", *SEVENTY_W, "--", *python(code)])
    until(lambda: len(list(where.glob("up-*"))) == 2)
    process.send_signal(signum)
    assert process.wait(timeout=600) == 7
    assert row()["exit_code"] == 7
    ups = [int(path.name.removeprefix("up-")) for path in where.glob("up-*")]
    until(lambda: all(gone(pid) for pid in ups))


def test_a_signal_before_the_command_starts_ends_measure_alone(where, monkeypatch):
    """The command is never run, no sidecar is left, and the record says what happened."""
    monkeypatch.setenv("SLURM_TMPDIR", str(where))  # its path stands in the sidecar's words
    process = subprocess.Popen(
        [
            *MEASURE,
            "--out",
            "out",
            *SEVENTY_W,
            "--set",
            "power.poll_ms=30000",
            "--",
            "touch",
            "ran",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: list(where.glob("out/points/*/attempt-1/record.json")))
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 143
    assert stderr == "wattflow: ended by SIGTERM before the command started.\n"
    assert not Path("ran").exists()
    (record,) = Path("out").glob("points/*/attempt-1/record.json")
    assert json.loads(record.read_text())["status"] == "interrupted"
    until(lambda: not sidecars(str(where)))


def test_measure_that_is_killed_leaves_no_sidecar(where, monkeypatch):
    """SIGKILL ends `measure` alone: its sidecar goes with it, and the record has no end."""
    monkeypatch.setenv("SLURM_TMPDIR", str(where))
    process = subprocess.Popen([*MEASURE, "--out", "out", *SEVENTY_W, "--", *python(UP)])
    until(lambda: Path("up").exists() and Path("up").read_text())
    (sidecar,) = sidecars(str(where))
    process.kill()
    process.wait()
    until(lambda: gone(sidecar))
    os.kill(int(Path("up").read_text()), signal.SIGKILL)
    (record,) = Path("out").glob("points/*/attempt-1/record.json")
    assert json.loads(record.read_text())["status"] == "running"


def test_a_terminal_belongs_to_the_command(where):
    """Under a terminal the command reads from it, and Ctrl-C ends the command, whose code is 130."""
    code = (
        "import sys, time\nprint('got', sys.stdin.readline().strip(), flush=True)\ntime.sleep(600)"
    )
    words = [*MEASURE, "--out", "out", *SEVENTY_W, "--", *python(code)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, words)
    seen = b""
    os.write(terminal, b"hello\n")
    while b"got hello" not in seen:
        seen += os.read(terminal, 1000)
    os.write(terminal, b"\x03")
    try:
        while True:
            seen += os.read(terminal, 1000)
    except OSError:  # the terminal's last user is gone
        pass
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130, seen
    assert row()["exit_code"] == 130


def test_a_sidecar_that_cannot_measure_keeps_the_command_from_running(where):
    """A meter that is not there is reported before hours are spent."""
    done = call(
        "touch",
        "ran",
        code=1,
        options=["--set", "power.meter=rapl", "--set", "power.powercap_dir=/no"],
    )
    assert not Path("ran").exists()
    assert done.stderr.startswith("wattflow: the sidecar of ")


@pytest.mark.slow
def test_a_sidecar_that_dies_again_and_again_never_touches_the_command(where, monkeypatch):
    """Killed until it is given up, it costs the attempt its joules, and the command neither its end nor its code."""
    monkeypatch.setenv("SLURM_TMPDIR", str(where))  # its path stands in the sidecar's words
    code = "import pathlib, sys, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.02)\nsys.exit(4)"
    words = [*MEASURE, "--out", "out", *SEVENTY_W, "--", *python(code)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    until(lambda: list(where.glob("out/points/*/attempt-1/traces/*")))
    killed = set()
    while len(killed) <= MOST_FAILURES:
        for pid in set(sidecars(str(where))) - killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.01)
    Path("go").touch()
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 4
    assert "wattflow: not measured: the sidecar of " in stderr
    (record,) = Path("out").glob("points/*/attempt-1/record.json")
    assert json.loads(record.read_text())["status"] == "failed"


@pytest.mark.slow
def test_two_measurements_at_once_on_one_node(where):
    """Each has its own sidecar, spans and folder; both are right."""
    commands = [
        [*MEASURE, "--out", name, *SEVENTY_W, "--", *python(THREE_LINES)] for name in ("a", "b")
    ]
    running = [subprocess.Popen(words) for words in commands]
    assert [one.wait(timeout=600) for one in running] == [0, 0]
    for name in ("a", "b"):
        found = row(name)
        assert found["tokens_kept"] == 64
        assert found["energy_j"] == pytest.approx(70.0 * found["duration_s"], rel=1e-6)
        assert found["valid"], found["reasons"]


@pytest.mark.parametrize(
    "word",
    [
        *("power.meter", "meter=simulated", "power.meter=x", "power.none=1"),
        *("power.poll_ms=1", "power.poll_ms=x", "power.host=1"),
    ],
)
def test_a_wrong_setting_is_refused(word):
    """An unknown key, a wrong type, a value out of range: before anything is started."""
    with pytest.raises(RefusedError):
        command.power_settings([word])


def test_settings_are_those_of_a_sweeps_config():
    """Each power.* key with its type."""
    words = ["power.meter=nvml", "power.poll_ms=20", "power.copy_s=2", "power.host=false"]
    assert command.power_settings(words) == Power(meter="nvml", poll_ms=20, copy_s=2.0, host=False)


def truth(folder, node="n1"):
    """What the curves hold in the measured window, by GPU."""
    (attempt,) = Path(folder).glob("points/*/attempt-1")
    rows = read_table(attempt / "timings" / f"{node}.parquet", SPAN).to_pylist()
    rows = [r for r in rows if r["phase"] not in ("load", "outside")]
    start_ns, end_ns = min(r["start_ns"] for r in rows), max(r["end_ns"] for r in rows)
    return {r["gpu_uuid"]: curves.curve(r["gpu_uuid"]).joules(start_ns, end_ns) for r in rows}


def joules(folder):
    """The measured joules by GPU, in the window."""
    out = {}
    for phase in open_sweep(Path(folder)).phases.to_dicts():
        if phase["phase"] not in ("load", "outside"):
            out[phase["gpu_uuid"]] = out.get(phase["gpu_uuid"], 0.0) + phase["energy_j"]
    return out


@pytest.fixture
def gpus(where, nvml_path, monkeypatch):
    """Four fake GPUs without a process."""
    monkeypatch.setenv("FAKE_NVML_GPUS", "4")
    monkeypatch.setenv("FAKE_NVML_PROCESSES", "0")


@pytest.mark.fake_nvml
def test_joules_are_the_curves_on_half_of_the_nodes_gpus(gpus, monkeypatch):
    """GPUs 2 and 3 are the command's: theirs alone are measured, an idle one too, each with its joules to 0.5 %."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    done = call(*python(THREE_LINES), options=["--set", "power.meter=nvml"])
    expected = truth("out")
    assert set(expected) == {curves.uuid("n1", 2), curves.uuid("n1", 3)}
    found = joules("out")
    for uuid, true_j in expected.items():
        assert found[uuid] == pytest.approx(true_j, rel=0.005)
        printed = re.search(rf"{uuid}  ([\d.,]+) ± [\d.]+ J", done.stderr)
        assert float(printed[1].replace(",", "")) == pytest.approx(found[uuid], rel=0.01)
    assert row()["energy_j"] == pytest.approx(sum(expected.values()), rel=0.005)
    assert row()["gpus"] == 2
    assert row()["valid"], row()["reasons"]
    assert len(list(Path("out").glob("points/*/attempt-1/traces/*.parquet"))) == 2


@pytest.mark.fake_nvml
def test_two_at_once_on_different_gpus(gpus, monkeypatch):
    """Each measures its own GPU; neither sees the other's."""
    running = []
    for gpu in ("0", "1"):
        words = [*MEASURE, "--out", gpu, "--set", "power.meter=nvml", "--", *python(THREE_LINES)]
        running.append(subprocess.Popen(words, env={**os.environ, "CUDA_VISIBLE_DEVICES": gpu}))
    assert [one.wait(timeout=600) for one in running] == [0, 0]
    for gpu in ("0", "1"):
        expected = truth(gpu)
        assert set(expected) == {curves.uuid("n1", int(gpu))}
        assert row(gpu)["energy_j"] == pytest.approx(sum(expected.values()), rel=0.005)
        assert row(gpu)["valid"], row(gpu)["reasons"]


@pytest.mark.fake_nvml
def test_the_commands_own_processes_on_the_gpu_are_expected(gpus, where, monkeypatch):
    """A process of the command that still holds the GPU at the end, a daemon of its own, is no other process."""
    pids = where / "pids"
    pids.touch()
    monkeypatch.setenv("FAKE_NVML_PIDS", str(pids))
    code = (
        "import subprocess\n"
        "none = subprocess.DEVNULL\n"
        "daemon = subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=none, stderr=none)\n"
        f"open({str(pids)!r}, 'w').write(str(daemon.pid))\n"
    )
    call(*python(code), options=["--set", "power.meter=nvml"])
    os.kill(int(pids.read_text()), signal.SIGKILL)
    assert "other_process" not in row()["reasons"]
    (trace, *_) = Path("out").glob("points/*/attempt-1/traces/*.parquet")
    counts = read_table(trace, TRACE)["processes"].drop_null().to_pylist()
    assert counts == [0, 0]


@pytest.mark.fake_nvml
@pytest.mark.parametrize("when", ["before", "during"])
def test_a_stranger_on_the_gpu_is_reported(gpus, where, monkeypatch, when):
    """A process that held the GPU at the start, or one that came and is not of the command: the row does not count."""
    stranger = subprocess.Popen(["sleep", "600"])
    pids = where / "pids"
    pids.write_text(str(stranger.pid) if when == "before" else "")
    monkeypatch.setenv("FAKE_NVML_PIDS", str(pids))
    try:
        call("sh", "-c", f"echo {stranger.pid} >{pids}", options=["--set", "power.meter=nvml"])
    finally:
        stranger.kill()
        stranger.wait()
    assert "other_process" in row()["reasons"]
    assert not row()["valid"]


def status_of(folder):
    """The exit code of `status --json`, and the state, reason and advice of the one row."""
    done = subprocess.run(
        [sys.executable, "-m", "wattflow.cli", "status", folder, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)


def test_the_state_of_a_measurement(where):
    """One that runs is running, one that was killed has failed, and `measure` is what tries it anew."""
    words = [*MEASURE, "--out", "out", *SEVENTY_W, "--", *python(UP)]
    with subprocess.Popen(words, start_new_session=True) as process:
        until(lambda: Path("up").exists())
        code, said = status_of("out")
        assert (code, said[0]["state"]) == (4, "running")
        os.killpg(process.pid, signal.SIGKILL)
    os.kill(int(Path("up").read_text()), signal.SIGKILL)
    code, said = status_of("out")
    (point,) = said
    assert (code, point["state"], point["reason"]) == (3, "failed", "its process is gone")
    assert point["rerun"].startswith(
        f"wattflow measure --out {where / 'out'} -- {sys.executable} -c"
    )
    call("true", out="done")
    assert status_of("done")[0] == 0
