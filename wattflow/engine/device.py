"""Whether torch can compute on this machine's GPUs, and why not.

python -m wattflow.engine.device      prints why not as JSON: null where it can
"""

import json

from wattflow.engine.installed import TORCH


def why_no_cuda() -> str | None:
    """Return why torch cannot compute on a GPU here, in words; null where it can."""
    if not TORCH.is_there:
        return "torch is not installed"
    import torch  # noqa: PLC0415 - takes seconds, and points on the CPU alone run without

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        why = str(error).strip().partition("\n")[0].rstrip(".")
    else:
        why = "it finds no GPU"
    return f"torch {torch.__version__} for CUDA {torch.version.cuda} cannot use CUDA: {why}"


if __name__ == "__main__":
    print(json.dumps(why_no_cuda()))
