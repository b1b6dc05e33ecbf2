"""Reading a checkpoint ahead of its use: how far it goes, that it ends, and which bytes a rank asks for."""

import json
import time

import engine_ranks as tools
import pytest
import torch
from processes import until
from safetensors.torch import save_file

from wattflow.engine import weights
from wattflow.engine.ranks import Ranks
from wattflow.workload import readahead
from wattflow.workload.checkpoint import hf_ranges
from wattflow.workload.matrices import matrices
from wattflow.workload.readahead import Ahead, Range


def saved(folder, model):
    """A checkpoint of the model in Hugging Face's form, in one file."""
    drawn = {m.hf_name: torch.randn(m.shape) for m in matrices(model)}
    save_file(drawn, folder / "model.safetensors")
    told = {
        "model_type": "llama",
        "hidden_size": model.dim,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "intermediate_size": model.ffn_dim,
        "vocab_size": model.vocab_size,
        "rms_norm_eps": model.norm_eps,
    }
    (folder / "config.json").write_text(json.dumps(told))
    return drawn


def test_reading_stays_near_its_use(tmp_path, monkeypatch):
    """Ten matrices of 100 bytes and 250 bytes ahead: three are read at first, and one more as each is used."""
    monkeypatch.setattr(readahead, "AHEAD_BYTES", 250)
    (tmp_path / "file").write_bytes(bytes(1000))
    parts = [Range(f"m{k}", tmp_path / "file", 100 * k, 100 * k + 100) for k in range(10)]
    with readahead.reading(parts) as made:
        until(lambda: made.read == 300)
        time.sleep(0.05)
        assert made.read == 300
        made.use("m0")
        until(lambda: made.read == 400)
        made.use("m9")
        until(lambda: made.read == 1000)


def test_leaving_ends_the_thread_though_nothing_was_used(tmp_path, monkeypatch):
    """Whoever fails in the middle of a load is not waited for."""
    monkeypatch.setattr(readahead, "AHEAD_BYTES", 10)
    (tmp_path / "file").write_bytes(bytes(1000))
    with readahead.reading([Range("m", tmp_path / "file", 0, 1000)] * 3) as made:
        until(lambda: made.read > 0)
    assert made.ended


def test_a_file_that_is_gone_is_left_to_its_user(tmp_path):
    """The thread ends without a word; who maps the file says what is wrong."""
    Ahead([Range("m", tmp_path / "none", 0, 100)]).run()


@pytest.mark.parametrize("shards", [1, 2])
def test_a_rank_reads_its_rows_alone(tmp_path, shards):
    """The ranges hold the rows that the rank keeps, bit by bit; matrices cut the other way and the table are whole."""
    model = tools.tiny(path=str(tmp_path))
    drawn = saved(tmp_path, model)
    by_name = {matrix.name: matrix for matrix in matrices(model)}
    for rank in range(shards):
        for part in hf_ranges(model, shards, rank):
            matrix = by_name[part.name]
            whole = drawn[matrix.hf_name]
            if matrix.split == 0 and part.name != "tok_embeddings.weight":
                first, last = matrix.span(rank, shards)
                whole = whole[first:last]
            found = part.path.read_bytes()[part.start : part.stop]
            assert found == whole.contiguous().numpy().tobytes()


def test_what_is_read_ahead_is_what_is_loaded(tmp_path):
    """The reader of two ranks gives the same parts with and without the thread."""
    model = tools.tiny(path=str(tmp_path))
    saved(tmp_path, model)
    plain = weights.reader(model, "hf", "cpu")
    for rank in range(2):
        who = Ranks(rank, 2, rank, "here", "cpu", "cpu", None)
        with weights.opened(model, "hf", who) as read:
            for matrix in matrices(model):
                ours = weights.part_of_rank(matrix, read, rank, 2)
                assert torch.equal(ours, weights.part_of_rank(matrix, plain, rank, 2))
