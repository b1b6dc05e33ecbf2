"""What rows of dummy weights say of their joules: bounded by a control of the same kind, or unknown."""

import pytest
from collection import rows
from sweeps import Gpu, Made, choices, make_attempt, make_sweep, resolved

from wattflow.collect.dummy import bias

EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2}


def test_a_control_bounds_its_own_phase_and_precision():
    """LLaMA's decode in bf16; its prefill is unknown."""
    found = bias(resolved())
    assert found.share == 0.017
    assert found.words == "decode 1.7 % (LLaMA-7B on an H100), prefill unknown"


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"precision": "fp8"}, "unknown: no control of llama in fp8"),
        ({"precision": "fp16"}, "unknown: no control of llama in fp16"),
        ({"kv_precision": "fp8"}, "unknown: no control of llama in bf16"),
        ({"model__dummy": "heavy"}, "unknown: no control of llama in bf16"),
        ({"model__architecture": "opt"}, "unknown: no control of opt in bf16"),
        (
            {"model__architecture": "mixtral", "model__more": EXPERTS},
            "unknown: random gates route to experts, whose load is not recorded",
        ),
    ],
)
def test_what_no_control_bounds_is_unknown(over, words):
    """Another precision, family or law; random gates are no real routing."""
    found = bias(resolved(**over))
    assert (found.share, found.words) == (None, words)


def test_real_weights_hide_nothing():
    """There is nothing to say."""
    assert bias(resolved(weights="hf")) is None


@pytest.mark.parametrize(
    ("over", "u_j", "words"),
    [
        ({}, 0.017 * 595 / 3**0.5, "decode 1.7 %"),
        ({"precision": "fp8"}, None, "unknown"),
        ({"weights": "hf"}, None, None),
    ],
)
def test_the_row_says_so(tmp_path, over, u_j, words):
    """The bound's joules and its words, or unknown and no joules."""
    made = choices(**over)
    sweep = make_sweep(tmp_path / "s", [made])
    make_attempt(sweep, made, Made([Gpu("GPU-a")]))
    (row,) = rows(sweep)
    assert row["dummy_data_u_j"] == (None if u_j is None else pytest.approx(u_j, rel=1e-3))
    assert row["dummy_bias"] is words is None or row["dummy_bias"].startswith(words)
