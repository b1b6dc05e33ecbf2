"""How fast weights come from disk to a device: `fast` loads safetensors with a cold cache, in turn with `dd bs=16M`.

    OUT=results python tests/benchmarks/load.py             LLaMA-7B on the GPU, or the CPU where there is none
    LAYERS=4 OUT=results python tests/benchmarks/load.py    so many layers of it: less to write and to read
    DRY=1 LAYERS=1 OUT=/tmp/results python tests/benchmarks/load.py    narrow ones, to try the script

Three turns of dd and of a load, each in a process of its own; the load's clock runs from before the first byte is read
to the last weight on the device, without imports, CUDA's start and graphs. Caches are dropped before each, by the
kernel where this is root, else file by file. RssAnon is the most that the process held of memory of its own.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

TURNS = int(os.environ.get("TURNS", "3"))
DRY = os.environ.get("DRY") == "1"
LAYERS = int(os.environ.get("LAYERS", "32"))
FILE_BYTES = 4_000_000_000  # a file of a checkpoint, at most
OUT = Path(os.environ.get("OUT", "."))


def shapes(folder):
    from wattflow.config import choices

    small = {"dim": 256, "n_heads": 8, "n_kv_heads": 8, "ffn_dim": 688} if DRY else {}
    return choices.Model(name="llama-7b", n_layers=LAYERS, path=str(folder), **small)


def write(folder):
    """A checkpoint of random bf16 weights in Hugging Face's form; its bytes."""
    import torch
    from safetensors.torch import save_file

    from wattflow.workload.matrices import matrices

    model = shapes(folder)
    noise = torch.randn(2**24).mul_(0.02).bfloat16()
    weight_map, held, bytes_held, number = {}, {}, 0, 0

    def close():
        nonlocal held, bytes_held, number
        name = f"model-{number:05d}.safetensors"
        save_file(held, folder / name)
        weight_map.update(dict.fromkeys(held, name))
        held, bytes_held, number = {}, 0, number + 1

    total = 0
    for matrix in matrices(model):
        count = int(torch.tensor(matrix.shape).prod())
        part = noise.repeat(-(-count // len(noise)))[:count].reshape(matrix.shape).clone()
        held[matrix.hf_name] = part
        bytes_held += part.nbytes
        total += part.nbytes
        if bytes_held > FILE_BYTES:
            close()
    close()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    about = {
        "model_type": "llama",
        "hidden_size": model.dim,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "intermediate_size": model.ffn_dim,
        "vocab_size": model.vocab_size,
        "rms_norm_eps": model.norm_eps,
    }
    (folder / "config.json").write_text(json.dumps(about))
    return total


def drop_caches(files):
    """How the files' pages were dropped from memory."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        for path in files:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return "posix_fadvise"
    return "drop_caches"


def read_by_dd(files):
    began = time.perf_counter()
    for path in files:
        subprocess.run(
            ["dd", f"if={path}", "of=/dev/null", "bs=16M"], check=True, capture_output=True
        )
    return time.perf_counter() - began


class Memory(threading.Thread):
    """The most RssAnon of this process, bytes, looked at each 10 ms."""

    def __init__(self):
        super().__init__(daemon=True)
        self.most = 0
        self.ended = threading.Event()

    def run(self):
        while not self.ended.wait(0.01):
            told = Path("/proc/self/status").read_text()
            self.most = max(self.most, int(re.search(r"RssAnon:\s+(\d+)", told)[1]) * 1024)


def load(folder):
    """One load in this process: seconds, and the most memory of its own, before and meanwhile."""
    import torch

    from wattflow.config import choices
    from wattflow.engine.fast import Fast
    from wattflow.engine.ranks import join

    device = "cuda" if torch.cuda.is_available() else "cpu"
    who = join(0, 1, 0, "node", "", device, 60.0, 60.0)
    chosen = choices.Config(
        model=shapes(folder),
        engine=choices.Engine(name="fast", device=device),
        weights="hf",
        batch_size=1,
        max_gen_len=8,
        max_seq_len=16,
        precision="bf16",
        temperature=0.0,
        stop="length",
        nodes=1,
    )
    engine = Fast(chosen, who, eos_ids=())
    if device == "cuda":
        torch.zeros(1, device=who.device)
        torch.cuda.synchronize()
    memory = Memory()
    memory.start()
    time.sleep(0.05)
    before = memory.most
    began = time.perf_counter()
    weights = engine.load_weights()
    engine.synchronize()
    seconds = time.perf_counter() - began
    memory.ended.set()
    memory.join()
    print(json.dumps({"seconds": seconds, "device": who.device_name, "rss_anon_bytes": memory.most,
                      "rss_anon_before_bytes": before, "weight_bytes": weights.weight_bytes}))  # fmt: skip


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="wattflow-load-", dir=os.environ.get("WORK")))
    try:
        began = time.perf_counter()
        total = write(folder)
        print(f"wrote {total / 1e9:.2f} GB in {time.perf_counter() - began:.1f} s", flush=True)
        files = sorted(folder.glob("*.safetensors"))
        result = {"bytes": total, "dd_s": [], "loads": []}
        for _ in range(TURNS):
            result["dropped_by"] = drop_caches(files)
            result["dd_s"].append(read_by_dd(files))
            drop_caches(files)
            done = subprocess.run(
                [sys.executable, __file__, str(folder)], check=True, capture_output=True, text=True
            )
            result["loads"].append(json.loads(done.stdout.splitlines()[-1]))
            took, dd_s = result["loads"][-1]["seconds"], result["dd_s"][-1]
            print(
                f"dd {total / dd_s / 1e9:.2f} GB/s, load {total / took / 1e9:.2f} GB/s ({dd_s / took:.0%}), "
                f"RssAnon {result['loads'][-1]['rss_anon_bytes'] / 2**30:.2f} GiB",
                flush=True,
            )
        dd = statistics.median(result["dd_s"])
        took = statistics.median(one["seconds"] for one in result["loads"])
        result["share_of_dd"] = dd / took
        result["rss_anon_bytes"] = max(one["rss_anon_bytes"] for one in result["loads"])
        (OUT / "load.json").write_text(json.dumps(result, indent=1))
        print(f"{result['share_of_dd']:.1%} of dd, caches dropped by {result['dropped_by']}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        load(Path(sys.argv[1]))
    else:
        main()
