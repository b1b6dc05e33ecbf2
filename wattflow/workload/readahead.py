"""Read a checkpoint's bytes into memory a little before they are used. No torch here.

Mapped files come page by page when they are touched, which leaves a disk waiting; a thread that reads the same ranges
in the order of the load, in large chunks and never far ahead, has them there in time. It drops what it reads: the
kernel keeps the pages.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from wattflow.store.files import open_given

CHUNK_BYTES = 2**24
AHEAD_BYTES = 2**30  # far enough to keep a disk busy, and little beside any checkpoint


@dataclass(frozen=True)
class Range:
    """Bytes of a file that one matrix needs."""

    name: str
    path: Path
    start: int
    stop: int


@dataclass
class Ahead:
    """The progress of reading and of use, shared by the thread that reads and the one that uses."""

    ranges: Sequence[Range]
    used: int = 0  # bytes whose use has begun
    read: int = 0
    ended: bool = False
    moved: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        """Find where each matrix ends."""
        self._ends: dict[str, int] = {}
        total = 0
        for part in self.ranges:
            total += part.stop - part.start
            self._ends[part.name] = total

    def use(self, name: str) -> None:
        """Record that a matrix is being used now, so that the reading may go on."""
        with self.moved:
            self.used = max(self.used, self._ends.get(name, 0))
            self.moved.notify()

    def end(self) -> None:
        """Stop the reading."""
        with self.moved:
            self.ended = True
            self.moved.notify()

    def run(self) -> None:
        """Read all ranges. I/O errors are ignored; the consumer raises them."""
        scratch = memoryview(bytearray(CHUNK_BYTES))
        for part in self.ranges:
            try:
                with open_given(part.path) as file:
                    for place in range(part.start, part.stop, CHUNK_BYTES):
                        size = min(CHUNK_BYTES, part.stop - place)
                        if not self._may_read(size):
                            return
                        os.preadv(file.fileno(), [scratch[:size]], place)
            except OSError:
                return

    def _may_read(self, size: int) -> bool:
        """Wait until so many more bytes are near enough; False when they are no longer needed."""
        with self.moved:
            self.moved.wait_for(lambda: self.ended or self.read - self.used < AHEAD_BYTES)
            self.read += size
            return not self.ended


@contextmanager
def reading(ranges: Sequence[Range]) -> Iterator[Ahead]:
    """Read the ranges in a thread while the context is open."""
    ahead = Ahead(ranges)
    thread = threading.Thread(target=ahead.run, name="read-ahead", daemon=True)
    thread.start()
    try:
        yield ahead
    finally:
        ahead.end()
        thread.join()
