"""A Slurm that only remembers: Slurm's commands on the PATH, answering from files.

Nothing in wattflow knows of it. What a command was called with, and each script that sbatch got, can be read back.
"""

import os
from pathlib import Path

import pytest

_LOG = 'echo "$(basename "$0") $*" >> "$FAKE_SLURM/calls"\n'

_SCRIPTS = {
    "sbatch": """
if [ "$1" = --test-only ]; then
  cat "${@: -1}" >> "$FAKE_SLURM/tested"
  if [ -e "$FAKE_SLURM/refusals" ]; then cat "$FAKE_SLURM/refusals" >&2; exit 1; fi
  echo "sbatch: Job 7 to start at 2030-01-01T00:00:00 using 2 processors on nodes node1 in partition gpu" >&2
  exit 0
fi
if [ -e "$FAKE_SLURM/refusals" ] && [ -s "$FAKE_SLURM/refusals" ]; then
  head -n 1 "$FAKE_SLURM/refusals" >&2
  sed -i 1d "$FAKE_SLURM/refusals"
  [ -e "$FAKE_SLURM/accepts-silently" ] || exit 1
  refused=1
fi
id=$(( $(cat "$FAKE_SLURM/last" 2>/dev/null || echo 100) + 1 ))
echo $id > "$FAKE_SLURM/last"
cp "${@: -1}" "$FAKE_SLURM/job-$id.sh"
env > "$FAKE_SLURM/job-$id.env"
[ -z "$refused" ] || exit 1
echo "Submitted batch job $id"
""",
    "squeue": """
[ ! -e "$FAKE_SLURM/silent" ] || { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
name=
while [ $# -gt 0 ]; do [ "$1" != -n ] || name=$2; shift; done
if [ -n "$name" ]; then
  cd "$FAKE_SLURM" && grep -lxF -- "#SBATCH --job-name=$name" job-*.sh 2>/dev/null | sed 's/job-//; s/\\.sh//'
else
  cat "$FAKE_SLURM/queue" 2>/dev/null
fi
exit 0
""",
    "sacct": 'cat "$FAKE_SLURM/accounting" 2>/dev/null; exit 0\n',
    "sacctmgr": 'cat "$FAKE_SLURM/associations" 2>/dev/null; exit 0\n',
    "sinfo": 'cat "$FAKE_SLURM/nodes" 2>/dev/null; exit 0\n',
    "scontrol": "",
    "scancel": "",
    "srun": "",
}


class FakeSlurm:
    """Puts the commands first on the PATH; the answers lie in `folder`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        commands = folder / "bin"
        commands.mkdir(parents=True)
        for name, text in _SCRIPTS.items():
            path = commands / name
            path.write_text("#!/bin/bash\n" + _LOG + text)
            path.chmod(0o755)
        monkeypatch.setenv("FAKE_SLURM", str(folder))
        monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))

    def calls(self, command: str) -> list[str]:
        """The arguments of each call of one command, oldest first."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.partition(" ")[2] for line in lines if line.split(" ", 1)[0] == command]

    def scripts(self) -> dict[str, str]:
        """The scripts that sbatch took, by job id."""
        return {p.stem[4:]: p.read_text() for p in sorted(self.folder.glob("job-*.sh"))}

    def queue(self, *lines: str) -> None:
        """What squeue says from now on: id|state|reason|name."""
        (self.folder / "queue").write_text("".join(f"{line}\n" for line in lines))

    def accounting(self, *lines: str) -> None:
        """What sacct says from now on: id|state|reason."""
        (self.folder / "accounting").write_text("".join(f"{line}\n" for line in lines))

    def nodes(self, *lines: str) -> None:
        """What sinfo says from now on: host|address; by default there are none."""
        (self.folder / "nodes").write_text("".join(f"{line}\n" for line in lines))

    def associations(self, *lines: str) -> None:
        """What sacctmgr says of the caller's accounts from now on: account|MaxSubmitJobs; by default nothing."""
        (self.folder / "associations").write_text("".join(f"{line}\n" for line in lines))

    def silent(self) -> None:
        """From now on squeue does not answer."""
        (self.folder / "silent").touch()

    def refuse(self, *messages: str, though_accepted: bool = False) -> None:
        """The next calls of sbatch fail with these messages, though the job may have been accepted."""
        (self.folder / "refusals").write_text("".join(f"{message}\n" for message in messages))
        if though_accepted:
            (self.folder / "accepts-silently").touch()
