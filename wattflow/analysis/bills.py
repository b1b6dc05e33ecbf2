"""What each attempt took and costs: GPU-hours, kWh, price and carbon, by the factors that its site profile declares."""

import csv
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from wattflow.analysis import cost
from wattflow.analysis.expanded import expanded as expanded_u
from wattflow.config.checks import check_cost
from wattflow.config.choices import Cost
from wattflow.config.overrides import with_cost
from wattflow.errors import RefusedError
from wattflow.store.columns import COST
from wattflow.store.files import expanded, read_given
from wattflow.store.sources import DEVICES, source_of

Row = Mapping[str, Any]  # of results/points.parquet


def table(rows: Sequence[Row], settings: Sequence[str] = ()) -> pa.Table:
    """Return a row of columns.COST an attempt; `settings` are `cluster.cost.KEY=VALUE`, in place of what is declared.

    RefusedError for a factor without a source, or a table of factors that cannot be read.
    """
    tried = [row for row in rows if row["attempt"] is not None]
    factors = {
        declared: _factors(with_cost(Cost(**json.loads(declared or "{}")), settings))
        for declared in dict.fromkeys(row["cluster_cost"] for row in tried)
    }
    bills = [
        {**row, **_kind(row), **vars(cost.bill(_used(row), factors[row["cluster_cost"]]))}
        for row in tried
    ]
    return pa.Table.from_pylist(bills, schema=COST)


def _kind(row: Row) -> dict[str, Any]:
    """Return what the joules of an attempt are of, also of one that did not finish, and its GPU-hours."""
    source = row["power_source"] or row["unfinished_source"]
    boundary = row["boundary"]
    if (
        boundary is None or " + " in boundary
    ):  # of an attempt without joules, or of several without a sum
        boundary = source_of((source or "").split(" + ")[0]).boundary
    return {
        "power_source": source,
        "boundary": None if source is None else boundary,
        "simulated": None if source is None else "simulated" in source.split(" + "),
        "gpu_hours": _gpu_hours(row) if boundary in DEVICES else None,
    }


def _gpu_hours(row: Row) -> float | None:
    """Return the GPUs of an attempt times the time for which it had them, where both are known."""
    declared = (
        row["shards"] * (row.get("pipeline") or 1) if row["cluster_gpu_model"] else None
    )  # of one whose ranks left no record
    gpus = row["gpus"] or len(row["boards"] or ()) or declared
    seconds = row["attempt_s"] or row["unfinished_s"]
    return gpus * seconds / cost.HOUR_S if gpus and seconds else None


def _used(row: Row) -> cost.Used:
    """Return what an attempt's row says that it took, and when."""
    seconds = row["attempt_s"] or row["unfinished_s"]
    energy_j = row["job_energy_j"]
    if energy_j is not None and row["command"] is None:  # that of a command holds all phases
        energy_j += row["reference_energy_j"] or 0.0
    source = row["power_source"] or row["unfinished_source"]
    u_j = row["unfinished_energy_u_j"] if row["job_energy_j"] is None else row["job_energy_u_j"]
    taken_j = row["unfinished_energy_j"] if energy_j is None else energy_j
    start_ns = None if row["started"] is None else round(row["started"].timestamp() * 1e9)
    end_ns = None if start_ns is None or not seconds else start_ns + round(seconds * 1e9)
    return cost.Used(
        energy_j=taken_j,
        energy_per_token_j=row["energy_per_token_j"],
        start_ns=start_ns,
        end_ns=end_ns,
        energy_expanded_u_j=None if source is None else expanded_u(row, taken_j, seconds, u_j),
        energy_per_token_expanded_u_j=row["energy_per_token_expanded_u_j"],
    )


def _factors(declared: Cost) -> cost.Factors:
    """Return the factors as they can be used; RefusedError where one lacks its source, or its table cannot be read."""
    check_cost(declared)
    return cost.Factors(
        price=_factor(
            declared.price_per_kwh, declared.price_path, "price_per_kwh", declared.price_source
        ),
        currency=declared.currency,
        carbon=_factor(
            declared.carbon_g_per_kwh, declared.carbon_path, "g_per_kwh", declared.carbon_source
        ),
        pue=declared.pue,
        pue_source=declared.pue_source,
    )


def _factor(
    value: float | None, path: str | None, column: str, source: str | None
) -> cost.Factor | None:
    if value is not None:
        return cost.Factor(source or "", (value,))
    return None if path is None else _read_factor(path, column, source or "")


def _read_factor(path: str, column: str, source: str) -> cost.Factor:
    try:
        return cost.table(read_given(expanded(path)).decode(), column, source)
    except (OSError, ValueError, csv.Error) as error:
        raise RefusedError(
            f"{path}: {getattr(error, 'strerror', None) or error}. It has to be a CSV with the columns time (ISO 8601 "
            f"with an offset, rising) and {column}."
        ) from error
