"""A made-up board that runs points by a law of its own, near the form of predictions and not it."""

import math
from dataclasses import replace

import numpy as np
from sweeps import Gpu, Made, constant, make_attempt, make_sweep, resolved

from wattflow.analysis.sweep import open_sweep
from wattflow.collect.collect import collect
from wattflow.config.choices import Model, to_dict
from wattflow.predict.form import Ceilings
from wattflow.predict.runs import Measured
from wattflow.workload.model import decode_work, prefill_work

CEILINGS = Ceilings(4.0e12, 800e12)
MODELS = {
    "small": Model(
        name="small",
        dim=2048,
        n_layers=24,
        n_heads=16,
        n_kv_heads=16,
        ffn_dim=5504,
        vocab_size=32000,
    ),
    "7b": Model(
        name="7b", dim=4096, n_layers=32, n_heads=32, n_kv_heads=32, ffn_dim=11008, vocab_size=32000
    ),
    "13b": Model(
        name="13b",
        dim=5120,
        n_layers=40,
        n_heads=40,
        n_kv_heads=40,
        ffn_dim=13824,
        vocab_size=32000,
    ),
    "gqa": Model(
        name="gqa",
        dim=4096,
        n_layers=32,
        n_heads=32,
        n_kv_heads=8,
        ffn_dim=14336,
        vocab_size=128256,
    ),
}
PROMPT = 92.0
NOISE = 0.01
_STATIC_W, _BYTE_J, _FLOP_J = 140.0, 62e-12, 0.42e-12


def config(model="7b", batch=8, length=128, prompts=64, **more):
    """Resolved choices of a point."""
    made = resolved(
        batch_size=batch,
        max_gen_len=length,
        n_prompts=prompts,
        engine__name="fast",
        stop="length",
        **more,
    )
    dataset = replace(made.dataset, name="alpaca")
    cluster = replace(made.cluster, gpu_model="board", name="site")
    return replace(made, model=MODELS[model], dataset=dataset, cluster=cluster)


def truth(point, cap_w=None):
    """Return the seconds and joules of a point on one GPU, without noise.

    Reading and computing overlap softly (a norm of power 4), kernels reach 0.9 and 0.75 of the ceilings, each layer
    takes 9 us to launch; a cap, where there is one, slows what takes more watts.
    """
    steps, seconds, joules = point.max_gen_len - 1, 0.0, 0.0
    for rows in batches(point):
        length = PROMPT + point.max_gen_len / 2
        decode = decode_work(point.model, 1, point.precision, rows, length)
        prefill = prefill_work(point.model, 1, point.precision, rows, round(PROMPT))
        for work, times in ((decode, steps), (prefill, 1)):
            read = work.read_bytes / CEILINGS.copy_bytes_per_s / 0.9
            compute = work.flops / CEILINGS.product_flops_per_s / 0.75
            took = (read**4 + compute**4) ** 0.25 + 9e-6 * point.model.n_layers
            dynamic = _BYTE_J * work.read_bytes + _FLOP_J * work.flops
            if cap_w is not None and _STATIC_W + dynamic / took > cap_w:
                took = dynamic / (cap_w - _STATIC_W)
            seconds += times * took
            joules += times * (dynamic + _STATIC_W * took)
    return seconds, joules


def batches(point):
    """Return the rows of each batch."""
    whole, rest = divmod(point.n_prompts, point.batch_size)
    return [point.batch_size] * whole + [rest] * bool(rest)


def run(point, rng, cap_w=None, noise=NOISE):
    """Return one noisy run of a point."""
    seconds, joules = truth(point, cap_w)
    off = np.exp(noise * rng.standard_normal(2))
    return Measured(
        point, PROMPT, CEILINGS, seconds * off[0], joules * off[1], gpu_name="board", boundary="gpu"
    )


def grid(models=("small", "7b", "13b"), batch_sizes=(1, 4, 16, 64), lengths=(64, 256)):
    """Return the points of a grid."""
    return [
        config(m, b, n, prompts=max(16, 2 * b))
        for m in models
        for b in batch_sizes
        for n in lengths
    ]


def relative(found, true):
    """Return how far off a number is."""
    return abs(math.log(found / true))


SLOWER = 4000.0  # than `truth` says: windows of a tiny model are then long enough to be sampled


def run_sweep(made, started_s=0.0, only=lambda point: True):
    """Collect a sweep of a plan in which each point took what `truth` says, on one board, and return it opened."""
    sweep = make_sweep(made.sweep.path, [to_dict(point.config) for point in made.points])
    for k, point in enumerate(made.points):
        if not only(point.config):
            continue
        seconds, joules = truth(point.config)
        count = len(batches(point.config))
        attempt = make_attempt(
            sweep,
            to_dict(point.config),
            Made(
                [Gpu("GPU-1", constant(joules / seconds))],
                batches=count,
                prefill_s=0.2 * seconds * SLOWER / count,
                decode_s=0.8 * seconds * SLOWER / count,
                pause_s=0.0,
                prompts=point.config.batch_size,
                tokens=point.config.batch_size * point.config.max_gen_len,
                started_s=started_s + 600.0 * k,
            ),
        )
        record = attempt.read_record()
        ceilings = {"copy_bytes_per_s": 4.0e12, "product_flops_per_s": 800e12, "source": "run"}
        attempt.write_record({**record, "ceilings": ceilings})
    collect(sweep)
    return open_sweep(sweep.path)
