"""Fixtures: an attempt's folder, and sidecars that end with their test."""

import pytest
import traces

from wattflow.power.sidecar_client import Sidecar


@pytest.fixture
def attempt(tmp_path):
    return traces.new_attempt(tmp_path)


@pytest.fixture
def sidecar(tmp_path):
    """A function that makes a sidecar; none is left running after the test."""
    made = []

    def make(power, **options):
        made.append(Sidecar(power, "n1", tmp_path / "spool", **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
