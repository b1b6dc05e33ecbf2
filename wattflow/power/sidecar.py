"""The sidecar: one process a node that records the power of its devices, and never imports torch.

    python -m wattflow.power.sidecar '{"node": "n1", "spool": "/tmp/x", "parent_pid": 42, "power": {...}}'

Its parent (sidecar_client.py) speaks to it in JSON lines:

    stdin   {"open": attempt path, "point_id": "...", "attempt": 1, "log": path}    start the traces of an attempt
            {"mark": true}                                              an edge of the measured window is now
            {"close": true}                                             end them
            end of file, or SIGTERM                                     end them and exit
    stdout  {"ready": schema.MeterInfo}     the first sample of every device lies on disk
            {"so_far": schema.EnergySoFar}    each 5 s, and before it closes: what the job's devices took
            {"beside": schema.Beside}   before it closes, of an attempt that has neighbours (sidecar_server.py)
            {"closed": reason}          every trace lies in the attempt as Parquet
            {"error": message}          the last line of a sidecar that failed

    time line:  open, first drain, ready, (drain each second, flush, copy) ..., close, 100 ms, last drain, Parquet

Traces grow in the node-local spool and are copied to the attempt by a thread of their own, so that a shared file
system which hangs holds up no sample. A sidecar that is started again for the same attempt leaves what the one before
it wrote, goes on in a second file, and reads from the driver's buffer what came in between.
"""

import contextlib
import fcntl
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wattflow.errors import PowerError, WattflowError
from wattflow.power.protocol import Commands, Settings
from wattflow.power.serving import Parent, serve
from wattflow.process import die_with_parent
from wattflow.store.files import check_name, open_append, read_own

log = logging.getLogger(__name__)


@contextlib.contextmanager
def only_one(spool: Path, job: str, node: str) -> Iterator[None]:
    """Hold the lock of a job's sidecar on a node; PowerError names who holds it.

    The kernel lets go of it when its holder dies, however that happens, so that none is ever stale.
    """
    path = spool / f"sidecar-{job}-{node}.lock"
    with open_append(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = read_own(path).decode(errors="replace")
            raise PowerError(
                f"{path}: this job already has a sidecar on {node} ({holder}). Two would write the same traces."
            ) from error
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), json.dumps({"pid": os.getpid(), "start_s": time.time()}).encode())
        yield


def log_to(path: Path) -> None:
    """Send stderr to this file, the attempt's, from now on; a sidecar may be started before there is one."""
    with open_append(path) as log:
        os.dup2(log.fileno(), sys.stderr.fileno())


def report(message: dict[str, Any]) -> None:
    """Send one JSON line to the parent, unless it is gone."""
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), json.dumps(message).encode() + b"\n")


def main() -> int:
    """Serve until a command ends it; 0, or 1 with the reason on stdout and in the log."""
    settings = Settings.parse(sys.argv[1])
    die_with_parent(settings.parent_pid)
    logging.basicConfig(
        format=f"%(asctime)s sidecar {settings.node}: %(message)s", level=logging.WARNING
    )
    try:
        settings.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        commands = Commands(sys.stdin.fileno())
        commands.take_signals()
        job = check_name(os.environ.get("SLURM_JOB_ID", "local"), "job")
        with only_one(settings.spool, job, settings.node):
            serve(settings, Parent(commands, report, log_to))
    except (WattflowError, OSError) as error:
        log.error("%s", error)  # noqa: TRY400 - the message is for people; a traceback adds nothing
        report({"error": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # the parent waits, and taking the libraries down takes them 0.1 s
