"""Which tiles of the fast engine's products of one row are best on one GPU, and what whole steps gain by them.

    OUT=results python tests/benchmarks/engine_search.py             one GPU, at most 5 minutes
    DRY=1 OUT=/tmp/results python tests/benchmarks/engine_search.py  a tiny model on the CPU, to try the script

STAGES="batch 1;against transformers" takes some alone, with the kernels' defaults where the search is left out.

In this order, each as far as the time allows: tiles of one row's products, each alone over all layers' weights;
correctness with the best of them; batch 1 with the kernel sets in random order, four windows of 8 s each; batch 64
against transformers. $OUT/search.json is replaced after each stage. The tiles of wattflow/engine/kernels/gemv.py come
from here, the scans of attention from engine_attention.py.
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("DEADLINE_S", "285")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import engine as bench
import torch

from wattflow import tune as stage_tune
from wattflow.engine.ranks import join
from wattflow.engine.tune_windows import Arms
from wattflow.errors import EngineError

DRY, SEVEN, B64, PROMPT, NEW = bench.DRY, bench.SEVEN, bench.B64, bench.PROMPT, bench.NEW
TUNE_S, TUNE_WINDOWS = (0.2, 2) if DRY else (8.0, 4)
say, stage, choices = bench.say, bench.stage, bench.choices

# (rows, block, warps): at least 8 and at most 64 weights of a thread on their way, one block or several a row
TILES = [
    *((1, 4096, w) for w in (2, 4, 8, 16)),
    *((2, 4096, w) for w in (4, 8, 16)),
    *((4, 4096, w) for w in (8, 16)),
    *((1, 2048, w) for w in (1, 2, 4, 8)),
    *((2, 2048, w) for w in (2, 4, 8)),
    *((4, 2048, w) for w in (4, 8)),
    *((1, 1024, w) for w in (1, 2, 4)),
    *((2, 1024, w) for w in (1, 2, 4)),
    *((4, 1024, w) for w in (2, 4, 8)),
    *((8, 1024, w) for w in (4, 8)),
    *((4, 512, w) for w in (1, 2, 4)),
    *((8, 512, w) for w in (2, 4)),
]
WHOLE_ROWS = [(1, 16384, 8), (1, 16384, 16), (2, 16384, 16)]  # for 11,008 inputs


def products(llama):
    """The five kinds of product of a step by name: weights of all layers, norm, whether gated."""
    layers = llama.layers
    return {
        "wqkv": ([x.wqkv for x in layers], layers[0].attention_norm, False),
        "wo": ([x.wo for x in layers], None, False),
        "w13": ([x.w13 for x in layers], layers[0].ffn_norm, True),
        "w2": ([x.w2 for x in layers], None, False),
        "head": ([llama.head], llama.norm, False),
    }


# --- compiling ahead, in as many processes as there are cores ---


def compile_gemv(width, outs, tile, kind):
    """Compile one variant into Triton's cache on disk, which the measuring process then reads."""
    import triton
    from triton.runtime.jit import MockTensor

    from wattflow.engine.kernels import gemv, launch

    launch.Launch.early = True
    rows, block, warps = tile
    bf16 = MockTensor(torch.bfloat16)
    gemv._gemv.warmup(
        *(bf16, bf16, bf16, bf16, bf16, bf16, 1e-5, outs),
        WIDTH=width,
        ROWS=rows,
        BLOCK=min(block, triton.next_power_of_2(width)),
        SCALED=False,
        BIASED=False,
        NORM=kind != "add",
        GATE=kind == "gate",
        ADD=kind == "add",
        num_warps=warps,
        grid=(1,),
        **launch.Launch.options(),
    )


def compile_ahead(found):
    """All variants of the search; those that fail here are named and tried again where they are measured."""
    shapes = [
        *((4096, 12288, "norm"), (4096, 4096, "add"), (4096, 11008, "gate")),
        *((11008, 4096, "add"), (4096, 32000, "norm")),
    ]
    # a shape's number of outputs is no constant of the kernel, so that wqkv and the head share theirs
    work = [
        (compile_gemv, (width, outs, tile, kind))
        for width, outs, kind in shapes[:4]
        for tile in (TILES if width == 4096 else [*TILES, *WHOLE_ROWS])
    ]
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        max(1, min(14, (os.cpu_count() or 2) - 2)), mp_context=context
    ) as pool:
        jobs = [pool.submit(function, *arguments) for function, arguments in work]
        faults = [str(t.exception())[:200] for t in jobs if t.exception() is not None]
    found["compiled"] = len(work) - len(faults)
    found["faults"] = faults[:5]
    say(
        f"compiled {found['compiled']} of {len(work)} in {time.monotonic() - began:.1f} s",
        *faults[:2],
    )


# --- alone ---


def search_tiles(llama, found):
    """The time of every tile for every product, launched early; of the best three also one after another."""
    from wattflow.engine.kernels import gemv, launch

    best = []
    for name, (weights, norm, gate) in products(llama).items():
        values = weights[0].values
        x = torch.randn_like(values[:1])
        stream = None if norm is not None else torch.zeros_like(values[:, 0]).unsqueeze(0)
        size = values.nbytes
        times = {}

        keys = {"norm": norm, "eps": 1e-5, "gate": gate, "stream": stream}

        def measure(tile, early, weights=weights, keys=keys, x=x):
            launch.Launch.early = early
            return gemv.milliseconds_each(weights, lambda w: gemv.gemv(x, w, tile=tile, **keys))

        for tile in TILES if values.shape[1] <= 4096 else [*TILES, *WHOLE_ROWS]:
            try:
                times[tile] = measure(tile, True)
            except Exception as error:  # noqa: BLE001 - a variant that cannot run is one of the results
                say(name, tile, str(error)[:100])
        ranked = sorted(times, key=times.__getitem__)
        old = [t for t in gemv.TILES[:2] if t not in ranked[:3]]
        late = {tile: measure(tile, False) for tile in [*ranked[:2], *old]}
        again = {tile: measure(tile, True) for tile in ranked[:5]}
        ranked = sorted(again, key=again.__getitem__)
        best.append(ranked[0])
        found[name] = {
            "bytes": size,
            "best": ranked[0],
            "early_us": {
                str(t): round(1e3 * ms, 2) for t, ms in sorted(times.items(), key=lambda x: x[1])
            },
            "early_again_us": {str(t): round(1e3 * ms, 2) for t, ms in again.items()},
            "late_us": {str(t): round(1e3 * ms, 2) for t, ms in late.items()},
        }
        first = ranked[0]
        say(
            f"{name}: {first} {1e3 * again[first]:.1f} us = {size / again[first] / 1e9:.2f} TB/s;",
            "then", [(t, round(1e3 * again[t], 1)) for t in ranked[1:4]],
            "late", [(t, round(1e3 * ms, 1)) for t, ms in late.items()],
        )  # fmt: skip
    launch.Launch.early = True
    gemv.TILES = tuple(dict.fromkeys(best))
    found["tiles"] = gemv.TILES


def search(who, found):
    """Set the kernels' module to the best tiles; returns the engine for batch 1, loaded."""
    compile_ahead(found)
    config = choices(
        SEVEN, "cublas", batch_size=1, n_prompts=1, max_gen_len=NEW, max_seq_len=PROMPT + NEW
    )
    arms = Arms(config, who).__enter__()
    with torch.inference_mode():
        search_tiles(arms._engine._llama, found)
    return arms


# --- whole steps ---


def frontier(who, arms, names, found):
    """Windows of decode with each set in random order, as `wattflow tune` makes them, and a fresh one of the last.

    Then shorter windows of the last one, launched early and one after another in turn.
    """
    engine = arms._engine
    for name in names:
        engine.use_kernels(name)
        arms._batch()
    turns = late_too(arms, names[-1]) if who.device != "cpu" else []
    with bench.Meter(who) as meter:
        taken = []
        for name in stage_tune.order(names, TUNE_WINDOWS):
            meter.mark()
            taken.append(arms.window(name, TUNE_S))
            say(f"{name}: {stage_tune.rate(taken[-1]):.1f} tokens/s")
        taken.append(arms.window(names[-1], TUNE_S))
        meter.mark()
    results = [meter.window_result(window) for window in taken]
    found["windows"] = [dataclasses.asdict(result) for result in results]
    found["frontier"] = summaries(results[:-1])
    found["again"] = found["windows"][-1]
    say_shares(found["frontier"])
    bench.save()
    with bench.Meter(who) as meter:
        short = [arms.window(name, TUNE_S / 2) for name in stage_tune.order(turns, 2)]
    found["launches"] = summaries([meter.window_result(window) for window in short])
    say_shares(found["launches"])
    for name in names:
        engine.use_kernels(name)
        found[f"kernels of {name}"] = bench.kernels_of_a_step(who, engine)
        found[f"info of {name}"] = dict(engine.info)


def summaries(results):
    """The rows of `wattflow tune` over some windows."""
    return [dataclasses.asdict(summary) for summary in stage_tune.summaries(results)]


def say_shares(rows):
    """Put the share of copy to each row, and say it."""
    for row in rows:
        row["share_of_copy"] = row["bytes_per_s"] / bench.RESULT["machine"]["copy_bytes_per_s"]
        say(json.dumps({k: v for k, v in row.items() if not k.endswith("half")}))


def late_too(arms, name):
    """Two names of the same kernels: launched early, and one after another."""
    from wattflow.engine.kernels import launch

    engine = arms._engine
    early = engine._kernel_sets[name]
    launch.Launch.early = False
    del engine._kernel_sets[name]
    engine.use_kernels(name)
    late = f"{name}, one after another"
    engine._kernel_sets |= {late: engine._kernel_sets[name], name: early}
    launch.Launch.early = True
    engine.use_kernels(late)
    arms._batch()
    return [name, late]


def correctness(who, found):
    for kernels, rows, temperature in (("auto", 5, 0.0), ("triton", 1, 0.0), ("auto", 5, 0.8)):
        if kernels == "triton" and DRY:
            continue
        check = bench.replay_equals_eager(who, kernels, rows, temperature)
        found[f"{kernels}, {rows} rows, temperature {temperature}"] = check
        say("replay equals eager:", kernels, check)
    for kernels in ("eager",) if DRY else ("cublas", "triton"):
        found[f"bf16 error, {kernels}"] = bench.bf16_error(who, kernels)
    found["float32 equals paper"] = bench.equals_paper(who)
    say(json.dumps({k: v for k, v in found.items() if not isinstance(v, dict)}))


class Run:
    """The stages of a run, and what they hand on: the engine for one row."""

    def __init__(self, who):
        self.who = who
        self.arms = None

    def machine(self, found):
        bench.machine(self.who, found)

    def search(self, found):
        if not DRY:
            self.arms = search(self.who, found)

    def correctness(self, found):
        correctness(self.who, found)

    def batch_1(self, found):
        self.arms = self.arms or batch_1(self.who)
        frontier(self.who, self.arms, ["eager"] if DRY else ["cublas", "triton"], found)

    def transformers(self, found):
        self.close()
        bench.against_transformers(self.who, found)

    def out_of_memory(self, found):
        self.close()
        if not DRY:
            found["told"] = out_of_memory(self.who)
            say(found["told"])

    def close(self):
        if self.arms is not None:
            self.arms.__exit__()
            self.arms = None


def main():
    who = join(0, 1, 0, "node", "", "cpu" if DRY else "cuda", 60.0, 60.0)
    torch.set_num_threads(2)
    bench.NAME = "search.json"
    run = Run(who)
    stages = {  # what does it, seconds that must be left, seconds that it may take
        "machine": (run.machine, 5, 60),
        "search": (run.search, 30, 110),
        "correctness": (run.correctness, 10, 30),
        "batch 1": (run.batch_1, 45, TUNE_S * TUNE_WINDOWS * 2 + 90),
        "out of memory": (run.out_of_memory, 5, 20),
        "against transformers": (run.transformers, 100, 160),
    }
    wanted = os.environ.get("STAGES", ";".join(stages)).split(";")
    for name, (work, least_s, most_s) in stages.items():
        if name == "machine" or name in wanted:
            with stage(name, least_s, most_s) as found:
                if found is not None:
                    work(found)
    run.close()
    bench.RESULT["total"] = {"seconds": time.monotonic() - bench.BEGAN}
    bench.save()


def out_of_memory(who):
    """What the engine says of a batch that no GPU holds."""
    asked = {"batch_size": 2**16, "n_prompts": 1, "max_gen_len": 512, "max_seq_len": 1024}
    try:
        with bench.engine(choices(bench.CHECK, "auto", **asked), who):
            return "it fitted"
    except EngineError as error:
        return str(error)


def batch_1(who):
    """The engine for one row, loaded."""
    keys = {"n_prompts": 1, "max_gen_len": NEW, "max_seq_len": PROMPT + NEW}
    return Arms(choices(SEVEN, "auto", batch_size=1, **keys), who).__enter__()


if __name__ == "__main__":
    main()
