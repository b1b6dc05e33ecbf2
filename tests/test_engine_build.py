"""Engines are chosen by name."""

from dataclasses import replace

import engine_ranks as tools
import pytest

from wattflow.config.choices import Engine
from wattflow.engine.build import build
from wattflow.errors import RefusedError


def test_engines_are_chosen_by_name():
    """`paper`, `fast` and `synthetic` are built; another name is refused with the list."""
    chosen = tools.choices(tools.tiny())
    assert build(chosen, tools.ALONE, eos_ids=(), pad_id=0).info["engine"] == "paper"
    synthetic = replace(chosen, engine=Engine(name="synthetic"))
    assert build(synthetic, tools.ALONE, eos_ids=(), pad_id=0).info["engine"] == "synthetic"
    fast = replace(chosen, engine=Engine(name="fast"))
    assert build(fast, tools.ALONE, eos_ids=(), pad_id=0).info["engine"] == "fast"
    with pytest.raises(RefusedError, match="not one of paper, fast, vllm, transformers, synthetic"):
        build(replace(chosen, engine=Engine(name="slow")), tools.ALONE, eos_ids=(), pad_id=0)
