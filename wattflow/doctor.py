"""Check what this machine can measure and run: one finding a check, for `wattflow doctor`.

Run it on a compute node, inside a job (`srun wattflow doctor`): the rights and the visible GPUs of a login node differ
from those of a job. Nothing is changed, and torch is imported by a process of its own alone.
"""

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from wattflow import __version__, process
from wattflow.config.choices import Power
from wattflow.errors import PowerError
from wattflow.store.sources import source_of


class Finding(NamedTuple):
    """One check: `ok`, `missing` (not there, or not answering), or `note` (a fact to know)."""

    check: str
    status: Literal["ok", "missing", "note"]
    detail: str


def examine(power: Power | None = None) -> list[Finding]:
    """Run all checks for this user; what is absent is a finding, never an error. `power` names the kernel's folders."""
    power = power or Power()
    return [
        *_software(),
        *_slurm(),
        *_folders(),
        *_sensors(),
        *_torch_on_gpus(),
        *_dcgm(),
        _rapl(power),
        *_grace(power),
        *_cray(power),
        _meter("meter", power),
    ]


def _found(check: str, there: bool, detail: str) -> Finding:
    return Finding(check, "ok" if there else "missing", detail)


# ---- software ----


def _software() -> Iterator[Finding]:
    yield Finding("wattflow", "ok", f"{__version__}, Python {platform.python_version()}")
    for package in ("torch", "fairscale", "submitit"):
        there = importlib.util.find_spec(package) is not None
        yield _found(
            package, there, importlib.metadata.version(package) if there else "not installed"
        )
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        yield Finding("CUDA driver", "missing", f"{error}; engine.device=cpu works without")
    else:
        yield Finding("CUDA driver", "ok", "libcuda.so.1 loads")


def _slurm() -> Iterator[Finding]:
    for command in ("sbatch", "srun", "squeue", "scancel"):
        where = shutil.which(command)
        yield _found(
            command, where is not None, where or "not on the PATH; cluster=local works without"
        )
    if shutil.which("sacct") is None:
        yield Finding("sacct", "missing", "not on the PATH; set cluster.accounting=false")
        return
    try:
        answer = subprocess.run(
            ["sacct", "--noheader", "--allocations", "--starttime", "now"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield Finding(
            "sacct", "missing", "did not answer within 10 s; set cluster.accounting=false"
        )
        return
    answers = answer.returncode == 0
    errors = answer.stderr.strip().splitlines() or [str(answer.returncode)]
    yield _found("sacct", answers, "answers" if answers else errors[-1])


def _folders() -> Iterator[Finding]:
    spool = Path(os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir())
    try:
        with tempfile.TemporaryFile(dir=spool):
            free_gib = shutil.disk_usage(spool).free / 2**30
        yield Finding("spool folder", "ok", f"{spool}, {free_gib:.1f} GiB free")
    except OSError as error:
        yield Finding("spool folder", "missing", f"{spool}: {error}; set cluster.spool_dir")
    from wattflow.plan.conf import conf_dirs  # noqa: PLC0415 - Hydra takes a moment to import

    found = [folder for folder in conf_dirs() if (folder / "config.yaml").is_file()]
    yield _found("conf/", bool(found), str(found[0]) if found else "no conf/config.yaml here")


# ---- sensors ----


def _sensors() -> Iterator[Finding]:
    """What NVML answers: the library, the map of CUDA ordinals, then each GPU."""
    # pynvml is loaded only where it is wanted
    try:
        from wattflow.power import nvml_sensors  # noqa: PLC0415 - see above
        from wattflow.power.gpus import find_gpus  # noqa: PLC0415 - see above
        from wattflow.power.nvml_calls import call, call_or_none  # noqa: PLC0415 - see above
    except PowerError as error:  # another module of that name
        yield Finding("NVML", "missing", str(error))
        return
    try:
        call("nvmlInit")
    except PowerError as error:
        yield Finding("NVML", "missing", str(error))
        return
    try:
        yield Finding("NVML", "ok", f"driver {call_or_none('nvmlSystemGetDriverVersion')}")
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        yield Finding("CUDA_VISIBLE_DEVICES", "note", "unset" if shown is None else repr(shown))
        try:
            gpus = find_gpus()
        except PowerError as error:
            yield Finding("GPUs", "missing", str(error))
            return
        for gpu in gpus:
            device = gpu.device
            yield Finding(
                f"cuda:{device['ordinal']}",
                "ok",
                f"{device['uuid']}, {device['bus_id']}, {device['name']}",
            )
        for gpu in gpus:
            for check, status, detail in _gpu(nvml_sensors, gpu.handle):
                yield Finding(f"cuda:{gpu.device['ordinal']} {check}", status, detail)
    finally:
        call_or_none("nvmlShutdown")


def _torch_on_gpus() -> Iterator[Finding]:
    """Whether torch computes on the GPUs that a job has here, by a process of its own."""
    # pynvml is loaded only where it is wanted
    try:
        from wattflow.power.gpus import gpus_in_words  # noqa: PLC0415 - see above
    except PowerError:  # see `NVML`
        return
    gpus = gpus_in_words()
    if gpus is None or importlib.util.find_spec("torch") is None:
        return
    command = process.python("-m", "wattflow.engine.device")
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TORCH_LIMIT_S,
            check=True,
        )
        why = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        why = f"torch did not answer within {_TORCH_LIMIT_S:g} s"
    except (subprocess.CalledProcessError, ValueError):
        why = "importing torch fails: try `python -c 'import torch'`"
    if why is None:
        yield Finding("torch on GPUs", "ok", f"computes on {gpus}")
        return
    yield Finding(
        "torch on GPUs",
        "missing",
        f"{why}, so that points with engine.device=auto fail beside {gpus}; install a torch for CUDA that fits the "
        "driver, or set engine.device=cpu, which measures the host",
    )


_TORCH_LIMIT_S = 120.0


def _gpu(sensors: Any, handle: Any) -> Iterator[Finding]:
    """What one GPU reports to this user."""
    # pynvml is loaded only where it is wanted
    from wattflow.power.gpm import Gpm  # noqa: PLC0415 - see above
    from wattflow.power.nvml_calls import call_or_none  # noqa: PLC0415 - see above

    answering = sensors.sources(handle)
    superchip = sensors.is_superchip(handle)
    asked = ["nvml_buffer", "nvml_instant", "nvml_average", sensors.usage_source(handle)]
    if superchip:
        yield _scopes(sensors, handle)
        asked = [*asked[1:3], "nvml_module_instant", "nvml_module_average"]
        answering += sensors.sources(handle, "module")
    for source in asked:
        answers = source in answering
        yield _found(source_of(source).label, answers, "answers" if answers else "no answer")
    counter = sensors.energy_counter(handle, "gpu")
    reading_mj = counter.read_mj(handle)
    joules = f"{(reading_mj or 0) / 1e3:.1f} J since the driver was loaded"
    yield _reported(source_of(counter.source).label, reading_mj, joules)
    conditions = sensors.conditions(handle)
    for check, column, unit in (
        ("utilisation", "gpu_activity_pct", "%"),
        ("SM clock", "sm_clock_mhz", "MHz"),
        ("temperature", "temperature_c", "C"),
        ("power limit in force", "power_limit_w", "W"),
        ("throttle reasons", "throttle_reasons", "(bits)"),
    ):
        value = conditions[column]
        yield _reported(check, value, f"{value} {unit}")
    spent_ns = conditions["under_cap_ns"]
    spent = _duration((spent_ns or 0) / 1e9)
    yield _reported("time under the power cap", spent_ns, f"{spent} since the driver was loaded")
    limits = call_or_none("nvmlDeviceGetPowerManagementLimitConstraints", handle)
    low_mw, high_mw = limits or (0, 0)
    yield _reported("power limits", limits, f"{low_mw / 1e3:g} to {high_mw / 1e3:g} W")
    try:
        Gpm(handle).close()
    except PowerError as error:
        yield Finding("GPM", "missing", str(error))
    else:
        yield Finding("GPM", "ok", "supported and permitted")
    for check, name in (("MIG", "nvmlDeviceGetMigMode"), ("ECC", "nvmlDeviceGetEccMode")):
        mode = call_or_none(name, handle)
        yield Finding(check, "note", "no answer" if mode is None else _on(mode[0]))
    mode = call_or_none("nvmlDeviceGetPersistenceMode", handle)
    yield Finding("persistence mode", "note", "no answer" if mode is None else _on(mode))


def _scopes(sensors: Any, handle: Any) -> Finding:
    """Whether a superchip's driver parts power of the GPU from that of its module."""
    if not sensors.has_module(handle):
        why = "a superchip, whose driver answers power of GPU and module alike: take a newer driver"
        return Finding("power scopes", "missing", why)
    return Finding("power scopes", "ok", "GPU and module are parted: power.scope=gpu or module")


def _duration(seconds: float) -> str:
    """Return a time in words: 12.3 s, 5 min 20 s, 7 h 5 min, 3 d 2 h."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, hours, days = (int(seconds // size_s) for size_s in (60, 3600, 86400))
    if days:
        return f"{days} d {hours % 24} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min {int(seconds) % 60} s"


def _on(mode: int) -> str:
    return "on" if mode else "off"


def _reported(check: str, answer: object, detail: str) -> Finding:
    return _found(check, answer is not None, "no answer" if answer is None else detail)


def _rapl(power: Power) -> Finding:
    """The host's own counters."""
    from wattflow.power.rapl import readable_zones  # noqa: PLC0415 - as above

    try:
        zones = readable_zones(Path(power.powercap_dir))
    except PowerError as error:
        return Finding("RAPL", "note", f"{error} No host_energy_j then.")
    return Finding("RAPL", "ok", ", ".join(zone.name for zone in zones))


def _grace(power: Power) -> Iterator[Finding]:
    """The power meters of Grace sockets and of their modules, where a superchip has them."""
    from wattflow.power.hwmon import GRACE, sockets  # noqa: PLC0415 - as above

    folder = Path(power.hwmon_dir)
    try:
        found = sockets(folder)
    except PowerError as error:
        yield Finding("Grace sockets", "missing", str(error))
        return
    if not found:
        yield Finding("Grace sockets", "note", f"{folder}: no power meter of one there.")
    for one in found:
        use = "in host_energy_j" if one.kind == GRACE else "not recorded"
        try:
            yield Finding(f"ACPI power, {one.name}", "ok", f"{one.read_w():.1f} W, {use}")
        except PowerError as error:
            yield Finding(f"ACPI power, {one.name}", "missing", str(error))


def _cray(power: Power) -> Iterator[Finding]:
    """Cray's counters of the node and of its accelerators."""
    from wattflow.power.cray import ACCELERATORS, NODE, CrayMeter  # noqa: PLC0415 - as above

    for source, use in ((NODE, "node_energy_j"), (ACCELERATORS, "accelerators_energy_j")):
        try:
            meter = CrayMeter(Path(power.cray_dir), platform.node(), power.poll_ms, source)
        except PowerError as error:
            yield Finding(f"pm_counters, {use}", "note", str(error))
            return
        names = ", ".join(device["name"] for device in meter.devices)
        yield Finding(f"pm_counters, {use}", "ok", f"{names}: a scan each {meter.period_ms:g} ms")


def _dcgm() -> Iterator[Finding]:
    """Whether DCGM could be the meter: the command, its host engine, then power of the visible GPUs."""
    from wattflow.power.dcgmi import numbers_of_gpus  # noqa: PLC0415 - as above

    where = shutil.which("dcgmi")
    yield _found(
        "dcgmi", where is not None, where or "not on the PATH; power.meter=nvml needs none"
    )
    if where is None:
        return
    try:
        numbers = numbers_of_gpus()
    except PowerError as error:
        yield Finding("DCGM host engine", "missing", str(error))
        return
    yield Finding("DCGM host engine", "ok", f"{len(numbers)} GPU(s) of this node")
    yield _meter("DCGM meter", Power(meter="dcgm"))


def _meter(check: str, power: Power) -> Finding:
    """What a meter would measure here."""
    from wattflow.power.open import choose  # noqa: PLC0415 - as above

    try:
        meter = choose(power, platform.node())
    except PowerError as error:
        return Finding(check, "missing", str(error))
    try:
        watts = f"{meter.name}, source {meter.source}, boundary {meter.boundary}"
        every = f"a sample each {meter.period_ms:g} ms for {len(meter.devices)} device(s)"
        return Finding(check, "note" if meter.name == "simulated" else "ok", f"{watts}, {every}")
    finally:
        meter.close()
