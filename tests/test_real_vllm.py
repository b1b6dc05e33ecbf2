"""The real vLLM on the CPU: tokens as our own engine's, its iterations, several starts and ranks, whole sweeps.

`make vllm` makes its environment, .venv-vllm, and runs these; WATTFLOW_VLLM_PYTHON names another Python that has vLLM.
"""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import engine_ranks as tools
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from wattflow.config.choices import Engine
from wattflow.engine.build import build
from wattflow.workload.matrices import matrices

ROOT = Path(__file__).parent.parent
PYTHON = Path(os.environ.get("WATTFLOW_VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
REQUIRED = "vllm" in os.environ.get("WATTFLOW_REQUIRE", "").split(",")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        not PYTHON.is_file() and not REQUIRED,
        reason=f"no Python with vLLM at {PYTHON}: `make vllm` makes it",
    ),
]
SHAPES = {"dim": 256, "n_heads": 8, "n_kv_heads": 4, "ffn_dim": 384, "vocab_size": 499}
LENGTHS = (3, 17, 9, 30, 5, 12, 8, 21, 4, 6, 11, 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of wide random weights, whose greedy outputs differ."""
    made = tools.tiny(path=str(tmp_path_factory.mktemp("model") / "hf"), **SHAPES)
    whole = {name: part.float() for name, part in tools.random_weights(made).items()}
    tools.save_hf(
        made, whole, 2, architectures=["LlamaForCausalLM"], torch_dtype="float32", hidden_act="silu"
    )
    return made


@pytest.fixture(scope="module")
def prompts():
    """Random prompts of different lengths."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 499, (n,), generator=generator).tolist() for n in LENGTHS]


def expected(model, prompts, eos_ids=()):
    """What our own reference engine answers, in float64."""
    config = tools.choices(
        model,
        engine=Engine(name="paper", device="cpu"),
        weights="hf",
        batch_size=len(prompts),
        max_gen_len=12,
        max_seq_len=64,
        stop="eos" if eos_ids else "length",
    )
    engine = build(config, tools.ALONE, eos_ids=eos_ids, pad_id=0)
    engine.load()
    engine.prefill(prompts)
    return engine.decode().tokens


def ask(folder, world, **what):
    """Have so many ranks of the real vLLM answer; return what each wrote."""
    (folder / "ask.json").write_text(json.dumps(what))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [str(PYTHON), str(ROOT / "tests" / "vllm_ranks.py")]
    running = [
        subprocess.Popen(
            [*words, str(rank), str(world), str(folder)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    logs = [process.communicate(timeout=400)[0] for process in running]
    assert all(process.returncode == 0 for process in running), "\n".join(logs)[-6000:]
    return [json.loads((folder / f"answers-{rank}.json").read_text()) for rank in range(world)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, model, prompts):
    """What one rank answers, with what it should; EOS is a token that some rows make."""
    greedy = expected(model, prompts)
    eos = greedy[0][4]
    (found,) = ask(
        tmp_path_factory.mktemp("alone"),
        1,
        model=vars(model),
        weights="hf",
        prompts=prompts,
        eos=eos,
        again=True,
    )
    return found, greedy, eos


def test_greedy_tokens_are_our_own_engines(alone):
    """A ragged static batch of float32, on the real scheduler, token by token; a second start gives them again."""
    found, greedy, _ = alone
    assert found["static"]["tokens"] == greedy[:4]
    assert found["again"]["tokens"] == greedy[:4]


def test_all_prompts_at_once_give_the_same_tokens(alone):
    """Twelve prompts, four at once, refilled as rows end, in the prompts' order."""
    found, greedy, _ = alone
    assert found["offline"]["tokens"] == greedy


@pytest.mark.parametrize("mode", ["closed", "open"])
def test_requests_that_come_one_by_one_give_the_same_tokens(alone, mode):
    """Three at a time, or twenty a second: the same tokens, and each request's own iterations add up to them all."""
    found, greedy, _ = alone
    assert found[mode]["tokens"] == greedy
    rows, traces = found[mode]["iterations"], found[mode]["traces"]
    for name, count in (("prefill_tokens", sum(LENGTHS)), ("tokens_made", 12 * len(LENGTHS))):
        assert sum(row[name] for row in rows) == count
    assert sum(sum(one["prefill_tokens"]) for one in traces) == sum(LENGTHS)
    assert [len(one["token_steps"]) for one in traces] == [12] * len(LENGTHS)
    for one in traces:
        assert one["due_ns"] <= one["sent_ns"] <= rows[one["prefill_steps"][0]]["start_ns"]
        assert one["end_ns"] == rows[one["token_steps"][-1]]["end_ns"]
    if mode == "closed":
        assert max(row["requests"] for row in rows) == 3


def test_rows_end_before_their_eos(alone, model, prompts):
    """The stop rule is that of the other engines."""
    found, _, eos = alone
    assert found["eos"]["tokens"] == expected(model, prompts[:4], (eos,))
    assert found["eos"]["reasons"][0] == "eos"


def test_iterations_add_up_to_the_requests(alone):
    """Prompt tokens are computed or cached, each row but its first token decodes, each request begins and ends once."""
    found, greedy, _ = alone
    for name, lengths in (("static", LENGTHS[:4]), ("offline", LENGTHS)):
        rows = found[name]["iterations"]
        sums = {key: sum(row[key] for row in rows) for key in rows[0]}
        assert sums["prefill_tokens"] + sums["cached_tokens"] == sum(lengths)
        assert sums["decode_tokens"] == 11 * len(lengths) == found[name]["decode"]
        assert sums["first_tokens"] == sums["finished"] == len(lengths)
        assert sums["tokens_kept"] == sums["tokens_made"] == 12 * len(lengths)
        assert all(row["requests"] <= 4 for row in rows)
        edges = [edge for row in rows for edge in (row["start_ns"], row["end_ns"])]
        assert edges == sorted(edges)
    kept = sum(row["tokens_kept"] for row in found["eos"]["iterations"])
    assert kept == sum(map(len, found["eos"]["tokens"]))
    assert greedy


def test_what_ran_is_recorded(alone):
    """Version, attention and cache: keys and values of 2 layers of 4 heads of 32 in float32 are 4,096 bytes a token."""
    info = alone[0]["static"]["info"]
    assert info["engine_version"][0].isdigit()
    assert info["attention_backend"] == "CPU_ATTN"
    assert (info["cuda_graphs"], info["quantization"]) == ("NONE", None)
    assert info["kv_bytes_per_token"] == 2 * 2 * 4 * 32 * 4


@pytest.mark.parametrize("pipeline", [1, 2])
def test_two_ranks_answer_as_one(tmp_path, model, prompts, alone, pipeline):
    """Two shards, or two stages, over gloo, each with an engine of its own, in step; their group outlives vLLM."""
    _, greedy, eos = alone
    asked = {"model": vars(model), "weights": "hf", "prompts": prompts, "eos": eos, "again": True}
    steps = []
    for found in ask(tmp_path, 2, **asked, pipeline=pipeline):
        assert found["alike"]
        assert found["static"]["tokens"] == greedy[:4]
        assert found["again"]["tokens"] == greedy[:4]
        assert found["offline"]["tokens"] == greedy
        assert found["open"]["tokens"] == found["closed"]["tokens"] == greedy
        steps.append([one["token_steps"] for one in found["open"]["traces"]])
    assert steps[0] == steps[1]


def wattflow(*words, cwd, code=0):
    """The command line by the Python that has vLLM."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [str(PYTHON), "-m", "wattflow.cli", *words],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


SMALL = (
    *("engine=vllm", "engine.device=cpu", "precision=fp32", "batch_size=4", "max_gen_len=8"),
    *("n_prompts=12", "power.meter=simulated", "power.idle_s=0.3", "dataset.template=plain"),
)


def test_a_point_offline_is_a_whole_row(tmp_path):
    """Dummy weights of shipped shapes by `wattflow run`: valid, full for a while, its joules per token one quotient."""
    wattflow("run", *SMALL, "workload.mode=offline", "sweep=off", cwd=tmp_path)
    (row,) = pl.read_parquet(tmp_path / "sweeps/off/results/points.parquet").to_dicts()
    assert (row["valid"], row["reasons"]) == (True, ["dummy_text"])
    assert (row["tokens_kept"], row["workload_mode"]) == (96, "offline")
    assert 0 < row["full_s"] < row["duration_s"]
    assert 0 < row["full_tokens_kept"] < 96
    assert row["full_energy_j"] <= row["energy_j"]
    assert row["attention_backend"] == "CPU_ATTN"


def test_an_open_load_is_a_whole_row(tmp_path):
    """Four a second by `wattflow run`: valid, its latencies in order, its good requests counted."""
    load = (
        "workload.mode=open",
        "workload.rate_per_s=4",
        "workload.ramp_s=0.5",
        "workload.slo.ttft_s=60",
    )
    wattflow("run", *SMALL, *load, "sweep=open", cwd=tmp_path)
    (row,) = pl.read_parquet(tmp_path / "sweeps/open/results/points.parquet").to_dicts()
    assert row["valid"], row["reasons"]
    assert 0 < row["load_requests"] == row["good_requests"] < 12
    assert 0 < row["queue_p50_s"] <= row["ttft_p50_s"] <= row["e2e_p50_s"]
    assert 0 < row["itl_p50_s"] <= row["itl_p99_s"]
    assert 0 < row["full_energy_j"] < row["energy_j"]


def test_what_vllm_refuses_ends_the_attempt_with_one_line(tmp_path):
    """A quantisation that there is not: status and record have vLLM's own sentence, and nothing hangs."""
    words = ["engine.vllm.quantization=none-such", "sweep=bad"]
    done = wattflow("run", *SMALL, *words, cwd=tmp_path, code=1)
    (record,) = (tmp_path / "sweeps/bad").glob("points/*/attempt-1/record.json")
    error = json.loads(record.read_text())["error"]
    assert error.startswith("vLLM 0.")
    assert "none-such" in error
    assert "Traceback" not in done.stdout + done.stderr


def quantised(model, folder, bits):
    """A checkpoint of compressed-tensors with integer weights, a scale a row, and the values that they stand for."""
    weights = {name: part.float() for name, part in tools.random_weights(model).items()}
    values, stored = {}, {}
    for matrix in matrices(model):
        whole = weights[matrix.name]
        if "proj" not in matrix.hf_name:
            values[matrix.name] = stored[matrix.hf_name] = whole
            continue
        most = 2 ** (bits - 1) - 1
        scale = whole.abs().amax(dim=1, keepdim=True) / most
        codes = (whole / scale).round().clamp(-most, most)
        values[matrix.name] = codes * scale
        name = matrix.hf_name.removesuffix("weight")
        stored[name + "weight_scale"] = scale
        if bits == 8:
            stored[name + "weight"] = codes.to(torch.int8)
            continue
        places = (codes.to(torch.int64) + 8).reshape(len(codes), -1, 8)
        packed = (places << (4 * torch.arange(8))).sum(dim=-1)
        stored[name + "weight_packed"] = (packed - (packed >> 31 << 32)).to(torch.int32)
        stored[name + "weight_shape"] = torch.tensor(whole.shape)
    whole = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel"}
    token = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": whole}
    method = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if bits == 8 else "pack-quantized",
        "config_groups": {"group_0": {**group, "input_activations": token} if bits == 8 else group},
        "ignore": ["lm_head"],
    }
    about = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "hidden_act": "silu"}
    tools.save_hf(
        replace(model, path=str(folder / "narrow")), weights, 1, quantization_config=method, **about
    )
    save_file(stored, folder / "narrow" / "model.safetensors")
    plain = replace(model, path=str(folder / "plain"))
    tools.save_hf(plain, values, 1)
    return replace(model, path=str(folder / "narrow")), plain


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_checkpoint_is_computed_with_its_scales(tmp_path, model, prompts, bits):
    """Half of the first tokens or more are those of the values that its integers stand for; the row says what ran."""
    narrow, plain = quantised(model, tmp_path, bits)
    exact = expected(plain, prompts[:4])
    (found,) = ask(
        tmp_path,
        1,
        model=vars(narrow),
        weights="hf",
        prompts=prompts,
        eos=0,
        precision=f"int{bits}",
    )
    info, tokens = found["static"]["info"], found["static"]["tokens"]
    assert (info["dtype"], info["quantization"]) == (f"int{bits}", "compressed-tensors")
    alike = sum(row[0] == right[0] for row, right in zip(tokens, exact, strict=True))
    assert alike >= 2, (tokens, exact)  # of 499 tokens each: no chance
