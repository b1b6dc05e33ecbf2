"""Every script under tests/benchmarks, tests/chaos and tests/gpu runs to its end on a tiny input."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ("fake_nvml.fixtures",)

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"

# scripts that need no folder of their own: what they are given, and a line of what they print
SCRIPTS = {
    "benchmarks/collect.py": ("1 30", "| 20 Hz | 27,"),
    "benchmarks/login.py": ("", "| `wattflow --help` |"),
    "benchmarks/many.py": ("60", "| collect one more |"),
    "benchmarks/measure.py": ("1", "start and stop add"),
    "benchmarks/packed.py": ("8 4", "| | alone | packed | ratio |"),
    "benchmarks/peers.py": ("--cells 1 --alone", '"reasons": []'),
    "benchmarks/report.py": ("4", "screens before details"),
    "benchmarks/submit.py": ("--points 168", '"task": "status", "points": 168'),
    "benchmarks/verify.py": ("1 30", "| verify the bundle |"),
    "chaos/fuzz.py": ("--cases 300 --seed 2", "300 cases, seed 2"),
    "chaos/kills.py": ("--kills 1 --seed 2", "in all"),
    "chaos/sidecar_kills.py": ("--kills 4 --seed 2", "4 kills over 1 attempts"),
}
# scripts with a dry run: their settings in it, the file that they leave, and a stage in that
DRY_RUNS = {
    "benchmarks/engine.py": ({}, "engine.json", "against transformers"),
    "benchmarks/engine_attention.py": (
        {"STAGES": "attention;fp8;prefill"},
        "attention.json",
        "prefill",
    ),
    "benchmarks/engine_search.py": ({}, "search.json", "against transformers"),
    "benchmarks/engine_shards.py": ({}, "shards.json", "65B, 2 shards"),
    "benchmarks/engine_vllm.py": ({"BATCHES": "2"}, "engine_vllm.json", "batch 2"),
    "benchmarks/load.py": ({"LAYERS": "1", "TURNS": "1"}, "load.json", "loads"),
    "gpu/joules.py": ({"STAGES": "cost"}, "joules.json", "cost"),
    "gpu/measure.py": ({"STAGES": "cost together"}, "measure.json", "together"),
}
# scripts that run a packed checkout: a sweep of what they bring home, and how many of its attempts count
PACKED = {
    "gpu/beside.sh": ("beside", "neighbours", 4),
    "gpu/bundle.sh": ("bundle", "llama-7b", 4),
    "gpu/engines.sh": ("engines-others", "fast-bf16", 6),
    "gpu/h100.sh": ("h100", "h100", 3),
    "gpu/h200x2.sh": ("h200x2", "twonodes", 2),
    "gpu/metrology.sh": ("metrology", "decode-64", 2),
    "gpu/shards.sh": ("shards", "between-nodes-of-1", 1),
}
ARGUMENTS = {"gpu/engines.sh": ("others",)}  # parts with vLLM: tests/test_real_vllm.py
# pages made from what is committed: the test that makes each anew
PAGES = {
    "benchmarks/engine_page.py": "test_benchmark_engine.py",
    "gpu/engines_page.py": "test_scripts.py",
    "gpu/joules_page.py": "test_docs.py",
    "gpu/page.py": "test_first_measurements.py",
    "gpu/passports.py": "test_scripts.py",
}
PARTS = {
    "benchmarks/engine_vllm_page.py",
    "chaos/__init__.py",
    "chaos/fuzz_inputs.py",
    "chaos/model_slurm.py",
    "gpu/machine.sh",
}  # of other scripts
RUN_BY_SCRIPTS = {"gpu/measured.py", "gpu/pack.sh", "gpu/summary.py"}  # by those of PACKED
# one takes weights and is tried in part below; one packs vLLM and one needs it; one runs two benchmarks that are tried
# above; one runs the eleven points of `make paper`
BY_HAND = {
    "gpu/attention.sh",
    "gpu/here.py",
    "gpu/paper.sh",
    "gpu/serving.sh",
    "gpu/vllm_pack.sh",
}

NEEDS_QUESTIONS = pytest.mark.skipif(
    "WATTFLOW_DATA" not in os.environ,
    reason="no WATTFLOW_DATA: GSM8K's questions and LLaMA's tokenizer",
)


# those that end with 1 where a time is above its goal, as on a busy machine
TIMED = {
    "benchmarks/collect.py",
    "benchmarks/login.py",
    "benchmarks/measure.py",
    "benchmarks/report.py",
    "benchmarks/verify.py",
    "gpu/measure.py",
}


def run(script: str, *given: str, **settings: str) -> str:
    """What a script printed; its whole output where it failed."""
    program = [sys.executable] * script.endswith(".py")
    command = [*program, str(TESTS / script), *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=1200
    )
    allowed = (0, 1) if script in TIMED else (0,)
    assert done.returncode in allowed, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    assert "not the true joules" not in done.stdout, done.stdout
    return done.stdout


def test_every_script_is_tried_here():
    """A new script is in one of the tables above."""
    folders = [TESTS / name for name in ("benchmarks", "chaos", "gpu")]
    scripts = {
        str(path.relative_to(TESTS))
        for folder in folders
        for path in folder.iterdir()
        if path.suffix in (".py", ".sh")
    }
    assert scripts == {*SCRIPTS, *DRY_RUNS, *PACKED, *PAGES, *PARTS, *RUN_BY_SCRIPTS, *BY_HAND}


@pytest.mark.fake_nvml
@pytest.mark.parametrize(
    "script",
    [
        pytest.param(name, marks=[pytest.mark.chromium] * (name == "benchmarks/report.py"))
        for name in SCRIPTS
    ],
)
def test_a_script_runs_on_tiny_input(script):
    """It ends with 0, and its table or its counts are there."""
    given, line = SCRIPTS[script]
    assert line in run(script, *given.split())


@pytest.mark.fake_nvml
@pytest.mark.parametrize(
    "script",
    [pytest.param(name, marks=pytest.mark.xdist_group(f"scripts {name}")) for name in DRY_RUNS],
)
def test_a_dry_run_leaves_its_stage(script, tmp_path, nvml_path, monkeypatch):
    """Without a GPU, on a tiny model: the script ends with 0 and the stage has no error."""
    settings, name, stage = DRY_RUNS[script]
    monkeypatch.setenv("FAKE_NVML_GPUS", "1")
    if "WATTFLOW_DATA" in os.environ:
        (tmp_path / "data").symlink_to(os.environ["WATTFLOW_DATA"])
    elif script == "gpu/joules.py":
        pytest.skip("no WATTFLOW_DATA: GSM8K's questions and LLaMA's tokenizer")
    given = {**settings, "DRY": "1", "OUT": str(tmp_path), "PACKED": str(tmp_path)}
    run(script, **given)
    stages = json.loads((tmp_path / name).read_text())
    assert stages[stage]
    assert "error" not in stages[stage]


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Iterator[Path]:
    """What pack.sh packs."""
    folder = tmp_path_factory.mktemp("packed")
    run("gpu/pack.sh", str(folder), PYTHON=sys.executable)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slurm
@pytest.mark.fake_nvml
@NEEDS_QUESTIONS
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("apt-get"), reason="needs root and apt")
@pytest.mark.xdist_group("packed scripts")
@pytest.mark.parametrize("script", PACKED)
def test_a_packed_checkout_runs_without_a_gpu(script, packed, tmp_path):
    """Packed, installed elsewhere, run with a tiny model over a fake driver: its attempts come home, and count."""
    name, sweep, count = PACKED[script]
    # Slurm's sockets lie there and have short names; one part runs as nobody
    with tempfile.TemporaryDirectory(prefix="wattflow-") as work:
        Path(work).chmod(0o755)
        given = {"DRY": "1", "OUT": str(tmp_path / "out"), "WORK": f"{work}/gpu"}
        given["PARTS"] = "paper nodes"  # of shards.sh
        given["DEADLINE_S"] = (
            "1100"  # of a GPU machine that is rented by the minute; here others may be at work
        )
        run(script, *ARGUMENTS.get(script, ()), **given, PACKED=str(packed), PYTHON=sys.executable)
    document = json.loads((tmp_path / "out" / f"{name}.json").read_text())
    assert sum(row["counts"] for row in document["sweeps"][sweep]) == count


@NEEDS_QUESTIONS
def test_lengths_of_real_prompts_are_summed_up():
    """999 prompts of Alpaca have 55.46 tokens in the mean, the 1,319 questions of GSM8K 93.43."""
    prompts = json.loads(run("gpu/here.py", "prompts"))["prompts"]
    assert [round(about["tokens_mean"], 2) for about in prompts.values()] == [55.46, 93.43]


def test_the_page_of_passports_is_what_its_files_say():
    """What stands between the marks of docs/calibrate.md is made of docs/passports."""
    spec = importlib.util.spec_from_file_location("passports", TESTS / "gpu" / "passports.py")
    assert spec is not None
    assert spec.loader is not None
    passports = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(passports)
    between = (ROOT / "docs" / "calibrate.md").read_text().split(passports.BEGIN)[1]
    assert between.split(passports.END)[0].strip() == passports.page().strip()


def test_the_tables_of_engines_are_what_their_file_says():
    """What stands between the marks of docs/engines.md is made of docs/measurements/engines-h200.json."""
    run("gpu/engines_page.py", "--check")


def test_the_page_of_peers_is_what_its_file_says():
    """docs/peers.md is made of docs/measurements/peers.json; in no cell is wattflow neither best nor inside its U."""
    spec = importlib.util.spec_from_file_location("peers", TESTS / "benchmarks" / "peers.py")
    assert spec is not None
    assert spec.loader is not None
    peers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peers)
    found = json.loads(peers.RESULT.read_text())
    assert peers.PAGE.read_text() == peers.page(found)
    assert len(found["cells"]) == len(list(peers.cells(None)))
    assert all(peers.is_best(cell) or peers.is_within(cell) for cell in found["cells"])
    halved = [
        {**cell, "tools": {**cell["tools"], "wattflow": half(cell)}} for cell in found["cells"]
    ]
    assert not all(peers.is_best(cell) or peers.is_within(cell) for cell in halved)


def half(cell):
    """What wattflow measured in a cell, with half of its uncertainty."""
    ours = cell["tools"]["wattflow"]
    return {**ours, "u_j": ours["u_j"] / 2}


@pytest.mark.parametrize("script", PAGES)
def test_a_page_is_made_anew_by_the_test_that_is_named(script):
    """The named test file imports or runs the script."""
    assert Path(script).stem in (TESTS / PAGES[script]).read_text()
