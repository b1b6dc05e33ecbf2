"""How near a point came to what its devices can move and compute: the least work over measured ceilings. Pure.

The least work is model.py's: all weights and the cached keys and values read once a step, two operations a weight and
row. The ceilings are what a copy and a matrix product reached on the same devices in the same attempt.
"""

from typing import Any

from wattflow.config.choices import Config
from wattflow.store.schema import Ceilings, WorkInfo
from wattflow.workload.model import Work, decode_work, prefill_work

Row = dict[str, Any]


def columns(
    config: Config,
    work: WorkInfo | None,
    ceilings: Ceilings | None,
    seconds: tuple[float, float],
    allreduce_us: float | None,
) -> Row:
    """The roofline's columns of a row; null where an engine did not tell its work, or no ceiling was measured.

    `seconds` are those of all prefills and of all decodes; `allreduce_us` is one sum over ranks at the point's batch.
    """
    row: Row = {
        "copy_bytes_per_s": None if ceilings is None else ceilings["copy_bytes_per_s"],
        "product_flops_per_s": None if ceilings is None else ceilings["product_flops_per_s"],
        "ceilings_source": None if ceilings is None else ceilings["source"],
        "allreduce_us": allreduce_us,
    }
    if work is None:
        return row
    prefill_s, decode_s = seconds
    steps = work["decode_steps"]
    row["decode_steps"] = steps
    if steps:
        step = a_step(config, work)
        row |= {"step_bytes": step.read_bytes, "step_flops": step.flops}
        row["decode_bytes_per_s"] = _ratio(step.read_bytes * steps, decode_s)
        row["decode_roofline_share"] = _share(step, ceilings, decode_s / steps)
    row["prefill_roofline_share"] = _share(all_prefills(config, work), ceilings, prefill_s)
    if allreduce_us is not None and steps:
        row["allreduces_per_step"] = 2 * config.model.n_layers
        row["communication_s"] = steps * row["allreduces_per_step"] * allreduce_us / 1e6
        row["communication_share"] = _ratio(row["communication_s"], decode_s)
    return row


def a_step(config: Config, work: WorkInfo) -> Work:
    """The least that one device reads and computes in a mean decode step."""
    rows = work["decode_rows"] / work["decode_steps"]
    length = work["decode_positions"] / work["decode_rows"]
    return decode_work(config.model, config.shards, config.precision, rows, length)


def all_prefills(config: Config, work: WorkInfo) -> Work:
    """The least that one device reads and computes in all prefills: weights once a batch, attention by each length."""
    model, tokens = config.model, work["prefill_tokens"]
    linear = prefill_work(model, config.shards, config.precision, tokens, 1)
    attention = 2 * work["prefill_squares"] * model.n_layers * model.dim / config.shards
    # prefill_work counts the attention of one token a row as well, which the squares hold already
    one_each = 2 * tokens * model.n_layers * model.dim / config.shards
    read = linear.read_bytes * work["prefills"]
    return Work(read, linear.flops - one_each + attention)


def _share(work: Work, ceilings: Ceilings | None, seconds: float) -> float | None:
    if ceilings is None:
        return None
    least_s = work.roofline_s(ceilings["copy_bytes_per_s"], ceilings["product_flops_per_s"])
    return _ratio(least_s, seconds)


def _ratio(value: float, by: float) -> float | None:
    return value / by if by else None
