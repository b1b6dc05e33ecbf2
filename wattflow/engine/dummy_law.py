"""The law of dummy weights, one for all engines: normal with deviation 0.02, norms 1, its own seed a tensor.

Never zeros or constants: on these GPUs run faster and draw less.
"""

import hashlib

import torch

STD = 0.02


def generator(text: str, device: str | torch.device) -> torch.Generator:
    """Return a generator on a device whose seed follows from a text, such as a tensor's name."""
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7]))


def fill(tensor: torch.Tensor, name: str) -> None:
    """Draw a tensor in its place; `name` gives the seed."""
    drawn_by = generator(name, tensor.device)
    if torch.finfo(tensor.dtype).bits < 16:  # normal_ knows no 8-bit types
        drawn = torch.empty(tensor.shape, dtype=torch.float16, device=tensor.device)
        tensor.copy_(drawn.normal_(0.0, STD, generator=drawn_by))
    else:
        tensor.normal_(0.0, STD, generator=drawn_by)


def is_norm_weight(kind: str, name: str, dimensions: int) -> bool:
    """Whether a parameter is the scale of a norm, by its layer's class, its own name and its number of dimensions."""
    return "norm" in kind.lower() and name == "weight" and dimensions <= 1
