"""Dummy weights for vLLM: normal, norms 1, a seed a tensor, also for a layer that is quantised while it loads."""

import importlib
import sys
import types

import pytest
import torch


class FakeLoader:
    """vLLM's own loader, as far as a quantised layer goes: it fills one made tensor and notes what it holds."""

    def _process_online_quant_layer(self, layer, info):
        made = torch.empty(64, 64)
        sys.modules["vllm.model_executor.model_loader.dummy_loader"].initialize_single_dummy_weight(
            made
        )
        layer.quantised = made


@pytest.fixture
def dummy(monkeypatch):
    """The module over stand-ins for the parts of vLLM that it extends."""
    base = "vllm.model_executor.model_loader"
    holds = {
        "vllm": {},
        "vllm.model_executor": {},
        base: {
            "register_model_loader": lambda name: lambda cls: cls,
            "_LOAD_FORMAT_TO_MODEL_LOADER": {},
        },
        f"{base}.dummy_loader": {
            "DummyModelLoader": FakeLoader,
            "initialize_single_dummy_weight": None,
        },
        f"{base}.reload": {},
        f"{base}.reload.layerwise": {
            "get_layerwise_info": lambda layer: types.SimpleNamespace(
                can_load=lambda: hasattr(layer, "online")
            )
        },
    }
    for name, values in holds.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)
    monkeypatch.delitem(sys.modules, "wattflow.engine.vllm_dummy", raising=False)
    made = importlib.import_module("wattflow.engine.vllm_dummy")
    yield made
    sys.modules.pop("wattflow.engine.vllm_dummy", None)


def loaded(dummy, model):
    """The model after the loader filled it."""
    dummy.Loader().load_weights(model, None)
    return model


class Norm(torch.nn.Module):
    """A norm as vLLM has it: one vector."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(8))


def test_matrices_are_normal_norms_one_and_seeds_differ(dummy):
    """Deviation 0.02 around 0; two equal layers differ; a second load draws the same."""
    model = torch.nn.ModuleDict(
        {"a": torch.nn.Linear(256, 256), "b": torch.nn.Linear(256, 256), "norm": Norm()}
    )
    first = {name: p.detach().clone() for name, p in loaded(dummy, model).named_parameters()}
    assert float(first["a.weight"].std()) == pytest.approx(0.02, rel=0.02)
    assert abs(float(first["a.weight"].mean())) < 2e-4
    assert not torch.equal(first["a.weight"], first["b.weight"])
    assert float(first["a.bias"].std()) == pytest.approx(0.02, rel=0.2)
    assert torch.equal(first["norm.weight"], torch.ones(8))
    again = dict(loaded(dummy, model).named_parameters())
    assert all(torch.equal(again[name], value) for name, value in first.items())


def test_a_layer_quantised_while_it_loads_is_drawn_by_the_same_law(dummy):
    """vLLM fills the tensors of such a layer by a function of its own, which is ours meanwhile."""
    layer = torch.nn.Linear(4, 4)
    layer.online = True
    loaded(dummy, layer)
    assert float(layer.quantised.std()) == pytest.approx(0.02, rel=0.05)


def test_bytes_and_integers(dummy):
    """8-bit floats are drawn by way of 16 bits; indices are left as they are."""
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(
        torch.zeros(64, 64, dtype=torch.float8_e4m3fn), requires_grad=False
    )
    layer.index = torch.nn.Parameter(torch.arange(4), requires_grad=False)
    loaded(dummy, layer)
    assert float(layer.weight.float().std()) == pytest.approx(0.02, rel=0.1)
    assert layer.index.tolist() == [0, 1, 2, 3]


def test_a_loader_is_registered_once(dummy):
    """vLLM warns where a name is taken a second time."""
    names = []
    dummy.register_model_loader = lambda name: lambda cls: names.append((name, cls))
    dummy.register("x", "normal")
    assert names == [("x", dummy.Loader)]


def test_heavy_tails_have_the_same_deviation_and_more_far_values(dummy):
    """Student's t with 3 degrees of freedom: within a tenth of 0.02, and beyond 6 deviations 3,000 of a million."""
    dummy.register("x", "heavy")
    layer = loaded(dummy, torch.nn.ModuleDict({"a": torch.nn.Linear(1024, 1024)}))["a"].weight
    assert float(layer.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert 2000 < int((layer.abs() > 0.12).sum()) < 4000
    dummy.register("x", "normal")
    layer = loaded(dummy, torch.nn.ModuleDict({"a": torch.nn.Linear(1024, 1024)}))["a"].weight
    assert int((layer.abs() > 0.12).sum()) == 0
