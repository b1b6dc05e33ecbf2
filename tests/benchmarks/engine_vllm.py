"""The `fast` engine and vLLM in turns on one board: tokens a second, joules a token, and their ratios with intervals.

    OUT=results python tests/benchmarks/engine_vllm.py             one GPU; vLLM where VLLM_PYTHONPATH says
    DRY=1 OUT=/tmp/results python tests/benchmarks/engine_vllm.py  a tiny model on the CPU, to try the script

ARMS   what is compared, some of the keys of ARM below, "fast vllm fast-fp8 vllm-fp8" by default; NAME:triton takes the
       products of one row by Triton, at batch 1 alone
BATCHES, PROMPT, NEW, WINDOW_S, REPEATS, DEADLINE_S   1 8 64 256, 128, 256, 10, 3, 900
BEFORE   another checkout of wattflow, for the arm `before`
HOLD     a file to wait for once all have their weights, made by whoever uses the GPU meanwhile

Each arm is a process with its weights on the GPU all the time; one of them works at a time. A block is one window an
arm, in an order of its own, of whole batches: prefill and decode, greedy, Llama-3.1-8B's shapes, weights of one law.
Joules are wattflow's own, by its sidecar. A ratio is the mean over blocks of the logarithm of what two neighbours of a
block gave, its interval by Student's t. $OUT/engine_vllm.json is replaced after each batch size.
"""

import contextlib
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve()
DRY = os.environ.get("DRY") == "1"
PROMPT, NEW = (8, 8) if DRY else (128, 256)
PROMPT, NEW = (int(os.environ.get(n, v)) for n, v in (("PROMPT", PROMPT), ("NEW", NEW)))
WINDOW_S = float(os.environ.get("WINDOW_S", "0.2" if DRY else "10"))
REPEATS = int(os.environ.get("REPEATS", "3"))
BATCHES = [int(n) for n in os.environ.get("BATCHES", "1 4" if DRY else "1 8 64 256").split()]
KV_GIB = 18  # of vLLM's cache: 256 rows of 384 tokens take 12.9 GB
POOL = 4  # batches of prompts, taken in turn

# engine, precision, the variable that says where its Python packages lie
ARM = {
    "fast": ("fast", "bf16", None),
    "fast-fp8": ("fast", "fp8", None),
    "before": ("fast", "bf16", "BEFORE"),
    "vllm": ("vllm", "bf16", "VLLM_PYTHONPATH"),
    "vllm-fp8": ("vllm", "fp8", "VLLM_PYTHONPATH"),
}
ARMS = os.environ.get("ARMS", "fast fast-fp8" if DRY else "fast vllm fast-fp8 vllm-fp8").split()


# --- one arm's process ----------------------------------------------------------------------------


class Engine:
    """An engine whose weights stay while its batch changes."""

    def __init__(self, arm):
        from wattflow.engine.ranks import join

        self.name, self.precision, _ = ARM[arm]
        if DRY and self.precision == "bf16":
            self.precision = "fp32"
        self.who = join(0, 1, 0, "node", "", "cpu" if DRY else "cuda", 60.0, 60.0)
        self.weights = self.made = None

    def choices(self, batch, kernels, new=NEW):
        from wattflow.config import choices

        vllm = {}
        if self.name == "vllm":  # one cache for all batches
            vllm = {"kv_cache_memory_bytes": KV_GIB * 2**30, "gpu_memory_utilization": 0.05}
            vllm["enable_prefix_caching"] = False
        engine = choices.Engine(name=self.name, kernels=kernels, vllm=choices.Vllm(**vllm))
        return choices.Config(
            model=shapes(),
            engine=engine,
            precision=self.precision,
            temperature=0.0,
            stop="length",
            weights="dummy",
            nodes=1,
            batch_size=batch,
            n_prompts=batch,
            max_gen_len=new,
            max_seq_len=PROMPT + NEW,
        )

    def build(self, batch, kernels="auto", new=NEW):
        from wattflow.engine.build import build

        return build(self.choices(batch, kernels, new), self.who, eos_ids=(), pad_id=0)

    def load(self):
        """Bring the weights; vLLM starts as a whole, for the largest batch."""
        began = time.monotonic()
        self.weights = self.build(max(BATCHES)).load_weights()
        return {"seconds": time.monotonic() - began}

    def shape(self, batch, kernels):
        """Take a batch size; returns what the engine says of itself, and some of what it makes."""
        if self.made is not None and self.name != "vllm":
            self.made.close()
        self.made = self.build(batch, kernels)
        self.made.load(self.weights)
        self.prompts = [prompts(batch, seed) for seed in range(POOL)]
        out = self.batch()
        distinct = len({token for row in out.tokens for token in row})
        assert all(len(row) == NEW for row in out.tokens)
        return {"info": self.made.info, "distinct": distinct}

    def batch(self, number=0):
        self.made.prefill(self.prompts[number % POOL])
        return self.made.decode()

    def window(self, seconds):
        """Whole batches until the seconds are over: its edges, tokens, and how long prefills took."""
        self.made.synchronize()
        start, count, prefill_ns = time.time_ns(), 0, 0
        while time.time_ns() - start < seconds * 1e9:
            began = time.time_ns()
            self.made.prefill(self.prompts[count % POOL])
            self.made.synchronize()
            prefill_ns += time.time_ns() - began
            self.made.decode()
            count += 1
        self.made.synchronize()
        end = time.time_ns()
        tokens = count * NEW * len(self.prompts[0])
        return {"start_ns": start, "end_ns": end, "tokens": tokens, "prefill_s": prefill_ns / 1e9}

    def profile(self, batch, kernels):
        """The kernels of a decode step in the middle of a batch: name, calls and microseconds a step, largest first."""
        from torch.profiler import ProfilerActivity, profile

        if self.name != "vllm":
            self.made.close()
        new = min(17, NEW)
        made = self.build(batch, kernels, new)
        made.load(self.weights)
        asked = [(prompt * 3)[: PROMPT + NEW // 2 - new] for prompt in self.prompts[0]]
        activities = [ProfilerActivity.CPU if DRY else ProfilerActivity.CUDA]
        for counts in (False, True):
            made.prefill(asked)
            made.synchronize()
            with profile(activities=activities) if counts else contextlib.nullcontext() as seen:
                made.decode()
                made.synchronize()
        rows = [
            [one.key[:90], one.count / (new - 1), one.device_time_total / (new - 1)]
            for one in seen.key_averages()
        ]
        rows.sort(key=lambda row: -row[2])
        self.made = made
        return {"kernels": rows[:25], "length": PROMPT + NEW // 2 - new / 2}


def shapes():
    from wattflow.config import choices

    if DRY:
        return choices.Model(
            name="check", dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, vocab_size=499
        )
    return choices.Model(
        name="llama-3.1-8b",
        n_kv_heads=8,
        ffn_dim=14336,
        vocab_size=128256,
        rope_theta=500000.0,
        rope_scaling=choices.RopeScaling(),
    )


def prompts(rows, seed):
    draw = random.Random(seed)
    return [[draw.randrange(5, shapes().vocab_size) for _ in range(PROMPT)] for _ in range(rows)]


def serve(arm):
    """Answer a line of JSON to each line of JSON, until there is none."""
    wire = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    engine = Engine(arm)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = getattr(engine, asked.pop("call"))(**asked)
        except Exception as error:  # noqa: BLE001 - an arm that fails is one of the results
            import traceback

            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
        wire.write(json.dumps(answer, default=str) + "\n")
        wire.flush()


# --- all arms -------------------------------------------------------------------------------------


class Arm:
    """One arm's process."""

    def __init__(self, name):
        self.name = name
        variable = ARM[name][2]
        path = os.pathsep.join(
            filter(None, [os.environ.get(variable, "") if variable else "", *sys.path[1:]])
        )
        log = bench.OUT / f"{name}.log"
        self.process = subprocess.Popen(
            [sys.executable, str(HERE), "--serve", name],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
        )
        self.fault = self.shape = None

    def send(self, call, **asked):
        self.process.stdin.write(json.dumps({"call": call, **asked}) + "\n")
        self.process.stdin.flush()

    def answer(self):
        line = self.process.stdout.readline()
        reply = json.loads(line) if line else {"error": f"{self.name} ended; see its log"}
        if "error" in reply:
            self.fault = reply["error"]
            bench.say(self.name, "FAILED:", self.fault)
        return reply

    def ask(self, call, **asked):
        self.send(call, **asked)
        return self.answer()

    def end(self):
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def started():
    """All arms with their weights; vLLM's one after another, as each looks at what memory is free."""
    arms = {name: Arm(name) for name in dict.fromkeys(a.partition(":")[0] for a in ARMS)}
    own = [arm for arm in arms.values() if ARM[arm.name][0] == "fast"]
    for arm in own:
        arm.send("load")
    for arm in own:
        bench.say(arm.name, "has its weights:", arm.answer())
    others = [arm for arm in arms.values() if arm not in own]
    for number, arm in enumerate(others):
        arm.send("load")
        if number + 1 < len(others):
            time.sleep(0 if DRY else 15)
    for arm in others:
        bench.say(arm.name, "runs:", arm.answer())
    return {name: arm for name, arm in arms.items() if arm.fault is None}


def compare(who, arms, batch, found):
    """Windows of every arm at one batch size, in blocks; then its ratios."""
    wanted = {}
    for name in ARMS:
        worker, _, kernels = name.partition(":")
        if worker in arms and (not kernels or batch == 1):
            wanted[name] = (arms[worker], kernels or "auto")
    found["arms"] = {name: {"windows": []} for name in wanted}
    with bench.Meter(who) as meter:
        for repeat in range(REPEATS):
            for name in random.Random(f"{batch} {repeat}").sample(list(wanted), len(wanted)):
                arm, kernels = wanted[name]
                shape = {"batch": batch, "kernels": kernels}
                one_window(arm, shape, meter, f"{name} {repeat}", found["arms"][name])
    for one in found["arms"].values():
        one["windows"] = [measured(window, meter) for window in one["windows"]]
    for name, (arm, kernels) in wanted.items():
        if arm.fault is None and bench.left_s() > 5:
            found["arms"][name]["profile"] = arm.ask("profile", batch=batch, kernels=kernels)
            arm.shape = None
    found["summary"] = {name: summary(one["windows"]) for name, one in found["arms"].items()}
    found["ratios"] = ratios(found["arms"])
    for name, row in found["summary"].items():
        bench.say(f"batch {batch}, {name}:", json.dumps(row))
    for name, row in found["ratios"].items():
        bench.say(f"batch {batch}, {name}:", json.dumps(row))


def one_window(arm, shape, meter, name, found):
    """One window of an arm, shaped for the batch first; nothing where it failed or no time is left."""
    if arm.fault is not None or bench.left_s() < 2 * WINDOW_S:
        return
    if arm.shape != shape:
        arm.shape = shape
        found |= arm.ask("shape", **shape)
    if arm.fault is not None:
        return
    meter.mark()
    reply = arm.ask("window", seconds=WINDOW_S)
    meter.mark()
    if arm.fault is None:
        meter.add(name, reply["start_ns"], reply["end_ns"])
        found["windows"].append({"name": name, "block": int(name.split()[-1]), **reply})


def measured(window, meter):
    """A window with its joules and rates."""
    reply = meter.read(window["name"])
    joules, tokens = reply["energy_j"], window["tokens"]
    return {
        **window,
        **reply,
        "tokens_per_s": tokens / reply["seconds"],
        "j_per_token": None if joules is None else joules / tokens,
    }


def summary(windows):
    """Means over an arm's windows."""
    out = {"windows": len(windows)}
    for column in ("tokens_per_s", "power_w", "j_per_token", "sm_clock_mhz", "temperature_c"):
        known = [w[column] for w in windows if w.get(column) is not None]
        out[column] = statistics.fmean(known) if known else None
    return out


def ratios(arms):
    """Each arm of ours over the one it stands against: the ratio, and half its interval, of both columns."""
    out = {}
    for ours in arms:
        theirs = "vllm-fp8" if "fp8" in ours else "vllm"
        for other in (theirs, "before"):
            if ours.partition("-")[0].partition(":")[0] != "fast" or other not in arms:
                continue
            out[f"{ours} / {other}"] = {
                column: ratio(arms[ours]["windows"], arms[other]["windows"], column)
                for column in ("tokens_per_s", "j_per_token")
            }
    return out


def ratio(ours, theirs, column):
    """The mean ratio over blocks that have both, and the edges of its 95 % interval; null where there is none."""
    from wattflow.analysis.intervals import student_t

    by_block = [{w["block"]: w[column] for w in windows} for windows in (ours, theirs)]
    both = [
        math.log(by_block[0][n] / by_block[1][n])
        for n in by_block[0]
        if by_block[0][n] is not None and by_block[1].get(n) is not None
    ]
    if not both:
        return None
    middle = statistics.fmean(both)
    if len(both) == 1:
        return {"ratio": math.exp(middle), "low": None, "high": None, "blocks": 1}
    half = student_t(len(both) - 1) * statistics.stdev(both) / math.sqrt(len(both))
    edges = (math.exp(middle - half), math.exp(middle + half))
    return {"ratio": math.exp(middle), "low": edges[0], "high": edges[1], "blocks": len(both)}


def main():
    from wattflow.engine.ranks import join

    bench.NAME = "engine_vllm.json"
    bench.OUT.mkdir(parents=True, exist_ok=True)
    who = join(0, 1, 0, "node", "", "cpu" if DRY else "cuda", 60.0, 60.0)
    with bench.stage("machine", 5, 60) as found:
        bench.machine(who, found)
        found["vllm"] = vllm_version()
        found["settings"] = {"prompt": PROMPT, "new": NEW, "window_s": WINDOW_S, "arms": ARMS}
    arms = started()
    (bench.OUT / "started").touch()
    while "HOLD" in os.environ and not Path(os.environ["HOLD"]).exists() and bench.left_s() > 0:
        time.sleep(0.2)
    try:
        for batch in BATCHES:
            with bench.stage(f"batch {batch}", 2 * WINDOW_S, 600) as found:
                if found is not None:
                    compare(who, arms, batch, found)
    finally:
        for arm in arms.values():
            arm.end()
    bench.save()


def vllm_version():
    """vLLM's version where its packages lie; null where there are none."""
    folders = [Path(p) for p in os.environ.get("VLLM_PYTHONPATH", "").split(os.pathsep) if p]
    names = [one.name for folder in folders for one in folder.glob("vllm-*.dist-info")]
    return names[0].removeprefix("vllm-").removesuffix(".dist-info") if names else None


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        os.environ.setdefault("DEADLINE_S", "900")
        sys.path.insert(1, str(HERE.parent))
        import engine as bench

        main()
