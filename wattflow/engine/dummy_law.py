"""The law of dummy weights, one for all engines: deviation 0.02, norms 1, its own seed a tensor.

    normal   as it is called
    heavy    Student's t with 3 degrees of freedom: outliers as real weights have them

Never zeros or constants: on these GPUs run faster and draw less.
"""

import hashlib

import torch

STD = 0.02


def generator(text: str, device: str | torch.device) -> torch.Generator:
    """Return a generator on a device whose seed follows from a text, such as a tensor's name."""
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7]))


def draw(tensor: torch.Tensor, law: str, drawn_by: torch.Generator) -> torch.Tensor:
    """Draw a tensor of 16 bit or more in its place, and return it."""
    tensor.normal_(0.0, STD, generator=drawn_by)
    if (
        law == "heavy"
    ):  # t = z / sqrt(chi2 / 3) has a variance of 3, so z / sqrt(chi2) has that of z
        squares = torch.zeros_like(tensor)
        for _ in range(3):
            squares += torch.empty_like(tensor).normal_(generator=drawn_by).square_()
        tensor /= squares.sqrt_()
    return tensor


def fill(tensor: torch.Tensor, name: str, law: str = "normal") -> None:
    """Draw a tensor in its place; `name` gives the seed."""
    drawn_by = generator(name, tensor.device)
    if torch.finfo(tensor.dtype).bits < 16:  # normal_ knows no 8-bit types
        wide = torch.empty(tensor.shape, dtype=torch.float16, device=tensor.device)
        tensor.copy_(draw(wide, law, drawn_by))
    else:
        draw(tensor, law, drawn_by)


def is_norm_weight(kind: str, name: str, dimensions: int) -> bool:
    """Whether a parameter is the scale of a norm, by its layer's class, its own name and its number of dimensions."""
    return "norm" in kind.lower() and name == "weight" and dimensions <= 1
