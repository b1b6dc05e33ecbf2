"""A sweep of one load whose power follows a hidden law, through an H100's sensor, as if it had run."""

import pyarrow as pa
from hidden_power import BASE_NS, S, Simulated
from sweeps import Gpu, Made, choices, make_attempt, make_sweep

from wattflow.collect.collect import collect
from wattflow.store.schema import ITERATION, REQUEST, SCHEMA_VERSION, SPAN
from wattflow.store.sources import response_of
from wattflow.store.tables import read_table, write_table

SENSOR = response_of("nvml_buffer", "NVIDIA H100 80GB HBM3", 20.0)


def shifted(table, schema, by_ns, node):
    """A simulated run's table with the attempt's own clock and node."""
    rows = table.to_pylist()
    for row in rows:
        row |= {name: row[name] + by_ns for name in row if name.endswith("_ns") and row[name]}
        row.update({"node": node} if "node" in row else {})
    return pa.Table.from_pylist(rows, schema=schema).replace_schema_metadata(
        {"schema_version": str(SCHEMA_VERSION)}
    )


def swept_load(path):
    """A collected sweep of one point: 30 s of three requests a second on two devices of half the power each."""
    run = Simulated(6, seconds=30, response=SENSOR)
    first = Made([Gpu("GPU-a")])
    half = [Gpu(name, lambda t: run.shown_w(t - first.before_s) / 2) for name in ("GPU-a", "GPU-b")]
    made = Made(
        half,
        batches=1,
        prefill_s=1.0,
        decode_s=float(run.end_s[-1]) - 0.5,
        idle_after_s=4.0,
        tokens=int(run.tokens_out.sum()),
        prompts=len(run.due),
        after_s=6.0,
    )
    load = {"mode": "open", "rate_per_s": 3.0, "ramp_s": 5.0}
    point = choices(shards=2, n_prompts=made.prompts, max_seq_len=4096, workload=load)
    point["engine"]["name"] = "vllm"
    sweep = make_sweep(path, [point])
    attempt = make_attempt(sweep, point, made)
    node = attempt.read_record()["ranks"][0]["node"]
    spans = read_table(attempt.spans_path(node), SPAN).to_pylist()
    for row in spans:
        if row["tokens_in"]:  # those of the requests below
            row["tokens_in"] = row["tokens_computed"] = int(run.tokens_in.sum())
    write_table(attempt.spans_path(node), shifted(pa.Table.from_pylist(spans, SPAN), SPAN, 0, node))
    by_ns = min(row["start_ns"] for row in spans if row["phase"] == "prefill") - BASE_NS
    write_table(attempt.iterations_path(node), shifted(run.iterations, ITERATION, by_ns, node))
    rows = run.requests.to_pylist()
    for row, due_s in zip(rows, run.due, strict=True):
        row |= {"due_ns": BASE_NS + round(due_s * S), "sent_ns": BASE_NS + round(due_s * S)}
        row |= {"end_ns": run.iterations["end_ns"][row["token_steps"][-1]].as_py()}
    write_table(
        attempt.requests_path, shifted(pa.Table.from_pylist(rows, REQUEST), REQUEST, by_ns, node)
    )
    collect(sweep)
    return sweep, run
