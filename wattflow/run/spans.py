"""When each phase of each batch ran on each rank.

    idle | load | warmup | prefill decode | prefill decode | ... | idle_after
                         ^ the measured window starts    ends ^

Every edge is one call of `edge`, which waits for the device and for all ranks, then reads the node's clock: a span
never holds work that is still queued, and the spans of the ranks of a node start and end together.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from wattflow.store.schema import SPAN, Phase
from wattflow.store.tables import TableStream, read_stream, write_table


@dataclass
class Tokens:
    """The tokens of one span; null where the phase has none."""

    tokens_in: int | None = None
    tokens_kept: int | None = None
    tokens_computed: int | None = None


class SpanLog:
    """Appends one rank's spans to a stream in the spool."""

    def __init__(
        self, path: Path, *, rank: int, node: str, gpu_uuid: str, edge: Callable[[], int]
    ) -> None:
        """`edge` returns unix ns once the device and all ranks have come to rest."""
        self._stream = TableStream(path, SPAN)
        self._rank = {"rank": rank, "node": node, "gpu_uuid": gpu_uuid}
        self._edge = edge
        self._pending: list[tuple[dict[str, object], Tokens]] = []

    @contextmanager
    def span(self, phase: Phase, batch: int | None = None) -> Iterator[Tokens]:
        """Time one phase. The caller fills in its tokens before `flush`; a span that raises is dropped."""
        tokens = Tokens()
        start_ns = self._edge()
        yield tokens
        row: dict[str, object] = {
            "phase": phase,
            "batch": batch,
            "start_ns": start_ns,
            "end_ns": self._edge(),
        }
        self._pending.append((row, tokens))

    def flush(self) -> None:
        """Write the spans timed since the last flush."""
        for row, tokens in self._pending:
            self._stream.add({**self._rank, **row, **vars(tokens)})
        self._pending.clear()
        self._stream.flush()

    def close(self) -> None:
        """Flush and end the stream."""
        self.flush()
        self._stream.close()


def close_node(spool_paths: list[Path], path: Path) -> None:
    """Write the spans of all ranks of a node, ordered by start and rank, as one Parquet file."""
    table = pa.concat_tables([read_stream(spool) for spool in spool_paths])
    table = table.sort_by([("start_ns", "ascending"), ("rank", "ascending")])
    write_table(path, table)
