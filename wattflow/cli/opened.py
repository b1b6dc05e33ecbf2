"""Opens the sweeps that a person named, by paths, names and patterns."""

from collections.abc import Sequence
from glob import glob
from pathlib import Path

from wattflow.analysis.sweep import Sweep, Sweeps, open_sweep
from wattflow.errors import RefusedError


def opened(words: Sequence[str]) -> Sweep | Sweeps:
    """Return the results of one sweep or several; RefusedError where a word names none."""
    paths = matching(words)
    return open_sweep(paths[0]) if len(paths) == 1 else open_sweep(paths)


def matching(words: Sequence[str]) -> list[str]:
    """Return the sweeps that words name, those of each pattern in order; RefusedError where one names none."""
    return [path for word in words for path in _matching(word)]


def _matching(word: str) -> list[str]:
    """Return the sweeps that a pattern names, in order; a word without signs of a pattern stands for itself."""
    if Path(word).exists() or not any(sign in word for sign in "*?["):
        return [word]
    found = sorted(path for path in glob(word) if _is_sweep(path))  # noqa: PTH207 (text in and out)
    if not found:
        raise RefusedError(f"{word}: no sweep matches.")
    return found


def _is_sweep(path: str) -> bool:
    return (Path(path) / "grid.parquet").is_file()
