"""How long a person on a login node waits for the prompt: medians of five calls, each a process of its own.

    python tests/benchmarks/login.py

Prints a Markdown table with a bare interpreter as the yardstick of the machine, and fails where a goal is missed.
"""

import statistics
import subprocess
import sys
import tempfile
import time

WATTFLOW = [sys.executable, "-m", "wattflow.cli"]
CALLS = [  # what, command, goal in seconds
    ("python -c pass", [sys.executable, "-c", "pass"], None),
    ("wattflow --help", [*WATTFLOW, "--help"], 0.3),
    ("wattflow plan grid=demo (8 points)", [*WATTFLOW, "plan", "grid=demo"], 1.0),
]


def median_s(command: list[str], folder: str) -> float:
    """The median wall-clock time of five calls."""
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(command, cwd=folder, capture_output=True, check=True)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> int:
    """Print the table; 1 when a goal was missed."""
    missed = False
    print("| call | median of 5, s | goal, s |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for what, command, goal in CALLS:
            median = median_s(command, folder)
            missed = missed or (goal is not None and median >= goal)
            print(f"| `{what}` | {median:.3f} | {'' if goal is None else goal} |")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
