"""Imports point down only: cli > stages > engine, power > model, dataset, tokenizer, timings, energy > nouns."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "wattflow"

LAYERS = [
    {"errors", "config", "schema", "columns", "sweepdir", "stream", "mounts", "archive"},
    {
        *{"model", "roofline", "dataset", "tokenizer", "timings", "told", "energy", "compare"},
        *{"pseudonyms", "methods", "verdict", "cost", "sensors"},
    },
    {"engine", "power"},
    {
        *{"grid", "submit", "run", "status", "collect", "report", "doctor", "measure"},
        *{"journal", "slurm", "process", "heartbeat", "attempts", "results", "figures"},
        *{"estimate", "watchdog", "measurement", "provenance", "page", "passport", "passport_page"},
        *{"caps", "conditions", "unfinished", "interrupt", "pieces", "joined", "tune", "devices"},
        *{"bundle", "verify", "shapes", "batch"},
        *{"usage", "crosscheck", "prometheus", "export"},
    },
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# Stages that read what another stage's nouns say of the disk. A stage that is not here imports no other stage.
STAGE_IMPORTS = {
    "journal": {"process"},
    "slurm": set(),
    "process": set(),
    "provenance": set(),
    "heartbeat": {"process"},
    "watchdog": set(),
    "interrupt": set(),
    "pieces": set(),
    "joined": set(),
    "devices": {"process"},
    "run": {
        "devices",
        "heartbeat",
        "interrupt",
        "pieces",
        "process",
        "provenance",
        "slurm",
        "watchdog",
    },
    "shapes": {"slurm"},
    "batch": {"shapes", "slurm"},
    "submit": {
        "batch",
        "estimate",
        "grid",
        "journal",
        "process",
        "shapes",
        "slurm",
    },  # grid: for a type alone
    "status": {"estimate", "heartbeat", "journal", "process", "slurm"},
    "attempts": {"conditions", "joined", "unfinished"},
    "estimate": set(),
    "collect": {"attempts"},
    "bundle": {"provenance"},
    "verify": {"attempts", "bundle", "collect", "report", "results"},  # bundle: for names alone
    "measure": {"measurement", "process"},
    "measurement": {"measure", "provenance", "collect"},  # measure: for types alone
    "results": {"figures", "caps"},
    "usage": {"results"},
    "prometheus": set(),
    "crosscheck": {"prometheus", "results", "slurm"},
    "export": {"results"},
    "tune": {"conditions", "devices", "grid", "process"},  # grid: for the choices of its words
    "report": {"caps", "results", "figures", "page"},
    "page": set(),
    "passport": {"passport_page", "provenance"},
    "passport_page": {"figures", "page", "passport"},  # passport: for names alone
}


def modules():
    """Each module of the package with the names of ours that it imports, wherever the import stands."""
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE).with_suffix("").parts
        imported, foreign = set(), set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                whole = [alias.name for alias in node.names]
            else:
                continue
            for name in whole:
                parts = name.split(".")
                if parts[0] == "wattflow":
                    imported.update(parts[1:2])
                else:
                    foreign.add(parts[0])
        yield inside, imported & set(LEVEL), foreign


MODULES = [pytest.param(*module, id=".".join(module[0])) for module in modules()]


def test_every_module_has_a_place():
    """A new file at the top of the package is given a layer here before it is imported anywhere."""
    names = {inside[0] for inside, _, _ in modules()} - {"__init__"}
    assert names == set(LEVEL)


@pytest.mark.parametrize(("inside", "imported", "foreign"), MODULES)
def test_imports_point_down(inside, imported, foreign):
    """No module imports from a layer above its own, nor from its neighbours unless the list says so."""
    me = inside[0]
    if me == "__init__":
        return
    for other in imported - {me}:
        assert LEVEL[other] <= LEVEL[me], f"{me} imports {other}"
        if LEVEL[me] == 3 and LEVEL[other] == 3:
            assert other in STAGE_IMPORTS.get(me, set()), f"stage {me} imports stage {other}"
    if me in ("engine", "power"):
        assert not imported & ({"engine", "power"} - {me})


@pytest.mark.parametrize(("inside", "imported", "foreign"), MODULES)
def test_only_the_engine_knows_torch_and_only_power_knows_nvml(inside, imported, foreign):
    """torch and fairscale are imported in engine/ alone, pynvml in power/ alone."""
    if inside[0] != "engine":
        assert not foreign & {"torch", "fairscale"}
    if inside[0] != "power":
        assert "pynvml" not in foreign


@pytest.mark.parametrize(
    "stage", ["cli", "grid", "submit", "status", "run", "dataset", "bundle", "verify"]
)
def test_what_a_login_node_imports_is_light(stage):
    """The modules behind --help, plan, submit, status and verify load neither torch nor pynvml nor altair."""
    code = (
        f"import sys, wattflow.{stage}; "
        "print([m for m in ('torch', 'pynvml', 'altair', 'polars', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
