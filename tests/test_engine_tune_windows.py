"""Windows of decode over one load, for `wattflow tune`."""

import engine_ranks as tools
import pytest
import torch

from wattflow.config.choices import Engine
from wattflow.engine.tune_windows import Arms
from wattflow.errors import RefusedError


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def choices(**changes):
    """Choices of the fast engine over a small model: prompts of 34 tokens leave room for 6 more."""
    return tools.choices(tools.tiny(), engine=Engine(name="fast", device="cpu"), **changes)


def test_a_window_holds_whole_batches():
    """Eight rows make 5 steps a batch; spans follow one another and last as long as asked together."""
    with Arms(choices(precision="fp32"), tools.ALONE) as arms:
        assert arms.names() == ["eager"]
        window = arms.window("eager", 0.05)
    assert window.kernels == "eager"
    assert window.steps == 5 * len(window.spans)
    assert window.tokens == 8 * window.steps
    assert sum(end - start for start, end in window.spans) >= 0.05e9
    edges = [edge for span in window.spans for edge in span]
    assert edges == sorted(edges)


def test_one_way_and_several_ranks_are_refused():
    """The paper's engine has no kernels to choose from, and several shards are not tuned."""
    with pytest.raises(RefusedError, match="engine=paper has one way only"):
        Arms(tools.choices(tools.tiny()), tools.ALONE)
    with pytest.raises(RefusedError, match="shards=2: tune works on one GPU"):
        Arms(choices(shards=2), tools.ALONE)
