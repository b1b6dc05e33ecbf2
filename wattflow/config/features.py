"""What models have beside LLaMA's decoder, by name, and which of it each of our own engines computes."""

from collections.abc import Mapping

from wattflow.config.choices import Model

_EXPERTS = "a mixture of experts"
_WINDOW = "a sliding window"
_OLD = ("biases", "layer norms with two vectors", "a feed-forward of two matrices")
# by Hugging Face's model_type
_OF_FAMILY: Mapping[str, tuple[str, ...]] = {
    "llama": (),
    "mistral": (),
    "mixtral": (_EXPERTS,),
    "qwen2": ("biases of queries, keys and values",),
    "qwen2_moe": ("biases of queries, keys and values", _EXPERTS),
    "qwen3": ("norms of queries and keys",),
    "qwen3_moe": ("norms of queries and keys", _EXPERTS),
    "gpt_oss": ("biases", "attention sinks", _EXPERTS),
    "deepseek_v2": ("latent attention", _EXPERTS),
    "deepseek_v3": ("latent attention", _EXPERTS),
    "opt": ("learned positions", *_OLD),
    "gpt2": ("learned positions", *_OLD),
    "bloom": ("ALiBi positions", *_OLD),
    "falcon": ("ALiBi or parallel branches", *_OLD),
    "gpt_neox": ("parallel branches", *_OLD),
}
# which of these our own engines compute
_COMPUTED: Mapping[str, frozenset[str]] = {"paper": frozenset(), "fast": frozenset()}


def features(model: Model) -> tuple[str, ...]:
    """Return what a model has beside LLaMA's decoder; the family's name where it is not known here."""
    found = _OF_FAMILY.get(model.architecture, (f"the family {model.architecture}",))
    more = model.more
    if more.get("sliding_window") is not None:
        found = (*found, _WINDOW)
    width = more.get("head_dim")
    if width is not None and width * model.n_heads != model.dim:
        found = (*found, "heads of a width of their own")
    return found


def why_not_computed(model: Model, engine: str) -> str | None:
    """Return which features one of our own engines lacks for a model; null where it has all."""
    missing = [one for one in features(model) if one not in _COMPUTED[engine]]
    if missing:
        kind, listed = model.architecture, ", ".join(missing)
        return f"model {model.name} ({kind}) has {listed}, which engine={engine} does not compute"
    if model.architecture != "llama":
        return f"model {model.name} is a {model.architecture}, and engine={engine} runs llama alone"
    unknown = sorted(set(model.more) - {"head_dim", "max_position_embeddings"})
    if unknown:
        return f"model.more.{unknown[0]}: engine={engine} reads no config.json"
    return None
