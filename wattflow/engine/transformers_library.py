"""transformers as a library: whether it is there, a model of it with real or dummy weights, and what came of it.

Nothing of it is imported before a rank loads: its import takes seconds. What its versions name differently (the cache's
argument) is read off the model's own signature.
"""

import importlib.util
import inspect
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from wattflow.config.choices import Config
from wattflow.engine import dummy_law, weights
from wattflow.engine.checks import DTYPES
from wattflow.engine.ranks import Ranks
from wattflow.engine.vllm_library import model_folder
from wattflow.errors import EngineError
from wattflow.workload import vllm_fit
from wattflow.workload.matrices import Matrix, matrices

_CACHES = ("cache", "past_key_values")  # the argument's name, the newest version first


class Loaded:
    """A model on its device, and which arguments its `forward` knows."""

    def __init__(self, model: Any) -> None:
        self.model = model
        known = inspect.signature(model.forward).parameters
        self.has_positions = "position_ids" in known
        self.has_last_logits = "logits_to_keep" in known
        names = [name for name in _CACHES if name in known]
        if not names:
            raise EngineError(
                f"engine=transformers: a {model.config.model_type} keeps no cache that is known here."
            )
        self._cache_name = names[0]
        preparing = inspect.signature(model.prepare_inputs_for_generation).parameters
        self._has_places = "cache_position" in preparing  # in older versions
        self.may_be_static = bool(getattr(model, "_can_compile_fullgraph", False))

    def inputs(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Any,
        start: int,
    ) -> dict[str, Any]:
        """Return the arguments of one call, by the model's own rules.

        For new tokens [rows, new] at their positions, and from place `start` of the cache on.
        """
        more: dict[str, Any] = {self._cache_name: cache, "use_cache": True}
        if self._has_places:
            stop = start + tokens.shape[1]
            more["cache_position"] = torch.arange(start, stop, device=tokens.device)
        if self.has_positions:
            more["position_ids"] = positions
        if self.has_last_logits:
            more["logits_to_keep"] = 1
        found: dict[str, Any] = self.model.prepare_inputs_for_generation(
            tokens, attention_mask=mask, **more
        )
        return found


def load(config: Config, ranks: Ranks) -> Loaded:
    """Return a point's model on this rank's device, in its precision, ready to answer."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # a folder is all that is read
    os.environ["LOCAL_RANK"] = str(ranks.local_rank)
    with model_folder(config) as folder:
        import transformers  # noqa: PLC0415 - see the module

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        settings = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = (
            _real(config, ranks, folder)
            if config.weights == "hf"
            else _dummy(config, ranks, settings)
        )
        return Loaded(model.eval().requires_grad_(requires_grad=False))


def _options(config: Config) -> dict[str, Any]:
    found: dict[str, Any] = {"dtype": DTYPES[config.precision], "trust_remote_code": False}
    if config.engine.transformers.attention is not None:
        found["attn_implementation"] = config.engine.transformers.attention
    return found


def _split(ranks: Ranks) -> dict[str, Any]:
    """Return the arguments by which a model is split over all ranks; none for one."""
    if ranks.world == 1:
        return {}
    if not _has_accelerate():
        raise EngineError(
            "engine=transformers: accelerate is not installed, without which transformers splits no model. Install it, "
            "`pip install 'wattflow[transformers]'`."
        )
    from transformers.distributed import DistributedConfig  # noqa: PLC0415 - see the module

    return {"distributed_config": DistributedConfig(tp_size=ranks.world)}


# --- real weights ---------------------------------------------------------------------------------


def _real(config: Config, ranks: Ranks, folder: Path) -> Any:
    """Read a checkpoint; EngineError where it lacks weights, which the library would draw at random."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - see the module

    where = _split(ranks)
    if not where and _has_accelerate():
        where = {"device_map": ranks.device}  # else by way of the host's memory
    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
        **_options(config),
        **where,
    )
    for what, names in (
        ("missing", report["missing_keys"]),
        ("of other shapes", report["mismatched_keys"]),
    ):
        if names:
            first = min(map(str, names))
            raise EngineError(
                f"{folder}: {len(names)} weights are {what}, {first} first. Copy the checkpoint again."
            )
    return model if ranks.world > 1 else model.to(ranks.device)


def _has_accelerate() -> bool:
    return importlib.util.find_spec("accelerate") is not None


# --- dummy weights --------------------------------------------------------------------------------


def _dummy(config: Config, ranks: Ranks, settings: Any) -> Any:
    """Make a model and draw its weights; those of shapes that our own engines run are the same as theirs."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - see the module

    options = _options(config)
    if ranks.world > 1:
        kind = AutoModelForCausalLM._model_mapping[type(settings)]  # noqa: SLF001 - no public way from shapes alone
        del options["trust_remote_code"]
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of random numbers over ranks, which are drawn anew below
            model = kind.from_pretrained(
                None, config=settings, state_dict={}, **options, **_split(ranks)
            )
    else:
        with torch.device(ranks.device):
            model = AutoModelForCausalLM.from_config(settings, **options)
    ours = {}
    if vllm_fit.is_llama(config.model):
        ours = {matrix.hf_name: matrix for matrix in matrices(config.model)}
    read = weights.reader(config.model, "dummy", ranks.device)
    with torch.no_grad():
        for layer_name, layer in model.named_modules():
            for own, parameter in layer.named_parameters(recurse=False):
                name = f"{layer_name}.{own}" if layer_name else own
                about = name, type(layer).__name__, ours.get(name)
                _draw(parameter, *about, read, law=config.model.dummy)
    return model


def _draw(
    parameter: torch.Tensor,
    name: str,
    kind: str,
    matrix: Matrix | None,
    read: weights.Reader,
    *,
    law: str,
) -> None:
    """Fill one parameter by the law; a part of one is that part of the whole."""
    if not torch.is_floating_point(parameter):
        return
    own = name.rpartition(".")[2]
    if matrix is not None and matrix.shape == tuple(parameter.shape):
        whole = read(matrix, 0, matrix.shape[matrix.split or 0]).to(parameter.dtype)
    else:
        whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        if dummy_law.is_norm_weight(kind, own, whole.dim()):
            whole.fill_(1.0)
        else:
            dummy_law.fill(whole, name, law)
    parts = getattr(parameter, "placements", None)
    if parts is None:
        parameter.copy_(whole)
        return
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 - only where ranks share a model

    parameter.copy_(distribute_tensor(whole, parameter.device_mesh, parts, src_data_rank=None))  # type: ignore[attr-defined]


# --- cache and description ------------------------------------------------------------------------


def cache_kind(config: Config, loaded: Loaded) -> str:
    """Return static or dynamic; EngineError where a static one is asked for and the model does not allow it."""
    wanted = config.engine.transformers.cache
    needs_static = wanted == "static" or config.engine.transformers.compile
    if needs_static and not loaded.may_be_static:
        raise EngineError(
            f"engine=transformers: a {loaded.model.config.model_type} runs over no static cache; leave "
            "engine.transformers.compile and engine.transformers.cache."
        )
    return "static" if needs_static or (wanted == "auto" and loaded.may_be_static) else "dynamic"


def new_cache(loaded: Loaded, kind: str, length: int) -> Any:
    """Return an empty cache, a static one for so many tokens a row."""
    from transformers import DynamicCache, StaticCache  # noqa: PLC0415 - see the module

    settings = loaded.model.config
    if kind == "static":
        return StaticCache(config=settings, max_cache_len=length)
    return DynamicCache(config=settings)


def weight_bytes(model: Any) -> int:
    """Return the bytes of this rank's weights; those that two layers share count once."""
    local = (getattr(p, "to_local", lambda p=p: p)() for p in model.parameters())
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in local}.values())
