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
        ("llama", {"head_dim": 32}, "heads of a width of their own"),
    ],
)
def test_a_reason_names_the_features(architecture, more, named):
    """By name, for the engine of the paper."""
    model = Model(name="m", architecture=architecture, dim=512, n_heads=8, more=more)
    reason = why_not_computed(model, "paper")
    assert named in reason
    assert "engine=paper does not compute" in reason


def test_llama_has_nothing_beside():
    """Both engines compute it, and refuse entries of config.json that they would not read."""
    assert features(Model(name="m")) == ()
    assert why_not_computed(Model(name="m"), "fast") is None
    assert why_not_computed(Model(name="m", more={"max_position_embeddings": 8}), "paper") is None
    reason = why_not_computed(Model(name="m", more={"mlp_bias": True}), "paper")
    assert reason == "model.more.mlp_bias: engine=paper reads no config.json"


@pytest.mark.parametrize("architecture", ["mistral", "qwen2"])
def test_what_no_engine_of_ours_was_tried_with_is_refused_or_computed(architecture):
    """A family is either named in the reason or computed by both engines alike."""
    model = Model(name="m", architecture=architecture)
    for engine in ("paper", "fast"):
        reason = why_not_computed(model, engine)
        assert reason is None or architecture in reason
