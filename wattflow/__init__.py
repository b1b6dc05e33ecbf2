"""wattflow measures what large-language-model inference costs in energy on Slurm clusters.

import wattflow
s = wattflow.open_sweep("sweeps/demo")
s.points.select("model", "shards", "tokens_per_s", "energy_per_token_j")
"""

__version__ = "0.1.0"
