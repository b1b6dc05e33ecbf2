"""What verifying costs of one attempt of an hour on 32 GPUs at 50 Hz, beside collecting it, and how large a bundle is.

    python tests/benchmarks/verify.py [CALLS [SECONDS]]     # 5 calls, 3,600 s

Each in a process of its own. Prints a Markdown table; fails where the untouched sweep or its bundle does not verify.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]  # run as a program

from collect import made  # noqa: E402 - the path

STEP = """
import json, resource, sys, time
from pathlib import Path
from wattflow.publish.bundle import bundle
from wattflow.collect.collect import collect
from wattflow.store.layout import SweepDir
from wattflow.publish.verify import verify
step, sweep, packed = sys.argv[1:]
began = time.perf_counter()
if step == "collect":
    collect(SweepDir(Path(sweep)))
elif step == "bundle":
    bundle(SweepDir(Path(sweep)), Path(packed))
else:
    assert verify(Path(packed if step == "verify the bundle" else sweep)).verified
took_s = time.perf_counter() - began
print(json.dumps([took_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""
STEPS = ("collect", "verify", "bundle", "verify the bundle")


def main() -> None:
    """Print the table."""
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    window_s = float(sys.argv[2]) if len(sys.argv) > 2 else 3600.0
    with tempfile.TemporaryDirectory() as folder:
        sweep, _ = made(Path(folder) / "s", 0.02, window_s)
        packed = Path(folder) / "s.zip"
        taken: dict[str, list[float]] = {step: [] for step in STEPS}
        peak_mb = dict.fromkeys(STEPS, 0.0)
        for _ in range(calls):
            packed.unlink(missing_ok=True)
            for path in sweep.results.rglob("*.parquet"):
                path.unlink()
            for step in STEPS:
                command = [sys.executable, "-c", STEP, step, str(sweep.path), str(packed)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                took_s, memory_mb = json.loads(done.stdout)
                taken[step].append(took_s)
                peak_mb[step] = max(peak_mb[step], memory_mb)
        print("| step | median, s | least, s | most, s | over collect | memory, MB |")
        print("| --- | --- | --- | --- | --- | --- |")
        base_s = statistics.median(taken["collect"])
        for step, some in taken.items():
            median_s = statistics.median(some)
            print(
                f"| {step} | {median_s:.2f} | {min(some):.2f} | {max(some):.2f} | {median_s / base_s:.2f} | "
                f"{peak_mb[step]:.0f} |"
            )
        raw_mb = sum(path.stat().st_size for path in sweep.path.glob("points/*/*/traces/*")) / 1e6
        print(f"\nraw traces {raw_mb:.1f} MB, the bundle {packed.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
