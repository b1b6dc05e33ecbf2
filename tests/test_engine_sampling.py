"""One token a row from its scores: greedy, by temperature, from the likeliest that reach top_p."""

import pytest
import torch

from wattflow.engine.sampling import choose


def test_sampling_follows_the_probabilities():
    """Of 4000 draws from 0.6, 0.3, 0.1 the shares agree to 3 %; top_p 0.7 leaves the first two, 2 to 1."""
    logits = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64).log().repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)
    shares = torch.bincount(choose(logits, 1.0, 1.0, generator), minlength=3) / 4000
    assert shares.tolist() == pytest.approx([0.1, 0.6, 0.3], abs=0.03)
    shares = torch.bincount(choose(logits, 1.0, 0.7, generator), minlength=3) / 4000
    assert shares.tolist() == pytest.approx([0.0, 2 / 3, 1 / 3], abs=0.03)


def test_temperature_sharpens_and_zero_is_greedy():
    """Temperature 0.5 squares the odds (0.6 to 0.3 becomes 4 to 1); 0 takes the likeliest; a tiny top_p too."""
    logits = torch.tensor([0.6, 0.3], dtype=torch.float64).log().repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)
    assert choose(logits, 0.5, 1.0, generator).double().mean().item() == pytest.approx(
        0.2, abs=0.03
    )
    assert not choose(logits, 0.0, 1.0, generator).any()
    assert not choose(logits, 1.0, 1e-9, generator).any()
