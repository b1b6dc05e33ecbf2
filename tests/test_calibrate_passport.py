"""`wattflow calibrate` against a fake driver whose sensors have a known period, lag and window; what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from browser import in_browser
from processes import until

from wattflow.calibrate.passport import read_again
from wattflow.errors import DamagedError, RefusedError
from wattflow.power.calibration_steps import plan

pytest_plugins = ("fake_nvml.fixtures",)

ROOT = Path(__file__).parent.parent
CLI = [sys.executable, "-m", "wattflow.cli", "calibrate"]
FAKE_LOAD = [sys.executable, str(ROOT / "tests" / "fake_load.py")]

# the steps of `plan`, shorter, for the sensors that need no seconds
SHORT = """
import json, sys
from pathlib import Path
from wattflow.calibrate import passport
from wattflow.power.calibration_steps import Step
steps = [Step(*words, **more) for words, more in json.loads(sys.argv[2])]
request = passport.Request(Path(sys.argv[1]), steps, json.loads(sys.argv[3]), draw=sys.argv[4] == "draw")
for path in passport.calibrate(request, lambda text: print(text, file=sys.stderr)):
    print(path)
"""
STEPS = [
    [["costs", 0.0, "alone"], {"context": False}],
    [["bare", 0.2, "silent"], {"context": False}],
    [["sidecar", 0.2, "silent"], {"context": False, "sidecar": True}],
    [["context", 0.2, "silent"], {}],
    [["watched", 0.5, "dense"], {}],
    [["slow", 2.4, "dense"], {"half_s": 0.5}],
    [["fast", 3.6, "dense"], {"half_s": 0.12, "counter_s": None}],
    [["costs-on", 0.6, "alone"], {"load_on": True}],
]


def environment(nvml, folder, **more):
    """A fake driver with two idle GPUs that follow their loads: 100 W, and 300 W more while one is on."""
    for name in ("load", "state"):
        (folder / name).mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "CUDA_", "FAKE_"))}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "LD_LIBRARY_PATH": str(nvml),
        "SLURMD_NODENAME": "n1",
        "FAKE_NVML_PROCESSES": "0",
        "FAKE_NVML_CURVE": "load:100:300",
        "FAKE_NVML_LOAD": str(folder / "load"),
        "FAKE_NVML_STATE": str(folder / "state"),
        "FAKE_NVML_BUFFER": "15:25",
        "FAKE_NVML_INSTANT": "30:25",
        "FAKE_NVML_NOISE_W": "2",
        "FAKE_NVML_LATENCY_US": "nvmlDeviceGetTotalEnergyConsumption=3000",
        **more,
    }


def short(folder, environment, steps=STEPS, load=FAKE_LOAD, draw="draw"):
    """A calibration by `steps`, as a process."""
    words = [str(folder / "out"), json.dumps(steps), json.dumps(load), draw]
    return subprocess.run(
        [sys.executable, "-c", SHORT, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def made(nvml_folder, tmp_path_factory):
    """The folder of a short calibration of two GPUs."""
    folder = tmp_path_factory.mktemp("calibrate")
    missing = "185,nvmlDeviceGetPowerUsage"  # their means over 1 s need a slower load
    done = short(folder, environment(nvml_folder, folder, FAKE_NVML_MISSING=missing))
    assert done.returncode == 0, done.stderr
    assert "6/8 slow" in done.stderr
    return folder


@pytest.fixture(scope="module")
def passports(made):
    """What it found, a GPU each."""
    return [
        json.loads(path.read_bytes()) for path in sorted((made / "out").glob("passport-*.json"))
    ]


@pytest.mark.fake_nvml
def test_every_gpu_has_its_own_passport(passports):
    """Two GPUs, two passports: each with its UUID, the driver, its limits, and loads of 100 and 400 W."""
    assert len({one["gpu"]["uuid"] for one in passports}) == 2
    for one in passports:
        assert (one["schema_version"], one["driver"], one["load"]) == (1, "580.00", "a fake")
        assert one["gpu"]["power_limit_max_w"] == 700
        assert one["levels_w"]["off_w"] == pytest.approx(100, abs=2)
        assert one["levels_w"]["on_w"] == pytest.approx(400, abs=2)
        assert one["others_on_the_gpu"] == []
        assert one["failed_reads"] == {}


@pytest.mark.fake_nvml
def test_the_buffer_is_found_as_it_is(passports):
    """A period of 20 ms is found to 1 ms, a lag of 15 to 2 ms, a window of 25 to 5; 119 samples, shown after 15 ms."""
    for one in passports:
        found = one["sources"]["nvml_buffer"]
        assert found["period_ms"]["median"] == pytest.approx(20, abs=1)
        assert found["answer"]["shape"] == "box"
        assert found["answer"]["lag_ms"] == pytest.approx(15, abs=2)
        assert found["answer"]["window_ms"] == pytest.approx(25, abs=5)
        assert found["answer"]["load"] == "fast"
        assert found["history"]["samples"] == 119
        assert found["history"]["seconds"] == pytest.approx(118 * 0.02, abs=0.01)
        assert 15 <= found["shown_after_ms"]["least"] < 25


@pytest.mark.fake_nvml
def test_field_and_counter_are_found_as_they_are(passports):
    """Both are renewed each 100 ms, as far as polls of 3 and 30 ms show on a busy node; a counter's call takes 3 ms."""
    for one in passports:
        periods = {name: of["period_ms"]["median"] for name, of in one["sources"].items()}
        assert periods["nvml_instant"] == pytest.approx(100, abs=4)
        assert periods["nvml_counter"] == pytest.approx(100, abs=31)
        assert 3 <= one["costs_ms"]["nvml_counter"]["idle"]["least"] < 6


@pytest.mark.fake_nvml
def test_an_idle_gpu_takes_its_watts_in_each_state(passports):
    """Bare, beside a sidecar, with the load's process, and watched: 100 W each, to the fake's noise of 2 W."""
    for one in passports:
        assert set(one["idle_w"]) == {"bare", "sidecar", "context", "watched"}
        for of in one["idle_w"].values():
            assert of["power_w"] == pytest.approx(100, abs=2)
            assert of["buffer"]


@pytest.mark.fake_nvml
def test_nothing_is_set_on_a_gpu(made):
    """The fake keeps what is set on its GPUs in files: there is none."""
    assert list((made / "state").iterdir()) == []


@pytest.mark.fake_nvml
def test_a_folder_is_read_again_with_the_same_passports(made, passports):
    """`wattflow calibrate --from` makes the same passports from the reads alone, without a driver."""
    done = subprocess.run(
        [*CLI, "--from", str(made / "out"), "--no-page"], capture_output=True, text=True, check=True
    )
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert [json.loads(path.read_bytes()) for path in sorted(paths)] == passports


@pytest.mark.fake_nvml
def test_a_load_that_dies_ends_it_with_its_last_words(nvml_folder, tmp_path):
    """The error names the GPU and what the load said last; no load is left."""
    steps = [[["slow", 0.5, "dense"], {"half_s": 0.1}]]
    done = short(tmp_path, environment(nvml_folder, tmp_path, FAKE_LOAD_DIES="1"), steps)
    assert done.returncode == 1
    assert re.search(
        r"the load of GPU-\S+ answered b'' instead of its edges; .*: the fake load dies",
        done.stderr,
    )
    assert not (tmp_path / "out" / "record.json").exists()


@pytest.mark.fake_nvml
def test_ctrl_c_ends_it_at_once(nvml_folder, tmp_path):
    """Interrupted in a step of an hour: it ends, no load is left, and there is no passport."""
    steps = [[["slow", 3600.0, "dense"], {"half_s": 0.5}]]
    words = [str(tmp_path / "out"), json.dumps(steps), json.dumps(FAKE_LOAD), ""]
    process = subprocess.Popen(
        [sys.executable, "-c", SHORT, *words],
        env=environment(nvml_folder, tmp_path, FAKE_NVML_GPUS="1"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until(lambda: list((tmp_path / "load").iterdir()))  # the load knows its edges
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=600)
    assert process.returncode != 0
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert list((tmp_path / "out").iterdir()) == []


def refused(environment, *words):
    """The one line by which a calibration is refused."""
    done = subprocess.run(
        [*CLI, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert done.stdout == ""
    return line


def test_without_a_gpu_it_says_so(tmp_path):
    """On a machine without NVML: one line, exit code 2."""
    line = refused({**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}, "--out", str(tmp_path / "out"))
    assert line.startswith("wattflow: no GPU to calibrate: nvmlInit: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.fake_nvml
def test_a_gpu_in_use_is_refused(nvml_folder, tmp_path):
    """Another's process, busy SMs that no visible process explains, MIG mode: refused, and nothing is written."""
    made = environment(nvml_folder, tmp_path)
    out = ("--out", str(tmp_path / "out"))
    assert "is in use (process 1000)" in refused({**made, "FAKE_NVML_PROCESSES": "1"}, *out)
    assert "is 90 % busy" in refused({**made, "FAKE_NVML_CURVE": "constant:70"}, *out)
    assert "MIG mode" in refused({**made, "FAKE_NVML_MIG": "1"}, *out)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["", "'", "no-such-load --fast"])
def test_a_load_that_cannot_be_run_is_refused(command):
    """Before any step is taken, not once the first load is wanted."""
    assert "--load" in refused(dict(os.environ), "--load", command)


def test_a_record_that_is_none(tmp_path):
    """JSON of another form says which file it is."""
    (tmp_path / "record.json").write_text("[]")
    with pytest.raises(DamagedError, match=r"record\.json: schema version None"):
        read_again(tmp_path, draw=False)


@pytest.mark.fake_nvml
def test_a_dry_run_says_its_steps_and_writes_nothing(nvml_folder, tmp_path):
    """Each step with its seconds, which add up to the requested minutes, to a quarter of them."""
    done = subprocess.run(
        [*CLI, "--dry-run", "--minutes", "3", "--out", str(tmp_path / "out")],
        env=environment(nvml_folder, tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split("\t") for line in done.stdout.splitlines()[1:]]
    assert [name for name, _ in rows] == [step.name for step in plan(3)]
    assert sum(float(seconds) for _, seconds in rows) == pytest.approx(180, rel=0.25)
    assert done.stderr.count("GPU-") == 2
    assert not (tmp_path / "out").exists()


def test_a_folder_with_a_record_and_too_short_a_time_are_refused(tmp_path):
    """Neither overwrites a calibration nor makes one that cannot see a mean over 1 s."""
    (tmp_path / "record.json").write_text("{}")
    assert "--from" in refused(dict(os.environ), "--out", str(tmp_path))
    assert "2 at least" in refused(dict(os.environ), "--minutes", "1")
    assert "2 at least" in refused(dict(os.environ), "--minutes", "nan")
    with pytest.raises(RefusedError):
        plan(1.9)


@pytest.mark.fake_nvml
@pytest.mark.chromium
@pytest.mark.slow
def test_a_whole_calibration_finds_all_sensors_as_they_are(nvml_folder, tmp_path):
    """Two minutes by the command line: means over 1 s are found to 2 %, and no load period fools them."""
    done = subprocess.run(
        [*CLI, "--out", str(tmp_path / "out"), "--minutes", "2", "--load", " ".join(FAKE_LOAD)],
        env=environment(nvml_folder, tmp_path, FAKE_NVML_GPUS="1"),
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").glob("passport-*.json")
    one = json.loads(path.read_bytes())
    for name in ("nvml_average", "nvml_usage_mean"):
        answer = one["sources"][name]["answer"]
        assert answer["window_ms"] == pytest.approx(1000, rel=0.02)
        assert answer["lag_ms"] == pytest.approx(0, abs=15)
    instant = one["sources"]["nvml_instant"]["answer"]
    # few of its samples lie on the ramp: the middle is known better than the ends
    assert instant["lag_ms"] + instant["window_ms"] / 2 == pytest.approx(42.5, abs=6)
    counter = one["sources"]["nvml_counter"]["answer"]
    assert counter["lag_ms"] == pytest.approx(0, abs=10)
    assert counter["window_ms"] == pytest.approx(100, abs=10)
    for of in one["aliasing"]:
        # a sample of 25 ms holds 15 ms or 10 ms of a load of 10 or 20 ms: 280 or 220 W for its 250, always the same
        assert of["ratio"]["nvml_buffer"] == pytest.approx(1, abs=0.125), of["period_ms"]
        for name in ("nvml_average", "nvml_usage_mean"):
            assert of["ratio"][name] == pytest.approx(1, abs=0.02), of["period_ms"]
    assert max(abs(of["ratio"]["nvml_instant"] - 1) for of in one["aliasing"]) > 0.1
    dom, console = in_browser(tmp_path / "out" / "passports.html", tmp_path)
    assert (dom.count("<svg"), console) == (5, [])
