"""`wattflow measure` beside zeus, jpwr and codecarbon on the fake NVML, whose joules are known.

    python tests/benchmarks/peers.py [--env FOLDER] [--cells N] >docs/measurements/peers.json
    python tests/benchmarks/peers.py --page        writes docs/peers.md from that file

Installs the peers into an environment of its own, .venv-peers by default. In each cell all four tools watch one fake
GPU for the same seconds, in a process each; truth is the integral of the fake's power between the instants at which
each of them began and ended. The fake's samples are instants each 20 ms, its counter ticks each 100 ms and is exact.
--cells takes the first N alone, with windows of 1 s; --alone leaves the peers out, and installs nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import fake_nvml
from fake_nvml import curves

ROOT = Path(__file__).resolve().parents[2]
PAGE, RESULT = ROOT / "docs" / "peers.md", ROOT / "docs" / "measurements" / "peers.json"
PACKAGES = {"zeus": "zeus==0.16.0", "jpwr": "jpwr==0.0.10", "codecarbon": "codecarbon==3.3.2"}
LOCKED_MS = (5, 10, 20, 25, 40, 50, 60, 80, 100, 200, 500, 1000)  # to 20 ms samples or 100 ms ticks
UNLOCKED_MS = (7.3, 33.7, 63.1, 104.8, 137.9, 731)
WINDOWS_S = (1, 5, 30)
AT_ONCE = 4  # cells; they wait for the clock, and hardly need the processor
SWING = "150:400"  # W at all times, and W more for half of each period
NODE = "n1"

# what each peer runs in its own environment: seconds in, start, end and joules out
PEERS = {
    "zeus": """
import json, sys, time
from zeus.monitor import ZeusMonitor
monitor = ZeusMonitor(gpu_indices=[0], cpu_indices=[], approx_instant_energy=True)
monitor.begin_window("w", sync_execution=False)
start = time.time_ns()
time.sleep(float(sys.argv[1]))
end = time.time_ns()
found = monitor.end_window("w", sync_execution=False)
print(json.dumps([start, end, sum(found.gpu_energy.values())]))
""",
    "jpwr": """
import json, sys, time
from jpwr.ctxmgr import get_power
from jpwr.gpu.pynvml import power
with get_power([power()], 100) as measured:
    start = time.time_ns()
    time.sleep(float(sys.argv[1]))
    end = time.time_ns()
energy, _ = measured.energy()
print(json.dumps([start, end, 3600 * float(energy.to_numpy().ravel()[-1])]))
""",
    "codecarbon": """
import json, sys, time
from codecarbon import OfflineEmissionsTracker
tracker = OfflineEmissionsTracker(
    country_iso_code="DEU", gpu_ids=[0], measure_power_secs=1, save_to_file=False, log_level="error"
)
tracker.start()
start = time.time_ns()
time.sleep(float(sys.argv[1]))
end = time.time_ns()
tracker.stop()
print(json.dumps([start, end, tracker.final_emissions_data.gpu_energy * 3.6e6]))
""",
}
ABOUT = """\
# Beside other tools

`tests/benchmarks/peers.py` runs `wattflow measure` beside {versions} on a fake NVML
whose power is known: constant, or a square wave of 150 and 550 W. Its samples are instants each 20 ms, their stamps up
to 6 ms off; its counter ticks each 100 ms and is exact, which a real board's is not. All tools watch one GPU at the
same time, in a process each; an error is against the integral of the true power between the instants at which that
tool began and ended. U is wattflow's expanded uncertainty of the sampling, without gain and offset of a board, which
the fake does not have. zeus reads the counter, and for windows within a tick instant power; jpwr polls each 100 ms,
codecarbon each second. The machine had two busy cores, so that polls came late.
"""
WHY = """\
An exact counter beats instants of a square wave nearly always, and by far where the wave is locked to them: the fake's
sees all of the time. On real boards the counter looks at the same moments as the samples, and a load of 20 ms is 8 to
10 % too much for it ([calibrate](calibrate.md)), so that wattflow takes it as a check: where both disagree, U holds
both, and beyond 5 % the row does not count (`counter_contradicts`).
"""
WORK = (
    "import sys, time; import wattflow\nwith wattflow.span('work'): time.sleep(float(sys.argv[1]))"
)


def install(folder: Path) -> Path:
    """Make the peers' environment where it is not there; return its interpreter."""
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        packages = list(PACKAGES.values())
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
        (folder / "installed").touch()
    return python


def cells(only: int | None) -> Iterator[dict[str, Any]]:
    """The cells: constant power, and waves locked to the samples and not, over windows of each length."""
    waves = [(None, False), *((ms, True) for ms in LOCKED_MS), *((ms, False) for ms in UNLOCKED_MS)]
    if only is not None:
        waves = waves[:only]
    for seconds in WINDOWS_S if only is None else WINDOWS_S[:1]:
        for period_ms, locked in waves:
            curve = "constant:350" if period_ms is None else f"square:{SWING}:{period_ms / 1e3}"
            yield {"period_ms": period_ms, "locked": locked, "seconds": seconds, "curve": curve}


def measured(cell: dict[str, Any], python: Path | None, library: Path) -> dict[str, Any]:
    """A cell with the truth, joules and error of each tool."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FAKE_", "SLURM"))}
    environment |= {
        "LD_LIBRARY_PATH": str(library),
        "PATH": f"{library}:{os.environ['PATH']}",  # codecarbon looks for nvidia-smi
        "FAKE_NVML_GPUS": "1",
        "FAKE_NVML_PROCESSES": "0",
        "FAKE_NVML_CURVE": cell["curve"],
        "SLURMD_NODENAME": NODE,
        "CUDA_VISIBLE_DEVICES": "0",
    }
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(PEERS) + 1) as beside:
        jobs = {
            name: beside.submit(
                run, [str(python), "-c", code, str(cell["seconds"])], environment, folder
            )
            for name, code in PEERS.items()
            if python is not None
        }
        ours = beside.submit(with_wattflow, cell, environment, Path(folder))
        tools = {"wattflow": ours.result()}
        for name, job in jobs.items():
            start, end, joules = json.loads(job.result().splitlines()[-1])
            tools[name] = {"start_ns": start, "end_ns": end, "energy_j": joules}
    curve = curves.curve(curves.uuid(NODE, 0), cell["curve"])
    for tool in tools.values():
        tool["truth_j"] = curve.joules(tool.pop("start_ns"), tool.pop("end_ns"))
        tool["error_pct"] = 100 * (tool["energy_j"] / tool["truth_j"] - 1)
    found = {**cell, "tools": tools}
    print(line(found), file=sys.stderr, flush=True)
    return found


def run(command: list[str], environment: dict[str, str], folder: str) -> str:
    """What a command printed."""
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{command[2][:60]}: {done.stderr[-2000:]}")
    return done.stdout


def with_wattflow(
    cell: dict[str, Any], environment: dict[str, str], folder: Path
) -> dict[str, Any]:
    """What `wattflow measure` makes of the work: its joules, U of the sampling alone, and its reasons."""
    import wattflow

    out = folder / "measured"
    command = [sys.executable, "-m", "wattflow.cli", "measure", "--out", str(out), "--"]
    run([*command, sys.executable, "-c", WORK, str(cell["seconds"])], environment, str(folder))
    (row,) = wattflow.open_sweep(out).attempts.to_dicts()
    (path,) = out.glob("points/*/attempt-*/timings/*.parquet")
    spans = [one for one in read(path) if one["phase"] == "work"]
    return {
        "start_ns": spans[0]["start_ns"],
        "end_ns": spans[-1]["end_ns"],
        "energy_j": row["energy_j"],
        "u_j": row["energy_u_j"],
        "reasons": [
            code for code in row["reasons"] if code not in ("no_requests", "tokens_untold")
        ],
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def is_best(cell: dict[str, Any]) -> bool:
    """Whether no peer is nearer to the truth than wattflow."""
    off = {name: abs(tool["error_pct"]) for name, tool in cell["tools"].items()}
    return off["wattflow"] <= min(off.values())


def is_within(cell: dict[str, Any]) -> bool:
    """Whether the truth lies in wattflow's expanded uncertainty of the sampling."""
    ours = cell["tools"]["wattflow"]
    return bool(abs(ours["energy_j"] - ours["truth_j"]) <= 2 * ours["u_j"] + 1e-6)


def line(cell: dict[str, Any]) -> str:
    """A cell as a row of the page's table."""
    ours = cell["tools"]["wattflow"]
    load = "constant" if cell["period_ms"] is None else f"{cell['period_ms']:g}"
    how = "best" if is_best(cell) else "inside U" if is_within(cell) else "**neither**"
    errors = " | ".join(f"{cell['tools'][name]['error_pct']:+.2f}" for name in cell["tools"])
    u_pct = 200 * ours["u_j"] / ours["energy_j"]
    remarks = ", ".join(f"`{code}`" for code in ours["reasons"])
    locked = "yes" if cell["locked"] else ""
    truth = f"{ours['truth_j']:.1f}"
    found = (cell["seconds"], load, locked, truth, errors, f"{u_pct:.2f}", how, remarks)
    return f"| {' | '.join(map(str, found))} |"


def page(found: dict[str, Any]) -> str:
    """The page of what was measured."""
    rows = found["cells"]
    nearest = Counter(
        min(cell["tools"], key=lambda n: abs(cell["tools"][n]["error_pct"])) for cell in rows
    )
    inside = sum(map(is_within, rows))
    neither = sum(not is_best(cell) and not is_within(cell) for cell in rows)
    errors = " | ".join(f"{name}, %" for name in ("wattflow", *PEERS))
    head = f"| s | period, ms | locked | truth, J | {errors} | U, % | wattflow | remarks |"
    counts = ", ".join(f"{name} in {n}" for name, n in nearest.most_common())
    summary = (
        f"The truth is inside wattflow's U in {inside} of {len(rows)} cells; in {neither} wattflow is neither nearest "
        f"nor has it\ninside. Nearest is {counts}."
    )
    about = ABOUT.format(versions=", ".join(found["packages"].values()))
    table = "\n".join([head, f"|{' --- |' * 11}", *map(line, rows)])
    return f"{about}\n{summary}\n\n{table}\n\n{WHY}"


def main() -> int:
    """Measure, or write the page; 1 where wattflow is neither best nor inside U."""
    asked = argparse.ArgumentParser(description="Compare `wattflow measure` with its peers.")
    asked.add_argument("--env", type=Path, default=ROOT / ".venv-peers")
    asked.add_argument("--cells", type=int)
    asked.add_argument("--page", action="store_true")
    asked.add_argument("--alone", action="store_true")
    given = asked.parse_args()
    if given.page:
        PAGE.write_text(page(json.loads(RESULT.read_text())))
        return 0
    python = None if given.alone else install(given.env)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        library = fake_nvml.build(Path(folder))
        wanted = list(cells(given.cells))
        found = list(pool.map(lambda cell: measured(cell, python, library), wanted))
    print(json.dumps({"packages": PACKAGES, "made": time.strftime("%Y-%m-%d"), "cells": found}))
    return int(any(not is_best(cell) and not is_within(cell) for cell in found))


if __name__ == "__main__":
    sys.exit(main())
