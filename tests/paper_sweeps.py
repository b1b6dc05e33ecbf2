"""Makes collected sweeps of the paper's grids whose rows are known: no attempt is run, the tables alone are written."""

from pathlib import Path
from typing import Any

import pyarrow as pa
from sweeps import choices, id_of, make_sweep

from wattflow.paper.plans import sweep_name
from wattflow.store.columns import POINT, choice_values
from wattflow.store.layout import SweepDir
from wattflow.store.tables import write_table

MEASURED = {
    "attempt": 1,
    "status": "finished",
    "counts": True,
    "valid": True,
    "reasons": [],
    "boundary": "gpu",
    "simulated": False,
    "power_source": "nvml_buffer",
    "energy_u_j": 1e-3,
    "gpu_name": "NVIDIA H200",
    "cap_bound": True,
}


def row_of(point: dict[str, Any], **measured: Any) -> dict[str, Any]:
    """A row of results: the point's choices, and what was measured; `gpus` boards unless named."""
    of = {**choice_values(point), "point_id": id_of(point), **MEASURED, "gpus": point["shards"]}
    of["boards"] = [f"GPU-{k}" for k in range(measured.get("gpus", of["gpus"]))]
    of |= measured
    if of["counts"] and of.get("energy_j") and of.get("duration_s"):
        of.setdefault("power_w", of["energy_j"] / of["duration_s"])
    return of


def write_rows(
    folder: Path, grid: str, rows: list[tuple[dict[str, Any], dict[str, Any]]], scale: str = "full"
) -> SweepDir:
    """A sweep of one of the paper's grids, collected: choices and what was measured of each point."""
    points = [choices(**chosen) for chosen, _ in rows]
    sweep = make_sweep(folder / sweep_name(scale, grid, points[0]["cluster"]["name"]), points)
    filled = [row_of(point, **measured) for point, (_, measured) in zip(points, rows, strict=True)]
    table = pa.Table.from_pylist(filled, schema=POINT)
    write_table(sweep.points_path, table.replace_schema_metadata({"schema_version": "1"}))
    return sweep


TIME = {256: (6.23, 15.33), 512: (6.51, 21.70), 1024: (7.40, 21.65)}
ENERGY = {256: (-21.82, -32.76), 512: (-23.95, -34.66), 1024: (-23.87, -34.59)}
RATE = {256: (-5.87, -13.15), 512: (-6.11, -17.83), 1024: (-6.89, -17.80)}


def table_three(folder: Path, repeats: int = 1, **over: Any) -> SweepDir:
    """Nine settings whose times, joules and rates are those of the printed Table III, on four boards."""
    rows = []
    for length in TIME:
        for i, cap in enumerate((250, 175, 150)):
            changes = (
                (0.0, 0.0, 0.0)
                if i == 0
                else (TIME[length][i - 1], ENERGY[length][i - 1], RATE[length][i - 1])
            )
            time, energy, rate = (1 + change / 100 for change in changes)
            for k in range(repeats):
                chosen = {
                    "model__name": "llama-65b",
                    "dataset__name": "gsm8k",
                    "shards": 4,
                    "max_gen_len": length,
                    "control__power_limit_w": cap,
                    "repeat": k,
                }
                measured = {
                    "duration_s": 200.0 * time * (1 + 1e-4 * (k % 2)),
                    "energy_j": 190_000.0 * energy * (1 + 1e-4 * (k % 2)),
                    "tokens_per_s": 80.0 * rate,
                    "gpu_name": "NVIDIA A100 80GB PCIe",
                }
                rows.append((chosen, measured | over))
    return write_rows(folder, "paper-caps", rows)
