"""Dummy weights for vLLM by the law of the other engines: deviation 0.02, norms 1, a seed a tensor.

vLLM's own are uniform within 1e-3, with one seed for all tensors and norms too, which changes watts. This module is
imported by vLLM's side alone.
"""

from typing import Any

import torch
from vllm.model_executor.model_loader import dummy_loader, register_model_loader
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from wattflow.engine import dummy_law

_law = "normal"  # of the model that is loaded next: vLLM makes the loader by itself


def register(name: str, law: str) -> None:
    """Have vLLM know the loader by a load format's name, and draw weights by a law from now on."""
    global _law  # noqa: PLW0603 - as above
    _law = law
    from vllm.model_executor import model_loader  # noqa: PLC0415 - the registry itself

    if name not in model_loader._LOAD_FORMAT_TO_MODEL_LOADER:  # noqa: SLF001 - vLLM warns of a second time
        register_model_loader(name)(Loader)


class Loader(dummy_loader.DummyModelLoader):  # type: ignore[misc]
    """Fills every parameter; a layer that vLLM quantises while it loads is drawn first, then quantised."""

    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
        """Draw all parameters of a rank's model."""
        del model_config
        theirs = dummy_loader.initialize_single_dummy_weight
        try:
            for name, layer in model.named_modules():
                drawing = _Drawing(name, type(layer).__name__)
                info = get_layerwise_info(layer)
                if info.can_load():
                    # vLLM makes the layer's tensors, fills each by this function, and quantises them
                    dummy_loader.initialize_single_dummy_weight = drawing.fill
                    self._process_online_quant_layer(layer, info)
                else:
                    for own, parameter in layer._parameters.items():  # noqa: SLF001 - the layer's own alone
                        if parameter is not None:
                            drawing.fill(parameter.data, own)
        finally:
            dummy_loader.initialize_single_dummy_weight = theirs


class _Drawing:
    """Fills the tensors of one layer, one after another."""

    def __init__(self, layer: str, kind: str) -> None:
        self._layer, self._kind, self._count = layer, kind, 0

    def fill(self, tensor: torch.Tensor, name: str = "") -> None:
        """Fill the layer's next tensor; integers, such as indices of groups, are left as they are."""
        self._count += 1
        if tensor.device.type == "meta" or not torch.is_floating_point(tensor):
            return
        if dummy_law.is_norm_weight(self._kind, name, tensor.dim()):
            tensor.fill_(1.0)
        else:
            dummy_law.fill(tensor, f"{self._layer}:{self._count}", _law)
