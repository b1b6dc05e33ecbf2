"""The shipped site profiles."""

import pytest

from wattflow.plan import grid


@pytest.mark.parametrize(
    "name", ["example-v100", "example-a100", "example-perlmutter", "testcluster", "local"]
)
def test_the_shipped_profiles_are_whole_and_named_after_their_files(name):
    """Hydra composes each against the typed keys; GPU profiles say how much memory a GPU has."""
    words = [f"cluster={name}", "model=tiny", "n_prompts=2", "sweep.repeats=1"]
    cluster = grid.plan(words).points[0].config.cluster
    assert cluster.name == name
    assert cluster.gpu_memory_gib or not name.startswith("example")
