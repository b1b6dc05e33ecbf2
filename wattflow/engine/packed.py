"""Prompts laid end to end as one sequence of tokens, so that a prefill computes none that nobody asked for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import signature
from itertools import accumulate, chain
from typing import Any

import torch
from torch.nn import functional

Tensor = torch.Tensor


@dataclass(frozen=True)
class Packed:
    """Some prompts of a batch, end to end, and where their tokens belong."""

    tokens: Tensor  # [all]
    rows: Tensor  # [all]: each token's row of the batch
    positions: Tensor  # [all]: and its place in its prompt
    bounds: Tensor  # [prompts + 1], int32: where each begins, and the end
    last: Tensor  # [prompts]: where each one's last token lies
    lengths: tuple[int, ...]


def pack(prompts: list[list[int]], first_row: int, device: str) -> Packed:
    """Return prompts end to end; they are those of the batch's rows from `first_row` on."""
    lengths = tuple(map(len, prompts))
    bounds = torch.tensor([0, *accumulate(lengths)])
    each = torch.tensor(lengths)
    rows = torch.repeat_interleave(torch.arange(len(prompts)), each)
    positions = torch.arange(sum(lengths)) - bounds[rows]
    tokens = torch.tensor(list(chain.from_iterable(prompts)))
    return Packed(
        tokens=tokens.to(device),
        rows=(rows + first_row).to(device),
        positions=positions.to(device),
        bounds=bounds.to(device, torch.int32),
        last=(bounds[1:] - 1).to(device),
        lengths=lengths,
    )


def parts(prompts: list[list[int]], most: int, device: str) -> Iterator[Packed]:
    """Yield a batch's prompts packed, as many at a time as have `most` tokens together, but one at least."""
    first, tokens = 0, 0
    for row, prompt in enumerate(prompts):
        if row > first and tokens + len(prompt) > most:
            yield pack(prompts[first:row], first, device)
            first, tokens = row, 0
        tokens += len(prompt)
    yield pack(prompts[first:], first, device)


Attend = Callable[[Tensor, Tensor, Tensor, Packed], Tensor]


def attend_each(query: Tensor, key: Tensor, value: Tensor, packed: Packed) -> Tensor:
    """Return what each position reads of its own prompt up to itself, [tokens, heads head_dim], one prompt at a time.

    query is [tokens, heads, head_dim], key and value [tokens, KV heads, head_dim], rotated. Heads of a group repeat
    their keys here: a prefill computes more than it reads.
    """
    group = query.shape[1] // key.shape[1]
    out = []
    first = 0
    for length in packed.lengths:
        here = slice(first, first + length)
        asked, *kv = (x[here].transpose(0, 1).unsqueeze(0) for x in (query, key, value))
        if group > 1:
            kv = [x.repeat_interleave(group, dim=1) for x in kv]
        read = functional.scaled_dot_product_attention(asked, kv[0], kv[1], is_causal=True)
        out.append(read.squeeze(0).transpose(0, 1))
        first += length
    return torch.cat(out).flatten(1)


def attend_varlen(query: Tensor, key: Tensor, value: Tensor, packed: Packed) -> Tensor:
    """As attend_each, for all prompts in one kernel of FlashAttention, which torch has from 2.10 on."""
    from torch.nn.attention import varlen  # noqa: PLC0415 - not in every torch >= 2.4

    longest = max(packed.lengths)
    causal: dict[str, Any] = {"window_size": (-1, 0)}
    if "window_size" not in signature(varlen.varlen_attn).parameters:
        causal = {"is_causal": True}  # as 2.10 says it
    if "enable_gqa" in signature(varlen.varlen_attn).parameters:
        causal["enable_gqa"] = True  # older ones take groups unasked
    read = varlen.varlen_attn(
        query, key, value, packed.bounds, packed.bounds, longest, longest, **causal
    )
    return torch.as_tensor(read).flatten(1)


def why_not_varlen(
    device: str, dtype: torch.dtype, heads: int, kv_heads: int, width: int
) -> str | None:
    """Return why attend_varlen cannot run here; None where it gives what attend_each gives."""
    if not device.startswith("cuda"):
        return "no GPU"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"FlashAttention does not compute in {dtype}"
    packed = pack([[0] * 5, [0] * 131, [0]], 0, device)
    generator = torch.Generator(device).manual_seed(0)
    qkv = torch.randn(137, heads + 2 * kv_heads, width, device=device, generator=generator)
    query, key, value = torch.split(qkv.to(dtype), [heads, kv_heads, kv_heads], dim=1)
    try:
        made = attend_varlen(query, key, value, packed).float()
    except Exception as error:  # noqa: BLE001 - a torch without it, or a GPU too old for it, fails as it likes
        return f"torch {torch.__version__}: {str(error).partition(chr(10))[0][:200]}"
    right = attend_each(query, key, value, packed).float()
    off = float((made - right).norm() / right.norm())
    return None if off < 2e-2 else f"torch {torch.__version__}: it is off by {off:.1e}"
