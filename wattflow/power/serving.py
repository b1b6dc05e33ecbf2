"""What a sidecar does for one parent: record one attempt after another with one meter, under the parent's commands."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from wattflow.config.choices import Control
from wattflow.errors import PowerError
from wattflow.power.meter import Meter
from wattflow.power.open import beside_meters, choose
from wattflow.power.protocol import Commands, Reply, Settings
from wattflow.power.recording import Recording
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import Beside
from wattflow.store.sources import DEVICES

if TYPE_CHECKING:
    from wattflow.power.control import GpuControl


class Surroundings(Protocol):
    """What the rest of a node does while one attempt is recorded."""

    def mark(self) -> None:
        """An edge of the measured window is now."""

    def close(self) -> Beside | None:
        """The attempt is closed; return what the rest did in its window, null where it has the node to itself."""


class Alone:
    """The surroundings of an attempt that shares no node."""

    def mark(self) -> None:
        """Nothing is watched."""

    def close(self) -> Beside | None:
        """Return null."""
        return None


@dataclass(frozen=True)
class Parent:
    """Who is served: the commands, the way back, where an attempt's log goes, and what surrounds each attempt."""

    commands: Commands
    reply: Reply
    log_to: Callable[[Path], None]
    surroundings: Callable[[], Surroundings] = Alone


def serve(settings: Settings, parent: Parent, uuids: Sequence[str] | None = None) -> None:
    """Record one attempt after another until the commands end, with `uuids` these devices alone."""
    commands, reply = parent.commands, parent.reply
    meter = choose(settings.power, settings.node, uuids)
    of_devices = meter.boundary in DEVICES
    beside = beside_meters(settings.power, settings.node) if of_devices else []
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
                parent.log_to(Path(command["log"]))
            around = parent.surroundings()
            try:
                recording = Recording(
                    settings, meter, beside, controlled, attempt, marked=around.mark
                )
                command = recording.run(commands, reply)
            finally:
                neighbours = around.close()
            if held is not None and "end" in command:
                held.release()  # before traces are closed, which may outlast the parent's patience
            reply({"so_far": recording.finish()})
            if neighbours is not None:
                reply({"beside": neighbours})
            reply({"closed": command.get("end", "close")})
    finally:
        if held is not None:
            held.release()
        meter.close()


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
