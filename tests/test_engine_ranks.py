"""Shards as real processes over gloo: the same numbers at every count, and values that ranks exchange."""

import subprocess
import sys

import engine_ranks as tools
import pytest
import torch

from wattflow.engine import ranks
from wattflow.errors import EngineError

pytest_plugins = ("rank_groups",)


@pytest.mark.parametrize("world", ["two", "four"])
def test_any_number_of_shards_gives_the_same_logits(world, alone, request):
    """Every rank of 2 and of 4 has one rank's logits to 1e-12 in float64: real, dummy and tied weights."""
    for answer in request.getfixturevalue(world):
        for name, logits in alone["logits"].items():
            error = (answer["logits"][name] - logits).abs().max()
            assert error < 1e-12 * logits.abs().max(), name


@pytest.mark.parametrize("world", ["two", "four"])
def test_any_number_of_shards_makes_the_same_tokens(world, alone, request):
    """All ranks make one rank's tokens, greedy and sampled, over prompts that differ and 100 distinct tokens."""
    assert len({token for row in alone["made"]["greedy"] for token in row}) >= 100
    for answer in request.getfixturevalue(world):
        assert answer["made"] == alone["made"]


def test_ranks_exchange_json(four):
    """gather gives all ranks' values in order on every rank, broadcast rank 0's, letters beyond ASCII included."""
    expected = [{"rank": rank, "é": [None, 1.5, "ü" * rank]} for rank in range(4)]
    for answer in four:
        assert answer["told"] == expected
        assert answer["heard"] == {"from": 0}


def test_nothing_reaches_stdout(four, two):
    """Neither fairscale nor gloo prints where a program would have to skip it."""
    assert [answer["stdout"] for answer in four + two] == [""] * 6


def test_swapped_shards_are_seen(ask):
    """Negative control: a model put together from two ranks' parts in the wrong order gives other logits."""
    shapes, kind = ask["models"]["meta"]
    model = tools.tiny(**shapes)
    llama = tools.build_llama(model, kind, tools.ALONE)
    right = tools.all_logits(llama, model, 1, torch.tensor(tools.TOKENS), [])
    weight = llama.layers[1].attention.wq.weight
    first, second = weight.data.chunk(2)
    weight.data = torch.cat((second, first))
    wrong = tools.all_logits(llama, model, 1, torch.tensor(tools.TOKENS), [])
    assert (wrong - right).abs().max() > 1e-3 * right.abs().max()


def test_one_rank_on_the_cpu_imports_no_torch():
    """Joining alone and the synthetic engine leave torch out of the process."""
    program = (
        "import sys\n"
        "from wattflow.config.choices import Config, Engine, Model\n"
        "from wattflow.engine import build, ranks\n"
        "who = ranks.join(0, 1, 0, 'here', '', 'cpu', 1.0, 1.0)\n"
        "engine = Engine(name='synthetic', synthetic_ms_per_token=0.0)\n"
        "made = Config(model=Model(name='m'), engine=engine, batch_size=2, max_gen_len=3, max_seq_len=9)\n"
        "engine = build.build(made, who, eos_ids=(), pad_id=0)\n"
        "engine.load(); engine.prefill([[1, 2], [5]]); print(engine.decode().tokens)\n"
        "assert who.gather((1, 2)) == [[1, 2]] and who.broadcast('a') == 'a'\n"
        "who.barrier(); engine.close(); who.close()\n"
        "print(sorted({'torch', 'fairscale'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tools.ROOT, check=False
    )
    assert done.stdout.splitlines() == ["[[3, 4, 5], [5, 6, 7]]", "[]"], done.stderr


def test_a_rank_that_waits_in_vain_says_for_whom(tmp_path):
    """Rank 0 of 2 whose peer never comes raises EngineError with the place and the time."""
    with pytest.raises(EngineError, match=r"rank 0 of 2 on here did not meet .* within 1 s"):
        ranks.join(0, 2, 0, "here", f"file://{tmp_path}/meet", "cpu", 1.0, 99.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_missing_gpu_is_named():
    """engine.device=cuda on a machine without a GPU tells how many torch sees and what to set."""
    with pytest.raises(EngineError, match="sees 0 GPUs"):
        ranks.join(0, 1, 0, "here", "", "cuda", 1.0, 1.0)
