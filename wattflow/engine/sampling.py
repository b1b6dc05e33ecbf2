"""How one token a row is chosen from its scores."""

import torch


def choose(
    logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator
) -> torch.Tensor:
    """Return one token a row of logits [batch, vocab]: the likeliest at temperature 0, else drawn.

    Drawn from the smallest set of likeliest tokens whose probabilities reach `top_p`, by their probabilities.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities, tokens = torch.softmax(logits / temperature, dim=-1).sort(
        dim=-1, descending=True
    )
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = probabilities.masked_fill(before > top_p, 0.0)
    place = torch.multinomial(probabilities, 1, generator=generator)
    return tokens.gather(-1, place).squeeze(-1)
