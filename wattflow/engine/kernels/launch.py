# Triton writes compile-time constants in capitals and reads annotations as code:
# ruff: noqa: N803, ANN201
# Triton has no types, and is absent where torch was built without CUDA:
# mypy: disable-error-code="misc, untyped-decorator, no-untyped-call, no-untyped-def, import-not-found, unused-ignore"
"""Early launch of Triton kernels on Hopper.

A kernel may start while the one before it still runs. It first reads what no kernel writes (weights), then waits until
the other has ended and its writes are visible. Each waits before it lets the next one start, so that at most two run at
a time. On other GPUs kernels run one after another.
"""

import torch
import triton
import triton.language as tl


def _can_launch_early() -> bool:
    if not torch.cuda.is_available() or not hasattr(tl.extra.cuda, "gdc_wait"):
        return False
    return torch.cuda.get_device_capability() >= (9, 0)


class Launch:
    """How kernels are launched; a check that fails sets `early` to false."""

    early = _can_launch_early()

    @classmethod
    def options(cls) -> dict[str, bool]:
        """Return the extra launch options."""
        return {"EARLY": True, "launch_pdl": True} if cls.early else {"EARLY": False}


@triton.jit
def wait(EARLY: tl.constexpr):
    """Wait for the kernel before, then let the next one start."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
