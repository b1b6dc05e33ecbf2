"""The vllm engine over a stand-in for the package: what is asked of it, which tokens are kept, how its steps count."""

from dataclasses import replace

import engine_ranks as tools
import fake_vllm
import pytest
import torch

from wattflow.config.choices import Engine, Vllm, Workload
from wattflow.engine.build import build
from wattflow.errors import EngineError, RefusedError

PROMPTS = [[1, 2, 3], [10, 1, 1, 1, 1], [5], [6, 6]]


def chosen(**changes):
    """Two requests at once, five tokens each, in float32."""
    engine = Engine(name="vllm", device="cpu", vllm=changes.pop("vllm", Vllm()))
    sizes = {"batch_size": 2, "max_gen_len": 5, "max_seq_len": 30, "precision": "fp32"}
    return tools.choices(tools.tiny(), engine=engine, **{**sizes, **changes})


def made(config, *, eos_ids=(), pulse=None):
    """The engine, loaded."""
    engine = build(config, tools.ALONE, eos_ids=eos_ids, pad_id=0, pulse=pulse)
    engine.load()
    return engine


def answer(engine, prompts):
    """One batch."""
    engine.prefill(prompts)
    return engine.decode()


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    """The stand-in in vLLM's place."""
    fake_vllm.install(monkeypatch)


def test_tokens_follow_from_the_prompts_in_their_order():
    """Four prompts, two at once: each row has its own tokens, in the prompts' order, all by length."""
    out = answer(made(chosen()), PROMPTS)
    assert out.tokens == [[sum(p) + k for k in range(5)] for p in PROMPTS]
    assert out.stop_reasons == ["length"] * 4


def test_a_row_ends_before_its_eos_and_at_the_end_of_the_sequence():
    """Token 8 is EOS: the first row keeps 6 and 7. A prompt of 27 tokens has room for three."""
    out = answer(made(chosen(stop="eos"), eos_ids=(8,)), [[1, 2, 3], [1] * 27])
    assert out.tokens == [[6, 7], [27, 28, 29]]
    assert out.stop_reasons == ["eos", "max_seq_len"]


def test_iterations_count_what_was_scheduled_and_what_came_back():
    """Two at once of four prompts: the iterations' sums are those of the requests."""
    out = answer(made(chosen()), PROMPTS)
    rows = out.iterations
    assert len(rows) == 10
    assert [row.prefill_tokens for row in rows] == [8, 0, 0, 0, 0, 3, 0, 0, 0, 0]
    assert [row.decode_tokens for row in rows] == [0, 2, 2, 2, 2, 0, 2, 2, 2, 2]
    assert [row.first_tokens for row in rows] == [2, 0, 0, 0, 0, 2, 0, 0, 0, 0]
    assert [row.finished for row in rows] == [0, 0, 0, 0, 2] * 2
    assert sum(row.tokens_kept for row in rows) == 20
    assert rows[0].prefill_squares == 3 * 3 + 5 * 5
    assert rows[1].positions == 4 + 6  # each row reads its prompt and the token that it adds
    assert (out.prefill_tokens_computed, out.decode_tokens_computed) == (11, 16)
    assert all(row.start_ns <= row.end_ns for row in rows)
    work = out.work
    assert (work["decode_steps"], work["decode_rows"], work["prefills"]) == (8, 16, 2)


def test_a_token_that_ends_a_row_is_made_and_not_kept():
    """EOS 8 ends the first row at its third token."""
    rows = answer(made(chosen(stop="eos"), eos_ids=(8,)), [[1, 2, 3]]).iterations
    assert [(row.tokens_made, row.tokens_kept) for row in rows] == [(1, 1), (1, 1), (1, 0)]


def test_cached_prompt_tokens_are_counted_and_not_computed():
    """A prefix cache that has two of a prompt's three tokens leaves one to compute."""
    engine = made(chosen())
    fake_vllm.LLMEngine.made[-1].scheduler.cached["0-x"] = 2
    row = answer(engine, [[1, 2, 3]]).iterations[0]
    assert (row.cached_tokens, row.prefill_tokens) == (2, 1)


def test_the_prefix_cache_is_emptied_after_the_warm_up_alone():
    """The first batch after a load is the warm-up, whose prompts come again."""
    engine = made(chosen())
    for _ in range(3):
        answer(engine, PROMPTS[:2])
    assert fake_vllm.LLMEngine.made[-1].calls == ["reset_prefix_cache"]


def test_several_points_share_a_started_engine():
    """A shared engine is started once, survives the point's close, and ends when it is closed itself."""
    first = build(chosen(), tools.ALONE, eos_ids=(), pad_id=0)
    shared = first.load_weights()
    for _ in range(2):
        point = build(chosen(), tools.ALONE, eos_ids=(), pad_id=0)
        point.load(shared)
        assert answer(point, PROMPTS).tokens[0] == [6, 7, 8, 9, 10]
        point.close()
    (started,) = fake_vllm.LLMEngine.made
    assert "shutdown" not in started.calls
    shared.close()
    shared.close()
    assert started.calls.count("shutdown") == 1


def test_its_own_engine_ends_with_the_point():
    """`close` shuts vLLM down, once."""
    engine = made(chosen())
    engine.close()
    engine.close()
    assert fake_vllm.LLMEngine.made[-1].calls == ["shutdown"]


def test_each_step_is_reported_with_the_requests_done():
    """The pulse hears each step: ten of them, and all four requests at the end."""
    heard = []
    engine = made(chosen(), pulse=lambda done, of: heard.append((done, of)))
    answer(engine, PROMPTS)
    assert heard == [(0, 4)] * 4 + [(2, 4)] * 5 + [(4, 4)]


def test_what_ran_is_in_its_info():
    """Version, attention, graphs, quantisation and options stand in the record."""
    info = made(chosen(vllm=Vllm(quantization="fp8", more={"swap_space": 0}))).info
    assert info["engine_version"] == "0.32.0"
    assert (info["attention_backend"], info["cuda_graphs"]) == ("FAKE", "FULL")
    assert info["quantization"] == "fp8"
    assert info["options"] == {"quantization": "fp8", "more": {"swap_space": 0}}
    assert (info["kv_cache_bytes"], info["kv_bytes_per_token"]) == (65536, 4096)


def test_what_vllm_refuses_is_one_line():
    """Its own error becomes one EngineError with version and model."""
    with pytest.raises(EngineError, match=r"vLLM 0.32.0 did not start test: ValueError: Unknown"):
        made(chosen(vllm=Vllm(quantization="unknown")))


def test_an_option_that_follows_from_another_key_is_refused():
    """engine.vllm.more cannot say what batch_size says."""
    with pytest.raises(RefusedError, match="max_num_seqs follows from another key"):
        made(chosen(vllm=Vllm(more={"max_num_seqs": 3})))


def test_a_token_beyond_the_vocabulary_is_refused():
    """As by the other engines."""
    with pytest.raises(EngineError, match="beyond the model's vocabulary"):
        made(chosen()).prefill([[1, 300]])


def test_it_needs_a_load():
    """Nothing runs before."""
    with pytest.raises(EngineError, match="not loaded"):
        build(chosen(), tools.ALONE, eos_ids=(), pad_id=0).prefill([[1]])


def test_shards_need_as_many_ranks():
    """One rank cannot be two shards."""
    with pytest.raises(EngineError, match="2 shards need as many ranks"):
        made(replace(chosen(), shards=2))


def test_offline_prompts_may_be_more_than_run_at_once():
    """Offline the prompts of a point are one batch."""
    config = chosen(workload=Workload(mode="offline"))
    assert len(answer(made(config), PROMPTS * 3).tokens) == 12


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        ValueError("No available memory for the cache blocks."),
    ],
)
def test_a_lack_of_memory_is_one_line(monkeypatch, error):
    """At the start and in an iteration: vLLM's version and the device's or vLLM's own sentence."""

    def fail(*_):
        raise error

    engine = made(chosen())
    monkeypatch.setattr(fake_vllm.LLMEngine, "step", fail)
    with pytest.raises(EngineError, match=r"vLLM 0.32.0 failed in an iteration: \w+: .*memory"):
        answer(engine, PROMPTS)
    monkeypatch.setattr(fake_vllm.LLMEngine, "from_engine_args", fail)
    with pytest.raises(EngineError, match=r"vLLM 0.32.0 did not start test: \w+: .*memory"):
        made(chosen())
