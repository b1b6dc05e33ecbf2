"""A node with power caps in a folder of its own: the scripts as installed, a config, a journal, GPUs, their nvidia-smi.

The GPUs' limits lie in files that outlive every process, as a driver's do. They leave the factory at 700 W; the node's
baseline is 500 W.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fake_nvml import curves

SLURM = Path(__file__).parents[1] / "slurm"
FACTORY_W = 700
BASELINE_W = 500
BASELINE = [BASELINE_W] * 4
DENIED = {"FAKE_NVML_DENY": "nvmlDeviceSetPowerManagementLimit"}

CONFIG = """\
# the caps of this node
baseline_w = 500
allow_w = 150 300 400
nvidia_smi = {smi}
other_controller = none
"""


@dataclass(frozen=True)
class Node:
    """A node of some GPUs below a folder."""

    path: Path
    name: str
    gpus: int

    @property
    def config(self) -> Path:
        """What stands for /etc/wattflow/cap.conf."""
        return self.path / "etc" / "cap.conf"

    @property
    def smi(self) -> Path:
        """The nvidia-smi that the config names."""
        return self.path / "bin" / "nvidia-smi"

    @property
    def library(self) -> Path:
        """What stands for /etc/slurm/wattflow-cap.sh."""
        return self.path / "slurm" / "wattflow-cap.sh"

    def script(self, action: str) -> list[str]:
        """The command of an action."""
        if action in ("prolog", "epilog"):
            return [str(self.path / "slurm" / f"{action}.d" / "wattflow-cap")]
        return [str(self.library), action]

    def uuid(self, index: int) -> str:
        """The UUID of a GPU by the driver's index."""
        return curves.uuid(self.name, index)

    def limits_w(self) -> list[int]:
        """The limit of each GPU."""
        return [self._limit_w(index) for index in range(self.gpus)]

    def _limit_w(self, index: int) -> int:
        kept = self.path / "gpus" / self.uuid(index)
        return int(kept.read_text().split()[0]) // 1000 if kept.exists() else FACTORY_W

    def set_limits(self, *watts: int) -> None:
        """Give the GPUs limits behind the scripts' back."""
        for index, limit_w in enumerate(watts):
            (self.path / "gpus" / self.uuid(index)).write_text(f"{limit_w * 1000} 0\n")

    def driver(self, **settings: str) -> None:
        """Choose the driver's faults, by the fake library's settings."""
        settings = {
            "SLURMD_NODENAME": self.name,
            "FAKE_NVML_GPUS": str(self.gpus),
            "FAKE_NVML_STATE": str(self.path / "gpus"),
            **settings,
        }
        text = "".join(f"{name}={value}\n" for name, value in settings.items())
        (self.path / "bin" / "fake.env").write_text(text)

    def process(self, pid: int, name: str, uid: int, euid: int | None = None) -> None:
        """Have a process run on the node; its folder is the effective user's, as the kernel has it."""
        euid = uid if euid is None else euid
        folder = self.path / "proc" / str(pid)
        folder.mkdir()
        (folder / "comm").write_text(f"{name}\n")
        (folder / "status").write_text(f"Name:\t{name}\nUid:\t{uid}\t{euid}\t{euid}\t{euid}\n")
        os.chown(folder, euid, euid)

    def edit(self, old: str, new: str) -> None:
        """Change a word of the installed script, such as the seconds that it waits for its lock."""
        text = self.library.read_text()
        assert old in text
        self.library.write_text(text.replace(old, new))

    def minors(self, *minors: int) -> None:
        """Name the device files: the minor number of each GPU in the driver's order."""
        for index, minor in enumerate(minors):
            folder = self.path / "proc" / "driver" / "nvidia" / "gpus" / f"0000:{16 + index:x}:00.0"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "information").write_text(f"Model: \t Fake\nDevice Minor: \t {minor}\n")

    def journal(self) -> list[str]:
        """The UUIDs of the GPUs that may have a cap."""
        return sorted(path.name for path in (self.path / "journal").glob("GPU-*"))

    def note(self, job: int) -> str | None:
        """The line that a job can read; null without one."""
        path = self.path / "notes" / str(job)
        return path.read_text().rstrip("\n") if path.exists() else None


def install(folder: Path, nvml_folder: Path, name: str = "n1", gpus: int = 4) -> Node:
    """A node with the scripts installed and all GPUs at the baseline."""
    node = Node(folder, name, gpus)
    for part in ("etc", "bin", "gpus", "proc", "slurm/prolog.d", "slurm/epilog.d"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    places = {"CONF": node.config, "JOURNAL": folder / "journal", "NOTES": folder / "notes"}
    places["PROC"] = folder / "proc"
    text = (SLURM / "wattflow-cap.sh").read_text()
    for variable, place in places.items():
        text, found = re.subn(rf"^{variable}=\S+", f"{variable}={place}", text, flags=re.MULTILINE)
        assert found == 1, variable
    node.library.write_text(text)
    node.library.chmod(0o755)
    for action in ("prolog", "epilog"):
        shutil.copy(SLURM / f"{action}.d" / "wattflow-cap", node.script(action)[0])
    for part in ("nvidia-smi", "libnvidia-ml.so.1"):
        shutil.copy(nvml_folder / part, folder / "bin" / part)
    node.config.write_text(CONFIG.format(smi=node.smi))
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o022)  # whatever the umask
    node.driver()
    node.minors(*range(gpus))
    node.set_limits(*[BASELINE_W] * gpus)
    return node


def unset_empty_arrays(node: Node) -> None:
    """Let the script meet what bash 4.2 and 4.3 do under `set -u`: an empty array that is expanded whole ends it."""
    text = node.library.read_text()
    if re.search(r"^set -\w*u", text, flags=re.MULTILINE):
        text = re.sub(r"\$\{(\w+)\[([@*])\]\}", r"${\1[\2]:?unbound variable}", text)
    node.library.write_text(text)


def run(
    node: Node, action: str, job: int = 1, gpus: str = "0,1", constraint: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    """Run an action as slurmd does for a job: with nothing in the environment but Slurm's words."""
    environment = {
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_GPUS": gpus,
        "SLURM_JOB_CONSTRAINTS": constraint,
        **more,
    }
    return subprocess.run(
        node.script(action),
        env={name: value for name, value in environment.items() if value},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def leave_cap(node: Node) -> None:
    """Job 1 has a cap of 300 W on GPUs 0 and 1 of a node's four."""
    assert run(node, "prolog", constraint="wf_cap300").returncode == 0
    assert node.limits_w() == [300, 300, 500, 500]


def assert_clean(node: Node) -> None:
    """The four GPUs have the baseline, and nothing says that one may not."""
    assert node.limits_w() == BASELINE
    assert node.journal() == []


def declare(node: Node, old: str, new: str) -> None:
    """Change a word of the config."""
    text = node.config.read_text()
    assert old in text
    node.config.write_text(text.replace(old, new))
