"""wattflow measures what large-language-model inference costs in energy on Slurm clusters.

import wattflow
s = wattflow.open_sweep("sweeps/demo")
s.points.select("model", "shards", "tokens_per_s", "energy_per_token_j")

In a program that `wattflow measure` watches:

with wattflow.span("decode", tokens_out=n):
    ...
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wattflow.analysis.sweep import open_sweep
    from wattflow.spans import span

__all__ = ["open_sweep", "span"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What is imported when first asked for: polars takes longer than `wattflow --help` may, or a program's `span`."""
    if name == "span":
        from wattflow.spans import span  # noqa: PLC0415 (see above)

        globals()[name] = span  # found at once from now on
        return span
    if name == "open_sweep":
        from wattflow.analysis.sweep import open_sweep  # noqa: PLC0415 (see above)

        return open_sweep
    raise AttributeError(f"module 'wattflow' has no attribute {name!r}")
