"""What a program said last in its log, where Slurm knows no more than that it failed."""

import re
from pathlib import Path

from wattflow.errors import DamagedError
from wattflow.store.files import read_end

_TAIL_BYTES = 16_384
_MOST_LETTERS = 300
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# Slurm's own lines, which repeat that a task ended
_SLURM = re.compile(r"srun: |(\[[0-9T:.-]+\] )?(slurmstepd\S*: |error: \*\*\* )")
# what follows the reason of a failure: indented lines, warnings of Python's end, the list below a crash
_AFTER = re.compile(r"\s|.*Warning: |Extension modules: |(Current thread|Thread) 0x")


def last_words(log: Path) -> str | None:
    """Return the last line of a log that says something; null where there is none, or no log that can be read.

    Slurm's lines do not, and those that follow a reason do only where there is no other. ` ... ` stands where a long
    line is cut.
    """
    try:
        end, cut = read_end(log, _TAIL_BYTES)
    except (OSError, DamagedError):
        return None
    lines = _COLOUR.sub("", end.decode(errors="replace")).splitlines()
    if cut and lines:
        lines[0] = f"... {lines[0].lstrip(chr(0xFFFD))}"
    said = [line for line in lines if any(map(str.isalnum, line)) and not _SLURM.match(line)]
    reasons = [line for line in said if not _AFTER.match(line)] or said
    if not reasons:
        return None
    last = reasons[-1].strip()
    return last if len(last) <= _MOST_LETTERS else f"{last[:_MOST_LETTERS]} ..."
