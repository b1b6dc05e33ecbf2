"""Attention, packed prefills, fp8 and the copy ceiling of the fast engine on one GPU: right first, then how quick.

    OUT=results python tests/benchmarks/engine_attention.py             one GPU, at most 3 minutes
    DRY=1 OUT=/tmp/results python tests/benchmarks/engine_attention.py  tiny shapes on the CPU, to try the script

STAGES="attention;prefill" takes some alone. Llama-3.1-8B's heads: 32 over 8 KV heads of 128. Decode attention reads one
query a row; its bytes are keys and values read once, their share is of a copy's bytes read and written. Ours also turns
its queries and writes its key, which the others find done. $OUT/attention.json is replaced after each stage. The scans
of wattflow/engine/kernels/attention.py come from here.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import multiprocessing
import os
import random
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("DEADLINE_S", "170")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import engine as bench
import engine_vllm
import torch
from torch.nn import functional

from wattflow.engine import ceilings, ops, packed, products
from wattflow.engine.fast import Fast
from wattflow.engine.llama import rotary_table
from wattflow.engine.ranks import join

DRY, say, stage = bench.DRY, bench.say, bench.stage
EIGHT = engine_vllm.shapes()
WIDTH = EIGHT.dim // EIGHT.n_heads
ROWS = (1, 2) if DRY else (64, 256, 1)
LENGTHS = (9, 20) if DRY else (177, 1024, 4096)
BEYOND_L2 = 2**16 if DRY else 2**29  # bytes of caches or matrices that are read in turn
MOST_LAYERS = 3 if DRY else 192
TOKENS = (1, 3) if DRY else (1, 8, 64, 256, 8192)

# keys at a time, warps, blocks on their way
SCANS = [
    *((16, 1, n) for n in (3, 4)),
    *((32, w, n) for w, n in ((1, 3), (1, 4), (2, 2), (2, 3), (2, 4), (4, 3))),
    *((64, w, n) for w, n in ((1, 3), (2, 2), (2, 3), (4, 2), (4, 3), (4, 4), (8, 3))),
    *((128, w, n) for w, n in ((4, 2), (4, 3), (8, 2), (8, 3))),
]


# --- right ----------------------------------------------------------------------------------------


def right(who, found):
    """What the engine's own checks say here, replays against eager steps, and float32 against `paper`."""
    device = torch.device(who.device)
    faults = found["faults by check"] = {"fp8 products": products.why_no_scaled(device)}
    if not DRY:
        from wattflow.engine.kernels import check
        from wattflow.engine.kernels.launch import Launch

        for kind, heads, rows in (
            (torch.bfloat16, 32, 64),
            (torch.float16, 32, 64),
            (torch.float32, 8, 64),
        ):
            rotary = rotary_table(EIGHT, 384, kind, who.device).contiguous()
            cache = torch.zeros(1, 2, rows, 8, 384, 128, dtype=kind, device=device)
            faults[f"kernels, {kind}"] = check.why_not(cache, rotary, heads, None)
        found["early"] = Launch.early
        faults["fp8 kernels"] = check.why_not_fp8(torch.bfloat16, device)
        faults["varlen"] = packed.why_not_varlen(who.device, torch.bfloat16, 32, 8, 128)
        found["off, bf16 logits against float64"] = bench.bf16_error(who, "cublas")
        found["the same with a position off by one"] = bench.bf16_error(who, "cublas", off=1)
    bench.CHECK = dataclasses.replace(bench.CHECK, n_kv_heads=bench.CHECK.n_heads // 2)
    for rows, kernels in ((5, "auto"), *([] if DRY else [(1, "triton")])):
        name = f"replay equals eager, {kernels}, {rows} rows"
        found[name] = bench.replay_equals_eager(who, kernels, rows, 0.0)
        say(name, found[name])
    found["float32 equals paper"] = bench.equals_paper(who)
    say(json.dumps({k: v for k, v in found.items() if not isinstance(v, dict)}))
    say("faults:", {k: v for k, v in faults.items() if v is not None} or "none", "of", len(faults))


# --- attention ------------------------------------------------------------------------------------


def compile_scan(scan, whole):
    """Compile one variant into Triton's cache on disk, which the measuring process then reads."""
    from triton.runtime.jit import MockTensor

    from wattflow.engine.kernels import attention, launch

    launch.Launch.early = True
    block, warps, stages = scan
    bf16, fp32, i64 = (MockTensor(t) for t in (torch.bfloat16, torch.float32, torch.int64))
    out, sums = (bf16, bf16) if whole else (fp32, fp32)
    attention._attend.warmup(
        *(bf16, fp32, bf16, bf16, i64, bf16, out, sums),
        *(WIDTH**-0.5 * 1.4426950408889634, 0.0, 1024, 2**22, EIGHT.n_kv_heads, 2),
        WIDTH=WIDTH,
        GROUP=EIGHT.n_heads // EIGHT.n_kv_heads,
        TALL=16,
        WHOLE=whole,
        BLOCK=block,
        NORM=False,
        PRECISION="tf32",
        LOWEST=attention._LOWEST,
        num_warps=warps,
        num_stages=stages,
        grid=(1, 1),
        **launch.Launch.options(),
    )


def compile_ahead(found):
    """All variants, in as many processes as there are cores."""
    began = time.monotonic()
    work = list(itertools.product(SCANS, (True, False)))
    context = multiprocessing.get_context("spawn")
    workers = max(1, min(14, (os.cpu_count() or 2) - 2))
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = [pool.submit(compile_scan, *one) for one in work]
        faults = [str(t.exception())[:200] for t in jobs if t.exception() is not None]
    found["compiled"], found["faults"] = len(work) - len(faults), faults[:3]
    say(
        f"compiled {found['compiled']} of {len(work)} in {time.monotonic() - began:.1f} s",
        *faults[:1],
    )


class Case:
    """Caches of some rows and a length, one after another until they fill more than the L2, and queries."""

    def __init__(self, who, rows, length):
        self.rows, self.length, self.device = rows, length, who.device
        kind = torch.float32 if DRY else torch.bfloat16
        kv_heads = EIGHT.n_kv_heads
        room = -(-length // 16) * 16
        self.bytes = (
            2 * rows * kv_heads * length * WIDTH * torch.empty(0, dtype=kind).element_size()
        )
        layers = max(2, min(MOST_LAYERS, -(-BEYOND_L2 // self.bytes)))
        self.cache = torch.empty(
            (layers, 2, rows, kv_heads, room, WIDTH), dtype=kind, device=who.device
        )
        for layer in self.cache:
            layer.normal_()
        self.layers = list(self.cache)
        self.qkv = torch.randn(
            (rows, (EIGHT.n_heads + 2 * kv_heads) * WIDTH), device=who.device
        ).to(kind)
        self.rotary = rotary_table(EIGHT, room, kind, who.device).contiguous()
        self.positions = torch.full((rows,), length - 1, device=who.device)

    def us(self, work):
        """Microseconds of one layer's attention."""
        if DRY:
            work(self.layers[0])
            began = time.perf_counter()
            work(self.layers[1])
            return (time.perf_counter() - began) * 1e6
        from wattflow.engine.kernels.gemv import milliseconds_each

        return 1e3 * milliseconds_each(self.layers, work)

    def others(self):
        """What else there is, by name: a function of one layer's keys and values each."""
        query = self.qkv.view(self.rows, -1, WIDTH)[:, : EIGHT.n_heads]
        one = query.reshape(self.rows, EIGHT.n_heads, 1, WIDTH)
        used = self.length

        def sdpa(kv):
            return functional.scaled_dot_product_attention(
                one, kv[0][:, :, :used], kv[1][:, :, :used], enable_gqa=True
            )

        def by(backend):
            def work(kv):
                with torch.nn.attention.sdpa_kernel(backend):
                    return sdpa(kv)

            return work

        backends = torch.nn.attention.SDPBackend
        out = {
            "eager (ops.attend)": lambda kv: ops.attend(
                self.qkv, None, self.rotary, kv[0], kv[1], self.positions, used
            ),
            "sdpa": sdpa,
        }
        if not DRY:
            bounds = torch.arange(self.rows + 1, dtype=torch.int32, device=self.device)
            out |= {
                "sdpa, flash": by(backends.FLASH_ATTENTION),
                "sdpa, cudnn": by(backends.CUDNN_ATTENTION),
                "varlen": lambda kv: varlen_decode(query, kv, bounds),
            }
        return out


def varlen_decode(query, kv, bounds):
    """torch's variable-length attention with one query a row, over the same bytes laid out as it wants them."""
    import inspect

    from torch.nn.attention import varlen

    room = kv.shape[-2]
    kv_heads = kv.shape[-3]
    key, value = (x.view(-1, kv_heads, WIDTH) for x in kv)  # other numbers, as many
    more = (
        {"enable_gqa": True}
        if "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters
        else {}
    )
    return varlen.varlen_attn(query, key, value, bounds, bounds * room, 1, room, **more)


def attention(who, found):
    """Every case; where HOLD names a file, once more, the best of each, when others have left the GPU alone."""
    if not DRY:
        compile_ahead(found)
    for rows, length in itertools.product(ROWS, LENGTHS):
        one_case(who, rows, length, SCANS, found)
    started = bench.OUT / "started"
    if "HOLD" not in os.environ:
        return
    while not started.exists() and bench.left_s() > 15:
        time.sleep(0.2)
    found["others had left"] = started.exists()
    for rows, length in itertools.product(ROWS, LENGTHS):
        first = found[f"{rows} x {length}"]["us"]
        known = {k: v for k, v in first.items() if k.startswith("ours") and not isinstance(v, str)}
        best = sorted(known, key=known.__getitem__)[:4]
        scans = [scan for scan in SCANS if any(str(scan) in name for name in best)]
        one_case(who, rows, length, scans, found, again=" again")


def one_case(who, rows, length, scans, found, *, again=""):
    """Time everything on the caches of some rows and a length."""
    copy = bench.RESULT["machine"]["copy_bytes_per_s"]
    case = Case(who, rows, length)
    row = found[f"{rows} x {length}{again}"] = {"bytes": case.bytes, "us": {}, "off": {}}
    for name, work in case.others().items():
        try:
            row["us"][name] = case.us(work)
        except Exception as error:  # noqa: BLE001 - what cannot run is one of the results
            row["us"][name] = str(error)[:200]
    if not DRY:
        ours(case, row, scans)
    known = {k: v for k, v in row["us"].items() if not isinstance(v, str)}
    row["share_of_copy"] = {k: case.bytes / (v * 1e-6) / copy for k, v in known.items()}
    best = sorted(known, key=known.__getitem__)[:6]
    rest = [k for k in row["us"] if not k.startswith("ours")]
    say(f"{rows} x {length}:", {k: round(known[k], 1) for k in best})
    say("   ", {k: f"{row['share_of_copy'][k]:.0%}" for k in best[:3]}, "others", {
        k: round(known[k], 1) if k in known else row["us"][k][:60] for k in rest
    })  # fmt: skip
    bench.save()
    del case


def ours(case, row, scans):
    """Every scan in several splits, and how far each is off."""
    from wattflow.engine.kernels import attention as kernels

    kv = case.layers[0]
    right = ops.attend(
        case.qkv.clone(), None, case.rotary, kv[0], kv[1], case.positions, case.length
    ).float()
    programs = case.rows * EIGHT.n_kv_heads
    splits = [
        n
        for n in (1, 2, 4, 8, 16, 32, 64)
        if 256 <= programs * n <= 2100 or (n == 1 and programs > 256)
    ]
    splits = [n for n in splits if n == 1 or n * 32 <= case.length] or [4]
    for scan, parts in itertools.product(scans, splits):
        name = f"ours {scan} / {parts}"
        block, warps, stages = scan
        one = kernels.Scan(block, warps, stages, busy=2)

        def work(kv, one=one, parts=parts):
            return kernels.attend(
                case.qkv, None, case.rotary, kv[0], kv[1], case.positions, one, parts
            )

        try:
            off = float((work(kv).float() - right).norm() / right.norm())
            if off > 1e-2:
                row["off"][name] = off
                continue
            row["us"][name] = case.us(work)
        except Exception as error:  # noqa: BLE001 - as above
            row["us"][name] = str(error)[:200]
    row["as it is"] = case.us(
        lambda kv: kernels.attend(case.qkv, None, case.rotary, kv[0], kv[1], case.positions)
    )


# --- prefill --------------------------------------------------------------------------------------


def ragged(rows, mean):
    """Lengths as questions have them: lognormal, their sum that of equal ones."""
    draw = random.Random(3)
    lengths = [max(2, round(draw.lognormvariate(0, 0.5) * mean)) for _ in range(rows)]
    while (over := sum(lengths) - rows * mean) != 0:
        place = draw.randrange(rows)
        lengths[place] = max(2, lengths[place] - (1 if over > 0 else -1))
    return lengths


def prefill(who, found):
    """Tokens a second of prompts of unequal lengths, packed, against equal ones of the same sum, in turn."""
    rows, mean = (3, 6) if DRY else (64, 128)
    unequal = ragged(rows, mean)
    config = bench.choices(
        EIGHT, "auto", batch_size=rows, n_prompts=rows, max_gen_len=2, max_seq_len=max(unequal) + 2
    )
    draw = random.Random(4)
    asked = {
        name: [[draw.randrange(5, EIGHT.vocab_size) for _ in range(n)] for n in lengths]
        for name, lengths in (("equal", [mean] * rows), ("ragged", unequal))
    }
    made = Fast(config, who, eos_ids=())
    made.load()
    try:
        found["attention"] = made.info["prefill_attention"]
        found["longest"] = max(unequal)
        set_ = made._kernels.prefill
        each = dataclasses.replace(set_, attend_packed=packed.attend_each)
        arms = {
            "equal": ("equal", set_),
            "ragged": ("ragged", set_),
            "ragged, a prompt at a time": ("ragged", each),
        }
        times = {name: [] for name in arms}
        for _ in range(2 if DRY else 8):
            for name, (which, taken) in arms.items():
                made._kernels.prefill = taken
                bench.synchronize(who)
                began = time.perf_counter()
                made.prefill(asked[which])
                bench.synchronize(who)
                times[name].append(time.perf_counter() - began)
        made._kernels.prefill = set_
        for name, seconds in times.items():
            found[name] = rows * mean / statistics.median(seconds[1:])
        found["ragged / equal"] = found["ragged"] / found["equal"]
        right = made._llama.prefill(asked["ragged"], set_)
        alone = torch.cat([made._llama.prefill([one], set_) for one in asked["ragged"]])
        found["off, packed against each alone"] = float(
            (right.float() - alone.float()).norm() / alone.float().norm()
        )
        say(json.dumps(found))
    finally:
        made.close()


# --- fp8 ------------------------------------------------------------------------------------------


def fp8(who, found):
    """Microseconds of a layer's products in 16 bit and in fp8, weights beyond the L2, and how far fp8 is off."""
    kind = torch.float32 if DRY else torch.bfloat16
    wide = (EIGHT.n_heads + 2 * EIGHT.n_kv_heads) * WIDTH
    shapes = {
        "wqkv": (wide, EIGHT.dim),
        "wo": (EIGHT.dim, EIGHT.dim),
        "w13": (2 * EIGHT.ffn_dim, EIGHT.dim),
        "w2": (EIGHT.dim, EIGHT.ffn_dim),
    }
    for name, (outs, width) in shapes.items():
        count = max(2, min(24, -(-BEYOND_L2 // (outs * width))))
        plain = [
            products.Weight(
                torch.empty(outs, width, device=who.device, dtype=kind).normal_(0, 0.02)
            )
            for _ in range(count)
        ]
        narrow = [products.quantised(w.values) for w in plain]
        for tokens in TOKENS:
            x = torch.randn(tokens, width, device=who.device).to(kind)
            rows = products.rows8(x)
            row = found[f"{name} {outs}x{width}, {tokens} tokens"] = {}
            exact = x.double() @ plain[0].values.double().t() if tokens <= 256 else None
            work = {
                "plain": (plain, lambda w, x=x: products.product(x, w)),
                "fp8": (narrow, lambda w, r=rows: products.product(r, w)),
            }
            if not DRY:
                work |= on_gpu(x, narrow, plain)
            for way, (weights, one) in work.items():
                row[way] = product_us(weights, one)
                if exact is not None:
                    row[f"off, {way}"] = float(
                        (one(weights[0]).double() - exact).norm() / exact.norm()
                    )
            say(name, tokens, {k: f"{v:.4g}" for k, v in row.items() if isinstance(v, float)})
        bench.save()


def on_gpu(x, narrow, plain):
    """The ways that only a GPU has."""
    from wattflow.engine.kernels import gemv, rowwise

    rows, one = products.rows8(x), torch.ones((), device=x.device)
    out = {
        "fp8, quantising": (narrow, lambda w: products.product(rowwise.rows8(x), w)),
        "fp8, one scale": (narrow, lambda w: one_scale(rows, w, one)),
    }
    if "PROTOTYPES" in os.environ:
        sys.path.insert(0, os.environ["PROTOTYPES"])
        import skinny

        skinny.add(out, x, rows, narrow)
    if len(x) == 1:
        tiles = {
            name: gemv.quickest_tile(weights, x.dtype)
            for name, weights in (("narrow", narrow), ("plain", plain))
        }
        out["one row, fp8 weights"] = narrow, lambda w: gemv.gemv(x, w, tile=tiles["narrow"])
        out["one row, plain"] = plain, lambda w: gemv.gemv(x, w, tile=tiles["plain"])
    return out


def one_scale(rows, weight, one):
    """The same product as if all scales were 1."""
    return torch._scaled_mm(
        rows.values,
        weight.values.t(),
        scale_a=one,
        scale_b=one,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def product_us(weights, one):
    if DRY:
        return 1e6 * bench.timed(join_cpu(), lambda: one(weights[0]))
    from wattflow.engine.kernels.gemv import milliseconds_each

    try:
        return 1e3 * milliseconds_each(weights, one)
    except Exception as error:  # noqa: BLE001 - as above
        return str(error)[:200]


def join_cpu():
    return join(0, 1, 0, "node", "", "cpu", 60.0, 60.0)


# --- the ceiling ----------------------------------------------------------------------------------


def ceiling(who, found):
    """What a row's own copy reads, after rest and after load, and copies of several sizes and contents one by one."""
    found["row's, now"] = ceilings.measure(who, "fp32" if DRY else "bf16")
    time.sleep(0.1 if DRY else 3)
    found["row's, after 3 s of rest"] = ceilings.measure(who, "fp32" if DRY else "bf16")
    for gib, what in itertools.product((0.001,) if DRY else (1, 4, 8), ("ones", "random")):
        copies(who, found, gib, what, 1.0)
    say(json.dumps({k: v for k, v in found.items() if k.startswith("row")}))


def ceiling_hot(who, found):
    """The same after 5 s of the largest product, as a row measures it after its batches, and once it has rested."""
    side, kind = (64, torch.float32) if DRY else (8192, torch.bfloat16)
    a, b = (torch.randn(side, side, device=who.device).to(kind) for _ in range(2))
    for rest_s in (0.0, 3.0):
        end = time.monotonic() + (0.1 if DRY else 3.0)
        while time.monotonic() < end:
            for _ in range(50):
                a @ b
            bench.synchronize(who)
        time.sleep(0.0 if DRY else rest_s)
        found[f"memory C, {rest_s:g} s of rest"] = memory_celsius()
        found[f"row's, {rest_s:g} s of rest"] = ceilings.measure(who, "fp32" if DRY else "bf16")
        copies(who, found, 0.001 if DRY else 4, "random", 0.0)
    found["memory C, at the end"] = memory_celsius()
    say(json.dumps({k: v for k, v in found.items() if "GiB" not in k}))


def memory_celsius():
    """The temperature of the memory; null where none is said."""
    if DRY:
        return None
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    (value,) = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_MEMORY_TEMP])
    return value.value.uiVal


def copies(who, found, gib, what, rest_s):
    """The rates of forty copies one after another, in TB/s, after a rest."""
    count = int(gib * 2**28)
    source = torch.ones(count, device=who.device)
    if what == "random":
        source = torch.empty(count, dtype=torch.int32, device=who.device).random_()
    target = torch.empty_like(source)
    bench.synchronize(who)
    time.sleep(0.0 if DRY else rest_s)
    rates = [2 * source.nbytes / bench.timed(who, lambda: target.copy_(source)) for _ in range(40)]
    name = f"{gib} GiB of {what}"
    found[name] = [round(rate / 1e12, 3) for rate in rates]
    say(f"copy of {name}:", found[name][:12], "best", max(rates) / 1e12)


def main():
    bench.NAME = "attention.json"
    who = join(0, 1, 0, "node", "", "cpu" if DRY else "cuda", 60.0, 60.0)
    torch.set_num_threads(2)
    stages = {  # what does it, seconds that must be left, seconds that it may take
        "machine": (bench.machine, 5, 20),
        "right": (right, 10, 60),
        "prefill": (prefill, 15, 40),
        "fp8": (fp8, 10, 30),
        "attention": (attention, 20, 100),
        "ceiling": (ceiling, 5, 15),
        "ceiling, hot": (ceiling_hot, 10, 25),
    }
    wanted = os.environ.get("STAGES", ";".join(stages)).split(";")
    for name, (work, least_s, most_s) in stages.items():
        if name == "machine" or name in wanted:
            with stage(name, least_s, most_s) as found:
                if found is not None:
                    with torch.inference_mode():
                        work(who, found)
    bench.RESULT["total"] = {"seconds": time.monotonic() - bench.BEGAN}
    bench.save()


if __name__ == "__main__":
    main()
