"""How near a point came to what its devices can move and compute: the least work over measured ceilings.

The least work is that of workload/model.py: all weights and the cached keys and values read once a step, two
operations a weight and row. The ceilings are what a copy and a matrix product reached on the same devices in the same
attempt.
"""

from dataclasses import dataclass, replace
from typing import cast

from wattflow.config.choices import Config
from wattflow.nullable import quotient
from wattflow.store.schema import Ceilings, Record, WorkInfo
from wattflow.workload.model import Work, decode_work, prefill_work, query_width


@dataclass(frozen=True)
class Roofline:
    """Columns of results/points.parquet, null where an engine did not report its work, or no ceiling was measured."""

    decode_steps: int | None = None
    step_bytes: float | None = None
    step_flops: float | None = None
    decode_bytes_per_s: float | None = None
    copy_bytes_per_s: float | None = None
    product_flops_per_s: float | None = None
    ceilings_source: str | None = None
    decode_roofline_share: float | None = None
    prefill_roofline_share: float | None = None
    allreduce_us: float | None = None
    allreduces_per_step: int | None = None
    communication_s: float | None = None


def of_record(
    config: Config, record: Record, prefill_s: float | None, decode_s: float | None
) -> Roofline:
    """Return the roofline of an attempt by what its engine reported and the times of its prefills and decodes."""
    work, ceilings = record.get("work"), record.get("ceilings")
    if (work is None and ceilings is None) or prefill_s is None or decode_s is None:
        return Roofline()
    by_rows = cast("dict[str, float]", record.get("engine", {}).get("allreduce_us") or {})
    most_rows = max(by_rows, key=int, default=None)
    allreduce_us = None if most_rows is None else float(by_rows[most_rows])
    return roofline(config, work, ceilings, (prefill_s, decode_s), allreduce_us)


def roofline(
    config: Config,
    work: WorkInfo | None,
    ceilings: Ceilings | None,
    seconds: tuple[float, float],
    allreduce_us: float | None,
) -> Roofline:
    """Return the shares of the limits that were reached.

    `seconds` are those of all prefills and of all decodes; `allreduce_us` is one sum over ranks at the point's batch.
    """
    found = Roofline(allreduce_us=allreduce_us)
    if ceilings is not None:
        found = replace(
            found,
            copy_bytes_per_s=ceilings["copy_bytes_per_s"],
            product_flops_per_s=ceilings["product_flops_per_s"],
            ceilings_source=ceilings["source"],
        )
    if work is None:
        return found
    prefill_s, decode_s = seconds
    steps = work["decode_steps"]
    prefills = _share(all_prefills(config, work), ceilings, prefill_s)
    found = replace(found, decode_steps=steps, prefill_roofline_share=prefills)
    if not steps:
        return found
    step = a_step(config, work)
    found = replace(
        found,
        step_bytes=step.read_bytes,
        step_flops=step.flops,
        decode_bytes_per_s=quotient(step.read_bytes * steps, decode_s),
        decode_roofline_share=_share(step, ceilings, decode_s / steps),
    )
    if allreduce_us is None:
        return found
    sums = 2 * config.model.n_layers
    return replace(
        found, allreduces_per_step=sums, communication_s=steps * sums * allreduce_us / 1e6
    )


def a_step(config: Config, work: WorkInfo) -> Work:
    """Return the least that one device reads and computes in a mean decode step."""
    rows = work["decode_rows"] / work["decode_steps"]
    length = work["decode_positions"] / work["decode_rows"]
    return decode_work(config.model, config.shards, config.precision, rows, length)


def all_prefills(config: Config, work: WorkInfo) -> Work:
    """Return the least that one device reads and computes in all prefills: weights once a batch."""
    model, tokens = config.model, work["prefill_tokens"]
    linear = prefill_work(model, config.shards, config.precision, tokens, 1)
    each = 2 * model.n_layers * query_width(model) / config.shards
    # prefill_work counts the attention of one token a row as well, which the squares hold already
    attention = each * (work["prefill_squares"] - tokens)
    read = linear.read_bytes * work["prefills"]
    return Work(read, linear.flops + attention)


def _share(work: Work, ceilings: Ceilings | None, seconds: float) -> float | None:
    if ceilings is None:
        return None
    least_s = work.roofline_s(ceilings["copy_bytes_per_s"], ceilings["product_flops_per_s"])
    return quotient(least_s, seconds)
