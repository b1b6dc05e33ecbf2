"""`wattflow measure --serve` over a stand-in for a server: what is in the window, whose tokens, and what goes wrong."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import call
from processes import gone, until

from wattflow.errors import RefusedError, WattflowError
from wattflow.measure import driver
from wattflow.measure.driver import LoadFile, drive, read_load

SERVER = Path(__file__).with_name("openai_server.py")


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def chosen(**more):
    """A load file and the server's command on a free port."""
    port = free_port()
    load = {
        "model": "stand-in",
        "url": f"http://127.0.0.1:{port}",
        "tokens_in": 7,
        "tokens_out": 5,
        **more,
    }
    return load, [sys.executable, str(SERVER), str(port)]


def test_tokens_are_the_usages_and_the_start_is_outside(tmp_path):
    """Twelve requests of 7 + 5 tokens, four at a time; a server that takes a second to start is not in the window."""
    load, command = chosen(requests=12, concurrency=4)
    (tmp_path / "load.yaml").write_text(json.dumps(load))
    words = ["--serve", " ".join(command), "--load", "load.yaml", "--label", "engine=stand-in"]
    done = call(
        "measure", *words, "--set", "power.meter=simulated", "--out", "m", cwd=tmp_path, START_S="1"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert (found["tokens_in"], found["tokens_out"], found["failed"]) == (84, 60, 0)
    assert found["labels"] == {"engine": "stand-in"}
    (row,) = pq.read_table(tmp_path / "m/results/points.parquet").to_pylist()
    assert (row["tokens_in"], row["tokens_kept"]) == (84, 60)
    assert row["load_s"] > 1.0
    assert 0.15 < row["duration_s"] < found["seconds"] + 1.0
    assert "engine=stand-in" in row["command"]


def test_a_paused_server_makes_requests_wait_from_their_intended_sending(monkeypatch):
    """All streams stand for 2 s: the slowest first token, and those that were due meanwhile, show it."""
    monkeypatch.setenv("PAUSE_AT", "9")  # the fifth after four of the warm-up
    load, command = chosen(requests=30, rate_per_s=20.0, burstiness=50.0)
    found = drive(LoadFile(**load), command, {})
    assert 1.9 < found["ttft_p99_s"] < 4.0
    assert found["ttft_p90_s"] > 1.0
    assert found["late_s"] < 1.0


def test_without_a_pause_nobody_waits():
    """The control: the same load, first tokens at once."""
    load, command = chosen(requests=30, rate_per_s=20.0, burstiness=50.0)
    assert drive(LoadFile(**load), command, {})["ttft_p90_s"] < 1.0


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("DIE_AT", "server ended by itself with exit code 3"),
        ("REFUSE_AT", r"status 500: out of memory"),
    ],
)
def test_a_server_that_fails_ends_the_load_with_its_reason(monkeypatch, name, fault):
    """A process that dies, and a request that it refuses."""
    monkeypatch.setenv(name, "8")
    load, command = chosen(requests=20, concurrency=2)
    with pytest.raises(WattflowError, match=fault):
        drive(LoadFile(**load), command, {})


@pytest.mark.parametrize(
    ("name", "said", "fault"),
    [
        ("SAYS", "data: [1]", "no JSON object"),
        ("SAYS", "data: {", "JSONDecodeError"),
        ("SAYS", 'data: {"usage": {"prompt_tokens": 7}}', "no count of completion_tokens"),
        (
            "SAYS",
            'data: {"usage": {"prompt_tokens": -7, "completion_tokens": 5}}',
            "no count of prompt",
        ),
        ("SAYS", 'data: {"choices": [{}]}', "without usage"),
        ("LINE_BYTES", "5000", "more than 4096 bytes"),
    ],
)
def test_an_odd_answer_is_no_answer(monkeypatch, name, said, fault):
    """What is no event of the API, has no counts, or never ends fails its request: its tokens are not 0."""
    monkeypatch.setenv(name, said)
    monkeypatch.setattr(driver, "_MOST_BYTES", 4096)
    load, command = chosen(requests=1, concurrency=1)
    with pytest.raises(WattflowError, match=fault):
        drive(LoadFile(**load), command, {})


def test_another_server_at_the_address_is_refused():
    """It would answer, and the joules be of the one that was started; nothing is started."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        load = LoadFile("m", url=f"http://127.0.0.1:{other.getsockname()[1]}", concurrency=1)
        with pytest.raises(RefusedError, match="something listens there already"):
            drive(load, ["/no/such/server"], {})


def test_a_server_that_cannot_be_started_is_refused():
    """One line, no traceback."""
    load, _ = chosen(concurrency=1)
    with pytest.raises(RefusedError, match=r"/no/such/server: No such file"):
        drive(LoadFile(**load), ["/no/such/server"], {})


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_ends_the_server_and_its_children(monkeypatch, tmp_path, signum):
    """No process of the server's is left, not even one that ignores SIGTERM, and no traceback."""
    child = tmp_path / "child"
    monkeypatch.setenv("CHILD", str(child))
    load, command = chosen(requests=1, concurrency=1, tokens_out=6000)
    (tmp_path / "load.yaml").write_text(json.dumps(load))
    words = [sys.executable, "-m", "wattflow.measure.driver", str(tmp_path / "load.yaml"), "--"]
    with subprocess.Popen([*words, *command], stderr=subprocess.PIPE, text=True) as process:
        until(lambda: child.exists() and child.read_text())
        process.send_signal(signum)
        said = process.communicate(timeout=600)[1]
    assert process.returncode == 128 + signum
    assert "Traceback" not in said
    until(lambda: gone(int(child.read_text())))


def test_a_server_that_never_answers():
    """What ends at once says so, and what is too slow ends after ready_s."""
    load, _ = chosen(concurrency=1, ready_s=0.5)
    with pytest.raises(WattflowError, match="exit code 1"):
        drive(LoadFile(**load), ["false"], {})
    with pytest.raises(WattflowError, match=r"within 0\.5 s"):
        drive(LoadFile(**load), ["sleep", "60"], {})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("requests: 3\n", "says no model"),
        ("model: a\nspeed: 3\nconcurrency: 1\n", "speed is none of"),
        ("model: a\nconcurrency: many\n", "concurrency: 'many'"),
        ("model: a\nconcurrency: 0\n", "not above 0"),
        ("model: a\n", "either concurrency, or rate_per_s"),
        ("model: a\nconcurrency: 2\nrate_per_s: 1.0\n", "either concurrency"),
        ("[", "cannot be read as YAML"),
        ("model: a\nrate_per_s: .nan\n", "rate_per_s: nan is not above 0"),
        ("model: a\nconcurrency: 1\ntokens_in: 1000000000000\n", "at most 10000000"),
        ("model: a\nconcurrency: 1\nseed: -1\n", "below 0"),
        ("model: a\nconcurrency: 1\nrequests: x\n", "'x' is no int"),
        ("model: a\nconcurrency: 1\nurl: localhost:8000\n", "is not http://HOST:PORT"),
        ("model: a\nconcurrency: 1\nurl: http://h:8000/v1\n", "is not http://HOST:PORT"),
        ("model: a\nconcurrency: 1\nurl: http://h:port\n", "is not http://HOST:PORT"),
    ],
)
def test_what_is_wrong_with_a_load_file(tmp_path, text, fault):
    """File, key and fault in one line."""
    (tmp_path / "l.yaml").write_text(text)
    with pytest.raises(RefusedError, match=fault):
        read_load(tmp_path / "l.yaml")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--serve", "x"], "go together"),
        (["--load", "none.yaml"], "go together"),
        (["--serve", "true", "--load", "none.yaml"], "none.yaml"),
        (["--serve", "x", "--load", "l.yaml", "--", "y"], "in quotes"),
        (["--serve", "true 'x", "--load", "l.yaml"], "No closing quotation"),
        (["--serve", "x", "--load", "l.yaml", "--label", "fast"], "not KEY=VALUE"),
    ],
)
def test_what_measure_refuses(tmp_path, words, fault):
    """Before anything starts."""
    done = call("measure", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert fault in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_is_not_there_is_said_before_anything_starts(tmp_path):
    """As of any command: exit code 127 and one line."""
    (tmp_path / "l.yaml").write_text("model: a\nconcurrency: 1\n")
    done = call("measure", "--serve", "no-such-server x", "--load", "l.yaml", cwd=tmp_path)
    assert done.returncode == 127
    assert "no-such-server: command not found" in done.stderr
    assert not (tmp_path / "sweeps").exists()
