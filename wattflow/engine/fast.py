"""The `fast` engine: a static batch at the hardware's pace. Greedy or sampled, one to many shards, one GPU a rank.

    load     weights, cache; on a GPU one CUDA graph a (batch bucket, length bucket), captured on this machine
    prefill  all prompts at once, padded at the right; each row's last hidden state goes through the head
    decode   a graph a token: tokens, positions and the output's column lie on the device and advance inside it

Without a GPU, or where torch cannot capture, the same functions run one by one; `info` says which path and kernels ran.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch

from wattflow.config.choices import Config
from wattflow.engine import allreduce, tuned_kernels
from wattflow.engine import weights as checkpoints
from wattflow.engine.checks import (
    DTYPES,
    check_agreement,
    check_finite,
    check_precision,
    check_shards,
    memory_explained,
)
from wattflow.engine.fused import Chooser, FusedLlama
from wattflow.engine.ops import Eager, Pieces
from wattflow.engine.protocol import Generated, check_prompts, kept
from wattflow.engine.ranks import Ranks
from wattflow.errors import EngineError, RefusedError
from wattflow.workload import model as arithmetic

LOOK_EVERY = 16  # steps between two looks at whether all rows have ended

_WARM_UP = 3  # steps before a capture: kernels compile, libraries and NCCL set themselves up
_log = logging.getLogger(__name__)


@dataclass
class State:
    """What a step reads and leaves for the next, on the device, one entry a row of the largest batch."""

    tokens: torch.Tensor  # to be fed next
    positions: torch.Tensor  # where they stand
    output: torch.Tensor  # [rows, columns]: all tokens made
    column: torch.Tensor  # [1]: where the next ones go
    made: torch.Tensor  # how many tokens the row may make
    ended: torch.Tensor  # rows that made EOS or all they may
    all_ended: torch.Tensor  # [1]

    @classmethod
    def empty(cls, rows: int, columns: int, device: str) -> "State":
        """No row has begun."""
        return cls(
            tokens=torch.zeros(rows, dtype=torch.int64, device=device),
            positions=torch.zeros(rows, dtype=torch.int64, device=device),
            output=torch.zeros((rows, columns), dtype=torch.int64, device=device),
            column=torch.zeros(1, dtype=torch.int64, device=device),
            made=torch.zeros(rows, dtype=torch.int64, device=device),
            ended=torch.ones(rows, dtype=torch.bool, device=device),
            all_ended=torch.zeros(1, dtype=torch.bool, device=device),
        )

    def begin(self, lengths: list[int], made: list[int]) -> None:
        """Take prompts of these lengths; rows beyond them are padding, which stands at position 0 and has ended."""
        device, rows = self.tokens.device, len(lengths)
        self.tokens.zero_()
        self.positions.zero_()
        self.positions[:rows] = torch.tensor(lengths, device=device) - 1
        self.column.zero_()
        self.made.zero_()
        self.made[:rows] = torch.tensor(made, device=device)
        self.ended.fill_(value=True)
        self.ended[:rows] = False

    def write(self, chosen: torch.Tensor, last_position: int, eos_id: int | None) -> None:
        """Take one token of each of the first rows, and go on by one position."""
        rows = len(chosen)
        column = self.column.expand(rows)
        self.output[:rows].scatter_(1, column.unsqueeze(1), chosen.unsqueeze(1))
        self.tokens[:rows].copy_(chosen)
        # a row whose sequence is full goes on in its last place, and what it makes is cut
        self.positions[:rows].add_(1).clamp_(max=last_position)
        if eos_id is not None:
            ended = self.ended[:rows]
            ended.logical_or_(chosen == eos_id).logical_or_(column + 1 >= self.made[:rows])
            self.all_ended.copy_(ended.all())
        self.column.add_(1)


@dataclass
class _Kernels:
    """One kernel set in use: its pieces, the lengths that its graphs are for, and those graphs by (rows, length)."""

    decode: Pieces
    prefill: Pieces
    buckets: list[int]
    graphs: dict[tuple[int, int], torch.cuda.CUDAGraph]
    info: dict[str, object]


class Fast:
    """One rank's part of the engine."""

    def __init__(self, config: Config, ranks: Ranks, *, eos_id: int | None) -> None:
        """Check what can be checked without the device; RefusedError for choices that exclude each other."""
        self._max_seq_len = check_shards(config, ranks)
        check_kernels(config.engine.kernels, config.batch_size)
        self._config = config
        self._ranks = ranks
        self._cuda = ranks.device.startswith("cuda")
        self._eos_id = eos_id if config.stop == "eos" else None
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._pool: Any = None  # of all graphs; torch names its type privately
        self._look: tuple[torch.Tensor, torch.cuda.Event] | None = None
        self.last_batch: dict[str, Any] = {}
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
        with (
            memory_explained(config, ranks),
            torch.inference_mode(),
            checkpoints.opened(config.model, config.weights, ranks) as read,
        ):
            return FusedLlama(config.model, ranks, read, dtype=DTYPES[config.precision])

    def load(self, weights: FusedLlama | None = None) -> None:
        """Take this rank's weights, or read or draw them, allocate the cache, choose kernels and capture the graphs."""
        config, ranks = self._config, self._ranks
        weights = self.load_weights() if weights is None else weights
        with memory_explained(config, ranks), torch.inference_mode():
            self._llama = weights.with_cache(config.batch_size, self._max_seq_len)
            self._llama.reduce, told = allreduce.choose(
                ranks, batch_buckets(config.batch_size), config.model.dim, DTYPES[config.precision]
            )
            self.info |= told
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
            self._kept: dict[str, _Kernels] = {}
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
            if wanted not in self._kept:
                self._kept[wanted] = self._take_kernels(wanted)
                self._use(self._kept[wanted])
                self._capture_all()
            else:
                self._use(self._kept[wanted])
        self._tell_graphs()

    def _use(self, kernels: "_Kernels") -> None:
        self._decode_pieces, self._prefill_pieces = kernels.decode, kernels.prefill
        self._buckets, self._graphs = kernels.buckets, kernels.graphs
        self.info |= kernels.info

    def _take_kernels(self, wanted: str) -> "_Kernels":
        """The pieces of decode and prefill, and the buckets that they call for."""
        named, tuned_reason = self._tuned(wanted)
        decode, prefill, reason = take_pieces(named, self._ranks.device, self._llama)
        reason = "; ".join(filter(None, (tuned_reason, reason))) or None
        told = self._ranks.gather([decode.name, reason])
        if any(name != told[0][0] for name, _ in told):
            # ranks would wait for each other in collectives of different steps
            raise EngineError(
                f"ranks have different kernels (name and reason by rank: {told}). Run all shards on one kind of GPU, "
                "or set engine.kernels=eager."
            )
        buckets = (
            [self._max_seq_len] if decode.reads_used_length else length_buckets(self._max_seq_len)
        )
        info: dict[str, object] = {
            "kernels": decode.name,
            "kernels_reason": reason,
            "linears": decode.linears,
            "attention": decode.attention,
            "length_buckets": buckets,
        }
        return _Kernels(decode, prefill, buckets, {}, info)

    def _tuned(self, wanted: str) -> tuple[str, str | None]:
        """The kernels that a goal of `wattflow tune` stands for, and what the record says of them."""
        if wanted not in tuned_kernels.GOALS:
            return wanted, None
        ranks, known = self._ranks, None
        if ranks.rank == 0:
            known = tuned_kernels.find(
                tuned_kernels.key(self._config, ranks.device_name, torch.__version__), wanted
            )
        known = ranks.broadcast(known)
        if known is None:
            reason = (
                f"nothing tuned for {wanted} with this GPU model, driver, torch, model and batch"
            )
            _log.warning("%s: takes auto", reason)
            return "auto", f"{reason}: auto"
        return str(known), f"tuned for {wanted}"

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
            rows = {min(size, prompts), prompts % size} - {0}
            for bucket_rows in sorted({batch_bucket(n, size) for n in rows}, reverse=True):
                for bucket in reversed(self._buckets):  # the largest first: later ones fit its pool
                    self._capture(bucket_rows, bucket)

    def _tell_graphs(self) -> None:
        self.info["graphs"] = [list(key) for key in sorted(self._graphs)]

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
        # thread_local: NCCL's watchdog asks for events from its own thread meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._step(rows, bucket)
        self._pool = self._pool or graph.pool()
        self._graphs[rows, bucket] = graph

    def _step(self, rows: int, bucket: int) -> None:
        """One token for each of the first rows."""
        state = self._state
        scores = self._llama.step(
            state.tokens[:rows], state.positions[:rows], bucket, self._decode_pieces
        )
        state.write(self._choose(scores), self._max_seq_len - 1, self._eos_id)

    # --- a batch ---

    def prefill(self, prompts: list[list[int]]) -> None:
        """Read all prompts whole and choose the first token of each row."""
        config = self._config
        check_prompts(prompts, config.batch_size, self._max_seq_len, config.model.vocab_size)
        self._lengths = [len(prompt) for prompt in prompts]
        self._made = [min(config.max_gen_len, self._max_seq_len - n) for n in self._lengths]
        self._rows = batch_bucket(len(prompts), config.batch_size)
        with memory_explained(config, self._ranks), torch.inference_mode():
            self._state.begin(self._lengths, self._made)
            last = self._llama.prefill(prompts, self._prefill_pieces)
            scores = self._llama.logits(last, None, self._prefill_pieces)
            mine = scores[:, : self._llama.mine]
            padding = scores.new_zeros((self._rows - len(prompts), scores.shape[1]))
            chosen = self._choose(torch.cat((scores, padding)))
            self._state.write(chosen, self._max_seq_len - 1, self._eos_id)
            check_finite(config, mine)

    def decode(self) -> Generated:
        """Make one token a step until every row has all it may make, or every row has ended."""
        with memory_explained(self._config, self._ranks), torch.inference_mode():
            steps = self._run_steps(max(self._made) - 1)
            made = self._state.output[: len(self._lengths), : steps + 1].tolist()
        check_agreement(self._ranks, made)
        self._tell_roofline(steps)
        rows = [
            kept(row[:most], self._config.max_gen_len, self._eos_id)
            for row, most in zip(made, self._made, strict=True)
        ]
        return Generated(
            tokens=[tokens for tokens, _ in rows],
            stop_reasons=[reason for _, reason in rows],
            prefill_tokens_computed=len(self._lengths) * max(self._lengths),
            decode_tokens_computed=self._rows * steps,
            work={
                "decode_steps": steps,
                "decode_rows": len(rows) * steps,
                "decode_positions": len(rows) * steps * self.last_batch["mean_length"],
                "prefills": 1,
                "prefill_tokens": sum(self._lengths),
                "prefill_squares": sum(n**2 for n in self._lengths),
            },
        )

    def _run_steps(self, most: int) -> int:
        """Take up to `most` steps, no more once all rows were seen to have ended; how many were taken."""
        self._look = None
        for step in range(most):
            if self._eos_id is not None and step % LOOK_EVERY == 0 and self._all_ended():
                return step
            length = max(self._lengths) + step + 1
            bucket = next(b for b in self._buckets if b >= min(length, self._max_seq_len))
            self._advance(bucket)
        return most

    def _advance(self, bucket: int) -> None:
        if not self._captures:
            self._step(self._rows, bucket)
            return
        if (self._rows, bucket) not in self._graphs:
            self._capture_in_between(bucket)
        self._graphs[self._rows, bucket].replay()

    def _capture_in_between(self, bucket: int) -> None:
        """Capture a graph that `load` did not foresee, and leave state and cache as they were."""
        _log.warning("captures a graph for %d rows of up to %d tokens", self._rows, bucket)
        held = {name: value.clone() for name, value in vars(self._state).items()}
        slot = self._llama.cache[..., :1, :].clone()
        drawn = self._generator.get_state()
        self._capture(self._rows, bucket)
        self._generator.set_state(drawn)
        self._llama.cache[..., :1, :] = slot
        for name, value in held.items():
            getattr(self._state, name).copy_(value)
        self._tell_graphs()

    def _all_ended(self) -> bool:
        """Whether all rows had ended: on a GPU at the look before, so that none waits for the queue.

        The flag is copied in the order of the steps, so every rank sees that of the same step and all stop together.
        """
        if not self._cuda:
            return bool(self._state.all_ended)
        ended = False
        if self._look is None:
            flag = torch.zeros(1, dtype=torch.bool, pin_memory=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call] # as above
        else:
            flag, copied = self._look
            copied.synchronize()
            ended = bool(flag)
        flag.copy_(self._state.all_ended, non_blocking=True)
        copied.record()
        self._look = flag, copied
        return ended

    def _tell_roofline(self, steps: int) -> None:
        """Note the least that one GPU moves and computes in a step of this batch, at its mean length."""
        rows = len(self._lengths)
        length = sum(self._lengths) / rows + (steps + 1) / 2
        work = arithmetic.decode_work(
            self._config.model, self._config.shards, self._config.precision, rows, length
        )
        self.last_batch = {
            "rows": rows,
            "rows_computed": self._rows,
            "decode_steps": steps,
            "mean_length": length,
            "bytes_per_step": work.read_bytes,
            "flops_per_step": work.flops,
        }
        self.info["last_batch"] = self.last_batch

    def synchronize(self) -> None:
        """Wait until the GPU has done all it was asked; the CPU always has."""
        if self._cuda:
            torch.cuda.synchronize(self._ranks.device)

    def close(self) -> None:
        """Drop graphs, weights and cache, also after a failed load."""
        # graphs first: they hold the pool
        self._graphs = {}
        for name in ("_kept", "_llama", "_state", "_choose", "_pool", "_look"):
            self.__dict__.pop(name, None)
        if self._cuda:
            torch.cuda.empty_cache()


def batch_bucket(rows: int, batch_size: int) -> int:
    """How many rows are computed for `rows`: the next power of two, at most the whole batch."""
    return min(batch_size, 1 << (rows - 1).bit_length())


def batch_buckets(batch_size: int) -> list[int]:
    """All of them, ascending."""
    return sorted({batch_bucket(rows, batch_size) for rows in range(1, batch_size + 1)})


def length_buckets(max_seq_len: int) -> list[int]:
    """Lengths of the cache that attention reads, ascending, each at most 1.5 times the one before from 256 on."""
    sizes = [128 * 2**k * part // 2 for k in range(max_seq_len.bit_length()) for part in (2, 3)]
    return [*(size for size in sizes if size < max_seq_len), max_seq_len]


def why_no_graphs(device: str, *, drawn: bool) -> str | None:
    """Why steps cannot be captured here; None where they can."""
    if not device.startswith("cuda"):
        return "no GPU"
    if drawn and not hasattr(torch.cuda.CUDAGraph, "register_generator_state"):
        return f"torch {torch.__version__} cannot draw in a graph"
    return None


def check_kernels(wanted: str, batch_size: int) -> None:
    """RefusedError for kernels of one row when more are to be computed at once."""
    if wanted == "triton" and batch_size > 1:
        raise RefusedError(
            f"engine.kernels=triton multiplies one row, and batch_size is {batch_size}: take "
            "engine.kernels=cublas, which is as fast and as cheap from a batch of some rows on."
        )


def take_pieces(wanted: str, device: str, llama: FusedLlama) -> tuple[Pieces, Pieces, str | None]:
    """The kernels of decode and of prefill, and why they are not the fused ones where `auto` had to do without.

    EngineError when kernels are asked for by name that cannot run here.
    """
    if wanted == "eager":
        return Eager(), Eager(), None
    reason = _why_no_kernels(device, llama)
    if reason is None:
        return _gpu_pieces(wanted, llama)
    if wanted != "auto":
        raise EngineError(f"engine.kernels={wanted} cannot run: {reason}. Take auto or eager.")
    if device.startswith("cuda"):
        _log.warning("no fused kernels: %s", reason)
    return Eager(), Eager(), reason


def _why_no_kernels(device: str, llama: FusedLlama) -> str | None:
    if not device.startswith("cuda"):
        return "no GPU"
    try:
        from wattflow.engine import kernels  # noqa: PLC0415 - Triton comes with torch for GPUs alone
    except ImportError as error:
        return f"no Triton ({error})"
    return kernels.why_not(llama.cache, llama.rotary)


def _gpu_pieces(wanted: str, llama: FusedLlama) -> tuple[Pieces, Pieces, str | None]:
    from wattflow.engine.kernels import Cublas, Gemv  # noqa: PLC0415 - as above

    if wanted != "triton":
        return Cublas(), Cublas(), None
    one_row = Gemv()
    layers = llama.layers
    one_row.tune([layer.wqkv for layer in layers], norm=layers[0].attention_norm)
    one_row.tune([layer.wo for layer in layers])
    one_row.tune([layer.w13 for layer in layers], norm=layers[0].ffn_norm, gate=True)
    one_row.tune([layer.w2 for layer in layers])
    one_row.tune([llama.head], norm=llama.norm)
    return one_row, Cublas(), None
