"""A model of wide random weights for tests of the fast engine, choices over it, and prompts."""

import engine_ranks as tools
import torch

from wattflow.config import choices as config_choices

FAST = config_choices.Engine(name="fast", device="cpu")


def wide_model(folder):
    """A model of wide random weights over 499 tokens, saved in a folder; its greedy outputs differ."""
    model = tools.tiny(path=str(folder), vocab_size=499)
    tools.save_meta(folder, model, tools.random_weights(model), 1)
    return model


def choices(model, **changes):
    """Choices of the fast engine over the saved weights."""
    return tools.choices(model, **{"weights": "meta", "engine": FAST, **changes})


def some_prompts(lengths, seed=5):
    """Random prompts of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 499, (n,), generator=generator).tolist() for n in lengths]
