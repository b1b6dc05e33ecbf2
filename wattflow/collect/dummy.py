"""What random weights in place of real ones may do to joules: bounded by a control where there is one, else unknown.

A control is the same model, precision and phase with weights of several kinds: normal, heavy-tailed, and drawn from
real values. `model.dummy=normal,heavy` makes such points, and `weights=hf` the real ones.
"""

from dataclasses import dataclass

from wattflow.config.choices import Config
from wattflow.config.features import has_experts


@dataclass(frozen=True)
class Control:
    """The widest difference between kinds of weights, with its 95 % interval, and where it was measured."""

    share: float  # of the joules
    measured: str


# (model_type, precision): of decode; no control of a prefill was made
CONTROLS = {
    # batch 1 and 64, engine=fast (docs/measurement.md)
    ("llama", "bf16"): Control(0.017, "LLaMA-7B on an H100"),
}
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Bias:
    """What a row of dummy weights says: the bound as a share of its joules, null where unknown, and in words."""

    share: float | None
    words: str


def bias(config: Config) -> Bias | None:
    """Return what dummy weights may hide of a point; null for real weights."""
    if config.weights != "dummy":
        return None
    model = config.model
    if has_experts(model):
        return Bias(None, f"{UNKNOWN}: random gates route to experts, whose load is not recorded")
    control = CONTROLS.get((model.architecture, config.precision))
    if control is None or config.kv_precision is not None or model.dummy != "normal":
        return Bias(None, f"{UNKNOWN}: no control of {model.architecture} in {config.precision}")
    share = f"{100 * control.share:g} %"
    return Bias(control.share, f"decode {share} ({control.measured}), prefill {UNKNOWN}")
