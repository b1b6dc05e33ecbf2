"""Calls of NVML: a failure becomes a PowerError with the call's name, or None where a missing value is no error."""

from typing import Any

import pynvml

from wattflow.errors import PowerError


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
