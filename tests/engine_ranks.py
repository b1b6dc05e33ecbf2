"""Workers for the tests of the sharded engine: tiny models, checkpoints of both kinds, and ranks as real processes.

Run as a program it is one rank: `python engine_ranks.py RANK WORLD FOLDER` reads FOLDER/ask.json, does what it asks
and writes FOLDER/answer-RANK.pt.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from wattflow.config import choices as config_choices
from wattflow.engine import allreduce, protocol, ranks, weights
from wattflow.engine.build import build
from wattflow.engine.fused import FusedLlama
from wattflow.engine.layers import share_among
from wattflow.engine.llama import Llama, empty_cache, rotary_table
from wattflow.engine.ops import EAGER
from wattflow.workload.matrices import Matrix, matrices

ROOT = Path(__file__).parent.parent
TOKENS = torch.randint(0, 251, (3, 19), generator=torch.Generator().manual_seed(1)).tolist()


def tiny(**changes: Any) -> config_choices.Model:
    """A model of 8 heads over 2 KV heads, so that four shards repeat KV heads."""
    shapes = {
        "name": "test",
        "dim": 64,
        "n_layers": 2,
        "n_heads": 8,
        "n_kv_heads": 2,
        "ffn_dim": 96,
        "vocab_size": 256,
    }
    return config_choices.Model(**{**shapes, **changes})


def choices(model: config_choices.Model, **changes: Any) -> config_choices.Config:
    """Resolved choices of a greedy float64 point on the CPU."""
    keys = {
        "model": model,
        "engine": config_choices.Engine(device="cpu"),
        "batch_size": 8,
        "max_gen_len": 6,
        "max_seq_len": 40,
        "precision": "fp64",
        "temperature": 0.0,
        "stop": "length",
        "weights": "dummy",
        "shards": 1,
        "nodes": 1,
    }
    return config_choices.Config(**{**keys, **changes})


def random_weights(model: config_choices.Model, seed: int = 0) -> dict[str, torch.Tensor]:
    """Whole matrices by Meta's names, in the order of half-split pairs, wide enough that outputs vary."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for matrix in matrices(model):
        drawn = torch.randn(matrix.shape, dtype=torch.float64, generator=generator)
        out[matrix.name] = 1 + 0.1 * drawn if matrix.split is None else 0.2 * drawn
    return out


def interleaved(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Half-split rows in Meta's order: row i and row i + D/2 of a head become rows 2i and 2i + 1."""
    order = [half * head_dim // 2 + pair for pair in range(head_dim // 2) for half in (0, 1)]
    heads = rows.reshape(-1, head_dim, rows.shape[-1])
    return heads[:, order].reshape(rows.shape)


def save_meta(
    folder: Path,
    model: config_choices.Model,
    whole: dict[str, torch.Tensor],
    files: int,
    *,
    embedding_dim: int = 1,
) -> None:
    """Write whole weights as Meta's checkpoint of `files` files, the embedding cut along `embedding_dim`."""
    folder.mkdir(parents=True, exist_ok=True)
    params = {
        "dim": model.dim,
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "n_kv_heads": model.n_kv_heads,
        "vocab_size": -1,
        "norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
    }
    (folder / "params.json").write_text(json.dumps(params))
    for number in range(files):
        part = {m.name: _meta_part(m, whole, number, files, embedding_dim) for m in matrices(model)}
        part["rope.freqs"] = torch.ones(4)
        torch.save(part, folder / f"consolidated.{number:02d}.pth")


def _meta_part(
    matrix: Matrix, whole: dict[str, torch.Tensor], number: int, files: int, embedding_dim: int
) -> torch.Tensor:
    tensor = whole[matrix.name]
    if matrix.head_dim is not None:
        tensor = interleaved(tensor, matrix.head_dim)
    dim = embedding_dim if matrix.name == "tok_embeddings.weight" else matrix.split
    return tensor if dim is None else tensor.chunk(files, dim)[number].clone()


def save_hf(
    model: config_choices.Model, whole: dict[str, torch.Tensor], files: int, **config: Any
) -> None:
    """Write whole weights as Hugging Face's checkpoint of `files` files, with an index where there are several."""
    folder = Path(model.path)
    folder.mkdir(parents=True)
    keys = {
        "model_type": "llama",
        "hidden_size": model.dim,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "intermediate_size": model.ffn_dim,
        "vocab_size": model.vocab_size,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(keys))
    tensors = {m.hf_name: whole[m.name] for m in matrices(model)}
    if files == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    weight_map = {}
    for number in range(files):
        part = dict(list(tensors.items())[number::files])
        name = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def load_parts(
    model: config_choices.Model, kind: str, rank: int, shards: int
) -> dict[str, torch.Tensor]:
    """What wattflow's loader gives one rank, in float64."""
    read = weights.reader(model, kind, "cpu")
    return dict(weights.of_rank(model, read, rank, shards, dtype=torch.float64, device="cpu"))


def whole_from(model: config_choices.Model, kind: str, shards: int) -> dict[str, torch.Tensor]:
    """Whole matrices put together from what `shards` ranks loaded, each rank's part at its own range."""
    parts = [load_parts(model, kind, rank, shards) for rank in range(shards)]
    out = {}
    for matrix in matrices(model):
        if matrix.split is None:
            out[matrix.name] = parts[0][matrix.name]
            continue
        whole = torch.full(matrix.shape, torch.nan, dtype=torch.float64)
        for rank, part in enumerate(parts):
            start, stop = matrix.span(rank, shards)
            kept = part[matrix.name].narrow(matrix.split, 0, stop - start)
            whole.narrow(matrix.split, start, stop - start).copy_(kept)
        out[matrix.name] = whole
    return out


def build_llama(model: config_choices.Model, kind: str, who: ranks.Ranks) -> Llama:
    """The rank's part of the model, in float64, its collectives over `who`."""
    share_among(who)
    with torch.device("meta"):
        llama = Llama(model, who.rank, who.world)
    state = load_parts(model, kind, who.rank, who.world)
    if model.tied_embeddings:
        state["output.weight"] = state["tok_embeddings.weight"]
    llama.load_state_dict(state, assign=True)
    return llama


def all_logits(
    llama: Llama, model: config_choices.Model, shards: int, tokens: torch.Tensor, cuts: list[int]
) -> torch.Tensor:
    """Logits at every position of tokens [batch, length], fed in pieces that end at `cuts` and at the end."""
    batch, length = tokens.shape
    kind = {"dtype": torch.float64, "device": "cpu"}
    cache = empty_cache(model, shards, batch, length, **kind)
    rotary = rotary_table(model, length, **kind)
    edges = [0, *cuts, length]
    with torch.inference_mode():
        pieces = [
            llama.logits(llama(tokens[:, start:stop], start, cache, rotary))
            for start, stop in pairwise(edges)
        ]
    return torch.cat(pieces, dim=1)


ALONE = ranks.Ranks(0, 1, 0, "here", "cpu", "cpu", None)


def generate(
    chosen: config_choices.Config,
    who: ranks.Ranks,
    prompts: list[list[int]],
    eos_ids: Sequence[int] = (),
) -> protocol.Generated:
    """One batch through the engine of the choices."""
    engine = build(chosen, who, eos_ids=eos_ids, pad_id=0)
    try:
        engine.load()
        engine.prefill(prompts)
        return engine.decode()
    finally:
        engine.close()


def spawn(world: int, folder: Path, ask: dict[str, Any], timeout_s: float = 600) -> list[Any]:
    """What each of `world` rank processes answered, and its standard output under "stdout"."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ask.json").write_text(json.dumps(ask))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(rank), str(world), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    out = []
    for rank, process in enumerate(processes):
        stdout, stderr = process.communicate(timeout=timeout_s)
        assert process.returncode == 0, f"rank {rank} of {world}: {stderr}"
        answer = torch.load(folder / f"answer-{rank}.pt", weights_only=True)
        out.append({**answer, "stdout": stdout})
    return out


def reduced(who: ranks.Ranks) -> tuple[torch.Tensor, dict[str, Any]]:
    """The sum over ranks of [rank + 1, 10 (rank + 1)], and what the choice of an all-reduce says of itself."""
    reduce, about = allreduce.choose(who, [1, 2], 8, torch.float64)
    part = torch.tensor([[1.0, 10.0]], dtype=torch.float64) * (who.rank + 1)
    return reduce(part) if who.world > 1 else part, about


class Spoiled(allreduce.Reduce):
    """Sums a product where it was written, in one buffer for all, and leaves other numbers there."""

    def __init__(self, width: int) -> None:
        self.place = torch.zeros((1, width), dtype=torch.float64)

    def buffer(self, shape: Sequence[int]) -> torch.Tensor | None:
        """The place of a single row."""
        return self.place if shape[0] == 1 else None

    def __call__(self, part: torch.Tensor) -> torch.Tensor:
        """The sum; what the buffer held is gone."""
        summed = super().__call__(part.clone())
        if part.data_ptr() == self.place.data_ptr():
            part.fill_(7.0)
        return summed


def buffered(who: ranks.Ranks) -> list[torch.Tensor]:
    """Logits of three steps of the fast model, its products summed anywhere and in one spoiled buffer."""
    model = tiny()
    read = weights.reader(model, "dummy", "cpu")
    llama = FusedLlama(model, who, read, dtype=torch.float64).with_cache(1, 8)
    out = []
    for reduce in (allreduce.Reduce(), Spoiled(model.dim)):
        llama.reduce = reduce
        llama.cache.zero_()
        with torch.inference_mode():
            out.append(
                torch.stack(
                    [
                        llama.step(torch.tensor([5 + n]), torch.tensor([n]), 8, EAGER)
                        for n in range(3)
                    ]
                )
            )
    return out


def quantised(who: ranks.Ranks) -> list[float]:
    """How far this rank's logits of three steps in fp8 are off those in float32: over all ranks, and by one."""
    model = tiny()
    read = weights.reader(model, "dummy", "cpu")
    seen = []
    for place, fp8 in ((who, True), (ALONE, True), (ALONE, False)):
        llama = FusedLlama(model, place, read, dtype=torch.float32, fp8=fp8).with_cache(1, 8)
        with torch.inference_mode():
            steps = [
                llama.step(torch.tensor([5 + n]), torch.tensor([n]), 8, EAGER) for n in range(3)
            ]
        if place is who:
            first, mine = llama.first, llama.mine
            seen.append(torch.stack(steps)[..., :mine])
        else:
            seen.append(torch.stack(steps)[..., first : first + mine])
    return [float((made - seen[2]).norm() / seen[2].norm()) for made in seen[:2]]


def answer(who: ranks.Ranks, ask: dict[str, Any]) -> dict[str, Any]:
    """Logits of every asked model and kind of weights, tokens of every asked generation, and what ranks told."""
    tokens = torch.tensor(ask["tokens"])
    logits = {}
    for name, (shapes, kind) in ask["models"].items():
        model = tiny(**shapes)
        llama = build_llama(model, kind, who)
        logits[name] = all_logits(llama, model, who.world, tokens, [5])
    made = {}
    for name, (shapes, changes) in ask["generations"].items():
        engine = config_choices.Engine(name=changes.pop("engine", "paper"), device="cpu")
        chosen = choices(tiny(**shapes), shards=who.world, engine=engine, **changes)
        made[name] = generate(chosen, who, ask["prompts"]).tokens
    summed, about = reduced(who)
    told = who.gather({"rank": who.rank, "é": [None, 1.5, "ü" * who.rank]})
    heard = who.broadcast({"from": who.rank} if who.rank == 0 else "ignored")
    who.barrier()
    return {
        "logits": logits,
        "made": made,
        "told": told,
        "heard": heard,
        "summed": summed,
        "reduce": about,
        "buffered": buffered(who),
        "quantised": quantised(who),
    }


def main() -> None:
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    who = ranks.join(rank, world, rank, "here", f"file://{folder}/meet", "cpu", 60.0, 60.0)
    torch.set_num_threads(1)
    ask = json.loads((folder / "ask.json").read_text())
    torch.save(answer(who, ask), folder / f"answer-{rank}.pt")
    who.close()


if __name__ == "__main__":
    main()
