"""Fixtures: checkpoints of a small model in both kinds of files."""

import engine_ranks as tools
import pytest


@pytest.fixture
def whole():
    """The small model's random weights by Meta's names."""
    return tools.random_weights(tools.tiny())


@pytest.fixture
def meta(tmp_path, whole):
    """A model whose checkpoint lies in two of Meta's files."""
    model = tools.tiny(path=str(tmp_path / "meta"))
    tools.save_meta(tmp_path / "meta", model, whole, 2)
    return model


@pytest.fixture
def hf(tmp_path, whole):
    """A model whose checkpoint lies in two safetensors files with an index."""
    model = tools.tiny(path=str(tmp_path / "hf"))
    tools.save_hf(model, whole, 2)
    return model
