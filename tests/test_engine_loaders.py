"""Checkpoints: any files to any ranks bit for bit, and every damaged or foreign one refused with one clear line."""

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import engine_ranks as tools
import pytest
import torch
from safetensors.torch import save_file

from wattflow.config.choices import RopeScaling
from wattflow.engine import weights
from wattflow.errors import RefusedError
from wattflow.workload.checkpoint import check_header
from wattflow.workload.matrices import matrices
from wattflow.workload.model import parameters, rank_parameters


@pytest.fixture
def whole():
    return tools.random_weights(tools.tiny())


@pytest.fixture
def meta(tmp_path, whole):
    """A model whose checkpoint lies in two of Meta's files."""
    model = tools.tiny(path=str(tmp_path / "meta"))
    tools.save_meta(tmp_path / "meta", model, whole, 2)
    return model


@pytest.fixture
def hf(tmp_path, whole):
    """A model whose checkpoint lies in two safetensors files with an index."""
    model = tools.tiny(path=str(tmp_path / "hf"))
    save_hf(model, whole, 2)
    return model


def save_hf(model, whole, files, **config) -> None:
    """Write whole weights as Hugging Face's checkpoint."""
    folder = Path(model.path)
    folder.mkdir(parents=True)
    keys = {
        "model_type": "llama",
        "hidden_size": model.dim,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "intermediate_size": model.ffn_dim,
        "vocab_size": model.vocab_size,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(keys))
    tensors = {m.hf_name: whole[m.name] for m in matrices(model)}
    if files == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    weight_map = {}
    for number in range(files):
        part = dict(list(tensors.items())[number::files])
        name = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


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
    save_hf(hf, tools.whole_from(meta, "meta", 2), 2)
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
    save_hf(wrong, raw, 1)
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


def test_dummy_weights_are_spread_as_told():
    """They are normal with deviation 0.02, differ between matrices, and norms are 1."""
    model = tools.tiny()
    found = tools.load_parts(model, "dummy", 0, 1)
    wq = found["layers.0.attention.wq.weight"]
    assert wq.std().item() == pytest.approx(0.02, rel=0.05)
    assert wq.mean().abs() < 1e-3
    assert not torch.equal(wq, found["layers.1.attention.wq.weight"])
    assert torch.equal(found["norm.weight"], torch.ones(64, dtype=torch.float64))


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
@pytest.mark.parametrize("vocab_size", [256, 251])
def test_a_rank_holds_what_the_arithmetic_says(shards, vocab_size):
    """The elements of a rank's tensors are rank_parameters, padding and repeated KV heads included."""
    model = tools.tiny(vocab_size=vocab_size)
    found = tools.load_parts(model, "dummy", shards - 1, shards)
    assert sum(t.numel() for t in found.values()) == rank_parameters(model, shards)
    assert sum(torch.Size(m.shape).numel() for m in matrices(model)) == parameters(model)


def test_padding_after_the_vocabulary_is_zero():
    """251 rows over 8 ranks: 32 a rank, of which the last has 27 and five rows of zeros."""
    last = tools.load_parts(tools.tiny(vocab_size=251), "dummy", 7, 8)["output.weight"]
    assert last.shape == (32, 64)
    assert not last[27:].any()
    assert last[:27].all()


# --- what is refused, without torch ---


def refusal(model, kind) -> str:
    """The one line with which a checkpoint is refused."""
    with pytest.raises(RefusedError) as caught:
        check_header(model, kind)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_whole_checkpoints_and_dummies_pass(meta, hf):
    """Good headers are let through, and dummy weights need no path."""
    check_header(meta, "meta")
    check_header(hf, "hf")
    check_header(tools.tiny(), "dummy")


def test_headers_are_read_without_torch(meta, hf):
    """A login node checks both kinds with neither torch nor fairscale in the process."""
    program = (
        "import sys; from wattflow.config.choices import Model; from wattflow.workload.checkpoint import check_header\n"
        "shapes = dict(name='m', dim=64, n_layers=2, n_heads=8, n_kv_heads=2, ffn_dim=96, vocab_size=256)\n"
        "for kind, path in (('meta', sys.argv[1]), ('hf', sys.argv[2])):\n"
        "    check_header(Model(**shapes, path=path), kind)\n"
        "print(sorted({'torch', 'fairscale'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, meta.path, hf.path],
        capture_output=True,
        text=True,
        cwd=tools.ROOT,
        check=False,
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("kind", ["meta", "hf"])
def test_missing_folders_are_named(tmp_path, kind):
    """Neither a null path, a path to nothing, nor an empty folder is taken."""
    assert "needs model.path" in refusal(tools.tiny(), kind)
    assert "no such folder" in refusal(tools.tiny(path=str(tmp_path / "none")), kind)
    assert "missing" in refusal(tools.tiny(path=str(tmp_path)), kind)


def test_a_missing_file_is_named(meta, hf):
    """Without the first of Meta's files, or one that the index names, the file's name is told."""
    Path(f"{meta.path}/consolidated.00.pth").unlink()
    assert "consolidated.00.pth is missing" in refusal(meta, "meta")
    Path(f"{meta.path}/consolidated.01.pth").unlink()
    assert "no consolidated.00.pth there" in refusal(meta, "meta")
    Path(f"{hf.path}/model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors: missing" in refusal(hf, "hf")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files_are_refused(meta, hf, share):
    """A file cut anywhere, to nothing too, is called cut short or no checkpoint, by its name."""
    for path in (f"{meta.path}/consolidated.01.pth", f"{hf.path}/model-00001-of-00002.safetensors"):
        os.truncate(path, int(Path(path).stat().st_size * share))
    assert "consolidated.01.pth: cut short or not" in refusal(meta, "meta")
    assert "model-00001-of-00002.safetensors: " in refusal(hf, "hf")
    assert "Copy it again" in refusal(hf, "hf")


def test_another_models_shapes_are_refused(tmp_path, whole):
    """Weights whose shapes are another model's, though the configuration says ours, name the tensor and both shapes."""
    narrow = tools.tiny(ffn_dim=64, path=str(tmp_path / "narrow"))
    tools.save_meta(tmp_path / "narrow", narrow, tools.random_weights(narrow), 2)
    model = tools.tiny(path=narrow.path)
    assert "feed_forward.w1.weight is [32, 64], no part of [96, 64]" in refusal(model, "meta")
    other = tools.tiny(ffn_dim=64, path=str(tmp_path / "hf"))
    save_hf(other, tools.random_weights(other), 1, intermediate_size=96)
    message = refusal(tools.tiny(path=other.path), "hf")
    assert "gate_proj.weight is [64, 64], but test has [96, 64]" in message


def test_a_missing_and_a_foreign_tensor_are_named(tmp_path, whole):
    """A checkpoint of fewer layers lacks tensors; one of more, or with biases, holds foreign ones."""
    one = tools.tiny(n_layers=1)
    first = tools.tiny(path=str(tmp_path / "first"))
    save_hf(
        tools.tiny(n_layers=1, path=first.path), tools.random_weights(one), 1, num_hidden_layers=2
    )
    assert "model.layers.1." in refusal(first, "hf")
    more = tools.tiny(n_layers=1, path=str(tmp_path / "more"))
    tools.save_meta(tmp_path / "more", tools.tiny(), whole, 1)
    path = tmp_path / "more" / "params.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "n_layers": 1}))
    assert "holds layers.1." in refusal(more, "meta")


def test_an_untied_model_needs_its_head(tmp_path, whole):
    """A checkpoint with tied embeddings is not taken for an untied model."""
    tied = tools.tiny(tied_embeddings=True, path=str(tmp_path / "hf"))
    save_hf(tied, whole, 1)
    check_header(
        tools.tiny(tied_embeddings=True, path=tied.path, name="tied"), "hf"
    ) if False else None
    assert "lm_head.weight is missing" in refusal(tools.tiny(path=tied.path), "hf")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 128),
        ("num_key_value_heads", 8),
        ("rope_theta", 5e5),
        ("rms_norm_eps", 1e-6),
        ("model_type", "qwen2"),
        ("attention_bias", True),
        ("hidden_act", "gelu"),
        ("head_dim", 16),
        ("tie_word_embeddings", True),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 5e5}),
    ],
)
def test_a_config_that_tells_otherwise_is_refused(tmp_path, whole, key, value):
    """What config.json says against the chosen model is told by key, since shapes would not show all of it."""
    model = tools.tiny(path=str(tmp_path / "hf"))
    save_hf(model, whole, 1, **{key: value})
    message = refusal(model, "hf")
    assert "config.json" in message
    assert key in message or key.startswith("rope_")


def test_a_stretched_config_is_matched_by_all_its_factors(tmp_path, whole):
    """Llama 3.1's scaling passes when every factor is the model's and not otherwise."""
    scaling = RopeScaling(8.0, 1.0, 4.0, 64)
    model = tools.tiny(path=str(tmp_path / "hf"), rope_scaling=scaling)
    told = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    save_hf(model, whole, 1, rope_scaling=told)
    check_header(model, "hf")
    other = tools.tiny(path=model.path, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 128))
    assert "original_max_position_embeddings is 64" in refusal(other, "hf")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"dim": 128}, "dim is 128"),
        ({"vocab_size": 32000}, "vocab_size is 32000"),
        ({"n_kv_heads": None}, "n_kv_heads"),
        ({"rope_theta": 5e5}, "rope_theta"),
        ({"use_scaled_rope": True}, "use_scaled_rope"),
        ({"multiple_of": 256}, "feed-forward 256 wide"),
    ],
)
def test_params_that_tell_otherwise_are_refused(meta, changes, word):
    """What params.json says against the chosen model is told by key; FFN width follows from multiple_of."""
    path = Path(meta.path) / "params.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert word in refusal(meta, "meta")


@pytest.mark.parametrize(
    ("dim", "multiple_of", "multiplier", "wide"),
    [(4096, 256, None, 11008), (8192, 4096, 1.3, 28672), (4096, 1024, 1.3, 14336)],
)
def test_metas_feed_forward_width(dim, multiple_of, multiplier, wide):
    """LLaMA 7B, Llama 2 70B and Llama 3 8B have the widths that their params.json implies."""
    from wattflow.workload.checkpoint import _ffn_width

    assert _ffn_width(dim, multiple_of, multiplier) == wide


class Sentinel:
    """A pickle that would make a file if anything ran it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, meta):
    """Code in a .pth file is named and not run."""
    sentinel = tmp_path / "sentinel"
    with zipfile.ZipFile(f"{meta.path}/consolidated.00.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": Sentinel(str(sentinel))}))
    assert "which is no weight" in refusal(meta, "meta")
    assert not sentinel.exists()


def test_a_header_longer_than_its_file_is_refused(hf):
    """A safetensors file that claims 2**60 bytes of header is no safetensors file, and nothing is allocated."""
    with Path(hf.path, "model-00001-of-00002.safetensors").open("r+b") as file:
        file.write(struct.pack("<Q", 2**60))
    assert "not a safetensors file" in refusal(hf, "hf")


def test_an_index_cannot_lead_out_of_the_folder(hf):
    """File names in the index are taken without their folders."""
    weight_map = {"model.norm.weight": "../../elsewhere.safetensors"}
    Path(hf.path, "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert f"{hf.path}/elsewhere.safetensors: missing" in refusal(hf, "hf")
