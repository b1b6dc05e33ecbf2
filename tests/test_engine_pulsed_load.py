"""The load of a calibration switches at the instants that it is given, and speaks JSON lines."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from wattflow.engine import pulsed_load

ROOT = Path(__file__).parent.parent
MS = 1_000_000


def test_the_load_switches_at_its_edges():
    """No work before an on or after an off; an on is stamped before its first work, an off once all has ended."""
    edges_ns = [time.time_ns() + (50 + 40 * k) * MS for k in range(6)]
    worked = []

    def work():
        worked.append(time.time_ns())
        time.sleep(0.003)

    switched = pulsed_load.follow(edges_ns, work)
    for k, (asked, done) in enumerate(zip(edges_ns, switched, strict=True)):
        assert asked <= done
        assert k % 2 == 1 or done <= min(at for at in worked if at >= asked)
    for off, on in zip(switched[1::2], [*edges_ns[2::2], edges_ns[-1] + 10**12], strict=True):
        assert not any(off < at < on for at in worked)


def test_the_load_speaks_json_lines():
    """The pulsed load says that it is ready, answers edges with edges, and ends with its input."""
    process = subprocess.Popen(
        [sys.executable, "-m", "wattflow.engine.pulsed_load"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert json.loads(process.stdout.readline()) == {"ready": "cpu"}
    edges_ns = [time.time_ns() + k * 20 * MS for k in range(1, 5)]
    process.stdin.write(json.dumps({"edges": edges_ns}) + "\n")
    process.stdin.flush()
    answered = json.loads(process.stdout.readline())["edges"]
    assert all(b >= a for a, b in zip(edges_ns, answered, strict=True))
    process.stdin.close()
    assert process.wait(timeout=600) == 0
    process.stdout.close()
