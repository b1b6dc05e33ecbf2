"""What `wattflow measure` adds to a command: medians of nine calls of `true`, with and without it.

    python tests/benchmarks/measure.py [CALLS]

Prints a Markdown table with a bare interpreter as the yardstick of the machine, and fails where the goal of 1 s for
start and stop together is missed. The simulated meter has no driver to open; tests/gpu/measure.py tells it on a GPU.
"""

import statistics
import subprocess
import sys
import tempfile
import time

GOAL_S = 1.0
MEASURE = [sys.executable, "-m", "wattflow.cli", "measure", "--set", "power.meter=simulated", "--"]
CALLS = [
    ("python -c pass", [sys.executable, "-c", "pass"]),
    ("true", ["true"]),
    ("wattflow measure -- true", [*MEASURE, "true"]),
]


def main() -> int:
    """Print the table; 1 when the goal was missed."""
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    medians = {}
    print("| call | median, s | least, s | most, s |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for what, command in CALLS:
            taken = []
            for _ in range(calls):
                start = time.perf_counter()
                subprocess.run(command, cwd=folder, capture_output=True, check=True)
                taken.append(time.perf_counter() - start)
            medians[what] = statistics.median(taken)
            print(f"| `{what}` | {medians[what]:.3f} | {min(taken):.3f} | {max(taken):.3f} |")
    added = medians["wattflow measure -- true"] - medians["true"]
    print(f"\nstart and stop add {added:.3f} s; the goal is {GOAL_S:g} s")
    return int(added >= GOAL_S)


if __name__ == "__main__":
    sys.exit(main())
