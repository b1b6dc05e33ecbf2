"""A test cluster ends with the test run that brought it up, whatever ends that."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_sweeps import free_base_port, until

pytestmark = pytest.mark.slurm

SLURM_TESTS = Path(__file__).parent
SCRIPTS = SLURM_TESTS.parents[1] / "slurm" / "testcluster"

# a test run of one test, which has a job on its cluster and then waits to be killed
RUN = """
import os, subprocess, time
from slurm_sweeps import free_base_port, until
def test_has_a_cluster(cluster):
    subprocess.run(["sbatch", "-o", "/dev/null", "--wrap", "sleep 3600"], check=True)
    running = ["squeue", "-h", "-t", "R", "-o", "%T"]
    until(lambda: subprocess.run(running, capture_output=True, check=True).stdout)
    with open("up", "w") as up:
        up.write(cluster.settings["CLUSTER_DIR"])
    os.rename("up", "cluster")
    time.sleep(3600)
"""


def processes(folder: str) -> dict[int, str]:
    """The processes that have a cluster's folder in their words or environment, or a file of it open; by pid."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            signs = [(entry / name).read_bytes() for name in ("cmdline", "environ")]
            signs += [os.fsencode(file.readlink()) for file in (entry / "fd").iterdir()]
            name = (entry / "comm").read_text().strip()
        except OSError:  # it has ended meanwhile
            continue
        if any(os.fsencode(folder) in sign for sign in signs):
            found[int(entry.name)] = name
    return found


def names(folder: str) -> set[str]:
    return set(processes(folder).values())


@pytest.fixture
def refused(tmp_path: Path) -> str:
    """A PATH on which no mount succeeds, as in a container that may make namespaces and mount nothing."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mount").write_text("#!/bin/sh\necho refused >&2\nexit 1\n")
    (tmp_path / "bin" / "mount").chmod(0o755)
    return f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("workers", "namespace"),
    [
        pytest.param(1, True, id="xdist"),
        pytest.param(0, True, id="alone", marks=pytest.mark.chaos),
        pytest.param(0, False, id="no namespace", marks=pytest.mark.chaos),
    ],
)
def test_a_test_run_that_is_killed_leaves_nothing_of_its_cluster(
    workers: int, namespace: bool, cluster: object, refused: str, tmp_path: Path
) -> None:
    """SIGKILL of pytest: daemons, the job's step and its task end, and the folder goes."""
    (tmp_path / "test_one.py").write_text(RUN)
    environment = {**os.environ, "PYTHONPATH": f"{SLURM_TESTS}{os.pathsep}{SLURM_TESTS.parent}"}
    if not namespace:
        environment["PATH"] = refused
    words = ["-p", "conftest", "-p", "no:cacheprovider", f"--numprocesses={workers}"]
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(
            [sys.executable, "-m", "pytest", *words, "test_one.py"],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=log,
        )
    started = tmp_path / "cluster"
    daemons = {"munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd", "slurmstepd", "sleep"}
    try:
        until(lambda: started.exists() or run.poll() is not None)
        assert run.poll() is None, (tmp_path / "log").read_text()
        folder = started.read_text()
        until(lambda: daemons <= names(folder))  # Slurm calls a job running before its step is
    finally:
        run.kill()
        run.wait()
    until(lambda: not names(folder))
    assert not Path(folder).exists()
    assert folder not in Path("/etc/hosts").read_text()


@pytest.fixture
def held(
    cluster: object, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[str]]:
    """hold.sh with a small cluster beside that of the session."""
    folder = tmp_path_factory.mktemp("held") / "c"
    settings = {
        "CLUSTER_DIR": str(folder),
        "BASE_PORT": str(free_base_port()),
        "NODES": "1",
        "ACCOUNTING": "none",
    }
    environment = {**os.environ, **settings}
    with subprocess.Popen(
        [SCRIPTS / "hold.sh"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        yield holder
    subprocess.run([SCRIPTS / "down.sh", "--wipe"], env=environment, check=True)


def test_a_cluster_ends_with_the_first_process_of_its_namespace(
    held: subprocess.Popen[str],
) -> None:
    """SIGKILL of hold.sh, which nothing can answer: the kernel ends the daemons."""
    assert held.stdout is not None
    line = held.stdout.readline()
    assert "1 nodes are up" in line
    folder = line.split()[-1].removesuffix("/env.sh")
    (first,) = [pid for pid, name in processes(folder).items() if name == "hold.sh"]
    assert {"munged", "slurmctld", "slurmd"} <= names(folder)
    os.kill(first, signal.SIGKILL)
    until(lambda: not names(folder))
