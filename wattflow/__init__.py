"""wattflow measures what large-language-model inference costs in energy on Slurm clusters.

import wattflow
s = wattflow.open_sweep("sweeps/demo")
s.points.select("model", "shards", "tokens_per_s", "energy_per_token_j")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wattflow.results import open_sweep

__all__ = ["open_sweep"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`open_sweep`, imported when first asked for: polars takes longer than `wattflow --help` may."""
    if name == "open_sweep":
        from wattflow.results import open_sweep  # noqa: PLC0415 (see above)

        return open_sweep
    raise AttributeError(f"module 'wattflow' has no attribute {name!r}")
