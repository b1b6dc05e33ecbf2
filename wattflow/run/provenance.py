"""The versions and the commit of the software that measures."""

import contextlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from wattflow import __version__

PACKAGES = (
    *("wattflow", "python"),
    *("torch", "fairscale", "submitit", "hydra-core", "nvidia-ml-py", "pyarrow", "numpy"),
)


def versions() -> dict[str, str]:
    """Versions of wattflow, Python and the packages that measure and compute."""
    found = {"wattflow": __version__, "python": platform.python_version()}
    for name in PACKAGES[2:]:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str | None:
    """The commit of the checkout that runs, with -dirty where it was changed; null for an installed package."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
