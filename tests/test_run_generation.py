"""The phases of an attempt on one rank: which batches run, where its edges are, where a signal ends it."""

import signal

import pytest
from engine_ranks import ALONE
from own_signals import own_handlers, send

from wattflow.engine.protocol import Generated
from wattflow.run.generation import Batches, EdgeClock, Instruments, generate
from wattflow.run.place import Progress
from wattflow.run.signals import InterruptedRunError, Signals
from wattflow.run.spans import SpanLog, close_node
from wattflow.store.schema import SPAN
from wattflow.store.tables import read_table

PROMPTS = [[1], [2, 2], [3, 3, 3], [4], [5, 5]]


class Echo:
    """An engine that answers each prompt with itself twice, and notes its calls."""

    def __init__(self):
        self.calls = []

    def load(self, weights):
        self.calls.append(("load", weights))

    def prefill(self, prompts):
        self.calls.append(("prefill", len(prompts)))
        self._prompts = prompts

    def decode(self):
        self.calls.append(("decode", len(self._prompts)))
        tokens = [2 * prompt for prompt in self._prompts]
        return Generated(tokens, ["length"] * len(tokens), 10, 20, None)

    def synchronize(self):
        pass


class Run:
    """One run over PROMPTS in batches of two: engine calls, marks, progress and spans."""

    def __init__(self, folder):
        self.engine, self.progress, self.signals = Echo(), [], Signals()
        self.paths, self.table = [folder / "rank0.arrow"], folder / "n1.parquet"
        clock = EdgeClock(self.engine, ALONE, self.signals)
        log = SpanLog(self.paths[0], rank=0, node="n1", gpu_uuid="GPU-0", edge=clock.read)
        self.instruments = Instruments(clock, log, self.mark, self.progress.append)

    def mark(self):
        self.engine.calls.append("mark")

    def outputs(self, first=0):
        return generate(self.engine, "weights", Batches(PROMPTS, 2, first), 0.0, self.instruments)

    def spans(self):
        self.instruments.log.flush()
        close_node(self.paths, self.table)
        return read_table(self.table, SPAN).to_pylist()


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path)
    yield made
    made.instruments.log.close()


def test_all_batches_run_between_the_marks(run):
    """Five prompts in twos: a warm-up outside the marks, then batches of 2, 2 and 1 within them."""
    outputs = list(run.outputs())
    assert [len(output.tokens) for output in outputs] == [2, 2, 1]
    warmup, window = (
        [("prefill", 2), ("decode", 2)],
        [
            *[("prefill", 2), ("decode", 2)] * 2,
            *[("prefill", 1), ("decode", 1)],
        ],
    )
    assert run.engine.calls == [("load", "weights"), *warmup, "mark", *window, "mark"]
    assert [p.phase for p in run.progress] == ["idle", "load", "warmup", *["batches"] * 4]
    assert run.progress[-1] == Progress("batches", 3, 3)


def test_spans_hold_the_tokens_of_their_batch(run):
    """Batch 1 is [3, 3, 3] and [4]: 4 tokens in, 8 kept, and what the engine says it computed."""
    list(run.outputs())
    spans = run.spans()
    assert [row["phase"] for row in spans] == [
        *("idle", "load", "warmup"),
        *["prefill", "decode"] * 3,
        "idle_after",
    ]
    prefill, decode = (row for row in spans if row["batch"] == 1)
    assert (prefill["tokens_in"], prefill["tokens_computed"]) == (4, 10)
    assert (decode["tokens_kept"], decode["tokens_computed"]) == (8, 20)


def test_batches_that_are_answered_already_are_left_out(run):
    """From batch 2 on there is one of one prompt, after the usual warm-up with the first."""
    (output,) = run.outputs(first=2)
    assert output.tokens == [[5, 5, 5, 5]]
    assert [row["batch"] for row in run.spans() if row["phase"] == "decode"] == [2]


def test_a_warning_during_a_batch_ends_the_run_after_it(run):
    """SIGUSR2 in the decode of batch 0, the second of all: its output is handed out, and batch 1 never starts."""
    with own_handlers():
        run.signals.together = True
        run.signals.install()
        decode = run.engine.decode

        def warned():
            if run.engine.calls.count(("decode", 2)) == 1:
                send(signal.SIGUSR2)
            return decode()

        run.engine.decode = warned
        outputs = run.outputs()
        assert len(next(outputs).tokens) == 2
        with pytest.raises(InterruptedRunError, match="near its time limit"):
            next(outputs)
    assert run.engine.calls[-1] == ("decode", 2)
    assert run.engine.calls.count(("prefill", 2)) == 2
