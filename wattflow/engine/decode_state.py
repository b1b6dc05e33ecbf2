"""What lies on the device between two decode steps of the `fast` engine, and how the host learns that rows ended."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

LOOK_EVERY = 16  # steps between two looks at whether all rows have ended


@dataclass
class State:
    """What a step reads and leaves for the next, on the device, one entry a row of the largest batch."""

    tokens: torch.Tensor  # to be fed next
    positions: torch.Tensor  # where they stand
    output: torch.Tensor  # [rows, columns]: all tokens made
    column: torch.Tensor  # [1]: where the next ones go
    limits: torch.Tensor  # how many tokens the row may make
    ended: torch.Tensor  # rows that made EOS or all they may
    all_ended: torch.Tensor  # [1]

    @classmethod
    def empty(cls, rows: int, columns: int, device: str) -> "State":
        """Return the state before any batch: every row has ended."""
        return cls(
            tokens=torch.zeros(rows, dtype=torch.int64, device=device),
            positions=torch.zeros(rows, dtype=torch.int64, device=device),
            output=torch.zeros((rows, columns), dtype=torch.int64, device=device),
            column=torch.zeros(1, dtype=torch.int64, device=device),
            limits=torch.zeros(rows, dtype=torch.int64, device=device),
            ended=torch.ones(rows, dtype=torch.bool, device=device),
            all_ended=torch.zeros(1, dtype=torch.bool, device=device),
        )

    def begin(self, lengths: list[int], limits: list[int]) -> None:
        """Take prompts of these lengths; rows beyond them are padding, which stands at position 0 and has ended."""
        device, rows = self.tokens.device, len(lengths)
        self.tokens.zero_()
        self.positions.zero_()
        self.positions[:rows] = torch.tensor(lengths, device=device) - 1
        self.column.zero_()
        self.limits.zero_()
        self.limits[:rows] = torch.tensor(limits, device=device)
        self.ended.fill_(value=True)
        self.ended[:rows] = False

    def write(self, tokens: torch.Tensor, last_position: int, eos_ids: Collection[int]) -> None:
        """Take one token of each of the first rows, and go on by one position."""
        rows = len(tokens)
        column = self.column.expand(rows)
        self.output[:rows].scatter_(1, column.unsqueeze(1), tokens.unsqueeze(1))
        self.tokens[:rows].copy_(tokens)
        # a row whose sequence is full goes on in its last place, and what it makes is cut
        self.positions[:rows].add_(1).clamp_(max=last_position)
        if eos_ids:
            ended = self.ended[:rows]
            for eos_id in eos_ids:  # a few, and no look at the device
                ended.logical_or_(tokens == eos_id)
            ended.logical_or_(column + 1 >= self.limits[:rows])
            self.all_ended.copy_(ended.all())
        self.column.add_(1)


class EndLook:
    """Whether all rows have ended; on a GPU as of the look before, so that the host never waits for the queue.

    The flag is copied in the order of the steps, so every rank sees that of the same step and all stop together.
    """

    def __init__(self, flag: torch.Tensor) -> None:
        """`flag` is a state's all_ended."""
        self._flag = flag
        self._copy: tuple[torch.Tensor, torch.cuda.Event] | None = None

    def __call__(self) -> bool:
        """The flag's value, and a new copy under way."""
        if not self._flag.is_cuda:
            return bool(self._flag)
        ended = False
        if self._copy is None:
            flag = torch.zeros(1, dtype=torch.bool, pin_memory=True)
            arrival = torch.cuda.Event()  # type: ignore[no-untyped-call] # torch leaves it untyped
        else:
            flag, arrival = self._copy
            arrival.synchronize()
            ended = bool(flag)
        flag.copy_(self._flag, non_blocking=True)
        arrival.record()
        self._copy = flag, arrival
        return ended
