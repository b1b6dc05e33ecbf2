"""Weights: any files to any ranks bit for bit, and dummy weights that are one model at any number of ranks."""

import engine_ranks as tools
import pytest
import torch

from wattflow.engine import weights
from wattflow.engine.ranks import Ranks
from wattflow.workload.matrices import matrices

pytest_plugins = ("checkpoints",)


def equal(found, expected) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


@pytest.mark.parametrize("files", [1, 2, 4])
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
@pytest.mark.parametrize("embedding_dim", [0, 1])
def test_any_files_load_on_any_ranks(tmp_path, files, shards, embedding_dim):
    """Meta's M files read by N ranks and put together again are bit-equal, the embedding cut either way."""
    model = tools.tiny(path=str(tmp_path), n_kv_heads=4)
    whole = tools.random_weights(model)
    tools.save_meta(tmp_path, model, whole, files, embedding_dim=embedding_dim)
    assert equal(tools.whole_from(model, "meta", shards), whole)


def test_m_to_n_to_m(tmp_path, meta, whole):
    """Two files read by four ranks, written again as two files: each file's tensors are bit-equal to the first's."""
    again = tools.tiny(path=str(tmp_path / "again"))
    tools.save_meta(tmp_path / "again", again, tools.whole_from(meta, "meta", 4), 2)
    for number in range(2):
        name = f"consolidated.{number:02d}.pth"
        first, second = (
            torch.load(tmp_path / folder / name, weights_only=True) for folder in ("meta", "again")
        )
        assert equal(second, first)


def test_meta_to_hf_to_meta(tmp_path, meta, whole):
    """Meta's rows, loaded and written as Hugging Face's, load as the same model and return to Meta's bit for bit."""
    hf = tools.tiny(path=str(tmp_path / "hf"))
    tools.save_hf(hf, tools.whole_from(meta, "meta", 2), 2)
    loaded = tools.whole_from(hf, "hf", 4)
    assert equal(loaded, whole)
    again = tools.tiny(path=str(tmp_path / "again"))
    tools.save_meta(tmp_path / "again", again, loaded, 1)
    assert equal(tools.whole_from(again, "meta", 1), whole)


def test_the_permutation_is_seen_when_it_is_dropped(tmp_path, meta, whole):
    """Negative control: Meta's rows taken without reordering are not the model, and give other logits."""
    raw = dict(whole)
    for matrix in matrices(meta):
        if matrix.head_dim is not None:
            raw[matrix.name] = tools.interleaved(whole[matrix.name], matrix.head_dim)
    wrong = tools.tiny(path=str(tmp_path / "wrong"))
    tools.save_hf(wrong, raw, 1)
    tokens = torch.arange(19).reshape(1, 19)
    logits = [
        tools.all_logits(tools.build_llama(model, kind, tools.ALONE), model, 1, tokens, [])
        for model, kind in ((meta, "meta"), (wrong, "hf"))
    ]
    assert (logits[0] - logits[1]).abs().max() > 1e-2 * logits[0].abs().max()


def test_half_split_is_the_inverse_of_interleaving():
    """Rows 0 1 2 3 of a head of four stand for pairs (0, 1) and (2, 3): half-split they are 0 2 1 3."""
    rows = torch.arange(8.0).reshape(8, 1)
    assert weights.half_split(rows, 4).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert torch.equal(tools.interleaved(weights.half_split(rows, 4), 4), rows)


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_dummy_weights_are_one_model_at_any_count(shards):
    """Ranks' parts put together are one rank's whole, though the vocabulary divides unevenly and blocks are wider."""
    model = tools.tiny(vocab_size=301, ffn_dim=520)
    assert equal(tools.whole_from(model, "dummy", shards), tools.whole_from(model, "dummy", 1))


def test_dummy_weights_are_normal():
    """They are normal with deviation 0.02, differ between matrices, and norms are 1."""
    model = tools.tiny()
    found = tools.load_parts(model, "dummy", 0, 1)
    wq = found["layers.0.attention.wq.weight"]
    assert wq.std().item() == pytest.approx(0.02, rel=0.05)
    assert wq.mean().abs() < 1e-3
    assert not torch.equal(wq, found["layers.1.attention.wq.weight"])
    assert torch.equal(found["norm.weight"], torch.ones(64, dtype=torch.float64))


def test_what_is_read_ahead_is_what_is_loaded(hf):
    """The reader of two ranks gives the same parts with and without the thread."""
    plain = weights.reader(hf, "hf", "cpu")
    for rank in range(2):
        who = Ranks(rank, 2, rank, "here", "cpu", "cpu", None)
        with weights.opened(hf, "hf", who) as read:
            for matrix in matrices(hf):
                ours = weights.part_of_rank(matrix, read, rank, 2)
                assert torch.equal(ours, weights.part_of_rank(matrix, plain, rank, 2))
