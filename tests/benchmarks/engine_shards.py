"""The fast engine over two GPUs: correctness under capture, all-reduces by two ways, LLaMA-13B and 65B.

    OUT=results python tests/benchmarks/engine_shards.py             two GPUs of one host, at most 5 minutes
    DRY=1 OUT=/tmp/results python tests/benchmarks/engine_shards.py  tiny models on the CPU, to try the script

Each case is a set of processes of its own, a rank a GPU, ended when it takes too long; so what ends one costs it alone.
$OUT/shards.json is replaced after each case. Weights are random, joules wattflow's own, of all GPUs of the case, in
decode alone. LLaMA-65B takes 65 GB a GPU in bf16: at batch 32, 64 tokens of prompt and 128 new ones fit in 80 GB.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import engine as bench
import torch
import torch.distributed as dist

from wattflow.config import choices
from wattflow.engine import allreduce
from wattflow.engine.fast import Fast
from wattflow.engine.ranks import Ranks, join

DRY, OUT = bench.DRY, bench.OUT
DEADLINE_S = float(os.environ.get("DEADLINE_S", "290"))
BEGAN = time.monotonic()
CHECK = bench.CHECK
THIRTEEN = choices.Model(
    name="llama-13b", dim=5120, n_layers=40, n_heads=40, n_kv_heads=40, ffn_dim=13824
)
SIXTY_FIVE = choices.Model(
    name="llama-65b", dim=8192, n_layers=80, n_heads=64, n_kv_heads=64, ffn_dim=22016
)
if DRY:
    THIRTEEN = SIXTY_FIVE = CHECK
ROWS_65, PROMPT_65, NEW_65 = (4, 8, 8) if DRY else (32, 64, 128)
CASES = {  # name: ranks, seconds it may take
    "check": (2, 70),
    "13B, 2 shards": (2, 90),
    "13B, 1 shard": (1, 60),
    "65B, 2 shards": (2, 110),
}


# --- one rank of one case ---


def check(who, found):
    """All-reduces by size; tokens of two shards under capture against steps one by one, and against one rank's."""
    found["allreduce_us"] = {}
    sizes = (16,) if DRY else (1, 8, 32, 64, 128)
    for width in (CHECK.dim,) if DRY else (5120, 8192):
        kind = torch.float32 if DRY else torch.bfloat16
        reduce, told = allreduce.choose(who, list(sizes), width, kind)
        told["kib"] = {n: n * width * kind.itemsize / 1024 for n in sizes}
        found["allreduce_us"][width] = told
        bench.say(f"rows of {width}:", json.dumps(told))
        del reduce
    found["replay"] = {}
    for kernels, rows, temperature in (("auto", 5, 0.0), ("auto", 5, 0.8), ("triton", 1, 0.0)):
        if kernels == "triton" and DRY:
            continue
        told = bench.replay_equals_eager(who, kernels, rows, temperature)
        found["replay"][f"{kernels}, {rows} rows, temperature {temperature}"] = told
        bench.say("replay equals eager:", kernels, json.dumps(told))
    found["float32_tokens_equal_one_rank"] = equals_one_rank(who)
    bench.say("float32 tokens equal one rank's:", found["float32_tokens_equal_one_rank"])


def equals_one_rank(who):
    """By rank, whether two shards make the tokens that this GPU makes alone; greedy, in float32."""
    keys = {
        "precision": "fp32",
        "batch_size": 5,
        "n_prompts": 5,
        "max_gen_len": 60,
        "max_seq_len": 140,
    }
    prompts = [p[: 3 + 9 * k] for k, p in enumerate(bench.some_prompts(5, 60, CHECK.vocab_size))]
    alone = Ranks(0, 1, who.local_rank, who.node, who.device, who.device_name, who.gpu_uuid)
    made = []
    for ranks in (who, alone):
        one = Fast(bench.choices(CHECK, "auto", shards=ranks.world, **keys), ranks, eos_ids=())
        one.load()
        one.prefill(prompts)
        made.append(one.decode().tokens)
        one.close()
    return who.gather(made[0] == made[1])


def decode(who, found, shapes, rows, prompt, new, sets):  # noqa: PLR0917 - a case in one line
    """Tokens per second, joules a token and the share of copy of decode, for each of some kernels and all-reduces."""
    found["machine"] = ceilings(who)
    chosen = bench.choices(
        shapes,
        sets[0][0],
        shards=who.world,
        batch_size=rows,
        n_prompts=rows,
        max_gen_len=new,
        max_seq_len=prompt + new,
    )
    prompts = bench.some_prompts(rows, prompt, shapes.vocab_size)
    began = time.monotonic()
    made = Fast(chosen, who, eos_ids=())
    made.load()
    found["load_s"] = time.monotonic() - began
    found["info"] = made.info
    bench.say(f"loaded in {found['load_s']:.1f} s:", made.info["kernels"], made.info["allreduce"])
    quicker = made._llama.reduce
    held = []  # graphs of before: without any, their memory pool would be gone
    for kernels, way in sets:
        if who.world > 1:
            made._llama.reduce = allreduce.Reduce() if way == "nccl" else quicker
        held.append(made._kernel_sets)  # the all-reduce is captured in the graphs
        made._kernel_sets = {}
        made.use_kernels(kernels)
        name = f"{kernels}, {way}"
        row = found[name] = {}
        row |= windows(who, made, prompts)
        bench.say(
            name,
            json.dumps(
                {k: row[k] for k in ("tokens_per_s", "ms_per_step", "share_of_copy", "j_per_token")}
            ),
        )
        told = bench.kernels_of_a_step(who, made)
        row["kernels"] = told
    held.clear()
    made.close()


def ceilings(who):
    """Copy and product alone, by rank, and what all ranks' copies at once move."""
    told = {}
    bench.machine(who, told)
    if who.device != "cpu":
        torch.cuda.empty_cache()
    bench.RESULT["machine"] = {"copy_bytes_per_s": min(who.gather(told["copy_bytes_per_s"]))}
    return who.gather(told)


def windows(who, made, prompts):
    """Batches until rank 0 has seen their decodes fill the window, and what the meter read of them."""
    made.prefill(prompts)
    made.decode()
    steps, spent = 0, 0.0
    watched = bench.Meter(who) if who.rank == 0 else contextlib.nullcontext()
    with watched as meter:
        while who.broadcast(spent < bench.WINDOW_S):
            made.prefill(prompts)
            made.synchronize()
            who.barrier()
            start = time.time_ns()
            made.decode()
            end = bench.edge(who)
            if meter is not None:
                meter.add("decode", start, end)
            steps += made.last_batch.decode_steps
            spent += (end - start) / 1e9
    reading = {"seconds": spent, "energy_j": None}
    if meter is not None:
        reading = meter.read_all("decode", who.world)
    rates = bench.rates(reading, steps, len(prompts), made.last_batch.bytes_per_step)
    return {**reading, **rates, "last_batch": dict(made.info["last_batch"])}


def run_rank(case, rank, world, init, out):
    """One rank of one case; rank 0 writes what was found."""
    who = join(rank, world, rank, "node", init, "cpu" if DRY else "cuda", 60.0, 60.0)
    torch.set_num_threads(2)
    if rank != 0:
        bench.say = lambda *_: None
    bench.save = lambda: None
    found = {}
    try:
        if case == "check":
            check(who, found)
        elif case == "65B, 2 shards":
            sets = [("eager" if DRY else "cublas", "quicker")]
            decode(who, found, SIXTY_FIVE, ROWS_65, PROMPT_65, NEW_65, sets)
        else:
            sets = [("cublas", "quicker"), ("triton", "quicker"), ("triton", "nccl")]
            sets = [("eager", way) for _, way in sets[1:]] if DRY else sets
            decode(who, found, THIRTEEN, 1, bench.PROMPT, bench.NEW, sets[: 2 if world == 1 else 3])
    except Exception as error:
        found["error"] = f"rank {rank}: {type(error).__name__}: {error}"[:2000]
        traceback.print_exc()
        raise
    finally:
        if rank == 0 or "error" in found:
            path = Path(out) if rank == 0 else Path(f"{out}.{rank}")
            path.write_text(json.dumps(found, default=str))
    if world > 1:
        dist.barrier()
    who.close()


# --- all cases ---


def run_case(name, world, limit_s):
    """What a case's ranks found; all are ended when the first fails or the time is up."""
    left = DEADLINE_S - (time.monotonic() - BEGAN)
    if left < min(30, limit_s) and not DRY:
        return {"error": f"not begun: {left:.0f} s were left"}
    out = OUT / "case.json"
    out.unlink(missing_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        init = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, name, str(rank), str(world), init, str(out)], env=env
        )
        for rank in range(world)
    ]
    end = time.monotonic() + (min(limit_s, left) if not DRY else 300)
    try:
        while any(rank.poll() is None for rank in ranks) and time.monotonic() < end:
            if any(rank.poll() not in (None, 0) for rank in ranks):
                time.sleep(3.0)  # the others may have something to say of it
                break
            time.sleep(0.2)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
            rank.wait()
    found = json.loads(out.read_text()) if out.exists() else {}
    if any(rank.returncode for rank in ranks):
        found.setdefault("error", f"ranks ended with {[rank.returncode for rank in ranks]}")
        told = [Path(f"{out}.{k}") for k in range(1, world)]
        found["other_ranks"] = [
            json.loads(path.read_text()).get("error") for path in told if path.exists()
        ]
    return found


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    result = {"cards": torch.cuda.device_count()}
    wanted = os.environ.get("CASES")
    for name, (world, limit_s) in CASES.items():
        if wanted is not None and name not in wanted.split(";"):
            continue
        began = time.monotonic()
        bench.say(f"== {name}")
        result[name] = run_case(name, world, limit_s)
        result[name]["case_s"] = round(time.monotonic() - began, 1)
        bench.say(f"{name}: {result[name]['case_s']} s", result[name].get("error", ""))
        new = OUT / "shards.json.new"
        new.write_text(json.dumps(result, indent=1, default=str))
        new.replace(OUT / "shards.json")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run_rank(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
    else:
        main()
