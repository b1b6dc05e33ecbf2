"""What models have beside LLaMA's decoder, by name, and which of it each of our own engines computes."""

from collections.abc import Mapping

from wattflow.config.choices import Model

_EXPERTS = "a mixture of experts"
_BIASES = "biases of queries, keys and values"
_HEAD_NORMS = "norms of queries and keys"
_OWN_WIDTH = "heads of a width of their own"
_WINDOW = "a sliding window"
_OLD = ("biases", "layer norms with two vectors", "a feed-forward of two matrices")
# by Hugging Face's model_type
_OF_FAMILY: Mapping[str, tuple[str, ...]] = {
    "llama": (),
    "mistral": (),
    "mixtral": (_EXPERTS,),
    "qwen2": (_BIASES,),
    "qwen2_moe": (_BIASES, _EXPERTS),
    "qwen3": (_HEAD_NORMS,),
    "qwen3_moe": (_HEAD_NORMS, _EXPERTS),
    "gpt_oss": ("biases", "attention sinks", _EXPERTS),
    "deepseek_v2": ("latent attention", _EXPERTS),
    "deepseek_v3": ("latent attention", _EXPERTS),
    "opt": ("learned positions", *_OLD),
    "gpt2": ("learned positions", *_OLD),
    "bloom": ("ALiBi positions", *_OLD),
    "falcon": ("ALiBi or parallel branches", *_OLD),
    "gpt_neox": ("parallel branches", *_OLD),
}
# what our own engines compute, of which families, and the entries of config.json that they read
_COMPUTED = {_BIASES, _HEAD_NORMS, _OWN_WIDTH}
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_READ = {"head_dim", "max_position_embeddings", "sliding_window"}


def features(model: Model) -> tuple[str, ...]:
    """Return what a model has beside LLaMA's decoder; the family's name where it is not known here."""
    found = _OF_FAMILY.get(model.architecture, (f"the family {model.architecture}",))
    more = model.more
    if more.get("sliding_window") is not None:
        found = (*found, _WINDOW)
    width = more.get("head_dim")
    if width is not None and width * model.n_heads != model.dim:
        found = (*found, _OWN_WIDTH)
    return found


def has_experts(model: Model) -> bool:
    """Whether a token uses some of a model's experts alone."""
    return _EXPERTS in features(model)


def why_not_computed(model: Model, engine: str, max_seq_len: int | None) -> str | None:
    """Return which features our own engines lack for a model; null where they have all.

    A sliding window that no sequence outgrows hides nothing, so attention over everything is right.
    """
    window = model.more.get("sliding_window")
    beyond = window is not None and (max_seq_len is None or max_seq_len > window)
    hidden = set() if beyond else {_WINDOW}
    missing = [one for one in features(model) if one not in _COMPUTED | hidden]
    if missing == [_WINDOW]:
        return (
            f"model {model.name} has a sliding window of {window} tokens, which engine={engine} does not compute: "
            f"max_seq_len is {max_seq_len}, and up to {window} it is right"
        )
    if missing:
        kind, listed = model.architecture, ", ".join(missing)
        return f"model {model.name} ({kind}) has {listed}, which engine={engine} does not compute"
    if model.architecture not in _FAMILIES:
        kinds = ", ".join(_FAMILIES)
        return f"model {model.name} is a {model.architecture}, and engine={engine} runs {kinds}"
    unknown = sorted(set(model.more) - _READ)
    if unknown:
        return f"model.more.{unknown[0]}: engine={engine} does not read it"
    return None
