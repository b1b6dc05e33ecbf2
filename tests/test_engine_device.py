"""Why torch cannot compute on a GPU."""

import json
import subprocess
import sys

import pytest
import torch

from wattflow.engine.device import why_no_cuda

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


def fails(text):
    """A torch.cuda.init of a torch for CUDA whose driver does not answer."""

    def init():
        raise RuntimeError(text)

    return init


def test_a_torch_without_cuda_is_named(monkeypatch):
    """Its version, as pip shows it."""
    monkeypatch.setattr(torch.version, "cuda", None)
    assert why_no_cuda() == f"torch {torch.__version__} is built without CUDA"


def test_a_driver_that_fails_gives_the_reason(monkeypatch):
    """The first line of what CUDA says."""
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setattr(torch.cuda, "init", fails("Error 802: system not yet initialized.\nmore"))
    assert why_no_cuda() == (
        f"torch {torch.__version__} for CUDA 12.4 cannot use CUDA: Error 802: system not yet initialized"
    )


def test_as_a_process_it_answers_in_json():
    """`doctor` asks it so, since importing torch takes seconds and memory."""
    done = subprocess.run(
        [sys.executable, "-m", "wattflow.engine.device"],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert json.loads(done.stdout) == why_no_cuda()
