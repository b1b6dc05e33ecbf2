"""What each rank of a job does first: make sure that submitit's pickle is the one that was sent, then let it load that.

    python -P -u -m wattflow.slurm.guard -u -m submitit.core._submit FOLDER

A pickle is code. Whoever may write to the sweep's folder, or put another in its place while the job waits, could run
theirs as its owner. What follows the module's name is the command that submitit writes behind any interpreter.
"""

import hashlib
import os
import runpy
import sys
import time
from pathlib import Path

from wattflow.errors import RefusedError, WattflowError
from wattflow.store.files import check_safe, read_given
from wattflow.store.layout import SweepDir

MODULE = "wattflow.slurm.guard"
_WAIT_S = (
    60.0  # for a shared disk to show what the node that submitted wrote; submitit waits as long
)
_POLL_S = 1.0


def sha256(pickle: Path) -> str:
    """Return the sha256 of a pickle, in hex."""
    return hashlib.sha256(read_given(pickle)).hexdigest()


def check(folder: Path, pickle: Path, wait_s: float = _WAIT_S) -> None:
    """Raise RefusedError unless a submission's folder is safe and its pickle has the hash in the sweep's journal.

    Nothing of the sweep is read before its folder and all above it are known to be the caller's or root's.
    """
    check_safe(folder)
    end_s = time.monotonic() + wait_s
    while (sent := _hash_sent(folder)) is None or not pickle.exists():
        if time.monotonic() > end_s:
            raise RefusedError(
                f"{pickle}: {'not there' if sent else 'the journal has no hash of it'}, so it is not loaded. "
                f"`wattflow resume {folder.parent.parent}` sends what did not finish."
            )
        time.sleep(_POLL_S)
    if (found := sha256(pickle)) != sent:
        raise RefusedError(
            f"{pickle}: not what was sent, so it is not loaded: its sha256 is {found}, in the journal {sent}. Look at "
            "who else may write to that folder."
        )


def _hash_sent(folder: Path) -> str | None:
    """Return the hash of a submission's pickle by the journal; null where it has none yet."""
    lines = SweepDir(folder.parent.parent).journal()
    mine = [line for line in lines if line.get("submission") == folder.name]
    return next((line["sha256"] for line in mine if line.get("sha256")), None)


def main() -> None:
    """Check, then do what submitit's command would have done; SystemExit with one line for what is not safe."""
    import submitit  # noqa: PLC0415 (0.1 s, which submits need not wait for)

    module, folder = sys.argv[-2:]
    os.environ["SUBMITIT_FOLDER"] = folder
    try:
        check(Path(folder), submitit.JobEnvironment().paths.submitted_pickle)
    except (WattflowError, OSError) as error:
        sys.exit(f"wattflow: {error}")
    sys.argv = [module, folder]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
