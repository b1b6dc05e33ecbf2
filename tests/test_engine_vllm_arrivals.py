"""Loads whose requests come while others are in work, through the vllm engine over a stand-in for the package."""

import engine_ranks as tools
import fake_vllm
import pytest

from wattflow.config.choices import Engine, Workload
from wattflow.engine.build import build
from wattflow.workload import arrivals


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    """The stand-in in vLLM's place."""
    fake_vllm.install(monkeypatch)


def load_of(*, count, **load):
    """An engine over so many requests that come while others are in work, warmed up, and what they answered."""
    config = tools.choices(
        tools.tiny(),
        engine=Engine(name="vllm", device="cpu"),
        workload=Workload(**load),
        n_prompts=count,
        batch_size=4,
        max_gen_len=5,
        max_seq_len=30,
        precision="fp32",
    )
    engine = build(config, tools.ALONE, eos_ids=(), pad_id=0)
    engine.load()
    prompts = [[1, 2, 3 + k] for k in range(count)]
    engine.prefill(prompts[:2])
    engine.decode()
    engine.prefill(prompts)
    begun = len(engine._rows)
    return engine.decode(), begun


def test_a_closed_load_keeps_so_many_in_work():
    """Seven requests, two at a time: tokens in their order, two a step until the last, each with its own steps."""
    out, begun = load_of(count=7, mode="closed", concurrency=2)
    assert out.tokens == [[6 + k + j for j in range(5)] for k in range(7)]
    assert [row.requests for row in out.iterations] == [2] * 15 + [1] * 5
    assert begun == 1  # prefill ends when two have their first token
    for k, trace in enumerate(out.traces):
        first = 5 * (k // 2)
        assert trace.token_steps == list(range(first, first + 5))
        assert (trace.prefill_steps, trace.prefill_tokens) == ([first], [3])
        assert trace.due_ns <= trace.sent_ns <= out.iterations[first].start_ns
        assert trace.end_ns == out.iterations[first + 4].end_ns


def test_an_open_load_waits_for_its_times():
    """A hundred a second: none is sent before it is due, the times are those of the seed, and all are answered."""
    out, _ = load_of(count=12, mode="open", rate_per_s=100.0, ramp_s=0.0)
    due_s = [(trace.due_ns - out.traces[0].due_ns) / 1e9 for trace in out.traces]
    assert due_s == pytest.approx(arrivals.drawn(12, 100.0, 1.0, 0).tolist(), abs=1e-8)
    assert all(trace.sent_ns >= trace.due_ns for trace in out.traces)
    assert [len(tokens) for tokens in out.tokens] == [5] * 12


def test_requests_of_a_trace_have_its_lengths(tmp_path):
    """As many output tokens as recorded, by length; prompts are random tokens of the recorded lengths."""
    path = tmp_path / "t.csv"
    path.write_text("Timestamp,Request tokens,Response tokens\n0,3,2\n0.01,3,4\n")
    out, _ = load_of(count=2, mode="open", trace=str(path))
    assert [len(tokens) for tokens in out.tokens] == [2, 4]
    assert out.stop_reasons == ["length"] * 2
