"""Spans of ranks: their edges, their tokens, and the file that a node makes of them."""

from itertools import count

import pytest

from wattflow.run.spans import SpanLog, close_node
from wattflow.store.schema import SPAN
from wattflow.store.tables import read_table


def log(path, rank=0, first_ns=0, step_ns=10):
    """A rank's log whose edges lie `step_ns` apart."""
    edge = count(first_ns, step_ns).__next__
    return SpanLog(path, rank=rank, node="n1", gpu_uuid=f"GPU-{rank}", edge=edge)


def rows(paths, path):
    """What a node's ranks wrote, once it is closed."""
    close_node(paths, path)
    return read_table(path, SPAN).to_pylist()


def test_a_span_has_its_edges_and_the_tokens_set_inside(tmp_path):
    """Edges at 0, 10, 20 and 30 ns make [0, 10] and [20, 30]; a phase without tokens has nulls."""
    spans = log(tmp_path / "a.arrow")
    with spans.span("load"):
        pass
    with spans.span("decode", 3) as tokens:
        tokens.tokens_kept, tokens.tokens_computed = 7, 9
    spans.close()
    load, decode = rows([tmp_path / "a.arrow"], tmp_path / "n1.parquet")
    assert (load["phase"], load["batch"], load["start_ns"], load["end_ns"]) == ("load", None, 0, 10)
    assert (decode["batch"], decode["start_ns"], decode["end_ns"]) == (3, 20, 30)
    assert (load["tokens_kept"], decode["tokens_kept"], decode["tokens_computed"]) == (None, 7, 9)


def test_a_span_that_raises_is_dropped(tmp_path):
    """What failed in its middle is no phase."""
    spans = log(tmp_path / "a.arrow")
    with pytest.raises(ZeroDivisionError), spans.span("prefill", 0):
        raise ZeroDivisionError
    with spans.span("idle"):
        pass
    spans.close()
    assert [row["phase"] for row in rows([tmp_path / "a.arrow"], tmp_path / "p")] == ["idle"]


def test_a_node_s_file_is_ordered_by_start_and_rank(tmp_path):
    """Rank 1's first span starts with rank 0's second: it comes after that one."""
    for rank, first_ns in ((1, 20), (0, 0)):
        spans = log(tmp_path / f"{rank}.arrow", rank, first_ns)
        for phase in ("idle", "load"):
            with spans.span(phase):
                pass
        spans.close()
    found = rows([tmp_path / "1.arrow", tmp_path / "0.arrow"], tmp_path / "n1.parquet")
    order = [(row["start_ns"], row["rank"], row["phase"]) for row in found]
    assert order == [(0, 0, "idle"), (20, 0, "load"), (20, 1, "idle"), (40, 1, "load")]
