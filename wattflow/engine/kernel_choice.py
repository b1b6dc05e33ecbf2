"""Which operations the `fast` engine runs with: by name, by a goal of `wattflow tune`, or automatically."""

import logging
from dataclasses import replace

import torch

from wattflow.config.choices import Config
from wattflow.engine import packed, tuned_kernels
from wattflow.engine.fused import FusedLlama
from wattflow.engine.ops import EAGER, Ops
from wattflow.engine.ranks import Ranks
from wattflow.errors import EngineError, RefusedError

log = logging.getLogger(__name__)


def check_kernels(wanted: str, batch_size: int) -> None:
    """RefusedError for kernels of one row when more are to be computed at once."""
    if wanted == "triton" and batch_size > 1:
        raise RefusedError(
            f"engine.kernels=triton multiplies one row, and batch_size is {batch_size}: take "
            "engine.kernels=cublas, which is as fast and as cheap from a batch of some rows on."
        )


def choose(
    wanted: str, config: Config, ranks: Ranks, llama: FusedLlama
) -> tuple[Ops, Ops, str | None]:
    """Return the operations of decode and of prefill, the same on all ranks, and why not those that were named.

    EngineError when operations are named that cannot run here, or when ranks would run different ones.
    """
    named, goal_reason = _by_goal(wanted, config, ranks)
    decode, prefill, fallback_reason = _by_name(named, ranks.device, llama)
    reason = "; ".join(filter(None, (goal_reason, fallback_reason))) or None
    by_rank = ranks.gather([decode.name, reason])
    if any(name != by_rank[0][0] for name, _ in by_rank):
        # ranks would wait for each other in collectives of different steps
        raise EngineError(
            f"ranks have different kernels (name and reason by rank: {by_rank}). Run all shards on one kind of GPU, "
            "or set engine.kernels=eager."
        )
    return decode, prefill, reason


def _by_goal(wanted: str, config: Config, ranks: Ranks) -> tuple[str, str | None]:
    """Return the kernels of a goal of `wattflow tune`, and where they come from; other names as they are."""
    if wanted not in tuned_kernels.GOALS:
        return wanted, None
    found = None
    if ranks.rank == 0:
        found = tuned_kernels.find(
            tuned_kernels.key_of(config, ranks.device_name, torch.__version__), wanted
        )
    found = ranks.broadcast(found)
    if found is None:
        reason = f"nothing tuned for {wanted} with this GPU model, driver, torch, model and batch"
        log.warning("%s: takes auto", reason)
        return "auto", f"{reason}: auto"
    return str(found), f"tuned for {wanted}"


def _by_name(wanted: str, device: str, llama: FusedLlama) -> tuple[Ops, Ops, str | None]:
    """Return the operations of decode and of prefill, and why `auto` had to do without the fused ones."""
    if wanted == "eager":
        return EAGER, EAGER, None
    reason = _why_no_kernels(device, llama)
    if reason is None:
        return _on_gpu(wanted, llama)
    if wanted != "auto":
        raise EngineError(f"engine.kernels={wanted} cannot run: {reason}. Take auto or eager.")
    if device.startswith("cuda"):
        log.warning("no fused kernels: %s", reason)
    return EAGER, EAGER, reason


def _why_no_kernels(device: str, llama: FusedLlama) -> str | None:
    if not device.startswith("cuda"):
        return "no GPU"
    try:
        from wattflow.engine.kernels import check  # noqa: PLC0415 - Triton comes with torch for GPUs alone
    except ImportError as error:
        return f"no Triton ({error})"
    layer = llama.layers[0]
    reason = check.why_not(llama.cache, llama.rotary, llama.heads, layer.head_norms)
    if reason is None and layer.wqkv.scales is not None:
        reason = check.why_not_fp8(llama.cache.dtype, llama.cache.device)
    return reason


def _on_gpu(wanted: str, llama: FusedLlama) -> tuple[Ops, Ops, str | None]:
    from wattflow.engine.kernels.gemv import quickest_tile  # noqa: PLC0415 - as above
    from wattflow.engine.kernels.sets import cublas, one_row  # noqa: PLC0415 - as above

    prefill = _with_packed_attention(cublas(), llama)
    if wanted != "triton":
        return cublas(), prefill, None
    layers = llama.layers
    products = [
        ([layer.wqkv for layer in layers], layers[0].attention_norm, False),
        ([layer.wo for layer in layers], None, False),
        ([layer.w13 for layer in layers], layers[0].ffn_norm, True),
        ([layer.w2 for layer in layers], None, False),
        ([llama.head], llama.norm, False),
    ]
    dtype = llama.embedding.dtype
    tiles = {
        tuple(weights[0].values.shape): quickest_tile(weights, dtype, norm=norm, gate=gate)
        for weights, norm, gate in products
    }
    return one_row(tiles), prefill, None


def _with_packed_attention(ops: Ops, llama: FusedLlama) -> Ops:
    """Return operations whose attention of a prefill takes all prompts at once, where torch has such a kernel."""
    kv_heads, _, width = llama.cache.shape[-3:]
    reason = packed.why_not_varlen(
        str(llama.cache.device), llama.cache.dtype, llama.heads, kv_heads, width
    )
    if reason is not None:
        return replace(ops, prefill_attention=f"{ops.prefill_attention}: {reason}")
    return replace(ops, prefill_attention="varlen_attn", attend_packed=packed.attend_varlen)
