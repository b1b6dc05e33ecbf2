"""The `vllm` engine: vLLM in this process, one rank a GPU, stepped by our own loop.

    load     vLLM starts: weights, CUDA graphs, KV cache; ranks that have met already are its tensor-parallel group
    prefill  requests are added, and steps made until `batch_size` of them, or all, have their first token
    decode   steps until no request is left; the scheduler refills what ends (workload.mode=offline)

Where requests come while others are in work (closed, open), they are sent by `serving`: *prefill* ends once all have
their first token that run at once, or once all are sent that are due within ramp_s, and *decode* is the rest.

Each step is one iteration, timed by the host when `step` returns: no synchronisation is added, so that an edge between
prefill and decode may lie one launch early or late. At the end of a batch nothing is queued. Every rank makes the same
steps with the same requests.
"""

import time
from collections.abc import Callable, Collection
from typing import Any

from wattflow.config.choices import QUANTISED, Config
from wattflow.engine import vllm_library
from wattflow.engine.checks import check_agreement, check_precision, check_split
from wattflow.engine.installed import VLLM
from wattflow.engine.protocol import Generated, check_prompts, kept
from wattflow.engine.ranks import Ranks
from wattflow.engine.vllm_arrivals import Arrivals, Calls
from wattflow.engine.vllm_iterations import Iteration, Probe
from wattflow.errors import EngineError
from wattflow.store.schema import WorkInfo
from wattflow.workload import vllm_fit

_WARM_UP_TOKENS = 32
Pulse = Callable[[int, int], None]  # called after each step with the requests done, and all of them


class Running:
    """A started engine of vLLM, which several points may use one after another."""

    def __init__(self, config: Config, ranks: Ranks, version: str) -> None:
        self._ranks = ranks
        self.engine = vllm_library.start(config, ranks, version)
        with VLLM.explained(version, "is not as expected"):
            self.probe = Probe(self.engine.engine_core.engine_core.scheduler)
            self.info = vllm_library.description(self.engine)

    def close(self) -> None:
        """Give the memory back; once."""
        if self.engine is not None:
            engine, self.engine, self.probe = self.engine, None, None  # type: ignore[assignment]
            vllm_library.stop(engine, self._ranks)


class Vllm:
    """One rank's part of the engine."""

    def __init__(
        self, config: Config, ranks: Ranks, *, eos_ids: Collection[int], pulse: Pulse | None = None
    ) -> None:
        """Check what can be checked without vLLM's import; EngineError where it is missing."""
        self._version = VLLM.require("engine=vllm")
        self._max_seq_len = check_split(config, ranks, vllm_fit.why_not_shards(config))
        self._config, self._ranks, self._pulse = config, ranks, pulse
        self._eos_ids = tuple(eos_ids) if config.stop == "eos" else ()
        self._running: Running | None = None
        self._own = False  # whether `close` ends it
        self._warm = False
        self._requests = 0  # ever added: each has a name of its own
        self._rows: list[Iteration] = []
        self._outputs: dict[str, list[int]] = {}
        self._batch: list[list[int]] = []
        self._done = 0
        self._arrivals: Arrivals | None = None
        self.info: dict[str, object] = {
            "engine": "vllm",
            "engine_version": self._version,
            "device": ranks.device_name,
            "dtype": config.precision,
            "source": config.weights,
            **vllm_fit.parameters(config),
            "options": {k: v for k, v in vars(config.engine.vllm).items() if v not in (None, {})},
        }

    def load_weights(self) -> Running:
        """Start vLLM for several points; its weights and its cache are one."""
        check_precision(self._config, self._ranks)
        return Running(self._config, self._ranks, self._version)

    def load(self, weights: Running | None = None) -> None:
        """Take an engine that runs already, or start one."""
        self._own = weights is None
        self._running = self.load_weights() if weights is None else weights
        self.info |= self._running.info
        self._warm = False

    def prefill(self, prompts: list[list[int]]) -> None:
        """Add requests, and step until as many of them as run at once have their first token."""
        config, running = self._config, self._started()
        check_prompts(prompts, len(prompts), self._max_seq_len, config.model.vocab_size)
        self._rows, self._outputs, self._batch, self._done = [], {}, prompts, 0
        first = self._requests
        self._requests += len(prompts)
        if self._warm and config.workload.mode in ("closed", "open"):
            self._arrivals = self._arriving(running, first)
            self._arrivals.begin()
            return
        most = config.max_gen_len
        if config.workload.mode in ("closed", "open"):  # lengths differ: a few steps warm up
            most = min(most, _WARM_UP_TOKENS)
        for number in range(len(prompts)):
            self._add(running, first, number, most)
        wanted = min(config.batch_size, len(prompts))
        begun = 0
        while begun < wanted and running.engine.has_unfinished_requests():
            begun += self._step(running).first_tokens

    def decode(self) -> Generated:
        """Step until all requests are done."""
        running = self._started()
        arrivals, self._arrivals = self._arrivals, None
        if arrivals is not None:
            arrivals.finish()
        while running.engine.has_unfinished_requests():
            self._step(running)
        out = self._generated() if arrivals is None else self._generated(arrivals)
        check_agreement(self._ranks, out.tokens)
        if not self._warm:  # what the warm-up left in the prefix cache would serve the first batch
            self._warm = True
            running.engine.reset_prefix_cache()
        return out

    def _started(self) -> Running:
        if self._running is None:
            raise EngineError("the engine was not loaded.")
        return self._running

    def _arriving(self, running: Running, first: int) -> Arrivals:
        """Return the load of a whole batch whose requests come while others are in work."""
        return Arrivals(
            self._config,
            self._ranks,
            len(self._batch),
            Calls(
                add=lambda number, most: self._add(running, first, number, most),
                step=lambda: self._step(running),
                unfinished=running.engine.has_unfinished_requests,
                idle=self._beat,
            ),
            running.probe.watch(first),
        )

    def _add(self, running: Running, first: int, number: int, most_tokens: int) -> None:
        """Add a prompt of the batch as a request of at most so many tokens; `first` is the name of its first."""
        prompt = {"prompt_token_ids": self._batch[number]}
        with VLLM.explained(self._version, "took no request"):
            running.engine.add_request(str(first + number), prompt, self._sampling(most_tokens))

    def _sampling(self, most_tokens: int) -> Any:
        from vllm import SamplingParams  # noqa: PLC0415 - imported when it started
        from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415 - as above

        config = self._config
        return SamplingParams(
            max_tokens=most_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            ignore_eos=True,  # the tokenizer is ours, so stop tokens are given
            stop_token_ids=list(self._eos_ids) or None,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _step(self, running: Running) -> Iteration:
        running.probe.number = len(self._rows)
        row = running.probe.row = Iteration(time.time_ns())
        with VLLM.explained(self._version, "failed in an iteration"):
            outputs = running.engine.step()
        row.end_ns = time.time_ns()
        self._rows.append(row)
        for output in outputs:
            if output.finished:
                self._outputs[output.request_id] = list(output.outputs[0].token_ids)
        self._done += row.finished
        self._beat()
        return row

    def _beat(self) -> None:
        """Report the requests that are done."""
        if self._pulse is not None:
            self._pulse(self._done, len(self._batch))

    def _generated(self, arrivals: Arrivals | None = None) -> Generated:
        first = self._requests - len(self._batch)
        names = [str(number) for number in range(first, self._requests)]
        lost = [name for name in names if name not in self._outputs]
        if lost:
            raise EngineError(
                f"vLLM {self._version} ended without an answer to {len(lost)} of {len(names)} requests."
            )
        limits = arrivals.most_tokens if arrivals else [self._config.max_gen_len] * len(names)
        rows = [
            kept(self._outputs[name], limit, self._eos_ids)
            for name, limit in zip(names, limits, strict=True)
        ]
        return Generated(
            tokens=[tokens for tokens, _ in rows],
            stop_reasons=[reason for _, reason in rows],
            prefill_tokens_computed=sum(row.prefill_tokens for row in self._rows),
            decode_tokens_computed=sum(row.decode_tokens for row in self._rows),
            work=self._work(),
            iterations=tuple(self._rows),
            traces=() if arrivals is None else arrivals.traces(self._rows),
        )

    def _work(self) -> WorkInfo | None:
        """Return what decode steps and prefills worked on, where phases are apart and the arithmetic is known here."""
        config = self._config
        quantised = config.precision in QUANTISED or self.info["quantization"] is not None
        is_split = config.pipeline > 1  # a step of one stage reads a part of the layers
        if config.workload.mode != "static" or quantised or is_split:
            return None
        if not vllm_fit.is_llama(config.model):
            return None
        decoding = [row for row in self._rows if row.decode_tokens]
        return {
            "decode_steps": len(decoding),
            "decode_rows": sum(row.decode_tokens for row in decoding),
            "decode_positions": sum(row.positions for row in decoding),
            "prefills": sum(row.prefill_tokens > 0 for row in self._rows),
            "prefill_tokens": sum(row.prefill_tokens for row in self._rows),
            "prefill_squares": sum(row.prefill_squares for row in self._rows),
        }

    def synchronize(self) -> None:
        """Wait for the device where no request is in work, and so nothing that a wait would hold up."""
        if self._ranks.device == "cpu":
            return
        running = self._running
        if running is not None and running.engine.has_unfinished_requests():
            return
        import torch  # noqa: PLC0415 - loaded by vLLM

        torch.cuda.synchronize()

    def close(self) -> None:
        """End the engine, unless it is for other points too."""
        running, self._running = self._running, None
        if running is not None and self._own:
            running.close()
