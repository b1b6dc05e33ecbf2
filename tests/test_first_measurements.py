"""docs/first-measurements.md says what the files beside it say, and what the scripts for real GPUs sum up is true."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gpu import joules_page, measured, page
from sweeps import Gpu, Made, choices, constant, make_attempt, make_sweep

from wattflow.collect.collect import collect

pytest_plugins = ("fake_nvml.fixtures",)

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
MEASUREMENTS = DOCS / "measurements"
UUIDS = ["GPU-0a1b2c3d-0000-4000-8000-00000000000" + digit for digit in "12"]


@pytest.fixture
def work(tmp_path):
    """A working folder as the scripts leave it: two sweeps of known watts, the commands, what doctor said.

    Each batch of 4 prompts takes 4 s and makes 100 tokens, with 0.5 s between the two: a window of 8.5 s.
    """
    gpus = [Gpu(uuid, constant(80.0 + 40.0 * i)) for i, uuid in enumerate(UUIDS)]
    for name, repeats, shards in (("h100", 3, 1), ("local", 1, 2)):
        points = [choices(repeat=repeat, shards=shards) for repeat in range(repeats)]
        sweep = make_sweep(tmp_path / "sweeps" / name, points)
        for point in points:
            make_attempt(sweep, point, Made(gpus[:shards]))
        collect(sweep)
    (tmp_path / "commands.txt").write_text("wattflow submit sweep=h100\n")
    for who, status in (("root", "ok"), ("user", "missing")):
        finding = {"check": "cuda:0 GPM", "status": status, "detail": f"{UUIDS[0]}, {tmp_path}/x"}
        (tmp_path / f"doctor-{who}.json").write_text(json.dumps([finding]))
    return tmp_path


@pytest.fixture
def documents(work, capsys):
    """What the scripts bring home of it, by script."""
    out = {}
    for script in ("h100", "h200x2"):
        measured.main(script, work, work / "no-commit")
        out[script] = capsys.readouterr().out
    return out


@pytest.fixture
def folder(documents, tmp_path):
    """The folder of the page's files."""
    made = tmp_path / "measurements"
    made.mkdir()
    for script, text in documents.items():
        (made / f"{script}.json").write_text(text)
    return made


def test_rows_have_the_known_joules(documents):
    """80 W over 8.5 s are 680 J; 200 tokens and 8 responses share them."""
    rows = json.loads(documents["h100"])["sweeps"]["h100"]
    assert [row["repeat"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert row["energy_j"] == pytest.approx(680.0, rel=1e-6)
        assert row["energy_per_token_j"] == pytest.approx(3.4, rel=1e-6)
        assert row["energy_per_response_j"] == pytest.approx(85.0, rel=1e-6)
        assert row["counter_ratio"] == pytest.approx(1.0, abs=1e-3)


def test_devices_share_a_points_joules(documents):
    """Two GPUs at 80 and 120 W: 680 and 1020 J, together the point's 1700 J."""
    (row,) = json.loads(documents["h200x2"])["sweeps"]["local"]
    assert [d["energy_j"] for d in row["devices"]] == pytest.approx([680.0, 1020.0], rel=1e-6)
    assert row["energy_j"] == pytest.approx(1700.0, rel=1e-6)


def test_nothing_names_the_machine(documents, work):
    """Paths below the working folder are relative, and of a UUID its start alone is kept."""
    assert str(work) not in documents["h100"]
    assert UUIDS[0] not in documents["h100"]
    assert "GPU-0a1b2c3d, x" in documents["h100"]


def test_page_has_each_repeat_and_their_spread(folder):
    """A line a repeat by hand: 200 tokens in 8.5 s, 80 W, 3.4 J a token, 85 J a response; equal repeats spread by 0."""
    text = page.page(folder)
    for repeat in range(3):
        assert f"| {repeat} | 23.5 | 80.0 | 3.40 | 85.0 | 1.000 | 100.0 | 8.50 |" in text
    assert "23.5 ± 0 tokens/s, 80.0 ± 0" in text


def test_page_has_each_gpus_share(folder):
    """Two shards: 680 J at 80 W and 1020 J at 120 W, each with half of 23.5 tokens/s."""
    text = page.page(folder)
    assert "| 2 | 0 | 680 | 80.0 | 11.8 |" in text
    assert "| 2 | 1 | 1020 | 120 | 11.8 |" in text


def test_page_shows_what_an_ordinary_user_lacks(folder):
    """A sensor that answers root alone stands as ok and missing in one line."""
    assert re.search(r"\| cuda:0 GPM \| ok \| .* \| missing \|", page.page(folder))


def test_page_shows_commands_and_timelines_that_are_there(folder):
    """The commands stand in a block; an image is linked once its file exists, and not before."""
    assert "```\nwattflow submit sweep=h100\n```" in page.page(folder)
    assert "![" not in page.page(folder)
    (folder / "h100-h100-shards1.png").touch()
    assert "(measurements/h100-h100-shards1.png)" in page.page(folder)


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (None, 3, "-"),
        (0.0, 3, "0"),
        (4736.4, 3, "4736"),
        (0.24512, 3, "0.245"),
        (23.456, 3, "23.5"),
        (0.99826, 4, "0.9983"),
        (1.00826, 4, "1.008"),
    ],
)
def test_numbers_have_so_many_significant_digits(value, digits, shown):
    """Digits before the point are never cut, and null is a dash."""
    assert page.number(value, digits) == shown


def test_the_page_is_what_its_files_say():
    """Made anew from docs/measurements, the page is the same; without measurements there is no page."""
    written = DOCS / page.PAGE
    assert written.is_file() == bool(list(MEASUREMENTS.glob("*.json")))
    if written.is_file():
        assert written.read_text() == page.page(MEASUREMENTS)


@pytest.mark.slow
@pytest.mark.fake_nvml
@pytest.mark.skipif(
    not (ROOT / ".gpu").is_dir(), reason="no .gpu: tests/gpu/pack.sh makes it, with a network"
)
def test_dry_run_of_one_gpu(tmp_path):
    """Every line of h100.sh runs without a GPU, and brings home three repeats that count and the user's one."""
    environment = {**os.environ, "DRY": "1", "OUT": str(tmp_path), "WORK": f"{tmp_path}/work"}
    environment["PYTHON"] = str(ROOT / ".venv" / "bin" / "python")
    subprocess.run([ROOT / "tests" / "gpu" / "h100.sh"], env=environment, check=True, timeout=900)
    documents = json.loads((tmp_path / "h100.json").read_text())
    assert [row["counts"] for row in documents["sweeps"]["h100"]] == [True] * 3


@pytest.mark.slow
@pytest.mark.fake_nvml
@pytest.mark.skipif(
    "WATTFLOW_DATA" not in os.environ, reason="no WATTFLOW_DATA: questions and a tokenizer"
)
def test_dry_run_of_what_the_sidecar_takes(tmp_path, nvml_path, monkeypatch):
    """The stage runs to its end on a fake GPU, and its line can be made: watts, share of a core and memory."""
    (tmp_path / "data").symlink_to(os.environ["WATTFLOW_DATA"])
    monkeypatch.setenv("FAKE_NVML_GPUS", "1")
    asked = {"DRY": "1", "STAGES": "cost", "OUT": str(tmp_path), "PACKED": str(tmp_path)}
    script = ROOT / "tests" / "gpu" / "joules.py"
    subprocess.run([sys.executable, script], env={**os.environ, **asked}, check=True, timeout=600)
    documents = json.loads((tmp_path / "joules.json").read_text())
    assert "error" not in documents["cost"]
    (line,) = joules_page.of_run(documents)
    assert "on 1 x NVIDIA Fake 80GB" in line
