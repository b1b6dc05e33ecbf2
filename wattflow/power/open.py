"""Choose and open the meter of this node: the one place that knows all of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wattflow.config.choices import Config, Power, computes_on_cpu
from wattflow.errors import PowerError
from wattflow.power.meter import Meter
from wattflow.power.rapl import RaplMeter, readable_zones
from wattflow.power.simulated import SimulatedMeter


def choose(power: Power, node: str, uuids: Sequence[str] | None = None) -> Meter:
    """Open the meter that power.meter names; auto takes NVML where it shows a GPU, else RAPL, else the simulated one.

    With `uuids` it reads these GPUs alone of the visible ones.

    PowerError when the named meter does not answer, or when the visible devices cannot be measured apart (MIG).
    """
    if power.meter == "simulated":
        return SimulatedMeter(power, node)
    if power.meter == "rapl":
        return RaplMeter(Path(power.powercap_dir), node, power.poll_ms)
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
            f"power.meter={power.meter}: not one of auto, nvml, dcgm, rapl, simulated."
        )
    from wattflow.power.gpus import AbsentError  # noqa: PLC0415 - as above
    from wattflow.power.nvml import NvmlMeter  # noqa: PLC0415 - as above

    try:
        return NvmlMeter(power, uuids)
    except AbsentError as error:
        if power.meter == "auto":
            return host_meter(power, node) or SimulatedMeter(power, node)
        raise PowerError(
            f"power.meter=nvml on {node}: {error} Look at `nvidia-smi -L` in the job, ask Slurm for GPUs "
            "(cluster.gpu_request), or take power.meter=simulated, whose watts are no measurement."
        ) from error


def settings_of(config: Config) -> Power:
    """Return the meter's settings of a point: one on the CPU is measured by the host, whatever GPUs are there."""
    power = config.power
    if power.meter != "auto" or not computes_on_cpu(config):
        return power
    try:
        readable_zones(Path(power.powercap_dir))
    except PowerError:
        return replace(power, meter="simulated")
    return replace(power, meter="rapl" if power.host else "simulated")


def host_meter(power: Power, node: str) -> Meter | None:
    """RAPL of this host, or None where power.host forbids it or it does not answer this user."""
    if not power.host:
        return None
    try:
        return RaplMeter(Path(power.powercap_dir), node, power.poll_ms)
    except PowerError:
        return None
