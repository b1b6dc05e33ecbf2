"""transformers as a library: dummy weights by the law in all families, checkpoints that lack weights, caches."""

import json
import re

import engine_ranks as tools
import pytest
import torch
import transformers
from transformers_models import FAMILIES, chosen, save

from wattflow.engine import transformers_library as library
from wattflow.errors import EngineError


@pytest.mark.parametrize("family", FAMILIES)
def test_dummy_weights_follow_the_law_in_each_family(tmp_path, family):
    """Scales of norms are 1, all else is normal with deviation 0.02, no two tensors alike; a second load is equal."""
    config = chosen(save(family, tmp_path), weights="dummy", precision="fp32")
    first = dict(library.load(config, tools.ALONE).model.named_parameters())
    again = dict(library.load(config, tools.ALONE).model.named_parameters())
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    drawn = {}
    for name, value in first.items():
        if re.search(r"(norm|ln_\d|ln_f|layernorm)\w*\.weight$", name):
            assert torch.equal(value, torch.ones_like(value)), name
        else:
            drawn[name] = value.flatten()
            if value.numel() > 1000:
                assert float(value.std()) == pytest.approx(0.02, rel=0.1), name
    everything = torch.cat(list(drawn.values()))
    assert float(everything.std()) == pytest.approx(0.02, rel=0.02)
    assert abs(float(everything.mean())) < 5e-4
    heads = [tuple(value[:8].tolist()) for value in drawn.values()]
    assert len(set(heads)) == len(heads)


def test_buffers_are_the_models_own(tmp_path):
    """Rotary frequencies, which no checkpoint holds, are those of a model that transformers makes."""
    config = chosen(save("qwen3", tmp_path), weights="dummy", precision="fp32")
    found = dict(library.load(config, tools.ALONE).model.named_buffers())
    made = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(tmp_path)
    )
    expected = dict(made.named_buffers())
    assert found.keys() == expected.keys() != set()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path):
    """transformers would draw it at random, with a warning."""
    folder = save("opt", tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 3}))
    with pytest.raises(EngineError, match=r"\d+ weights are missing, \S+layers\.2\S+ first"):
        library.load(chosen(folder), tools.ALONE)


def test_attention_is_chosen_by_name(tmp_path):
    """The model says which implementation it runs."""
    folder = save("qwen3", tmp_path)
    config = chosen(folder)
    config.engine.transformers.attention = "eager"
    assert library.load(config, tools.ALONE).model.config._attn_implementation == "eager"


def test_a_model_that_no_cache_is_known_of_is_refused(tmp_path):
    """As those that keep a state of another kind have."""

    class Stateful(torch.nn.Module):
        config = transformers.OPTConfig()

        def forward(self, input_ids, state):
            """Neither of the known names."""

    with pytest.raises(EngineError, match="a opt keeps no cache that is known here"):
        library.Loaded(Stateful())


def test_the_cache_is_static_where_the_model_allows_it(tmp_path):
    """`auto` follows the model; what is asked for is taken, or refused."""
    loaded = library.load(chosen(save("llama", tmp_path)), tools.ALONE)
    folder = tmp_path
    assert library.cache_kind(chosen(folder), loaded) == "static"
    assert library.cache_kind(chosen(folder, cache="dynamic"), loaded) == "dynamic"
    loaded.may_be_static = False
    assert library.cache_kind(chosen(folder), loaded) == "dynamic"
    with pytest.raises(EngineError, match="runs over no static cache"):
        library.cache_kind(chosen(folder, cache="static"), loaded)


def test_bytes_of_tied_weights_count_once(tmp_path):
    """GPT-2's head is its embedding."""
    model = library.load(chosen(save("gpt2", tmp_path), precision="fp32"), tools.ALONE).model
    assert library.weight_bytes(model) == 4 * sum(p.numel() for p in model.parameters())
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()


def test_ranks_need_accelerate(monkeypatch):
    """Without it transformers splits no model; the line has the command."""
    monkeypatch.setattr(library, "_has_accelerate", lambda: False)
    two = tools.ranks.Ranks(0, 2, 0, "here", "cpu", "cpu", None)
    with pytest.raises(EngineError, match=r"accelerate is not installed.*wattflow\[transformers\]"):
        library._split(two)
