"""The `fast` engine: a static batch at the hardware's pace. Greedy or sampled, one to many shards, one GPU a rank.

    load     weights, cache; on a GPU one CUDA graph a (batch bucket, length bucket), captured on this machine
    prefill  all prompts at once, end to end; each row's last hidden state goes through the head
    decode   a graph a token: tokens, positions and the output's column lie on the device and advance inside it

Without a GPU, or where torch cannot capture, the same functions run one by one; `info` says which path and kernels ran.
"""

import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import torch

from wattflow.config.choices import Config
from wattflow.engine import allreduce, kernel_choice
from wattflow.engine import weights as checkpoints
from wattflow.engine.checks import (
    DTYPES,
    check_agreement,
    check_finite,
    check_precision,
    check_shards,
    memory_explained,
)
from wattflow.engine.decode_state import LOOK_EVERY, EndLook, State
from wattflow.engine.fused import Chooser, FusedLlama
from wattflow.engine.kernel_choice import check_kernels
from wattflow.engine.ops import Ops
from wattflow.engine.products import why_no_scaled
from wattflow.engine.protocol import Generated, check_prompts, kept
from wattflow.engine.ranks import Ranks
from wattflow.errors import EngineError
from wattflow.workload import model as arithmetic

_WARM_UP = 3  # steps before a capture: kernels compile, libraries and NCCL set themselves up
log = logging.getLogger(__name__)


@dataclass
class Kernels:
    """One kernel set in use: its operations, the cache lengths of its graphs, and these by (rows, length)."""

    decode: Ops
    prefill: Ops
    buckets: list[int]
    graphs: dict[tuple[int, int], torch.cuda.CUDAGraph]
    info: dict[str, object]


@dataclass(frozen=True)
class BatchWork:
    """What the decode steps of a batch worked on, and the least that one GPU moves and computes in one of them."""

    rows: int
    rows_computed: int
    decode_steps: int
    mean_length: float
    bytes_per_step: float
    flops_per_step: float


class Fast:
    """One rank's part of the engine."""

    last_batch: BatchWork  # after a decode

    def __init__(self, config: Config, ranks: Ranks, *, eos_ids: Collection[int]) -> None:
        """Check what can be checked without the device; RefusedError for choices that exclude each other."""
        self._max_seq_len = check_shards(config, ranks)
        check_kernels(config.engine.kernels, config.batch_size)
        self._config = config
        self._ranks = ranks
        self._cuda = ranks.device.startswith("cuda")
        self._eos_ids = tuple(eos_ids) if config.stop == "eos" else ()
        self._pool: Any = None  # of all graphs; torch names its type privately
        self.info: dict[str, object] = {
            "engine": "fast",
            "device": ranks.device_name,
            "dtype": config.precision,
            "source": config.weights,
        }

    # --- load ---

    def load_weights(self) -> FusedLlama:
        """Read or draw this rank's weights; they have no cache yet."""
        config, ranks = self._config, self._ranks
        torch.set_num_threads(config.engine.threads_per_rank)
        check_precision(config, ranks)
        check_fp8(config, ranks)
        with (
            memory_explained(config, ranks),
            torch.inference_mode(),
            checkpoints.opened(config.model, config.weights, ranks) as read,
        ):
            return FusedLlama(
                config.model,
                ranks,
                read,
                dtype=DTYPES[config.precision],
                fp8=config.precision == "fp8",
            )

    def load(self, weights: FusedLlama | None = None) -> None:
        """Take this rank's weights, or read or draw them, allocate the cache, choose kernels and capture the graphs."""
        config, ranks = self._config, self._ranks
        weights = self.load_weights() if weights is None else weights
        with memory_explained(config, ranks), torch.inference_mode():
            self._llama = weights.with_cache(config.batch_size, self._max_seq_len)
            self._llama.reduce, reduce_info = allreduce.choose(
                ranks, batch_buckets(config.batch_size), config.model.dim, DTYPES[config.precision]
            )
            self.info |= reduce_info
            self._state = State.empty(
                config.batch_size, config.max_gen_len + _WARM_UP + 1, ranks.device
            )
            self._generator = torch.Generator(ranks.device)
            self._choose = Chooser(
                ranks,
                config.model.vocab_size,
                self._llama.first,
                temperature=config.temperature,
                top_p=config.top_p,
                generator=self._generator,
            )
            self._kernel_sets: dict[str, Kernels] = {}
            self.use_kernels(config.engine.kernels)
        # the same seed on all ranks, so that all draw the same tokens
        self._generator.manual_seed(config.seed)
        self.info |= {
            "parameters": arithmetic.parameters(config.model),
            "weight_bytes": self._llama.weight_bytes,
            "kv_cache_bytes": self._llama.cache.nbytes,
        }

    def use_kernels(self, wanted: str) -> None:
        """Take other kernels, as in engine.kernels, over the same weights; those taken before are kept for later."""
        check_kernels(wanted, self._config.batch_size)
        with memory_explained(self._config, self._ranks), torch.inference_mode():
            if wanted not in self._kernel_sets:
                self._kernel_sets[wanted] = self._choose_kernels(wanted)
                self._use(self._kernel_sets[wanted])
                self._capture_all()
            else:
                self._use(self._kernel_sets[wanted])
        self._record_graphs()

    def _use(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self.info |= kernels.info

    def _choose_kernels(self, wanted: str) -> Kernels:
        """Return the operations of decode and prefill, and the buckets that they call for."""
        decode, prefill, reason = kernel_choice.choose(
            wanted, self._config, self._ranks, self._llama
        )
        longest = self._max_seq_len
        buckets = [longest] if decode.reads_used_length else length_buckets(longest)
        info: dict[str, object] = {
            "kernels": decode.name,
            "kernels_reason": reason,
            "linears": decode.linears,
            "attention": decode.attention,
            "prefill_attention": prefill.prefill_attention,
            "quantization": quantization(self._config, self._ranks, decode),
            "length_buckets": buckets,
        }
        return Kernels(decode, prefill, buckets, {}, info)

    def _capture_all(self) -> None:
        """Capture the graphs that the batches of this point will need; others are captured when they come up."""
        reason = why_no_graphs(self._ranks.device, drawn=self._config.temperature > 0)
        self._captures = reason is None
        self.info |= {
            "path": "cuda graphs" if self._captures else "eager",
            "path_reason": reason,
        }
        if self._captures:
            size, prompts = self._config.batch_size, self._config.n_prompts
            assert prompts is not None  # the choices are resolved
            rows = {min(size, prompts), prompts % size} - {0}
            for bucket_rows in sorted({batch_bucket(n, size) for n in rows}, reverse=True):
                for bucket in reversed(
                    self._kernels.buckets
                ):  # the largest first: later ones fit its pool
                    self._capture(bucket_rows, bucket)

    def _record_graphs(self) -> None:
        self.info["graphs"] = [list(key) for key in sorted(self._kernels.graphs)]

    def _capture(self, rows: int, bucket: int) -> None:
        """Record one step as a graph: what runs eagerly is what is captured. All ranks capture in the same order."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch leaves it untyped
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._state.begin([], [])
                self._step(rows, bucket)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self._ranks.barrier()  # every collective has run once on every rank
        graph = torch.cuda.CUDAGraph()
        if self._config.temperature > 0:
            graph.register_generator_state(self._generator)
        # thread_local: NCCL's watchdog polls events from its own thread meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._step(rows, bucket)
        self._pool = self._pool or graph.pool()
        self._kernels.graphs[rows, bucket] = graph

    def _step(self, rows: int, bucket: int) -> None:
        """Make one token for each of the first rows."""
        state = self._state
        scores = self._llama.step(
            state.tokens[:rows], state.positions[:rows], bucket, self._kernels.decode
        )
        state.write(self._choose(scores), self._max_seq_len - 1, self._eos_ids)

    # --- a batch ---

    def prefill(self, prompts: list[list[int]]) -> None:
        """Read all prompts whole and choose the first token of each row."""
        config = self._config
        check_prompts(prompts, config.batch_size, self._max_seq_len, config.model.vocab_size)
        self._lengths = [len(prompt) for prompt in prompts]
        self._limits = [min(config.max_gen_len, self._max_seq_len - n) for n in self._lengths]
        self._rows = batch_bucket(len(prompts), config.batch_size)
        with memory_explained(config, self._ranks), torch.inference_mode():
            self._state.begin(self._lengths, self._limits)
            last = self._llama.prefill(prompts, self._kernels.prefill)
            scores = self._llama.logits(last, None, self._kernels.prefill)
            mine = scores[:, : self._llama.mine]
            padding = scores.new_zeros((self._rows - len(prompts), scores.shape[1]))
            chosen = self._choose(torch.cat((scores, padding)))
            self._state.write(chosen, self._max_seq_len - 1, self._eos_ids)
            check_finite(config, mine)

    def decode(self) -> Generated:
        """Make one token a step until every row has all it may make, or every row has ended."""
        lengths = self._lengths
        with memory_explained(self._config, self._ranks), torch.inference_mode():
            steps = self._run_steps(max(self._limits) - 1)
            output = self._state.output[: len(lengths), : steps + 1].tolist()
        check_agreement(self._ranks, output)
        self.last_batch = batch_work(self._config, lengths, self._rows, steps)
        self.info["last_batch"] = asdict(self.last_batch)
        rows = [
            kept(row[:limit], self._config.max_gen_len, self._eos_ids)
            for row, limit in zip(output, self._limits, strict=True)
        ]
        return Generated(
            tokens=[tokens for tokens, _ in rows],
            stop_reasons=[reason for _, reason in rows],
            prefill_tokens_computed=sum(lengths),
            decode_tokens_computed=self._rows * steps,
            work={
                "decode_steps": steps,
                "decode_rows": len(rows) * steps,
                "decode_positions": len(rows) * steps * self.last_batch.mean_length,
                "prefills": 1,
                "prefill_tokens": sum(lengths),
                "prefill_squares": sum(n**2 for n in lengths),
            },
        )

    def _run_steps(self, most: int) -> int:
        """Take up to `most` steps, none once all rows were seen to have ended; returns how many."""
        all_ended = EndLook(self._state.all_ended)
        for step in range(most):
            if self._eos_ids and step % LOOK_EVERY == 0 and all_ended():
                return step
            length = max(self._lengths) + step + 1
            bucket = next(b for b in self._kernels.buckets if b >= min(length, self._max_seq_len))
            self._advance(bucket)
        return most

    def _advance(self, bucket: int) -> None:
        if not self._captures:
            self._step(self._rows, bucket)
            return
        if (self._rows, bucket) not in self._kernels.graphs:
            self._capture_in_between(bucket)
        self._kernels.graphs[self._rows, bucket].replay()

    def _capture_in_between(self, bucket: int) -> None:
        """Capture a graph that `load` did not foresee, and leave state and cache as they were."""
        log.warning("captures a graph for %d rows of up to %d tokens", self._rows, bucket)
        state = {name: value.clone() for name, value in vars(self._state).items()}
        slot = self._llama.cache[..., :1, :].clone()
        random_state = self._generator.get_state()
        self._capture(self._rows, bucket)
        self._generator.set_state(random_state)
        self._llama.cache[..., :1, :] = slot
        for name, value in state.items():
            getattr(self._state, name).copy_(value)
        self._record_graphs()

    def synchronize(self) -> None:
        """Wait until the GPU has finished all queued work; the CPU always has."""
        if self._cuda:
            torch.cuda.synchronize(self._ranks.device)

    def close(self) -> None:
        """Drop graphs, weights and cache, also after a failed load."""
        # graphs first: they hold the pool
        for name in ("_kernels", "_kernel_sets", "_llama", "_state", "_choose", "_pool"):
            self.__dict__.pop(name, None)
        if self._cuda:
            torch.cuda.empty_cache()


def check_fp8(config: Config, ranks: Ranks) -> None:
    """EngineError for precision=fp8 on a GPU without such products."""
    if config.precision != "fp8" or not ranks.device.startswith("cuda"):
        return
    reason = why_no_scaled(torch.device(ranks.device))
    if reason is not None:
        raise EngineError(f"precision=fp8 on {ranks.device_name}: {reason}. Take precision=bf16.")


def quantization(config: Config, ranks: Ranks, decode: Ops) -> str | None:
    """Return what is in fp8, and with what scales; null where nothing is."""
    if config.precision != "fp8":
        return None
    where = "in prefill" if decode.name == "triton" else "everywhere"
    how = "" if ranks.device.startswith("cuda") else ", multiplied as the numbers that they are"
    return f"fp8 e4m3: weights by output; activations by token, {where}{how}"


def batch_work(config: Config, lengths: list[int], rows_computed: int, steps: int) -> BatchWork:
    """Return the work of a batch's decode steps at the mean length of its rows, for prompts of these lengths."""
    rows = len(lengths)
    length = sum(lengths) / rows + (steps + 1) / 2
    work = arithmetic.decode_work(config.model, config.shards, config.precision, rows, length)
    return BatchWork(rows, rows_computed, steps, length, work.read_bytes, work.flops)


def batch_bucket(rows: int, batch_size: int) -> int:
    """Return how many rows are computed for `rows`: the next power of two, at most the whole batch."""
    return min(batch_size, 1 << (rows - 1).bit_length())


def batch_buckets(batch_size: int) -> list[int]:
    """Return all numbers of rows that may be computed, ascending."""
    return sorted({batch_bucket(rows, batch_size) for rows in range(1, batch_size + 1)})


def length_buckets(max_seq_len: int) -> list[int]:
    """Return cache lengths that attention reads, ascending; from 256 on each at most 1.5 times the one before."""
    sizes = [128 * 2**k * part // 2 for k in range(max_seq_len.bit_length()) for part in (2, 3)]
    return [*(size for size in sizes if size < max_seq_len), max_seq_len]


def why_no_graphs(device: str, *, drawn: bool) -> str | None:
    """Return why steps cannot be captured here; None where they can."""
    if not device.startswith("cuda"):
        return "no GPU"
    if drawn and not hasattr(torch.cuda.CUDAGraph, "register_generator_state"):
        return f"torch {torch.__version__} cannot draw in a graph"
    return None
