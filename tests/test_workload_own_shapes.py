"""A folder is enough for our own engines: every shape comes from its config.json."""

import json

import pytest

from wattflow.config.choices import Model, RopeScaling
from wattflow.config.features import why_not_computed
from wattflow.plan import grid
from wattflow.workload.own_shapes import model_at

SHAPES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 300,
}


def folder(tmp_path, **values):
    """A folder with such a config.json."""
    path = tmp_path / "some-model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**SHAPES, **values}))
    return path


def test_shapes_are_the_folder_s(tmp_path):
    """Qwen3's: heads of 16 where 64 over 8 would be 8, and frequencies from rope_parameters."""
    path = folder(
        tmp_path,
        model_type="qwen3",
        head_dim=16,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        sliding_window=4096,  # but not in use
        use_sliding_window=False,
        tie_word_embeddings=True,
    )
    made = model_at(path, Model(name="m", dim=1, norm_eps=1.0))
    assert (made.name, made.architecture, made.dim, made.n_kv_heads) == (
        "some-model",
        "qwen3",
        64,
        2,
    )
    assert (made.norm_eps, made.rope_theta, made.rope_scaling) == (1e-6, 1e6, None)
    assert made.tied_embeddings
    assert made.more == {"head_dim": 16}


def test_llama_3_s_stretching_is_read(tmp_path):
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    path = folder(tmp_path, model_type="llama", rope_theta=5e5, rope_scaling=scaling, head_dim=8)
    made = model_at(path, Model(name="m"))
    assert made.rope_scaling == RopeScaling(32.0, 1.0, 4.0, 8192)
    assert (made.rope_theta, made.more) == (5e5, {})


@pytest.mark.parametrize(
    ("values", "window"),
    [
        ({"model_type": "mistral"}, 4096),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "qwen2", "sliding_window": 32}, None),
        ({"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": True}, 32),
    ],
)
def test_a_window_counts_where_it_is_used(tmp_path, values, window):
    """Mistral's where it is not null, Qwen's where it says so; a longer sequence is refused by its length."""
    made = model_at(folder(tmp_path, **values), Model(name="m"))
    assert made.more.get("sliding_window") == window
    assert (why_not_computed(made, "fast", 8192) is None) is (window is None)


def test_a_path_alone_makes_a_point_of_our_engines(tmp_path):
    """No model= and no file in conf/: engine=fast takes the folder's shapes, or refuses its family by name."""
    path = folder(tmp_path, model_type="qwen2")
    words = ["engine=fast", f"model.path={path}", "weights=dummy"]
    (point,) = grid.plan(words, repeats=1).points
    assert point.reason is None
    assert (point.config.model.architecture, point.config.model.dim) == ("qwen2", 64)
    (path / "config.json").write_text(
        json.dumps(
            {**SHAPES, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
        )
    )
    (point,) = grid.plan(words, repeats=1).points
    assert "a mixture of experts" in point.reason
