"""A Slurm that keeps jobs, held or released, and runs none: sbatch, squeue, scontrol and scancel on the PATH.

WATTFLOW_VICTIM is the pid that dies by kill -9 at the call which WATTFLOW_KILL names: `sbatch 2 after` is the second
sbatch, once the job is accepted and before it says so; `answered` is once it did. After `before` nothing is done.
"""

import os
from collections import Counter
from pathlib import Path

from submitit.core.utils import DelayedSubmission

from wattflow.slurm import sbatch

_HEAD = r"""#!/bin/bash
me=$(basename "$0")
echo "$me $*" >> "$MODEL/calls"
count=$(grep -c "^$me" "$MODEL/calls")
strike() { [ "$WATTFLOW_KILL" != "$me $count $1" ] || { kill -9 "$WATTFLOW_VICTIM"; exit 1; }; }
strike before
"""

_SCRIPTS = {
    "sbatch": r"""
id=$(( 101 + $(ls "$MODEL/jobs" | wc -l) ))
script="${@: -1}"
job=$MODEL/jobs/$id
mkdir "$job.new"
sed -n 's/^#SBATCH --job-name=//p' "$script" > "$job.new/name"
sed -n 's/^#SBATCH --array=0-\([0-9]*\)%.*/\1/p' "$script" > "$job.new/last"
dirname "$script" > "$job.new/folder"
echo held > "$job.new/state"
mv "$job.new" "$job"
strike after
echo "Submitted batch job $id"
strike answered
""",
    "squeue": r"""
name=
while [ $# -gt 0 ]; do [ "$1" != -n ] || name=$2; shift; done
for job in "$MODEL"/jobs/*/; do
  [ -e "$job/name" ] || continue
  read -r of < "$job/name"; read -r state < "$job/state"; last=$(cat "$job/last"); id=$(basename "$job")
  [ "$state" != cancelled ] || continue
  if [ -n "$name" ]; then [ "$name" != "$of" ] || echo "$id"; continue; fi
  [ -n "$last" ] || { echo "$id|PENDING|None|$of"; continue; }
  for task in $(seq 0 "$last"); do echo "${id}_$task|PENDING|None|$of"; done
done
strike after
exit 0
""",
    "scontrol": r"""
[ "$1" = release ] || exit 0
for id in ${2//,/ }; do echo released > "$MODEL/jobs/$id/state"; done
strike after
""",
    "scancel": r"""
for id in "$@"; do echo cancelled > "$MODEL/jobs/${id%%_*}/state"; done
strike after
""",
    "sacct": "exit 0\n",
    "sinfo": "exit 0\n",
    "srun": "exit 1\n",
}


class ModelSlurm:
    """The commands and their jobs below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "jobs").mkdir(parents=True)
        (folder / "bin").mkdir()
        for name, text in _SCRIPTS.items():
            path = folder / "bin" / name
            path.write_text(_HEAD + text)
            path.chmod(0o755)

    def use(self, kill: str = "") -> None:
        """Put the commands first on this process's PATH; its death is asked for by `kill`."""
        os.environ["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        os.environ["MODEL"] = str(self.folder)
        os.environ["XDG_CACHE_HOME"] = str(self.folder / "cache")
        os.environ["WATTFLOW_VICTIM"] = str(os.getpid())
        os.environ["WATTFLOW_KILL"] = kill
        (self.folder / "calls").write_text("")

    def states(self) -> Counter[str]:
        """How many jobs are held, released and cancelled."""
        return Counter(path.read_text().strip() for path in self.folder.glob("jobs/*/state"))

    def runs(self) -> Counter[str]:
        """How often each point would run: the points of the released jobs whose pickle lies where their tasks look."""
        found: Counter[str] = Counter()
        for job in (self.folder / "jobs").iterdir():
            if (job / "state").read_text().strip() != "released":
                continue
            folder = Path((job / "folder").read_text().strip())
            pickle = folder / f"{job.name}_submitted.pkl"
            if pickle.is_file():
                function = DelayedSubmission.load(pickle).function
                for call in getattr(function, "calls", (function,)):
                    found.update(call.arguments[1] if call.function == sbatch.RUN_TASK else [])
        return found
