"""Which kernels the fast engine takes: by name, by a goal of `wattflow tune`, or why it cannot."""

import tempfile

import engine_ranks as tools
import pytest
import torch

from wattflow.config import choices as config_choices
from wattflow.engine import tuned_kernels
from wattflow.engine.fast import Fast
from wattflow.errors import EngineError, RefusedError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # locks of devices lie there
    torch.set_num_threads(1)


def with_kernels(name):
    """Choices of the fast engine with these kernels."""
    engine = config_choices.Engine(name="fast", device="cpu", kernels=name)
    return tools.choices(tools.tiny(), engine=engine)


def test_kernels_that_cannot_run_are_refused_by_name():
    """Kernels for a GPU on a CPU raise EngineError; those of one row refuse a batch before any work."""
    with pytest.raises(EngineError, match=r"engine\.kernels=cublas cannot run: no GPU"):
        Fast(with_kernels("cublas"), tools.ALONE, eos_ids=()).load()
    with pytest.raises(RefusedError, match="multiplies one row, and batch_size is 8"):
        Fast(with_kernels("triton"), tools.ALONE, eos_ids=())


def test_the_engine_takes_what_was_kept_and_says_so():
    """engine.kernels=energy runs the kept set; with nothing kept it is auto, and the record says why."""
    chosen = with_kernels("energy")
    kernels = []
    for is_kept in (False, True):
        if is_kept:
            known = tuned_kernels.key_of(chosen, "cpu", torch.__version__)
            tuned_kernels.keep(known, dict.fromkeys(tuned_kernels.GOALS, "eager"), [])
        engine = Fast(chosen, tools.ALONE, eos_ids=())
        engine.load()
        kernels.append((engine.info["kernels"], engine.info["kernels_reason"]))
        engine.close()
    assert kernels[0][0] == kernels[1][0] == "eager"
    assert kernels[0][1].startswith("nothing tuned for energy with this GPU model")
    assert kernels[1][1] == "tuned for energy"
