"""One real Slurm cluster for the whole session, of four nodes with two fake GPUs each."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cap_nodes import Node, install
from slurm_sweeps import free_base_port

SCRIPTS = Path(__file__).parents[2] / "slurm" / "testcluster"


@dataclass(frozen=True)
class Cluster:
    """A running test cluster; its slurm.conf is in SLURM_CONF while the session lasts."""

    settings: dict[str, str]

    def node(self, do: str, name: str) -> None:
        """Let something happen to a node: kill, stop, freeze, thaw or start."""
        self._script("node.sh", do, name)

    def kill(self, daemon: str) -> None:
        """A daemon ends as in a crash; `up` starts it again."""
        pid_file = Path(self.settings["CLUSTER_DIR"]) / "run" / f"{daemon}.pid"
        self.inside("kill", "-KILL", pid_file.read_text().strip())

    def up(self) -> None:
        """Start what does not run."""
        self._script("up.sh")

    def inside(self, *words: str) -> None:
        """Run a command where the cluster's processes live, among their pids and mounts."""
        self._script("inside.sh", *words)

    def _script(self, name: str, *words: str) -> None:
        done = subprocess.run(
            [SCRIPTS / name, *words],
            env={**os.environ, **self.settings},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"


def _missing() -> str | None:
    """Why this machine cannot bring up Slurm; null if it can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    commands = ("slurmctld", "slurmd", "sbatch", "munged", "slurmdbd", "mariadbd")
    lacking = [command for command in commands if shutil.which(command, path=path) is None]
    if lacking:
        return f"no {', '.join(lacking)} (slurm/testcluster/install.sh adds them)"
    return None if os.getuid() == 0 else "Slurm's daemons need root"


# tasks of a node take what lies beside this file under the node's name as their environment: another clock
CLOCK = """#!/bin/sh
cat "${0%/*}/clock-$SLURMD_NODENAME" 2>/dev/null || true
"""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The session's cluster, with accounting."""
    # what a signal asks for may take its time on a busy machine: it is not cut short after 5 s
    settings = {"KILL_WAIT_S": "60", "GRACE_S": "60", "EXTRA_CONF": "TaskProlog=@ETC@/clock.sh"}
    with _running(settings, {"clock.sh": CLOCK}) as running:
        yield running


@pytest.fixture
def gpus(cluster: Cluster, nvml_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The cluster, with two fake GPUs a node that each node knows by its own name."""
    for name in list(os.environ):
        if name.startswith(("FAKE_NVML_", "CUDA_", "WATTFLOW_SPANS")):
            monkeypatch.delenv(name)
    settings = {
        "LD_LIBRARY_PATH": str(nvml_folder),
        "FAKE_NVML_GPUS": "2",
        "FAKE_NVML_PROCESSES": "0",
        "PYTHONPATH": str(SCRIPTS.parents[1]),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return cluster


# refuses what other sites refuse; what it says reaches the person
STRICT_LUA = """
local function refuse(what)
  slurm.log_user("this site: " .. what)
  return slurm.ERROR
end
function slurm_job_submit(job, partitions, uid)
  if job.account ~= "energy" then return refuse("name an account") end
  if job.wckey ~= "watts" then return refuse("name a wckey") end
  if job.comment ~= nil then return refuse("no comment may be set") end
  if job.min_mem_per_node ~= nil or job.min_mem_per_cpu ~= nil then
    return refuse("no memory may be asked for")
  end
  local gpus = job.tres_per_node
  if gpus ~= nil and not string.find(gpus, "fake") then return refuse("name the type of the GPUs") end
  return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, uid)
  return slurm.SUCCESS
end
"""


@pytest.fixture(scope="module")
def strict_site() -> Iterator[Cluster]:
    """A site that says no to most, see STRICT_LUA: no accounting, arrays of 11 tasks, 30 jobs, memory watched."""
    settings = {"NODES": "2", "ACCOUNTING": "none", "MAX_ARRAY_SIZE": "11", "MAX_JOB_COUNT": "30"}
    extra = (
        "JobSubmitPlugins=lua",
        "JobAcctGatherParams=OverMemoryKill",
        "DefMemPerCPU=600",
        "MinJobAge=30",  # ended jobs count among the 30 for so long
    )
    more = {"GPU_TYPE": "fake", "EXTRA_CONF": "\n".join(extra)}
    with _running({**settings, **more}, {"job_submit.lua": STRICT_LUA}) as running:
        yield running


@pytest.fixture
def crowded_cluster() -> Iterator[Cluster]:
    """A site that takes 500 jobs in all."""
    with _running({"MAX_JOB_COUNT": "500"}) as running:
        yield running


@pytest.fixture
def limited_cluster() -> Iterator[Cluster]:
    """A site that holds people to the limits of their accounts."""
    with _running({"NODES": "2", "EXTRA_CONF": "AccountingStorageEnforce=limits"}) as running:
        yield running


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that is a disk of its own, of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=755", "none", str(folder)], check=True
    )
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def disk_cluster(small_disk: Path) -> Iterator[Cluster]:
    """A cluster whose nodes see the small disk: it is up before the cluster is, which has mounts of its own."""
    with _running({"NODES": "1"}) as running:
        yield running


@pytest.fixture(scope="module")
def cap_nodes(nvml_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Node]:
    """Two nodes with power caps, each in a folder of its own, as each has its own /etc and /var."""
    folder = tmp_path_factory.mktemp("caps")
    return {name: install(folder / name, nvml_folder, name) for name in ("node1", "node2")}


@pytest.fixture(scope="module")
def cap_cluster(cap_nodes: dict[str, Node]) -> Iterator[Cluster]:
    """A site whose slurmds run each node's own prolog and epilog, which one host's slurm.conf names once."""
    folder = cap_nodes["node1"].path.parent
    lines = ["PrologFlags=Alloc"]
    for action in ("prolog", "epilog"):
        script = folder / action
        script.write_text(
            f'#!/bin/bash -p\nexec "{folder}/$SLURMD_NODENAME/slurm/{action}.d/wattflow-cap"\n'
        )
        script.chmod(0o755)
        lines.append(f"{action.capitalize()}={script}")
    settings = {"NODES": "2", "GPUS": "4", "ACCOUNTING": "none"}
    with _running({**settings, "EXTRA_CONF": "\n".join(lines)}) as running:
        yield running


@contextlib.contextmanager
def _running(asked: dict[str, str], files: dict[str, str] | None = None) -> Iterator[Cluster]:
    """A cluster in a folder of its own, to which all of Slurm's commands speak meanwhile; `files` lie by slurm.conf."""
    missing = _missing()
    if missing is not None:
        if "slurm" in os.environ.get("WATTFLOW_REQUIRE", "").split(","):
            pytest.fail(f"WATTFLOW_REQUIRE names slurm, but: {missing}")
        pytest.skip(f"real Slurm: {missing}")
    # not below pytest's own folder, which each session that starts closes to slurmctld's user and MariaDB's
    folder = Path(tempfile.mkdtemp(prefix="wattflow-cluster-"))
    folder.chmod(0o711)
    for name, text in (files or {}).items():
        (folder / "etc").mkdir(exist_ok=True)
        (folder / "etc" / name).write_text(text)
        (folder / "etc" / name).chmod(0o755)
    settings = {"CLUSTER_DIR": str(folder), "BASE_PORT": str(free_base_port()), **asked}
    settings = {key: text.replace("@ETC@", str(folder / "etc")) for key, text in settings.items()}
    environment = {
        "SLURM_CONF": str(folder / "etc" / "slurm.conf"),
        "XDG_CACHE_HOME": str(folder / "cache"),  # answers kept for this cluster alone
    }
    with _held(settings), pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield Cluster(settings)


@contextlib.contextmanager
def _held(settings: dict[str, str]) -> Iterator[None]:
    """A cluster that is up; it ends with this process, whatever ends that, for it lasts as long as a pipe of ours."""
    with subprocess.Popen(
        [SCRIPTS / "hold.sh"],
        env={**os.environ, **settings},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C is for the tests, which end it in their order
    ) as holder:
        assert holder.stdout is not None
        text = ""
        while "nodes are up" not in text:
            line = holder.stdout.readline()
            assert line, f"hold.sh: {text}"
            text += line
        try:
            yield
        finally:
            rest, _ = holder.communicate()
    assert holder.returncode == 0, f"hold.sh: {text}{rest}"
