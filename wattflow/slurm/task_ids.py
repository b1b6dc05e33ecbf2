"""Slurm's short names for tasks of arrays, and the tasks that they stand for."""

import re
from collections.abc import Iterable


def expand(key: str) -> list[str]:
    """The tasks that 123_[0-2,7%4] stands for: 123_0, 123_1, 123_2 and 123_7; any other key is itself."""
    match = re.fullmatch(r"(\d+)_\[([\d,\-]+)(?:%\d+)?\]", key)
    parts = (
        [re.fullmatch(r"(\d+)(?:-(\d+))?", part) for part in match[2].split(",")] if match else []
    )
    ranges = [(int(part[1]), int(part[2] or part[1])) for part in parts if part is not None]
    if match is None or None in parts or any(last > _LAST_TASK for _, last in ranges):
        return [key]
    return [f"{match[1]}_{task}" for first, last in ranges for task in range(first, last + 1)]


_LAST_TASK = 4_000_000  # that any Slurm can be set to have


def pack(keys: Iterable[str]) -> list[str]:
    """The shortest names for tasks, one a job: 123_[0-2,7], or 123 for a job that is no array."""
    by_job: dict[str, list[int]] = {}
    for key in keys:
        job, _, task = key.partition("_")
        by_job.setdefault(job, []).extend([int(task)] if task else [])
    return [f"{job}_[{_ranges(sorted(tasks))}]" if tasks else job for job, tasks in by_job.items()]


def _ranges(numbers: list[int]) -> str:
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
