"""FairScale's model-parallel layers, made without their set-up: each rank allocates only its own part.

fairscale 0.4.13 builds every whole matrix on every rank and ignores the meta device. These subclasses skip that
and keep its `forward`: the column-parallel linear, the row-parallel linear with its all-reduce, and the embedding
shared by vocabulary.
"""

from typing import Any, cast

import torch
from fairscale.nn.model_parallel import initialize
from fairscale.nn.model_parallel import layers as fairscale
from torch import nn

from wattflow.engine.ranks import Ranks


class _Alone:
    """Stands for the group of one rank, which needs no torch.distributed: fairscale only reads its size."""

    def size(self) -> int:
        return 1


def share_among(ranks: Ranks | None) -> None:
    """Let the layers' collectives run over these ranks; None forgets them.

    initialize_model_parallel is left alone: it prints to stdout, silently takes fewer ranks than given and
    makes 2n+1 groups.
    """
    if ranks is None:
        group: Any = None
    elif ranks.world == 1:
        group = _Alone()
    else:
        group = torch.distributed.group.WORLD
    initialize._MODEL_PARALLEL_GROUP = group  # noqa: SLF001 - fairscale's only way to set it also prints


def _empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape), requires_grad=False)


class Column(fairscale.ColumnParallelLinear):  # type: ignore[misc] # fairscale has no types
    """A linear whose outputs are shared: this rank makes `n_mine` of them, or all gathered."""

    def __init__(
        self, n_in: int, n_mine: int, *, gather_output: bool = False, bias: bool = False
    ) -> None:
        nn.Module.__init__(self)  # theirs builds the whole matrix on every rank
        self.gather_output = gather_output
        self.weight = _empty(n_mine, n_in)
        self.register_parameter("bias", _empty(n_mine) if bias else None)


class Row(fairscale.RowParallelLinear):  # type: ignore[misc] # fairscale has no types
    """A linear whose inputs are shared: this rank multiplies its `n_mine`, and the products are summed over ranks."""

    def __init__(self, n_mine: int, n_out: int) -> None:
        nn.Module.__init__(self)  # as in Column
        self.input_is_parallel = True
        self.weight = _empty(n_out, n_mine)
        self.register_parameter("bias", None)


class Embedding(fairscale.VocabParallelEmbedding):  # type: ignore[misc] # fairscale has no types
    """An embedding whose rows are shared: ranks look up their own tokens, and the results are summed."""

    def __init__(self, n_mine: int, width: int, rank: int) -> None:
        nn.Module.__init__(self)  # as in Column
        self.vocab_start_index = rank * n_mine
        self.vocab_end_index = (rank + 1) * n_mine
        self.padding_idx = self.max_norm = None
        self.norm_type, self.scale_grad_by_freq, self.sparse = 2.0, False, False
        self.weight = _empty(n_mine, width)


def apply(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the layer's output; fairscale's annotations end here."""
    return cast(torch.Tensor, layer(x))
