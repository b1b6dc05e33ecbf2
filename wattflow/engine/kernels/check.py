# Triton is absent where torch was built without CUDA:
# mypy: disable-error-code="import-not-found, unused-ignore"
"""Whether the Triton kernels give on this device what plain torch gives."""

import logging

import torch
import triton
from torch.nn import functional

from wattflow.engine import ops
from wattflow.engine.kernels import attention
from wattflow.engine.kernels.attention import attend
from wattflow.engine.kernels.gemv import gemv
from wattflow.engine.kernels.launch import Launch
from wattflow.engine.kernels.rowwise import add_norm, rotate_store, swiglu
from wattflow.engine.llama import wide

_log = logging.getLogger(__name__)


def why_not(cache: torch.Tensor, rotary: torch.Tensor) -> str | None:
    """Return why these kernels cannot serve a cache [layers, 2, rows, KV heads, length, head_dim]; None if they can.

    They run once, on a small cache of that dtype and head width, and are compared with ops.py.
    """
    if cache.dtype == torch.float64:
        return "the fused kernels compute in float32"
    width = cache.shape[-1]
    if width & (width - 1):
        return f"heads are {width} wide, which is no power of two"
    reason = _why_wrong(cache, rotary)
    if reason is not None and Launch.early:
        _log.warning("kernels are not launched early: %s", reason)
        Launch.early = False
        reason = _why_wrong(cache, rotary)
    return reason


def _why_wrong(cache: torch.Tensor, rotary: torch.Tensor) -> str | None:
    try:
        worst = _disagreement(cache, rotary)
    except Exception as error:  # noqa: BLE001 - a compiler or driver fails as it likes, and plain torch can still run
        return f"Triton {triton.__version__} failed: {str(error).partition(chr(10))[0]}"
    allowed = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(cache.dtype, 1e-4)
    return None if worst <= allowed else f"they differ from plain torch by {worst:.1e}"


def _disagreement(cache: torch.Tensor, rotary: torch.Tensor) -> float:
    """Return the largest relative difference between these kernels and ops.py on random inputs."""
    dtype, device, width = cache.dtype, cache.device, cache.shape[-1]
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, generator=generator).to(dtype)

    length = min(rotary.shape[1], 200)
    angles = rotary[:, :length].contiguous()
    positions = torch.tensor([length - 1, length // 2, 0], device=device)
    caches = random(2, 3, 2, length, width)
    ours, theirs = caches.clone(), caches.clone()
    qkv, norm, matrix = random(3, 8 * width), random(8 * width), random(96, 8 * width)
    stream, delta = random(3, 8 * width), random(3, 8 * width)
    prompt, starts = random(2, 8 * width), torch.arange(2, device=device)
    pairs = [
        (
            rotate_store(prompt, angles, starts, ours[0, :1], ours[1, :1], 2),
            ops.rotate_store(prompt, angles, starts, theirs[0, :1], theirs[1, :1], 2),
        ),
        *(
            (
                attend(qkv, angles, ours[0], ours[1], positions, scan),
                ops.attend(qkv, angles, theirs[0], theirs[1], positions, length),
            )
            for scan in attention.SCANS.values()
        ),
        (ours, theirs),
        (
            add_norm(stream.clone(), delta, norm, 1e-5),
            ops.add_norm(stream.clone(), delta, norm, 1e-5),
        ),
        (swiglu(qkv), ops.swiglu(qkv)),
        (
            gemv(stream[:1], matrix, norm=norm, eps=1e-5, gate=True),
            ops.swiglu(functional.linear(ops.add_norm(stream[:1], None, norm, 1e-5), matrix)),
        ),
    ]
    return max(
        float((a.to(wide(dtype)) - b.to(wide(dtype))).norm() / b.to(wide(dtype)).norm())
        for a, b in pairs
    )
