"""Choose and open the meter of this node: the one place that knows all of them."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wattflow.config.choices import Config, Power, computes_on_cpu
from wattflow.errors import PowerError
from wattflow.power import cray
from wattflow.power.cray import CrayMeter
from wattflow.power.hwmon import HwmonMeter, grace_sockets
from wattflow.power.meter import Meter
from wattflow.power.rapl import RaplMeter, readable_zones
from wattflow.power.simulated import SimulatedMeter


def choose(power: Power, node: str, uuids: Sequence[str] | None = None) -> Meter:
    """Open the meter that power.meter names; auto takes NVML where it shows a GPU, else the host's or the simulated.

    With `uuids` it reads these GPUs alone of the visible ones.

    PowerError when the named meter does not answer, or when the visible devices cannot be measured apart (MIG).
    """
    if (of_node := _of_node(power, node)) is not None:
        return of_node
    if power.meter == "dcgm":
        from wattflow.power.dcgm import DcgmMeter  # noqa: PLC0415 - pynvml is loaded only where it is wanted

        try:
            return DcgmMeter(power, uuids)
        except PowerError as error:
            raise PowerError(
                f"power.meter=dcgm on {node}: {error} Run `wattflow doctor` in the job, or take power.meter=nvml, "
                "which needs no DCGM."
            ) from error
    if power.meter not in ("auto", "nvml"):
        raise PowerError(
            f"power.meter={power.meter}: not one of auto, nvml, dcgm, rapl, hwmon, cray, simulated."
        )
    from wattflow.power.gpus import AbsentError  # noqa: PLC0415 - as above
    from wattflow.power.nvml import NvmlMeter  # noqa: PLC0415 - as above

    try:
        return NvmlMeter(power, uuids)
    except AbsentError as error:
        if power.meter == "auto" and power.scope == "gpu":
            return host_meter(power, node) or SimulatedMeter(power, node)
        raise PowerError(
            f"power.meter=nvml on {node}: {error} Look at `nvidia-smi -L` in the job, ask Slurm for GPUs "
            "(cluster.gpu_request), or take power.meter=simulated, whose watts are no measurement."
        ) from error


def _of_node(power: Power, node: str) -> Meter | None:
    """Open a named meter that has the node as one device; None for the name of another."""
    if power.meter == "simulated":
        return SimulatedMeter(power, node)
    if power.meter == "rapl":
        return RaplMeter(Path(power.powercap_dir), node, power.poll_ms)
    if power.meter == "hwmon":
        return HwmonMeter(Path(power.hwmon_dir), node, power.poll_ms)
    if power.meter == "cray":
        return CrayMeter(Path(power.cray_dir), node, power.poll_ms)
    return None


def settings_of(config: Config) -> Power:
    """Return the meter's settings of a point: one on the CPU is measured by the host, whatever GPUs are there."""
    power = config.power
    if power.meter != "auto" or not computes_on_cpu(config):
        return power
    return replace(power, meter=_of_host(power) or "simulated")


def _of_host(power: Power) -> str | None:
    """Return the meter of this host that answers: RAPL, or the meters of Grace sockets; null where none may or does."""
    if not power.host:
        return None
    for meter, found, folder in (
        ("rapl", readable_zones, power.powercap_dir),
        ("hwmon", grace_sockets, power.hwmon_dir),
    ):
        with contextlib.suppress(PowerError):
            found(Path(folder))
            return meter
    return None


def host_meter(power: Power, node: str) -> Meter | None:
    """Open the meter of this host; None where power.host forbids it or none answers this user."""
    meter = _of_host(power)
    with contextlib.suppress(PowerError):
        return None if meter is None else choose(replace(power, meter=meter), node)
    return None


def beside_meters(power: Power, node: str) -> list[Meter]:
    """Open what measures a node beside its GPUs: its host, all of it and its accelerators, as far as they answer."""
    host = host_meter(power, node)
    found: list[Meter] = [] if host is None else [host]
    for source in (cray.NODE, cray.ACCELERATORS) if power.host else ():
        with contextlib.suppress(PowerError):
            found.append(CrayMeter(Path(power.cray_dir), node, power.poll_ms, source))
    return found
