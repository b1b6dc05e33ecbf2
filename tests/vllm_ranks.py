"""One rank of the real vLLM, run by the Python that has it: `python vllm_ranks.py RANK WORLD FOLDER`.

FOLDER/ask.json names the model's folder, the prompts and EOS; FOLDER/answers-RANK.json gets what each load answered.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from wattflow.config.choices import Config, Engine, Model, Vllm, Workload
from wattflow.engine import ranks
from wattflow.engine.build import build


def answers(engine, prompts):
    """One batch: its tokens, stop reasons and iterations."""
    engine.prefill(prompts)
    out = engine.decode()
    return {
        "tokens": out.tokens,
        "reasons": out.stop_reasons,
        "iterations": [vars(row) for row in out.iterations],
        "traces": [vars(trace) for trace in out.traces],
        "prefill": out.prefill_tokens_computed,
        "decode": out.decode_tokens_computed,
    }


def main():
    """Static batches to the length and to EOS, and offline, by one start of vLLM; then a second start."""
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    ask = json.loads((folder / "ask.json").read_text())
    config = Config(
        model=Model(**ask["model"]),
        engine=Engine(name="vllm", device="cpu", vllm=Vllm(**ask.get("options", {}))),
        shards=world // ask.get("pipeline", 1),
        pipeline=ask.get("pipeline", 1),
        nodes=1,
        batch_size=4,
        max_gen_len=12,
        max_seq_len=64,
        precision=ask.get("precision", "fp32"),
        temperature=0.0,
        stop="length",
        weights=ask["weights"],
    )
    place = ranks.join(rank, world, rank, "here", f"file://{folder}/meet", "cpu", 60.0, 300.0)
    prompts, found = ask["prompts"], {}
    first = build(config, place, eos_ids=(), pad_id=0)
    shared = first.load_weights()
    for name, more, batch in (
        ("static", {}, prompts[:4]),
        ("eos", {"stop": "eos"}, prompts[:4]),
        ("offline", {"workload": Workload(mode="offline")}, prompts),
        ("closed", {"workload": Workload(mode="closed", concurrency=3)}, prompts),
        ("open", {"workload": Workload(mode="open", rate_per_s=20.0, ramp_s=0.2)}, prompts),
    ):
        more["n_prompts"] = len(batch)
        engine = build(replace(config, **more), place, eos_ids=(ask["eos"],), pad_id=0)
        engine.load(shared)
        answers(engine, batch[:2])  # the warm-up
        found[name] = {**answers(engine, batch), "info": engine.info}
        engine.close()
    shared.close()
    if ask.get("again"):
        engine = build(config, place, eos_ids=(), pad_id=0)
        engine.load()
        found["again"] = answers(engine, prompts[:4])
        engine.close()
    found["alike"] = place.gather(rank) == list(range(world))  # the group is still there
    place.close()
    (folder / f"answers-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
