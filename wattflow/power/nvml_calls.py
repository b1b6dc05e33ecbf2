"""Calls of NVML: a failure becomes a PowerError with the call's name, or None where a missing value is no error.

The only importer of pynvml, as other packages bring a module of this name, too.
"""

import importlib.util
from typing import Any

from wattflow.errors import PowerError

try:
    import pynvml
except Exception as error:
    _spec = importlib.util.find_spec("pynvml")
    raise PowerError(
        f"{'pynvml' if _spec is None else _spec.origin} cannot be imported ({error}). The module pynvml has to be that "
        "of nvidia-ml-py: `pip install --force-reinstall 'nvidia-ml-py>=12.570'`."
    ) from error

__all__ = ["call", "call_or_none", "pynvml"]

# the newest names in use: an old package of the name pynvml lacks one of them
_NEWEST = (
    "NVMLError",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "c_nvmlGpmMetricsGet_t",
    "c_nvmlWorkloadPowerProfileCurrentProfiles_v1_t",
)
_lacking = [name for name in _NEWEST if not hasattr(pynvml, name)]
if _lacking:
    raise PowerError(
        f"{getattr(pynvml, '__file__', None) or 'a module named pynvml'} stands in the way of nvidia-ml-py: it lacks "
        f"{_lacking[0]}. Remove it (`pip uninstall pynvml`, or take it off PYTHONPATH), then "
        "`pip install --force-reinstall 'nvidia-ml-py>=12.570'`."
    )


def call(name: str, *arguments: Any) -> Any:
    """Return the answer of an NVML call; PowerError with the call's name where it fails."""
    try:
        return getattr(pynvml, name)(*arguments)
    except pynvml.NVMLError as error:
        raise PowerError(f"{name}: {error}.") from error


def call_or_none(name: str, *arguments: Any) -> Any:
    """Return the answer of an NVML call, or None where it fails."""
    try:
        return getattr(pynvml, name)(*arguments)
    except pynvml.NVMLError:
        return None
