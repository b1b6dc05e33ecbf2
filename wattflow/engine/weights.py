"""Weights of one rank, from any number of files to any number of ranks.

A reader gives any range of indices of any matrix of the whole model; `of_rank` reads from it the ranges that the rank
keeps. So a checkpoint cut for M ranks loads on N, a dummy model is the same at every N, and only kept bytes are read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from wattflow.config.choices import Model
from wattflow.engine import dummy_law
from wattflow.engine.ranks import Ranks
from wattflow.errors import EngineError
from wattflow.workload.checkpoint import check_header, file_split, hf_files, hf_ranges, meta_files
from wattflow.workload.matrices import Matrix, matrices
from wattflow.workload.readahead import reading

# (matrix, start, stop) -> that range along its `split`, or the whole for a matrix that is not split
Reader = Callable[[Matrix, int, int], torch.Tensor]

_BLOCK = 256  # a dummy matrix is drawn in blocks of so many indices, each with its own seed


def reader(model: Model, weights: str, device: str) -> Reader:
    """Return the reader of a model's weights; RefusedError where its checkpoint is not whole or not this model's."""
    check_header(model, weights)
    if weights == "meta":
        return _meta_reader(meta_files(model))
    if weights == "hf":
        return _hf_reader(hf_files(model))
    return _dummy_reader(device, model.dummy)


@contextmanager
def opened(model: Model, weights: str, ranks: Ranks) -> Iterator[Reader]:
    """Yield the reader of a rank's weights; safetensors are read ahead of it while the context is open."""
    read = reader(model, weights, ranks.device)
    if weights != "hf":
        yield read
        return
    with reading(hf_ranges(model, ranks.world, ranks.rank)) as ahead:

        def read_and_report(matrix: Matrix, start: int, stop: int) -> torch.Tensor:
            ahead.use(matrix.name)
            return read(matrix, start, stop)

        yield read_and_report


def of_rank(
    model: Model, read: Reader, rank: int, shards: int, *, dtype: torch.dtype, device: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield this rank's part of every matrix by name, on the device."""
    for matrix in matrices(model):
        part = part_of_rank(matrix, read, rank, shards)
        # contiguous also cuts the part loose from the file that it was mapped from
        yield matrix.name, part.to(device=device, dtype=dtype, copy=True).contiguous()


def part_of_rank(matrix: Matrix, read: Reader, rank: int, shards: int) -> torch.Tensor:
    """Return one rank's part of one matrix, as its file has it."""
    if matrix.split is None:
        return read(matrix, 0, matrix.shape[0])
    return _padded(read(matrix, *matrix.span(rank, shards)), matrix, shards)


def _padded(part: torch.Tensor, matrix: Matrix, shards: int) -> torch.Tensor:
    """Return the part with zeros after the vocabulary's end, so that all ranks' parts have one size."""
    assert matrix.split is not None
    lacking = matrix.rows_of_rank(shards) - part.shape[matrix.split]
    if lacking == 0:
        return part
    shape = list(part.shape)
    shape[matrix.split] = lacking
    return torch.cat((part, part.new_zeros(shape)), dim=matrix.split)


def _meta_reader(paths: list[Path]) -> Reader:
    files = [_open_pth(path) for path in paths]

    def read(matrix: Matrix, start: int, stop: int) -> torch.Tensor:
        parts = [file[matrix.name] for file in files]
        cut = file_split(matrix, tuple(parts[0].shape), len(files), paths[0])
        if cut is None:
            part = parts[0] if matrix.split is None else _narrow(parts[0], matrix, start, stop)
        elif cut == matrix.split:
            part = _across(parts, cut, start, stop)
        else:
            part = torch.cat([_narrow(p, matrix, start, stop) for p in parts], dim=cut)
        return part if matrix.head_dim is None else half_split(part, matrix.head_dim)

    return read


def _open_pth(path: Path) -> dict[str, torch.Tensor]:
    try:
        found: dict[str, torch.Tensor] = torch.load(
            path, map_location="cpu", mmap=True, weights_only=True
        )
    except Exception as error:  # torch.load raises what its zip reader and unpickler do
        first_line = str(error).partition("\n")[0]
        raise EngineError(f"{path}: torch cannot read it ({first_line}).") from error
    return found


def _narrow(part: torch.Tensor, matrix: Matrix, start: int, stop: int) -> torch.Tensor:
    assert matrix.split is not None
    return part.narrow(matrix.split, start, stop - start)


def _across(parts: list[torch.Tensor], dim: int, start: int, stop: int) -> torch.Tensor:
    """Return indices start ... stop-1 of the parts laid end to end, touching only the parts that overlap."""
    overlaps, first = [], 0
    for part in parts:
        size = part.shape[dim]
        low, high = max(start, first), min(stop, first + size)
        if low < high:
            overlaps.append(part.narrow(dim, low - first, high - low))
        first += size
    return torch.cat(overlaps, dim=dim) if overlaps else parts[0].narrow(dim, 0, 0)


def half_split(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Return rows of whole heads in Meta's order, whose rotated pairs are neighbours, in half-split order."""
    pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
    return pairs.transpose(1, 2).reshape(rows.shape)


def _hf_reader(where: dict[str, Path]) -> Reader:
    files: dict[Path, Any] = {
        path: safe_open(path, framework="pt") for path in sorted(set(where.values()))
    }

    def read(matrix: Matrix, start: int, stop: int) -> torch.Tensor:
        part = files[where[matrix.hf_name]].get_slice(matrix.hf_name)
        if matrix.split is None:
            wanted: torch.Tensor = part[:]
        elif matrix.split == 0:
            wanted = part[start:stop]
        else:
            wanted = part[:, start:stop]
        return wanted

    return read


def _dummy_reader(device: str, law: str) -> Reader:
    """Read matrices of the law of dummy weights."""

    def read(matrix: Matrix, start: int, stop: int) -> torch.Tensor:
        if matrix.split is None:
            return torch.ones(matrix.shape, device=device)
        first = start // _BLOCK
        numbers = range(first, -(-stop // _BLOCK))
        blocks = [_block(matrix, number, device, law) for number in numbers]
        if not blocks:
            return torch.empty((0, *matrix.shape[1:]), device=device)
        drawn = torch.cat(blocks, dim=matrix.split)
        return drawn.narrow(matrix.split, start - first * _BLOCK, stop - start)

    return read


def _block(matrix: Matrix, number: int, device: str, law: str) -> torch.Tensor:
    """Return one block of a dummy matrix, drawn in float32; its seed is the matrix's name and the block's place."""
    assert matrix.split is not None
    generator = dummy_law.generator(f"{matrix.name}:{number}", device)
    shape = list(matrix.shape)
    shape[matrix.split] = _BLOCK
    return dummy_law.draw(torch.empty(shape, device=device), law, generator)
