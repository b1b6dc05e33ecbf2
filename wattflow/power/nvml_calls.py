"""NVML's answers: an error becomes ours with the call's name, or None where a missing value is no error."""

from typing import Any

import pynvml

from wattflow.errors import PowerError


def ask(call: str, *arguments: Any) -> Any:
    """What an NVML call answers; PowerError with the call's name where it fails."""
    try:
        return getattr(pynvml, call)(*arguments)
    except pynvml.NVMLError as error:
        raise PowerError(f"{call}: {error}.") from error


def ask_or_none(call: str, *arguments: Any) -> Any:
    """What an NVML call answers, or None where it fails: missing is null."""
    try:
        return getattr(pynvml, call)(*arguments)
    except pynvml.NVMLError:
        return None
