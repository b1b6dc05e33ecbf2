"""The joules of real GPUs: every method on the same windows, what measuring costs, what dummy weights hide; as JSON.

    OUT=results PACKED=.gpu python tests/gpu/joules.py                  all visible GPUs: 8 minutes on one, 4 on two
    STAGES=cost OUT=results PACKED=.gpu python tests/gpu/joules.py      what the sidecar of one attempt takes: 80 s
    DRY=1 OUT=/tmp/results PACKED=.gpu python tests/gpu/joules.py       here: a tiny model, a fake driver, short windows
    python tests/gpu/joules_page.py                                     its tables, into docs/measurement.md

On one GPU: agreement, overhead, restart, pulsed, weights. On several: agreement alone, each GPU under its own batch.
$OUT/joules.json is replaced after each stage. PACKED holds GSM8K's questions, LLaMA's tokenizer, values of SmolLM2's
matrices, and Zeus with what it needs; a stage that lacks one says so.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from wattflow.config import choices
from wattflow.energy import counter as energy_counter
from wattflow.energy import curve
from wattflow.power.sidecar_client import Sidecar
from wattflow.store.layout import AttemptDir
from wattflow.store.schema import TRACE
from wattflow.store.tables import read_table

HERE = Path(__file__).resolve()
DRY = os.environ.get("DRY") == "1"
OUT = Path(os.environ.get("OUT", "."))
PACKED = Path(os.environ.get("PACKED", HERE.parents[2] / ".gpu"))
AGREEMENT_SHARE = float(os.environ.get("AGREEMENT_SHARE", "1"))
DEADLINE_S = float(os.environ.get("DEADLINE_S", "530"))
SEED = int(os.environ.get("SEED", "23"))
BEGAN = time.monotonic()
S = 1_000_000_000

AGREEMENT_S, WINDOWS, LEAST_S, MOST_S = (9.0, 20, 1.0, 2.0) if DRY else (110.0, 20, 10.0, 15.0)
AGREEMENT_S *= AGREEMENT_SHARE
BLOCKS = 6 if DRY else 40  # of 1 s, the sampler on and off in turn
KILLS = 2 if DRY else 5
PULSED_S, PULSE_S = (4.0, 0.1048) if DRY else (32.0, 0.1048)
WEIGHT_WINDOW_S, REPEATS = (0.3, 2) if DRY else (2.5, 3)
STEPS_AT_ONCE = 32  # of decode, before the host waits
POLLS_MS = (95, 100, 104, 130)
BATCHES = (64, 1)  # of the first GPU, the second, and so on
IDLE_S, LOADED_S = (1.0, 2.0) if DRY else (10.0, 30.0)  # of the stage cost
STAGES = os.environ.get("STAGES", "agreement overhead restart pulsed weights").split()

RESULT: dict[str, object] = {}


def say(*words):
    print(f"{time.monotonic() - BEGAN:6.1f} s ", *words, flush=True)


def save():
    OUT.mkdir(parents=True, exist_ok=True)
    new = OUT / "joules.json.new"
    new.write_text(json.dumps(RESULT, indent=1, default=float))
    new.replace(OUT / "joules.json")


@contextlib.contextmanager
def stage(name):
    """Whatever goes wrong in a stage stays in the JSON, and the next one begins."""
    found = RESULT.setdefault(name, {})
    say("==", name)
    began = time.monotonic()
    try:
        yield found
    except Exception as error:  # noqa: BLE001 - what a stage fails by is one of its results
        found["error"] = f"{type(error).__name__}: {error}"[:2000]
        traceback.print_exc()
    found["stage_s"] = round(time.monotonic() - began, 1)
    save()


def left_s():
    return DEADLINE_S - (time.monotonic() - BEGAN)


# --- what runs beside: a load on each GPU, pollers, Zeus; each a process of its own ---


class Child:
    """A process of this script; it says `ready`, and from `go` on does its part."""

    def __init__(self, part, told, **environment):
        self.out = Path(tempfile.mkstemp(suffix=f"-{part}.npz")[1])
        words = json.dumps({**told, "out": str(self.out)})
        self._process = subprocess.Popen(
            [sys.executable, str(HERE), part, words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def ready(self):
        line = self._process.stdout.readline().strip()
        if line != "ready":
            raise RuntimeError(f"a child said {line!r} instead of ready")

    def go(self, **told):
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()

    def result(self):
        """What it wrote, once it has ended by itself; None where it failed."""
        code = self._process.wait()
        return np.load(self.out) if code == 0 else None

    def end(self):
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


def say_ready():
    print("ready", flush=True)
    return json.loads(sys.stdin.readline())


def sleep_until(time_ns):
    time.sleep(max(0, time_ns - time.time_ns()) / S)


# --- the loads ---


def loaded(batch, rows_of_prompts):
    """The fast engine with LLaMA-7B's shapes (or a tiny model here), a batch of real prompts read."""
    import torch

    from wattflow.engine.fast import Fast
    from wattflow.engine.ranks import join
    from wattflow.workload import prompts as workload_prompts
    from wattflow.workload import tokenizer

    shapes = choices.Model(
        name="llama-7b",
        tokenizer="sentencepiece",
        tokenizer_path=str(PACKED / "data/llama2_tokenizer.model"),
    )
    if DRY:
        shapes = choices.Model(
            name="tiny", dim=64, n_layers=2, n_heads=4, n_kv_heads=4, ffn_dim=96, vocab_size=32000,
            tokenizer="sentencepiece", tokenizer_path=shapes.tokenizer_path,
        )  # fmt: skip
    chosen = choices.Config(
        model=shapes,
        dataset=choices.Dataset(name="gsm8k", format="gsm8k", path=str(PACKED / "data/gsm8k_test.jsonl")),
        engine=choices.Engine(name="fast", threads_per_rank=1, device="cpu" if DRY else "cuda"),
        precision="fp32" if DRY else "bf16",
        batch_size=batch, n_prompts=rows_of_prompts, nodes=1, stop="length", temperature=0.0,
        max_gen_len=64 if DRY else 256, max_seq_len=640,
    )  # fmt: skip
    who = join(0, 1, 0, "node", "", chosen.engine.device, 60.0, 60.0)
    prompts = workload_prompts.load(chosen, tokenizer.load(chosen.model, "dummy")).tokens
    made = Fast(chosen, who, eos_ids=())
    made.load()
    made.prefill(prompts[:batch])
    if not DRY:
        torch.cuda.synchronize()
    return Loaded(made, who, prompts, chosen.max_gen_len - 1)


@dataclass
class Loaded:
    """The engine with a batch read, its rank, all prompts drawn, and how many steps a lap has."""

    made: Any
    who: Any
    prompts: list[list[int]]
    lap: int


class Steps:
    """Decode steps of one batch, lap after lap over the same positions."""

    def __init__(self, load):
        self._made, self._steps, self._at = load.made, load.lap, load.lap

    def one(self):
        made = self._made
        if self._at == self._steps:
            made._state.begin(made._lengths, made._limits)
            self._at = 0
        length = min(max(made._lengths) + self._at + 1, made._max_seq_len)
        self._at += 1
        made._advance(next(bucket for bucket in made._kernels.buckets if bucket >= length))


def decode_load(told):
    """Decode until told; the unix time of the end of each step, by events of the device."""
    import torch

    load = loaded(told["batch"], told["batch"])
    run = Steps(load)
    until_ns = say_ready()["until_ns"]
    ends_ns = []
    with torch.inference_mode():
        while time.time_ns() < until_ns:
            ends_ns += some_steps(run, STEPS_AT_ONCE, load.who.device)
    np.savez(told["out"], ends_ns=np.array(ends_ns, np.int64), lap=load.lap)


def some_steps(run, count, device):
    """Unix ns of the end of each of some steps; the host waits for the last one."""
    import torch

    if device == "cpu":
        ends = []
        for _ in range(count):
            run.one()
            ends.append(time.time_ns())
        return ends
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda.synchronize()
    base_ns = time.time_ns()
    events[0].record()
    for event in events[1:]:
        run.one()
        event.record()
    events[-1].synchronize()
    return [base_ns + round(events[0].elapsed_time(event) * 1e6) for event in events[1:]]


def pulse_load(told):
    """Matrix products for half of each period, nothing for the other half."""
    import torch

    half_ns = round(told["period_s"] * S / 2)
    device = "cpu" if DRY else "cuda"
    a = torch.randn(64 if DRY else 4096, 64 if DRY else 4096, device=device)
    a = a if DRY else a.to(torch.bfloat16)
    a @ a
    until_ns = say_ready()["until_ns"]
    start_ns = time.time_ns()
    while start_ns < until_ns:
        while time.time_ns() < start_ns + half_ns:
            a @ a
            if not DRY:
                torch.cuda.synchronize()
        start_ns += 2 * half_ns
        sleep_until(start_ns)
    np.savez(told["out"], ended_ns=time.time_ns())


# --- other ways to measure ---


def poll(told):
    """One GPU's instant and average power, polled at a period: what a sampler without the buffer sees."""
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(told["uuid"].encode())
    until_ns = say_ready()["until_ns"]
    period_ns, rows = told["period_ms"] * 1_000_000, []
    due_ns = time.time_ns()
    while due_ns < until_ns:
        sleep_until(due_ns)
        before_ns = time.time_ns()
        instant, average = pynvml.nvmlDeviceGetFieldValues(handle, [186, 185])
        rows.append(((before_ns + time.time_ns()) // 2, instant.value.uiVal, average.value.uiVal))
        due_ns += period_ns
    time_ns, instant_mw, average_mw = np.array(rows, np.int64).T
    np.savez(told["out"], time_ns=time_ns, instant_w=instant_mw / 1e3, average_w=average_mw / 1e3)


def zeus(told):
    """Joules and seconds of each window by Zeus, which is told of the edges as its user would tell it."""
    import types

    with contextlib.suppress(ImportError):
        import sklearn.metrics  # noqa: F401 - it is there or not
    if "sklearn.metrics" not in sys.modules:
        # Zeus imports it for GPUs without an energy counter, and never calls it here
        sys.modules["sklearn"] = types.ModuleType("sklearn")
        sys.modules["sklearn.metrics"] = types.ModuleType("sklearn.metrics")
        sys.modules["sklearn.metrics"].auc = None
    from zeus.monitor.energy import ZeusMonitor

    monitor = ZeusMonitor(gpu_indices=[told["index"]])
    windows = say_ready()["windows"]
    edges = sorted(
        (edge, last, k) for k, pair in enumerate(windows) for last, edge in enumerate(pair)
    )
    joules, seconds = np.zeros(len(windows)), np.zeros(len(windows))
    for edge_ns, last, k in edges:
        sleep_until(edge_ns)
        if last:
            measured = monitor.end_window(str(k), sync_execution=False)
            joules[k], seconds[k] = sum(measured.gpu_energy.values()), measured.time
        else:
            monitor.begin_window(str(k), sync_execution=False)
    np.savez(told["out"], joules=joules, seconds=seconds)


# --- wattflow's own sidecar ---


@contextlib.contextmanager
def recording(found):
    """The sidecar while it records, and its traces by UUID once it has stopped."""
    with tempfile.TemporaryDirectory(prefix="wattflow-joules-") as folder:
        attempt = AttemptDir(Path(folder) / "attempt-1", "joules", 1)
        attempt.path.mkdir()
        attempt.make_folders()
        (Path(folder) / "spool").mkdir(mode=0o700)
        with Sidecar(choices.Power(meter="nvml"), "node", Path(folder) / "spool") as sidecar:
            ready = sidecar.start(attempt)
            traces = {}
            yield sidecar, ready, traces
            time.sleep(0.3)
            told = sidecar.stop()
        found |= {
            "driver": told["driver"],
            "source": told["source"],
            "period_ms": told["period_ms"],
        }
        found["gpus"] = [device["name"] for device in told["devices"]]
        found["restarts"] = told["sidecar_restarts"]
        for device in told["devices"]:
            traces[device["uuid"]] = read_table(attempt.trace_path("node", device["uuid"]), TRACE)


def curve_of(trace, source, period_ms):
    samples = trace.filter(np.array(trace["source"].to_pylist()) == source)
    columns = (samples[name].to_numpy() for name in ("time_ns", "power_w", "gap"))
    return curve.curve_of(source, period_ms, *columns)


def cpu_s(pid):
    """User and system seconds of a process so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid):
    """What a process holds: pages of its own, and pages of files, which it shares with others that map them."""
    status = Path(f"/proc/{pid}/status").read_text()
    return {
        name: int(status.split(f"{name}:")[1].split()[0]) / 1024
        for name in ("RssAnon", "RssFile", "VmHWM")
    }


# --- the stages ---


def some_windows(random, start_ns, seconds, count, lengths_s):
    """Windows at random edges inside a time, as [count, 2] unix ns."""
    length_s = random.uniform(*lengths_s, count)
    start_s = random.uniform(0.0, seconds - length_s)
    return start_ns + np.rint(np.stack([start_s, start_s + length_s], 1) * S).astype(np.int64)


def measured_by_all(found, recorder, windows, until_ns):
    """Run all other methods over the windows, tell the sidecar of each edge; a function that sums all up."""
    sidecar, ready = recorder
    devices = ready["devices"]
    polls = {
        (device["uuid"], ms): Child("poll", {"uuid": device["uuid"], "period_ms": ms})
        for device in devices
        for ms in POLLS_MS
    }
    monitors = {
        device["uuid"]: Child(
            "zeus",
            {"index": device["ordinal"]},
            PYTHONPATH=os.pathsep.join([str(PACKED / "zeus"), os.environ.get("PYTHONPATH", "")]),
        )
        for device in devices
    }
    for child in polls.values():
        child.ready()
        child.go(until_ns=int(until_ns))
    for uuid, child in list(monitors.items()):
        try:
            child.ready()
            child.go(windows=windows.tolist())
        except RuntimeError as error:
            found["zeus"] = f"did not run: {error}"
            del monitors[uuid]
    for edge_ns in np.sort(windows.ravel()):
        sleep_until(int(edge_ns))
        sidecar.mark()
    sleep_until(int(until_ns))

    others = polls, monitors

    def summed_up(traces):
        return {
            device["uuid"]: by_method(
                found, device["uuid"], traces[device["uuid"]], windows, others
            )
            for device in devices
        }

    return summed_up


def by_method(found, uuid, trace, windows, others):
    """Joules of each window of one GPU, by each method."""
    (polls, monitors), (start, end) = others, windows.T
    power = curve_of(trace, found["source"], found["period_ms"])
    counted = trace.filter(trace["counter_mj"].is_valid())
    counter = energy_counter.counter(
        counted["time_ns"].to_numpy(), counted["counter_mj"].to_numpy()
    )
    integral = curve.between(power, start, end)
    by_counter = energy_counter.counter_between(counter, start, end, power)
    out = {
        "seconds": ((end - start) / S).tolist(),
        "buffer": integral.energy_j.tolist(),
        "buffer_U": (2 * integral.u_j).tolist(),
        "counter": by_counter.energy_j.tolist(),
        "counter_U": (2 * by_counter.u_j).tolist(),
    }
    for (whose, ms), child in polls.items():
        if whose == uuid and (told := child.result()) is not None:
            for field in ("instant", "average"):
                polled = curve.curve_of(f"nvml_{field}", ms, told["time_ns"], told[f"{field}_w"])
                out[f"{field}, {ms} ms"] = curve.between(polled, start, end).energy_j.tolist()
    if uuid in monitors and (told := monitors[uuid].result()) is not None:
        # its edges come some ms late: the same power over the window's own time
        out["zeus"] = (told["joules"] / told["seconds"] * (end - start) / S).tolist()
    return out


def compared(told):
    """How far the methods lie apart, in per cent."""
    buffer, counter = np.array(told["buffer"]), np.array(told["counter"])
    off = (buffer / counter - 1) * 100
    methods = {
        k: np.array(v) for k, v in told.items() if k not in ("seconds", "buffer_U", "counter_U")
    }
    steady = np.array([v for k, v in methods.items() if not k.startswith("average")])
    return {
        "buffer_over_counter_pct": off.tolist(),
        "worst_pct": float(np.abs(off).max()),
        "within_half_pct": int((np.abs(off) <= 0.5).sum()),
        "windows": len(off),
        "spread_pct": ((steady.max(0) / steady.min(0) - 1) * 100).tolist(),
        "worst_by_method_pct": {
            k: float(np.abs(v / buffer - 1).max() * 100) for k, v in methods.items()
        },
        "mean_power_w": float(buffer.sum() / np.sum(told["seconds"])),
    }


def cost(found, shown):
    """Watts of idle GPUs without and with the sidecar by their counters; its time and memory in an attempt's window.

    An attempt marks two edges, as here; stage agreement marks forty.
    """
    without_w = mean_watts(shown)
    with recording(found) as (sidecar, ready, _):
        found["idle_w"] = {"without": without_w, "with": mean_watts(shown)}
        load = Child("decode", {"batch": 4 if DRY else BATCHES[0]}, CUDA_VISIBLE_DEVICES=shown[0])
        try:
            load.ready()
            load.go(until_ns=time.time_ns() + int((LOADED_S + 3) * S))
            time.sleep(1.0)
            began_ns, at_s = time.time_ns(), [cpu_s(sidecar.pid)]
            for edge, wait_s in ((True, 0.5), (False, LOADED_S - 1.0), (True, 0.5)):
                if edge:
                    sidecar.mark()
                time.sleep(wait_s)
                at_s.append(cpu_s(sidecar.pid))
            seconds, count = (time.time_ns() - began_ns) / S, len(ready["devices"])
            found |= {
                "seconds": seconds,
                "core_pct_per_gpu": (at_s[-1] - at_s[0]) / seconds * 100 / count,
                "core_pct_per_gpu_between_edges": (at_s[2] - at_s[1])
                / (LOADED_S - 1)
                * 100
                / count,
                "memory_mib": memory_mib(sidecar.pid),
            }
        finally:
            load.end()
    say(json.dumps(found))


def mean_watts(shown):
    """Mean watts of each GPU over some seconds, by its energy counter, read at its ticks alone."""
    import pynvml

    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(int(index)) for index in shown]
    first = [ticked(pynvml, handle) for handle in handles]
    time.sleep(IDLE_S)
    last = [ticked(pynvml, handle) for handle in handles]
    pynvml.nvmlShutdown()
    return [
        (b - a) / (to_s - from_s) / 1e3 for (from_s, a), (to_s, b) in zip(first, last, strict=True)
    ]


def ticked(pynvml, handle):
    """The moment of the counter's next tick, and what it then stands at, mJ."""
    before_mj = now_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    while now_mj == before_mj:
        time.sleep(0.005)
        now_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    return time.monotonic(), now_mj


def about():
    """What ran."""
    return {
        "seed": SEED, "argv": sys.argv, "python": sys.version.split()[0],
        "commit": (PACKED / "commit").read_text().strip() if (PACKED / "commit").exists() else None,
        "dry": DRY,
    }  # fmt: skip


def cost_alone():
    """The one stage that has no load of its own at the start."""
    RESULT["about"] = about()
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")
    with stage("cost") as found:
        cost(found, shown)


def main():
    """All stages that these GPUs allow."""
    RESULT["about"] = about()
    random = np.random.default_rng(SEED)
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    with stage("agreement") as found, recording(found) as (sidecar, ready, traces):
        devices = ready["devices"]
        shown = [part for part in shown.split(",") if part] or [str(k) for k in range(len(devices))]
        loads = [
            Child("decode", {"batch": 4 if DRY else BATCHES[k % 2]}, CUDA_VISIBLE_DEVICES=shown[k])
            for k in range(len(devices))
        ]
        alone = len(devices) == 1
        try:
            for load in loads:
                load.ready()
            say("loads are ready")
            rest_s = (BLOCKS + KILLS * 3 + 14) if alone else 4
            start_ns = time.time_ns() + 8 * S  # the other methods start meanwhile
            until_ns = start_ns + int(AGREEMENT_S * S)
            windows = some_windows(random, start_ns, AGREEMENT_S - 1, WINDOWS, (LEAST_S, MOST_S))
            for load in loads:
                load.go(until_ns=until_ns + int(rest_s * S))
            began_ns, before_s = time.time_ns(), cpu_s(sidecar.pid)
            summed_up = measured_by_all(found, (sidecar, ready), windows, until_ns)
            after_s = cpu_s(sidecar.pid)
            found["sidecar_core_pct_per_gpu"] = (
                (after_s - before_s) / (time.time_ns() - began_ns) * S * 100 / len(devices)
            )
            found["sidecar_memory_mib"] = memory_mib(sidecar.pid)
            blocks = on_and_off(sidecar) if alone else []
            kills_ns = killed(sidecar) if alone else []
            steps = [load.result() for load in loads]
        finally:
            for load in loads:
                load.end()
    if "error" not in found:
        finish_agreement(found, windows, summed_up(traces), steps)
        if alone:
            with stage("overhead") as other:
                other.update(step_times(steps[0]["ends_ns"], blocks, int(steps[0]["lap"])))
                say(other)
            with stage("restart") as other:
                other.update(lost(found, traces[devices[0]["uuid"]], kills_ns))
                say(other)
    save()
    if "error" in found or not alone:
        return
    if "pulsed" in STAGES and left_s() > PULSED_S + 20:
        pulsed(random, shown[0])
    if "weights" in STAGES and (left_s() > 60 or DRY):
        with stage("weights") as found:
            child = Child("weights", {"left_s": left_s() - 15}, CUDA_VISIBLE_DEVICES=shown[0])
            try:
                child.ready()
                child.go()
                child.result()
                found.update(json.loads(child.out.with_suffix(".json").read_text()))
            finally:
                child.end()
    say("done")


def finish_agreement(found, windows, told, steps):
    found["windows_ns"] = windows.tolist()
    found["joules"] = told
    found["compared"] = {uuid: compared(of_gpu) for uuid, of_gpu in told.items()}
    found["steps_per_s"] = [
        None if s is None else len(s["ends_ns"]) / float(np.ptp(s["ends_ns"]) / S) for s in steps
    ]
    for uuid, of_gpu in found["compared"].items():
        say(uuid, json.dumps({k: v for k, v in of_gpu.items() if not isinstance(v, list)}))
    save()


def on_and_off(sidecar):
    """Hold the sidecar back for every second block of 1 s; edges and whether it was on. The buffer holds 2.36 s."""
    blocks = []
    for k in range(BLOCKS):
        on = k % 2 == 0
        os.kill(sidecar.pid, signal.SIGCONT if on else signal.SIGSTOP)
        start_ns = time.time_ns()
        time.sleep(1.0)
        blocks.append((start_ns, time.time_ns(), on))
    os.kill(sidecar.pid, signal.SIGCONT)
    return blocks


def step_times(ends_ns, blocks, lap):
    """The mean step in blocks with and without the sampler; differences of neighbours, with a 95 % interval.

    A step late in a lap reads a longer cache than an early one, so each is taken relative to the median of its place.
    """
    step_ns = np.diff(ends_ns).astype(float)
    place = np.arange(1, len(ends_ns)) % lap
    usual = np.arange(1, len(ends_ns)) % STEPS_AT_ONCE != 0  # the host waited before the others
    for k in range(lap):
        at = place == k
        step_ns[at] /= np.median(step_ns[at])
    means = []
    for start_ns, end_ns, _ in blocks:
        inside = usual & (ends_ns[:-1] > start_ns + 50_000_000) & (ends_ns[1:] < end_ns)
        means.append(float(step_ns[inside].mean()))
    pct = (np.array(means[0::2]) / np.array(means[1::2]) - 1) * 100
    half = 2.09 * pct.std(ddof=1) / np.sqrt(len(pct))  # Student's t of some 20 pairs
    return {
        "pairs": len(pct),
        "step_ms": float(np.median(np.diff(ends_ns)) / 1e6),
        "pct": pct.tolist(),
        "slower_pct": float(pct.mean()),
        "low_pct": float(pct.mean() - half),
        "high_pct": float(pct.mean() + half),
    }


def killed(sidecar):
    """Kill the sidecar some times; when."""
    times = []
    for _ in range(KILLS):
        time.sleep(3.0)
        os.kill(sidecar.pid, signal.SIGKILL)
        times.append(time.time_ns())
    time.sleep(4.0)
    return times


def lost(found, trace, kills_ns):
    """What the kills cost of the trace: time not covered, and the longest spacing after each."""
    power = curve_of(trace, found["source"], found["period_ms"])
    start_ns, end_ns = np.array(kills_ns) - S // 2, np.array(kills_ns) + 5 * S // 2
    windows = curve.between(power, start_ns, end_ns)
    return {
        "kills": len(kills_ns),
        "restarts": found["restarts"],
        "lost_ms": ((windows.window_ns - windows.covered_ns) / 1e6).tolist(),
    }


def pulsed(random, shown):
    """The same methods under a load that comes and goes 9.5 times a second."""
    with stage("pulsed") as found, recording(found) as (sidecar, ready, traces):
        load = Child("pulse", {"period_s": PULSE_S}, CUDA_VISIBLE_DEVICES=shown)
        try:
            load.ready()
            start_ns = time.time_ns() + 6 * S
            until_ns = start_ns + int(PULSED_S * S)
            load.go(until_ns=until_ns)
            lengths_s = (1.0, 2.0) if DRY else (10.0, 14.0)
            windows = some_windows(random, start_ns, PULSED_S - 1, 5, lengths_s)
            summed_up = measured_by_all(found, (sidecar, ready), windows, until_ns)
        finally:
            load.end()
    if "error" not in found:
        found["period_s"] = PULSE_S
        found["joules"] = summed_up(traces)
        found["compared"] = {uuid: compared(told) for uuid, told in found["joules"].items()}
        for of_gpu in found["compared"].values():
            say(json.dumps({k: v for k, v in of_gpu.items() if not isinstance(v, list)}))
        save()


# --- do dummy weights lie? ---


def weights(told):
    """J/token with weights and activations of different kinds, in shuffled blocks."""
    import torch

    say_ready()
    began = time.monotonic()
    random = np.random.default_rng(SEED)
    found: dict[str, object] = {"window_s": WEIGHT_WINDOW_S, "repeats": REPEATS, "batches": {}}
    for batch in (4,) if DRY else BATCHES:
        load = loaded(batch, batch + (8 if DRY else 256))
        left_s = told["left_s"] - (time.monotonic() - began)
        found["batches"][batch] = measured_arms(torch, load, batch, random, left_s)
        Path(told["out"]).with_suffix(".json").write_text(json.dumps(found, default=float))
        load.made.close()
        del load
    np.savez(told["out"], done=1)


def weight_tables(torch, device):
    """A million values to draw weights from: normal, heavy-tailed, and those of SmolLM2's matrices."""
    generator = torch.Generator().manual_seed(SEED)
    normal = torch.randn(2**20, generator=generator)
    chi = torch.stack([torch.randn(2**20, generator=generator) for _ in range(3)]).square().mean(0)
    tables = {"normal": 0.02 * normal, "heavy-tailed": 0.02 / 3**0.5 * normal / chi.sqrt()}
    path = PACKED / "smollm2-values.npy"
    if path.exists():
        bits = torch.from_numpy(np.load(path).view(np.int16))
        tables["bootstrapped"] = bits.view(torch.bfloat16).float()
    return {name: table.to(device) for name, table in tables.items()}


def refill(torch, made, table):
    """Draw each matrix of the model anew from a table of values."""
    llama = made._llama
    held = [llama.embedding, llama.head]
    held += [getattr(layer, name) for layer in llama.layers for name in ("wqkv", "wo", "w13", "w2")]
    table = table.to(held[0].dtype)
    for matrix in {x.data_ptr(): x for x in held}.values():
        flat = matrix.view(-1)
        for part in flat.split(2**26):
            part.copy_(table[torch.randint(len(table), (len(part),), device=part.device)])


def measured_arms(torch, load, batch, random, budget_s):
    """J/token of each arm in each repeat. Arms: each table with real tokens fed; the first also greedy and constant."""
    began = time.monotonic()
    tables = weight_tables(torch, load.who.device)
    arms = [(name, "real tokens") for name in tables]
    arms += [("normal", "greedy"), ("normal", "constant")]
    # tokens of other questions, dealt out to the rows in turn
    stream = [token for prompt in load.prompts[batch:] for token in prompt]
    needed = batch * load.lap
    fed = torch.tensor(stream[:needed], device=load.who.device)
    fed = fed.repeat(-(-needed // len(fed)))[:needed].view(load.lap, batch)
    with recording(meter := {}) as (_, ready, traces):
        spans = []
        for repeat in range(REPEATS):
            for name in random.permutation(list(tables)):
                with torch.inference_mode():
                    refill(torch, load.made, tables[name])
                load.made.prefill(load.prompts[:batch])
                own = [arm for arm in arms if arm[0] == name]
                for k in random.permutation(len(own)):
                    if time.monotonic() - began > budget_s / 2 and repeat:
                        continue
                    spans.append((repeat, own[k], *decoded(torch, load, own[k][1], fed)))
    uuid = load.who.gpu_uuid or ready["devices"][0]["uuid"]
    power = curve_of(traces[uuid], meter["source"], meter["period_ms"])
    out: dict[str, dict[str, object]] = {}
    for repeat, arm, start_ns, end_ns, tokens in spans:
        one = curve.between(power, [start_ns], [end_ns])
        of_arm = out.setdefault(
            ", ".join(arm), {"repeat": [], "energy_per_token_j": [], "power_w": []}
        )
        of_arm["repeat"].append(repeat)
        of_arm["energy_per_token_j"].append(one.energy_j[0] / tokens)
        of_arm["power_w"].append(one.energy_j[0] / (end_ns - start_ns) * S)
    for arm, told in out.items():
        print(arm, told, file=sys.stderr, flush=True)
    return out


def decoded(torch, load, feed, fed):
    """Decode for a window after a second of the same; its edges and the tokens made."""
    run, state, rows = Steps(load), load.made._state, fed.shape[1]
    constant = torch.full_like(fed[0], 100)
    scratch = torch.zeros_like(state.tokens[:rows])

    def one(k):
        run.one()
        if feed == "greedy":
            scratch.copy_(state.tokens[:rows])  # as many launches as the others
        else:
            state.tokens[:rows].copy_(fed[k % load.lap] if feed == "real tokens" else constant)

    def wait():
        if not DRY:
            torch.cuda.synchronize()
        return time.time_ns()

    k = 0
    with torch.inference_mode():
        warm_ns = wait() + (S if not DRY else S // 10)
        while wait() < warm_ns:
            for _ in range(16):
                one(k)
                k += 1
        first, start_ns = k, wait()
        while (end_ns := wait()) < start_ns + WEIGHT_WINDOW_S * S:
            for _ in range(16):
                one(k)
                k += 1
    return start_ns, end_ns, (k - first) * rows


PARTS = {
    "decode": decode_load,
    "pulse": pulse_load,
    "poll": poll,
    "zeus": zeus,
    "weights": weights,
}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in PARTS:
        PARTS[sys.argv[1]](json.loads(sys.argv[2]))
    elif STAGES == ["cost"]:
        cost_alone()
    else:
        main()
