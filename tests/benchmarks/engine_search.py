"""Which launches, tiles and scans of the fast engine's kernels are best on one GPU, and what whole steps gain by them.

    OUT=results python tests/benchmarks/engine_search.py             one GPU, at most 5 minutes
    DRY=1 OUT=/tmp/results python tests/benchmarks/engine_search.py  a tiny model on the CPU, to try the script

STAGES="batch 1;against transformers" takes some alone, with the kernels' defaults where the search is left out.

In this order, each as far as the time allows: tiles of one row's products and scans of attention, each alone over all
layers' weights or caches; correctness with the best of them; decode of batch 64 with the old and the new kernels in
turn; batch 1 with the kernel sets in random order, four windows of 8 s each; batch 64 against transformers.
$OUT/search.json is replaced after each stage. The defaults in wattflow/engine/kernels come from here.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import multiprocessing
import os
import statistics
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
SCANS = [
    *((block, warps, 3, False) for block, warps in ((16, 2), (16, 4), (32, 4), (32, 8), (64, 4))),
    *((64, 8, 3, False), (16, 1, 3, True)),
    *((32, w, n, True) for w, n in ((1, 3), (2, 2), (2, 3), (2, 4), (4, 3))),
    *((64, w, n, True) for w, n in ((2, 2), (2, 3), (4, 2), (4, 3), (4, 4))),
    *((128, w, n, True) for w, n in ((4, 2), (8, 2), (8, 3))),
]


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
        *(bf16, bf16, bf16, bf16, 1e-5, outs),
        WIDTH=width,
        ROWS=rows,
        BLOCK=min(block, triton.next_power_of_2(width)),
        NORM=kind != "add",
        GATE=kind == "gate",
        ADD=kind == "add",
        num_warps=warps,
        grid=(1,),
        **launch.Launch.options(),
    )


def compile_attend(scan, splits):
    """The same for attention."""
    from triton.runtime.jit import MockTensor

    from wattflow.engine.kernels import attention, launch

    launch.Launch.early = True
    block, warps, stages, cores = scan
    bf16, fp32, i64 = (MockTensor(t) for t in (torch.bfloat16, torch.float32, torch.int64))
    rows = 1 if splits > 1 else B64
    attention._attend.warmup(
        *(bf16, fp32, bf16, bf16, i64, bf16 if splits == 1 else fp32),
        *(bf16 if splits == 1 else fp32, 128**-0.5 * 1.4426950408889634, PROMPT + NEW),
        *(2 * rows * 32 * (PROMPT + NEW) * 128 // 2, 32, 32),
        WIDTH=128,
        SPLITS=splits,
        BLOCK=block,
        TENSOR_CORES=cores,
        LOWEST=attention._LOWEST,
        num_warps=warps,
        num_stages=stages,
        grid=(1, 1),
        **launch.Launch.options(),
    )


def compile_ahead(found):
    """All variants of the search; those that fail here are told and tried again where they are measured."""
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
    work += [(compile_attend, (scan, splits)) for scan in SCANS for splits in (1, 8)]
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        max(1, min(14, (os.cpu_count() or 2) - 2)), mp_context=context
    ) as pool:
        told = [pool.submit(function, *arguments) for function, arguments in work]
        faults = [str(t.exception())[:200] for t in told if t.exception() is not None]
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
        x = torch.randn_like(weights[0][:1])
        stream = None if norm is not None else torch.zeros_like(weights[0][:, 0]).unsqueeze(0)
        size = weights[0].nbytes
        times = {}

        keys = {"norm": norm, "eps": 1e-5, "gate": gate, "stream": stream}

        def measure(tile, early, weights=weights, keys=keys, x=x):
            launch.Launch.early = early
            return gemv.milliseconds_each(weights, lambda w: gemv.gemv(x, w, tile=tile, **keys))

        for tile in TILES if weights[0].shape[1] <= 4096 else [*TILES, *WHOLE_ROWS]:
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


def search_scans(who, llama, rows, found):
    """The time of every scan over `rows` rows of 256 tokens, one layer's cache after another."""
    from wattflow.engine.kernels import attention, gemv, launch

    model = llama._model
    width = model.dim // model.n_heads
    shape = (model.n_layers, 2, rows, model.n_kv_heads, PROMPT + NEW, width)
    cache = torch.empty(shape, device=who.device, dtype=llama.head.dtype)
    for layer in cache:
        layer.normal_()
    qkv = torch.randn((rows, 3 * model.dim), device=who.device, dtype=cache.dtype)
    positions = torch.full((rows,), PROMPT + NEW // 2 - 1, device=who.device)
    held = list(cache)
    times = {}

    def measure(scan, early):
        launch.Launch.early = early
        return gemv.milliseconds_each(
            held, lambda kv: attention.attend(qkv, llama.rotary, kv[0], kv[1], positions, scan)
        )

    programs = (128, 256, 512, 1024) if rows == 1 else (512,)
    for what, limit in itertools.product(SCANS, programs):
        scan = attention.Scan(*what, programs=limit)
        try:
            times[scan] = measure(scan, True)
        except Exception as error:  # noqa: BLE001 - as above
            say("attend", scan, str(error)[:100])
    ranked = sorted(times, key=times.__getitem__)
    size = cache[0].nbytes * (PROMPT + NEW // 2) / (PROMPT + NEW)
    old = attention.PLAIN_SCAN
    late = {scan: measure(scan, False) for scan in (ranked[0], old)}
    lanes, cores = (
        next((s for s in ranked if s.tensor_cores is kind), None) for kind in (False, True)
    )
    found[f"attend, {rows} rows"] = {
        "bytes": size,
        "lanes": lanes and dataclasses.astuple(lanes),
        "tensor_cores": cores and dataclasses.astuple(cores),
        "early_us": {str(dataclasses.astuple(s)): round(1e3 * times[s], 2) for s in ranked},
        "late_us": {str(dataclasses.astuple(s)): round(1e3 * ms, 2) for s, ms in late.items()},
    }
    say(
        f"attend, {rows} rows: {ranked[0]} {1e3 * times[ranked[0]]:.1f} us,",
        f"{size / times[ranked[0]] / 1e9:.2f} TB/s;",
        f"best lanes {lanes} {1e3 * times[lanes]:.1f} us,",
        f"old {1e3 * times.get(old, 0):.1f} us, late {1e3 * late[old]:.1f} us",
    )
    launch.Launch.early = True
    return ranked[0], lanes, cores


def search(who, found):
    """Set the kernels' module to the best tiles and scans; returns the engine for batch 1, loaded."""
    from wattflow.engine.kernels import attention

    compile_ahead(found)
    config = choices(
        SEVEN, "cublas", batch_size=1, n_prompts=1, max_gen_len=NEW, max_seq_len=PROMPT + NEW
    )
    arms = Arms(config, who).__enter__()
    say("loaded", arms._engine.info["attention"])
    with torch.inference_mode():
        llama = arms._engine._llama
        search_tiles(llama, found)
        few, _, _ = search_scans(who, llama, 1, found)
        _, lanes, cores = search_scans(who, llama, B64, found)
    attention.SCANS = {"few": few, "many": lanes}
    arms._engine._kernel_sets = {
        "before": arms._engine._kernel_sets["cublas"]
    }  # captured before the search; its graphs hold a pool
    return arms, {"lanes": lanes, "tensor cores": cores}


# --- whole steps ---


def variants_64(who, many, found):
    """Decode of batch 64 by cuBLAS with the old scan launched late, and the new ones launched early, in turn."""
    from wattflow.engine.kernels import attention, launch

    config = choices(
        SEVEN, "cublas", batch_size=B64, n_prompts=B64, max_gen_len=NEW, max_seq_len=PROMPT + NEW
    )
    variants = {
        "old scan, late": (attention.PLAIN_SCAN, False),
        "old scan": (attention.PLAIN_SCAN, True),
    }
    variants |= {name: (scan, True) for name, scan in many.items() if scan is not None}
    with Arms(config, who) as arms:
        made = arms._engine
        for name, (scan, early) in variants.items():
            attention.SCANS, launch.Launch.early = {**attention.SCANS, "many": scan}, early
            made._kernel_sets[f"before {name}"] = made._kernel_sets.pop(
                "cublas"
            )  # its graphs hold the pool of all
            made.use_kernels("cublas")
            made._kernel_sets[name] = made._kernel_sets["cublas"]
            arms._batch()
        with bench.Meter(who) as meter:
            for count, name in enumerate(stage_tune.order(list(variants), 3)):
                made._use(made._kernel_sets[name])
                meter.mark()
                start, end = arms._batch()
                meter.add(f"{name}:{count}", start, end)
            meter.mark()
        steps = made.last_batch.decode_steps
        read = made.last_batch.bytes_per_step
        for name in variants:
            told = [meter.told(w) for w in meter.spans if w.partition(":")[0] == name]
            row = bench.rates(told[0], steps, B64, read)
            row["ms_per_step"] = statistics.median(t["seconds"] / steps * 1e3 for t in told)
            joules = [t["energy_j"] for t in told]
            row["j_per_token"] = None if None in joules else statistics.median(joules) / steps / B64
            counted = [t["counter_energy_j"] for t in told]
            row["counter_j_per_token"] = (
                None if None in counted else statistics.median(counted) / steps / B64
            )
            found[name] = {**row, "windows": told}
            say(
                name,
                f"{row['ms_per_step']:.3f} ms, {row['j_per_token']} J, by the counter {row['counter_j_per_token']}",
            )
    best = min(many, key=lambda n: found[n]["j_per_token"] or found[n]["ms_per_step"])
    attention.SCANS, launch.Launch.early = {**attention.SCANS, "many": many[best]}, True
    found["taken"] = best


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
        told = bench.replay_equals_eager(who, kernels, rows, temperature)
        found[f"{kernels}, {rows} rows, temperature {temperature}"] = told
        say("replay equals eager:", kernels, told)
    for kernels in ("eager",) if DRY else ("cublas", "triton"):
        found[f"bf16 error, {kernels}"] = bench.bf16_error(who, kernels)
    found["float32 equals paper"] = bench.equals_paper(who)
    say(json.dumps({k: v for k, v in found.items() if not isinstance(v, dict)}))


class Run:
    """The stages of a run, and what they hand on: the engine for one row, and the scans that were found."""

    def __init__(self, who):
        self.who = who
        self.arms = None
        self.many = {}

    def machine(self, found):
        bench.machine(self.who, found)

    def search(self, found):
        if not DRY:
            self.arms, self.many = search(self.who, found)

    def correctness(self, found):
        correctness(self.who, found)

    def batch_1(self, found):
        self.arms = self.arms or batch_1(self.who)
        frontier(self.who, self.arms, ["eager"] if DRY else ["cublas", "triton"], found)

    def batch_64(self, found):
        self.close()
        if self.many:
            variants_64(self.who, self.many, found)

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
        "batch 64": (run.batch_64, 25, 60),
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
