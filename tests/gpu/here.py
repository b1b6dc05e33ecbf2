"""Measure what needs no GPU: real weights against transformers, and the token lengths of real prompts, as JSON.

    tests/fetch_smollm2.sh /tmp/smollm2
    WATTFLOW_SMOLLM2=/tmp/smollm2 WATTFLOW_DATA=FOLDER python tests/gpu/here.py >docs/measurements/here.json
    WATTFLOW_DATA=FOLDER python tests/gpu/here.py prompts        the lengths alone, which need no weights

It asks what tests/test_real_weights.py proves, with that test's own prompts and settings, and keeps the numbers.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from measured import machine

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

import test_real_weights as real  # noqa: E402 - its folder is on the path only now

from wattflow.config.choices import Config, Dataset, Model  # noqa: E402 - as above
from wattflow.workload import prompts as workload_prompts  # noqa: E402 - as above
from wattflow.workload import tokenizer  # noqa: E402 - as above

END = 2  # SmolLM2's end of a turn


def expected(model: transformers.LlamaForCausalLM, tokens: list[int]) -> list[int]:
    """What transformers generates greedily for one prompt, up to the end of its turn."""
    ids = torch.tensor([tokens])
    with torch.no_grad():
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=real.NEW_TOKENS,
            pad_token_id=END,
        )
    answer = made[0, len(tokens) :].tolist()
    return answer[: answer.index(END)] if END in answer else answer


def answers(shards: int) -> list[list[int]]:
    """The engine's answers to all prompts, by so many ranks; they agree, or the engine would have failed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    with tempfile.TemporaryDirectory() as folder:
        program = [sys.executable, real.__file__]
        ranks = [
            subprocess.Popen([*program, str(rank), str(shards), folder], env=environment)
            for rank in range(shards)
        ]
        if any(rank.wait() for rank in ranks):
            raise SystemExit(f"{shards} shards: a rank failed")
        made: list[list[int]] = json.loads((Path(folder) / "answers-0.json").read_text())
    return made


def weights() -> dict[str, object]:
    """How the engine's answers compare with transformers', at one and at three shards."""
    chosen = real.choices(1)
    text = tokenizer.load(chosen.model, "hf")
    prompts = workload_prompts.load(chosen, text)
    model = transformers.LlamaForCausalLM.from_pretrained(real.FOLDER, dtype=torch.float32).eval()
    theirs = [expected(model, tokens) for tokens in prompts.tokens]
    runs = []
    for shards in (1, 3):
        ours = answers(shards)
        parted = [i for i, answer in enumerate(ours) if answer != theirs[i]]
        starts = [prompts.tokens[i] + theirs[i][: real.common(ours[i], theirs[i])] for i in parted]
        runs.append(
            {
                "shards": shards,
                "tokens": sum(map(len, ours)),
                "parted": len(parted),
                "gaps": [real.logit_gap(model, start) for start in starts],
            }
        )
    return {
        "model": "SmolLM2-135M-Instruct",
        "prompts": real.PROMPTS,
        "new_tokens": real.NEW_TOKENS,
        "runs": runs,
        "answers": [{"prompt": prompts.texts[i], "text": text.decode(ours[i])} for i in range(3)],
    }


def prompt_lengths() -> dict[str, object]:
    """The statistics of each real file's prompts, as every record has them."""
    folder = Path(os.environ["WATTFLOW_DATA"])
    path = str(folder / "llama2_tokenizer.model")
    llama = Model(name="llama-7b", tokenizer="sentencepiece", tokenizer_path=path)
    out = {}
    for about, name, file, count in (
        ("999 Alpaca records", "alpaca", "alpaca_en_demo.json", 999),
        ("GSM8K's test questions", "gsm8k", "gsm8k_test.jsonl", 1319),
    ):
        chosen = Config(
            model=llama,
            dataset=Dataset(name=name, format=name, path=str(folder / file)),
            n_prompts=count,
            max_seq_len=1024,
        )
        out[about] = workload_prompts.load(chosen, tokenizer.load(llama, "meta")).info
    return out


if __name__ == "__main__":
    told = {"script": "tests/gpu/here.py", "machine": machine()}
    if sys.argv[1:] != ["prompts"]:
        told["weights"] = weights()
    told["prompts"] = prompt_lengths()
    told["machine"]["versions"]["transformers"] = transformers.__version__
    print(json.dumps(told, indent=1))
