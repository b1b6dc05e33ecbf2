"""The headers of checkpoints: every damaged or foreign one is refused with one clear line."""

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

from wattflow.config.choices import RopeScaling
from wattflow.errors import RefusedError
from wattflow.workload.checkpoint import check_header, hf_ranges
from wattflow.workload.matrices import matrices

pytest_plugins = ("checkpoints",)


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
    tools.save_hf(other, tools.random_weights(other), 1, intermediate_size=96)
    message = refusal(tools.tiny(path=other.path), "hf")
    assert "gate_proj.weight is [64, 64], but test has [96, 64]" in message


def test_a_missing_and_a_foreign_tensor_are_named(tmp_path, whole):
    """A checkpoint of fewer layers lacks tensors; one of more, or with biases, holds foreign ones."""
    one = tools.tiny(n_layers=1)
    first = tools.tiny(path=str(tmp_path / "first"))
    tools.save_hf(
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
    tools.save_hf(tied, whole, 1)
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
    tools.save_hf(model, whole, 1, **{key: value})
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
    tools.save_hf(model, whole, 1, rope_scaling=told)
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


@pytest.mark.parametrize("shards", [1, 2])
def test_a_rank_reads_its_rows_alone(hf, whole, shards):
    """The ranges hold the rows that the rank keeps, bit by bit; matrices cut the other way and the table are whole."""
    by_name = {matrix.name: matrix for matrix in matrices(hf)}
    for rank in range(shards):
        for part in hf_ranges(hf, shards, rank):
            matrix = by_name[part.name]
            expected = whole[matrix.name]
            if matrix.split == 0 and part.name != "tok_embeddings.weight":
                first, last = matrix.span(rank, shards)
                expected = expected[first:last]
            found = part.path.read_bytes()[part.start : part.stop]
            assert found == expected.contiguous().numpy().tobytes()


def test_quantised_weights_are_refused(tmp_path, whole):
    """By config.json, and by the type of a tensor: numbers in 8 bit are not what they stand for."""
    model = tools.tiny(path=str(tmp_path / "a"))
    tools.save_hf(model, whole, 1, quantization_config={"quant_method": "gptq"})
    with pytest.raises(RefusedError, match=r"quantised \(gptq\).*Use engine=vllm"):
        check_header(model, "hf")
    model = tools.tiny(path=str(tmp_path / "b"))
    narrow = {name: part.to(torch.int8) if "w1" in name else part for name, part in whole.items()}
    tools.save_hf(model, narrow, 1)
    with pytest.raises(RefusedError, match=r"mlp.gate_proj.weight is I8, and 1 more: quantised"):
        check_header(model, "hf")
