"""Sum up what one of the scripts measured, as JSON on stdout: the machine, the commands, a row an attempt.

python tests/gpu/measured.py h100|h200x2 WORK COMMIT-FILE
"""

import json
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

import pyarrow.parquet as pq

WINDOW = ("prefill", "decode", "other")


def machine() -> dict[str, object]:
    """What computed: processor, kernel, Python and what it brings. GPUs and driver stand in each row."""
    info = Path("/proc/cpuinfo").read_text()
    names = [line.partition(":")[2].strip() for line in info.splitlines() if "model name" in line]
    packages = ("torch", "triton", "nvidia-ml-py", "pyarrow", "fairscale", "submitit", "hydra-core")
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": found,
    }


def shown(text: str, work: Path) -> str:
    """Text without what names this one machine: paths below the working folder, and all but the start of UUIDs."""
    return re.sub(r"(GPU-[0-9a-f]{8})-[-0-9a-f]{27}", r"\1", text.replace(f"{work}/", ""))


def node_shown(node: str) -> str:
    """A node's name: Slurm's, or `host` for a machine that is no node."""
    return node if node != platform.node().split(".")[0] else "host"


def per_gpu(sweep: Path) -> dict[tuple[str, int], list[dict[str, object]]]:
    """Each device's energy in the measured window, by attempt; its UUID is nobody's business, its place is."""
    table = pq.read_table(sweep / "results" / "phases.parquet").to_pylist()
    out: dict[tuple[str, int], dict[tuple[str, str], float]] = {}
    for row in table:
        if row["phase"] in WINDOW and row["energy_j"] is not None:
            devices = out.setdefault((row["point_id"], row["attempt"]), {})
            who = (row["node"], row["gpu_uuid"])
            devices[who] = devices.get(who, 0.0) + row["energy_j"]
    return {
        attempt: [
            {"node": node_shown(node), "gpu": place, "energy_j": joules}
            for place, ((node, _), joules) in enumerate(sorted(devices.items()))
        ]
        for attempt, devices in out.items()
    }


def rows(sweep: Path) -> list[dict[str, object]]:
    """One row an attempt, or a point never tried, with its devices' joules."""
    if not (sweep / "results" / "points.parquet").is_file():
        return []
    devices = per_gpu(sweep)
    table = pq.read_table(sweep / "results" / "points.parquet")
    # where things lie and how the site was asked concern this machine alone
    kept = [name for name in table.column_names if not name.startswith("cluster_")]
    kept = [name for name in kept if not name.endswith(("path", "record_stamp_ns"))]
    table = table.select(kept).to_pylist()
    for row in table:
        row["devices"] = devices.get((row["point_id"], row["attempt"]), [])
        row["started"] = str(row["started"])
        row["node_names"] = [node_shown(node) for node in row["node_names"] or []]
    return table


def main(script: str, work: Path, commit: Path) -> None:
    """Print everything that is there by now."""
    commands = work / "commands.txt"
    sweeps = sorted(work.glob("sweeps/*")) + sorted(work.glob("user/sweeps/*"))
    told = {
        "script": f"tests/gpu/{script}.sh",
        "commit": commit.read_text().strip() if commit.is_file() else None,
        "machine": machine(),
        "commands": commands.read_text().splitlines() if commands.is_file() else [],
        "sweeps": {sweep.name: rows(sweep) for sweep in sweeps},
        "doctor": {
            path.stem.removeprefix("doctor-"): json.loads(path.read_text())
            for path in sorted(work.glob("doctor-*.json"))
            if path.stat().st_size
        },
        "told": {path.stem: path.read_text() for path in sorted(work.glob("told/*.txt"))},
    }
    print(shown(json.dumps(told, indent=1), work))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
