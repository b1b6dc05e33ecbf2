"""Rooms stand on floors and imports go down only: the list below is the whole plan, without exceptions."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "wattflow"

# From the ground up. A room imports itself and rooms of lower floors; rooms of one floor do not know each other.
FLOORS = [
    ["__init__", "errors", "nullable", "process", "spans"],
    ["config"],
    ["store"],
    ["workload", "slurm", "energy"],
    ["plan", "analysis"],
    ["engine", "power", "submit", "collect", "report"],
    ["run", "doctor", "search", "predict"],
    ["measure", "calibrate", "publish", "paper", "prune", "tune"],
    ["cli"],
    ["__main__"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def name_of(path):
    """The dotted name of a file below the package, without `wattflow.`; a room's own name for its __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def modules():
    """Each file of the package with the files of ours, and the packages of others, that it imports anywhere in it."""
    paths = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    for name, path in paths.items():
        ours, foreign = set(), set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                whole = [alias.name for alias in node.names]
            else:
                continue
            for imported in whole:
                top, _, rest = imported.partition(".")
                if top != "wattflow":
                    foreign.add(top)
                elif rest in paths:
                    ours.add(rest)
                elif rest:
                    inside = rest.rpartition(".")[0]
                    assert inside in paths or not inside, f"{name} imports {imported}"
                    ours.add(inside or "__init__")
        yield name, ours - {name}, foreign


MODULES = list(modules())
CASES = [pytest.param(*module, id=module[0]) for module in MODULES]


def room(name):
    """The room of a module."""
    return name.partition(".")[0]


def test_every_room_has_a_floor():
    """A new file or folder at the top of the package is given a floor before it is imported anywhere."""
    assert {room(name) for name, _, _ in MODULES} == set(FLOOR)


def test_the_top_of_the_package_stays_small():
    """At most eight modules stand at the top level; all others have a room."""
    assert len([*PACKAGE.glob("*.py")]) <= 8


@pytest.mark.parametrize(("name", "ours", "foreign"), CASES)
def test_a_module_has_its_tests_where_its_name_says(name, ours, foreign):
    """wattflow/ROOM/MODULE.py is tested in tests/test_ROOM_MODULE.py; kernels are tested through the engine."""
    path = PACKAGE / f"{name.replace('.', '/')}.py"
    if not path.is_file() or path.name in ("__init__.py", "__main__.py") or "kernels" in path.parts:
        return
    assert (Path(__file__).parent / f"test_{name.replace('.', '_')}.py").is_file()


@pytest.mark.parametrize(("name", "ours", "foreign"), CASES)
def test_imports_go_down(name, ours, foreign):
    """A module imports its own room and rooms on lower floors, also inside functions."""
    if name == "__init__":  # offers `open_sweep` and `span`, and imports each when first asked
        return
    for other in ours:
        if room(other) != room(name):
            assert FLOOR[room(other)] < FLOOR[room(name)], f"{name} imports {other}"


def test_no_circle_among_files():
    """Following imports never leads back to the file where one began."""
    graph = {name: ours - {"__init__"} for name, ours, _ in MODULES if name != "__init__"}
    done: set[str] = set()

    def visit(name, path):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])


@pytest.mark.parametrize(("name", "ours", "foreign"), CASES)
def test_only_the_engine_knows_torch_and_only_power_knows_nvml(name, ours, foreign):
    """torch and fairscale are imported in engine/ alone, pynvml in power/ alone."""
    if room(name) != "engine":
        assert not foreign & {"torch", "fairscale"}
    if room(name) != "power":
        assert "pynvml" not in foreign


@pytest.mark.parametrize(
    "module",
    [
        *(
            "cli",
            "cli.paper",
            "plan.grid",
            "submit.send",
            "submit.resume",
            "submit.status",
            "run.task",
            "run.local",
        ),
        *("workload.prompts", "publish.bundle", "publish.verify"),
    ],
)
def test_what_a_login_node_imports_is_light(module):
    """The modules behind --help, plan, submit, status and verify load neither torch nor pynvml nor altair."""
    code = (
        f"import sys, wattflow.{module}; "
        "print([m for m in ('torch', 'pynvml', 'altair', 'polars', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(name_of(p)))
def test_what_one_reads_at_a_time_is_short(path):
    """A file has 500 lines at most, a class 250, a function 80; Triton's kernels are long by their nature."""
    text = path.read_text()
    assert text.count("\n") <= 500
    most = {ast.FunctionDef: 80, ast.AsyncFunctionDef: 80, ast.ClassDef: 250}
    for node in ast.walk(ast.parse(text)):
        lines = most.get(type(node))
        if lines and path.parent.name != "kernels":
            assert node.end_lineno - node.lineno + 1 <= lines, node.name
