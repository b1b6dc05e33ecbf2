"""SmolLM2-135M with its own weights, tokenizer and chat template: the engine answers as transformers does.

tests/fetch_smollm2.sh makes the checkpoint and says how to run this. Run as a program this file is one rank:
`python test_real_weights.py RANK WORLD FOLDER` answers the prompts and writes FOLDER/answers-RANK.json.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from wattflow.config.choices import Config, Dataset, Engine, Model
from wattflow.engine import ranks
from wattflow.engine.build import build
from wattflow.workload import prompts as workload_prompts
from wattflow.workload import tokenizer

ROOT = Path(__file__).parent.parent
FOLDER = os.environ.get("WATTFLOW_SMOLLM2")
PROMPTS, NEW_TOKENS = 20, 64

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        FOLDER is None, reason="WATTFLOW_SMOLLM2 names no folder made by tests/fetch_smollm2.sh"
    ),
]


def choices(shards):
    """20 shipped instructions as chats, answered greedily in float32 on the CPU until EOS or 64 tokens."""
    shapes = yaml.safe_load((ROOT / "conf" / "model" / "smollm2-135m.yaml").read_text())
    return Config(
        model=Model(**{**shapes, "path": FOLDER}),
        dataset=Dataset(name="alpaca", template="plain"),
        engine=Engine(device="cpu"),
        shards=shards,
        nodes=1,
        batch_size=PROMPTS,
        max_gen_len=NEW_TOKENS,
        max_seq_len=512,
        precision="fp32",
        n_prompts=PROMPTS,
        temperature=0.0,
        stop="eos",
        weights="hf",
    )


def main():
    """One rank: answer all prompts in one batch."""
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    chosen = choices(world)
    text = tokenizer.load(chosen.model, chosen.weights)
    who = ranks.join(rank, world, rank, "here", f"file://{folder}/meet", "cpu", 60.0)
    engine = build(chosen, who, eos_ids=text.eos_ids, pad_id=text.pad_id)
    engine.load()
    engine.prefill(workload_prompts.load(chosen, text).tokens)
    (folder / f"answers-{rank}.json").write_text(json.dumps(engine.decode().tokens))
    engine.close()
    who.close()


@pytest.fixture(scope="module")
def prompts():
    """The drawn prompts."""
    chosen = choices(1)
    return workload_prompts.load(chosen, tokenizer.load(chosen.model, "hf"))


@pytest.fixture(scope="module")
def reference():
    """transformers' model of the same files."""
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def expected(reference, prompts):
    """What transformers generates for each prompt alone, up to EOS."""
    out = []
    for tokens in prompts.tokens:
        ids = torch.tensor([tokens])
        with torch.no_grad():
            made = reference.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                pad_token_id=2,
            )
        answer = made[0, len(tokens) :].tolist()
        out.append(answer[: answer.index(2)] if 2 in answer else answer)
    return out


def logit_gap(reference, tokens):
    """How far apart the two likeliest next tokens are."""
    with torch.no_grad():
        first, second = reference(torch.tensor([tokens])).logits[0, -1].topk(2).values.tolist()
    return first - second


def common(ours, theirs):
    """How many tokens two answers share from the start."""
    pairs = zip(ours, theirs, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


def test_chat_equals_transformers(prompts):
    """The drawn prompts have the ids that transformers' apply_chat_template gives."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(FOLDER)
    for text, ids in zip(prompts.texts, prompts.tokens, strict=True):
        messages = [{"role": "user", "content": text}]
        assert ids == theirs.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )


@pytest.mark.parametrize("shards", [1, 3])
def test_answers_equal_transformers(shards, tmp_path, prompts, reference, expected):
    """All ranks give transformers' ids; at most one prompt may part, where two tokens lie within 1e-4."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(rank), str(shards), str(tmp_path)],
            env=environment,
        )
        for rank in range(shards)
    ]
    assert [process.wait(timeout=900) for process in processes] == [0] * shards
    answers = [json.loads((tmp_path / f"answers-{r}.json").read_text()) for r in range(shards)]
    assert answers == [answers[0]] * shards
    parted = [i for i, answer in enumerate(answers[0]) if answer != expected[i]]
    gaps = [
        logit_gap(
            reference,
            prompts.tokens[i] + expected[i][: common(answers[0][i], expected[i])],
        )
        for i in parted
    ]
    text = tokenizer.load(choices(1).model, "hf")
    count = sum(map(len, answers[0]))
    print(f"{shards} shards: {count} tokens, {len(parted)} prompts part, gaps {gaps}")
    for i in (0, 1, 2):
        print(f"{shards} shards: {prompts.texts[i]!r} -> {text.decode(answers[0][i])!r}")
    assert len({token for answer in answers[0] for token in answer}) > 100
    assert len(parted) <= 1, f"prompts {parted} part at gaps {gaps}"
    assert all(gap < 1e-4 for gap in gaps)


if __name__ == "__main__":
    main()
