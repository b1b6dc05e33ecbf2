"""What models have beside LLaMA's decoder, and the reason that names it where an engine lacks it."""

import pytest

from wattflow.config.choices import Model
from wattflow.config.features import features, why_not_computed


@pytest.mark.parametrize(
    ("architecture", "more", "named"),
    [
        ("mixtral", {}, "a mixture of experts"),
        ("deepseek_v3", {}, "latent attention, a mixture of experts"),
        (
            "gpt_oss",
            {"sliding_window": 128},
            "attention sinks, a mixture of experts, a sliding window",
        ),
        ("bloom", {}, "ALiBi positions"),
        ("opt", {}, "learned positions"),
        ("mamba9", {}, "the family mamba9"),
        ("qwen3_moe", {}, "has a mixture of experts"),
    ],
)
def test_a_reason_names_the_features(architecture, more, named):
    """By name, for the engine of the paper."""
    model = Model(name="m", architecture=architecture, dim=512, n_heads=8, more=more)
    reason = why_not_computed(model, "paper", 4096)
    assert named in reason
    assert "engine=paper does not compute" in reason


def test_llama_has_nothing_beside():
    """Both engines compute it, and refuse entries of config.json that they would not read."""
    assert features(Model(name="m")) == ()
    assert why_not_computed(Model(name="m"), "fast", 64) is None
    assert (
        why_not_computed(Model(name="m", more={"max_position_embeddings": 8}), "paper", 64) is None
    )
    reason = why_not_computed(Model(name="m", more={"mlp_bias": True}), "paper", 64)
    assert reason == "model.more.mlp_bias: engine=paper does not read it"


@pytest.mark.parametrize("architecture", ["mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("engine", ["paper", "fast"])
def test_relatives_of_llama_are_computed(architecture, engine):
    """By both engines, heads of a width of their own too."""
    model = Model(name="m", architecture=architecture, more={"head_dim": 96})
    assert why_not_computed(model, engine, 64) is None


def test_a_window_is_computed_where_no_sequence_outgrows_it():
    """4,096 tokens are the window's own; one more, or a length that nobody said, is refused."""
    model = Model(name="m", architecture="mistral", more={"sliding_window": 4096})
    assert why_not_computed(model, "fast", 4096) is None
    for length in (4097, None):
        reason = why_not_computed(model, "fast", length)
        assert reason is not None
        assert "sliding window of 4096 tokens" in reason
        assert f"max_seq_len is {length}" in reason
