"""The fake libnvidia-ml: `build` compiles it, `curves` tells the truth about its watts."""

import shutil
import subprocess
from pathlib import Path


def build(folder: Path) -> Path:
    """Compile the library into a folder, for LD_LIBRARY_PATH; returns the folder. Builds once."""
    subprocess.run(
        ["make", "-s", "-C", str(Path(__file__).parent), f"OUT={folder}"],
        check=True,
        capture_output=True,
    )
    return folder


def missing() -> str | None:
    """Why the library cannot be built here, or None."""
    for tool in ("make", "cc"):
        if shutil.which(tool) is None:
            return f"no {tool} on the PATH; install make and gcc"
    return None
