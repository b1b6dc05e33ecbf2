"""The sidecar: one process a node that records the power of its devices, and never imports torch.

    python -m wattflow.power.sidecar '{"node": "n1", "spool": "/tmp/x", "parent_pid": 42, "power": {...}}'

Its parent (sidecar_client.py) speaks to it in JSON lines:

    stdin   {"open": attempt path, "point_id": "...", "attempt": 1, "log": path}    start the traces of an attempt
            {"mark": true}                                              an edge of the measured window is now
            {"close": true}                                             end them
            end of file, or SIGTERM                                     end them and exit
    stdout  {"ready": schema.MeterInfo}     the first sample of every device lies on disk
            {"so_far": schema.EnergySoFar}    each 5 s, and before it closes: what the job's devices took
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
from typing import TYPE_CHECKING, Any

from wattflow.config.choices import Control
from wattflow.errors import PowerError, WattflowError
from wattflow.power.meter import Meter
from wattflow.power.open import choose, host_meter
from wattflow.power.protocol import Commands, Reply, Settings
from wattflow.power.recording import Recording
from wattflow.process import die_with_parent
from wattflow.store.files import check_name, open_append, read_own
from wattflow.store.layout import AttemptDir

if TYPE_CHECKING:
    from wattflow.power.control import GpuControl

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


def take_control(control: Control, meter: Meter) -> "GpuControl | None":
    """Put back what earlier jobs left on this node, then set this job's limits and clocks; None where it has none.

    PowerError where it cannot be set, or where there is no GPU to set it on.
    """
    wanted = control.power_limit_w is not None or control.sm_clock_mhz is not None
    if meter.name != "nvml":
        if wanted:
            raise PowerError(
                f"control: limits and clocks are a GPU's, and {meter.name} measures none. Leave control out here."
            )
        return None
    from wattflow.power.control import GpuControl, restore_left  # noqa: PLC0415 - pynvml is loaded only where it is wanted

    folder = Path(control.journal_dir)
    if not wanted:
        if os.access(folder, os.W_OK):
            restore_left(folder, [device["uuid"] for device in meter.devices])
        return None
    return GpuControl(control, [device["uuid"] for device in meter.devices])


def serve(settings: Settings, commands: Commands, reply: Reply) -> None:
    """Record one attempt after another until stdin ends or SIGTERM comes."""
    job = check_name(os.environ.get("SLURM_JOB_ID", "local"), "job")
    with only_one(settings.spool, job, settings.node):
        meter = choose(settings.power, settings.node)
        host = host_meter(settings.power, settings.node) if meter.boundary == "gpu" else None
        held = None
        try:
            held = take_control(settings.control, meter)
            controlled = [] if held is None else held.controlled
            command = commands.wait(None) or {}
            while "end" not in command:
                if "open" not in command:  # a close or mark that crossed a restart
                    command = commands.wait(None) or {}
                    continue
                attempt = AttemptDir(Path(command["open"]), command["point_id"], command["attempt"])
                if "log" in command:
                    log_to(Path(command["log"]))
                recording = Recording(settings, meter, host, controlled, attempt)
                command = recording.run(commands, reply)
                if held is not None and "end" in command:
                    held.release()  # before traces are closed, which may outlast the parent's patience
                reply({"so_far": recording.finish()})
                reply({"closed": command.get("end", "close")})
        finally:
            if held is not None:
                held.release()
            meter.close()


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
        serve(settings, Commands(sys.stdin.fileno()), report)
    except (WattflowError, OSError) as error:
        log.error("%s", error)  # noqa: TRY400 - the message is for people; a traceback adds nothing
        report({"error": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # the parent waits, and taking the libraries down takes them 0.1 s
