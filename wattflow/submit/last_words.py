"""What a program said last in its log, where Slurm knows no more than that it failed."""

import os
from pathlib import Path

from wattflow.errors import DamagedError
from wattflow.store.files import open_own

_TAIL_BYTES = 16_384
_MOST_LETTERS = 300
_SLURM = ("srun: ", "slurmstepd: ")  # they repeat that a task ended


def last_words(log: Path) -> str | None:
    """Return the last line of a log that is not Slurm's own; null where there is none, or no log that can be read."""
    try:
        with open_own(log) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except (OSError, DamagedError):
        return None
    lines = [line.strip() for line in text.splitlines()]
    own = [line for line in lines if line and not line.startswith(_SLURM)]
    return own[-1][:_MOST_LETTERS] if own else None
