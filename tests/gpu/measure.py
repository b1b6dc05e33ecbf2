"""A transformers generation on a real GPU under `wattflow measure`, and by a sweep's own parts; as JSON.

    OUT=results PACKED=.gpu python tests/gpu/measure.py                 one visible GPU: some 4 minutes
    STAGES="cost together" OUT=results python tests/gpu/measure.py      the proof alone: about a minute
    DRY=1 OUT=/tmp/results PACKED=.gpu python tests/gpu/measure.py      here: a tiny model, a fake driver, short windows

    together   both watch one run: two sidecars on one board, the same window; their joules agree to 0.5 %
    in turn    three runs each, one after another: the same work, so J/token differ by what boards and heat do
    cost       how long `measure` takes to start and stop on this driver, around `true`

transformers comes from PACKED/transformers (pack.sh) where it is not installed. $OUT/measure.json is replaced after
each stage; the exit code is 1 where a goal is missed.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from measured_twice import MEASURE, by_measure, finish, new_attempt, twice  # noqa: E402 - the path

from wattflow.config.choices import Power  # noqa: E402 - as above
from wattflow.power.sidecar_client import Sidecar  # noqa: E402 - as above
from wattflow.process import node_name  # noqa: E402 - as above
from wattflow.run.spans import SpanLog  # noqa: E402 - as above
from wattflow.spans import span  # noqa: E402 - as above

DRY = os.environ.get("DRY") == "1"
OUT = Path(os.environ.get("OUT", "."))
PACKED = Path(os.environ.get("PACKED", ROOT / ".gpu"))
BATCHES, ROWS, PROMPT, NEW = (4, 4, 16, 32) if DRY else (6, 32, 128, 128)
TURNS, CALLS = (1, 3) if DRY else (3, 9)
STAGES = os.environ.get("STAGES", "cost together in_turn").split()
NVML = Power(meter="nvml")
KEPT = (
    "energy_j",
    "energy_u_j",
    "duration_s",
    "power_w",
    "energy_per_token_j",
    "tokens_kept",
    "counter_ratio",
    "coverage",
    "samples",
    "samples_expected",
    "reasons",
    "valid",
    "power_source",
    "gpu_name",
    "driver",
)
RESULT: dict[str, object] = {}
# What a sidecar does from its start to its end, then what `measure` imports: seconds, in a process of its own.
PARTS = """
import json, time
told, last = {}, time.perf_counter()
def lap(name):
    global last
    told[name], last = time.perf_counter() - last, time.perf_counter()
import pynvml
lap("import pynvml")
pynvml.nvmlInit()
lap("nvmlInit")
import numpy, pyarrow
lap("import numpy, pyarrow")
from wattflow.config.choices import Power
from wattflow.power.nvml import NvmlMeter
import wattflow.power.sidecar
lap("import the sidecar")
meter = NvmlMeter(Power(meter="nvml"))
lap("open the meter")
meter.read()
lap("first readings")
meter.finish()
lap("last readings")
meter.close()
lap("close the meter")
import wattflow.cli, wattflow.measure.record
lap("import the rest of measure")
print(json.dumps(told))
"""


class Work:
    """The generation: real transformers code, random weights of a fixed seed, the same batches each time."""

    def __init__(self):
        import torch
        import transformers

        self.torch, self.device = torch, "cpu" if DRY else "cuda"
        torch.manual_seed(0)
        sizes = (64, 128, 2, 4, 512) if DRY else (2048, 5632, 22, 32, 32000)
        names = (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "vocab_size",
        )
        shapes = transformers.LlamaConfig(**dict(zip(names, sizes, strict=True)))
        with torch.device(self.device):  # there its 1.1 billion weights are drawn in no time
            model = transformers.LlamaForCausalLM(shapes).eval()
        self.model = model.to(torch.float32 if DRY else torch.bfloat16)
        self.prompts = torch.randint(3, sizes[-1], (ROWS, PROMPT), device=self.device)
        self.decode()
        self.wait()

    def wait(self):
        """Until nothing is queued on the device."""
        if not DRY:
            self.torch.cuda.synchronize()

    def prefill(self):
        with self.torch.no_grad():
            self.model(self.prompts)

    def decode(self):
        """Output tokens of one batch."""
        with self.torch.no_grad():
            out = self.model.generate(
                self.prompts,
                attention_mask=self.torch.ones_like(self.prompts),
                do_sample=False,
                min_new_tokens=NEW,
                max_new_tokens=NEW,
                pad_token_id=0,
            )
        return out[:, PROMPT:].numel()


def told():
    """The program that `measure` watches."""
    with span("load"):
        work = Work()
    for _ in range(BATCHES):
        with span("prefill", sync=work.wait):
            work.prefill()
        with span("decode", sync=work.wait) as tokens:
            tokens.tokens_out = work.decode()


def own(folder):
    """The same work with a sweep's own sidecar, spans and collector around it, in its process; prints its row."""
    work, node = Work(), node_name()
    spool = folder / "spool"
    spool.mkdir(parents=True)
    sweep, attempt = new_attempt(folder / "sweep")

    def edge():
        work.wait()
        return time.time_ns()

    with Sidecar(NVML, node, spool) as sidecar:
        (device,) = sidecar.start(attempt)["devices"]
        path = spool / "spans-rank0.arrow"
        log = SpanLog(path, rank=0, node=node, gpu_uuid=device["uuid"], edge=edge)
        kept = 0
        sidecar.mark()
        for batch in range(BATCHES):
            with log.span("prefill", batch):
                work.prefill()
            with log.span("decode", batch) as tokens:
                tokens.tokens_kept = work.decode()
            kept += tokens.tokens_kept
        sidecar.mark()
        time.sleep(0.3)  # the counter's tick after the edge
        log.close()
        info = sidecar.stop()
    print(json.dumps(shown(finish(sweep, attempt, info, [path], kept))))


def shown(row):
    return {key: row[key] for key in KEPT}


def together(folder):
    """Both on one run."""
    measured, own_row = twice(folder, [sys.executable, str(HERE), "told"], node_name(), NVML)
    ratio = measured["energy_j"] / own_row["energy_j"]
    return {
        "measure": shown(measured),
        "sweep": shown(own_row),
        "ratio": ratio,
        "goal": abs(ratio - 1) <= 0.005,
    }


def in_turn(folder):
    """One after another, `measure` first in even turns."""
    rows = {"measure": [], "sweep": []}
    for turn in range(TURNS):
        for which in ("measure", "sweep") if turn % 2 == 0 else ("sweep", "measure"):
            place = folder / f"{which}-{turn}"
            if which == "measure":
                found = shown(by_measure(place, [sys.executable, str(HERE), "told"], NVML))
            else:
                done = subprocess.run(
                    [sys.executable, str(HERE), "own", str(place)],
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                found = json.loads(done.stdout.splitlines()[-1])
            rows[which].append(found)
            print(
                f"{which}: {found['energy_j']:.1f} J, {found['energy_per_token_j']:.5f} J/token {found['reasons']}",
                flush=True,
            )
    means = {k: statistics.mean(row["energy_per_token_j"] for row in of) for k, of in rows.items()}
    return {**rows, "ratio": means["measure"] / means["sweep"]}


def cost(folder):
    """Seconds that `measure` adds to `true`, and where they go."""
    taken = {"true": [], "measure": []}
    for i in range(CALLS):
        for name, words in (
            ("true", ["true"]),
            (
                "measure",
                [*MEASURE, "--out", str(folder / str(i)), "--set=power.meter=nvml", "true"],
            ),
        ):
            taken[name].append(seconds_of(words))
    added = statistics.median(taken["measure"]) - statistics.median(taken["true"])
    parts = [json.loads(output([sys.executable, "-c", PARTS])) for _ in range(CALLS)]
    return {
        "taken_s": taken,
        "added_s": added,
        "goal": added < 1.0,
        "python_s": statistics.median(seconds_of([sys.executable, "-c", ""]) for _ in range(CALLS)),
        "parts_s": {name: statistics.median(of[name] for of in parts) for name in parts[0]},
    }


def seconds_of(words):
    start = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return time.perf_counter() - start


def output(words):
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def pretend(folder):
    """A driver whose watts are known functions of time, for where there is none."""
    make = ["make", "-s", "-C", str(ROOT / "tests" / "fake_nvml"), f"OUT={folder}"]
    subprocess.run(make, check=True)
    os.environ |= {
        "LD_LIBRARY_PATH": str(folder),
        "FAKE_NVML_GPUS": "1",
        "FAKE_NVML_PROCESSES": "0",
    }


def find_transformers(folder):
    """Install the packed transformers for this run and its programs, where there is none."""
    try:
        import transformers  # noqa: F401 - whether it is there
    except ImportError:
        wheels = sorted(map(str, (PACKED / "transformers").glob("*.whl")))
        if not wheels:
            sys.exit("measure.py: no transformers here, and none packed (tests/gpu/pack.sh)")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*pip, "--target", str(folder), *wheels], check=True)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wattflow-gpu-measure-") as name:
        work = Path(name)
        site = work / "site"
        find_transformers(site)
        paths = [str(ROOT), str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        if DRY:
            pretend(work / "nvml")
        for stage in (stage for stage in (cost, together, in_turn) if stage.__name__ in STAGES):
            print("==", stage.__name__, flush=True)
            began = time.monotonic()
            try:
                RESULT[stage.__name__] = stage(work / stage.__name__)
            except Exception as error:  # noqa: BLE001 - what a stage fails by is one of its results
                traceback.print_exc()
                RESULT[stage.__name__] = {
                    "error": f"{type(error).__name__}: {error}"[:2000],
                    "goal": False,
                }
            RESULT[stage.__name__]["stage_s"] = round(time.monotonic() - began, 1)
            new = OUT / "measure.json.new"
            new.write_text(json.dumps({"dry": DRY, **RESULT}, indent=1))
            new.replace(OUT / "measure.json")
    for name, found in RESULT.items():
        told_of = {k: v for k, v in found.items() if k in ("ratio", "added_s", "error", "stage_s")}
        print(name, told_of, "" if found.get("goal", True) else "MISSED")
    return int(not all(found.get("goal", True) for found in RESULT.values()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["told"]:
        told()
    elif sys.argv[1:2] == ["own"]:
        own(Path(sys.argv[2]))
    else:
        sys.exit(main())
