"""Kill the sidecar at random moments while it records fake GPUs whose joules are known, and count what its traces lack.

    python tests/chaos/sidecar_kills.py --kills 100 --seed 1     # over 250 ms lost or joules off by 0.1 %: exits with 1

Each attempt is killed four times: of five sidecars in a row that fail at once the parent would give up.
"""

import argparse
import ctypes
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a program: what the tests share

import fake_nvml
import numpy as np
from fake_nvml import curves

from wattflow.config.choices import Power
from wattflow.energy import curve
from wattflow.power.sidecar_client import Sidecar
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import TRACE
from wattflow.store.tables import read_table

KILLS_AN_ATTEMPT = 4
MOST_LOST_MS, MOST_OFF = 250.0, 1e-3


def recorded(folder: Path, number: int, random_: random.Random) -> list[tuple[float, float]]:
    """What one attempt of four kills lacks on each GPU: ms not covered, and how far its joules are off."""
    attempt = AttemptDir(folder / f"attempt-{number}", "0123456789ab", number)
    attempt.path.mkdir()
    attempt.make_folders()
    with Sidecar(Power(meter="nvml"), "n1", folder / "spool") as sidecar:
        sidecar.start(attempt)
        start_ns = time.time_ns()
        for _ in range(KILLS_AN_ATTEMPT):
            time.sleep(random_.uniform(0.05, 1.2))
            killed = sidecar.pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            while sidecar.pid == killed:
                time.sleep(0.005)
        time.sleep(1.0)
        end_ns = time.time_ns()
        told = sidecar.stop()
    assert told["sidecar_restarts"] == KILLS_AN_ATTEMPT
    found = []
    for device in told["devices"]:
        trace = read_table(attempt.trace_path("n1", device["uuid"]), TRACE)
        samples = trace.filter(np.array(trace["source"].to_pylist()) == told["source"])
        columns = (samples[name].to_numpy() for name in ("time_ns", "power_w", "gap"))
        windows = curve.between(curve.curve(*columns), [start_ns], [end_ns])
        lost_ms = float(windows.window_ns[0] - windows.covered_ns[0]) / 1e6
        truth_j = curves.curve(device["uuid"]).joules(start_ns, end_ns)
        found.append((lost_ms, abs(float(windows.energy_j[0]) / truth_j - 1)))
    return found


def main() -> int:
    """Print what was lost; 1 where it was too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    random_ = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["LD_LIBRARY_PATH"] = str(fake_nvml.build(folder / "nvml"))
        os.environ["SLURMD_NODENAME"] = "n1"
        ctypes.CDLL(str(folder / "nvml" / "libnvidia-ml.so.1"))
        attempts = -(-asked.kills // KILLS_AN_ATTEMPT)
        found = [one for k in range(attempts) for one in recorded(folder, k + 1, random_)]
    lost_ms, off = np.array(found).T
    print(
        f"{attempts * KILLS_AN_ATTEMPT} kills over {attempts} attempts of 2 GPUs: most lost on one GPU, by "
        f"{KILLS_AN_ATTEMPT} kills, {lost_ms.max():.0f} ms; joules off by at most {100 * off.max():.3f} %"
    )
    return int(lost_ms.max() > MOST_LOST_MS or off.max() > MOST_OFF)


if __name__ == "__main__":
    sys.exit(main())
