"""The file of tuned kernels: what a choice holds for, and files that `wattflow tune` did not write."""

import tempfile

import engine_ranks as tools
import pytest
import torch

from wattflow.engine import tuned_kernels
from wattflow.errors import EngineError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # locks of devices lie there
    torch.set_num_threads(1)


def test_a_choice_holds_for_what_it_was_measured_on():
    """Kept for one batch, found for that batch and goal alone; another batch, GPU or torch finds nothing."""
    chosen = tools.choices(tools.tiny())
    known = tuned_kernels.key_of(chosen, "H100", "2.11")
    tuned_kernels.keep(known, {"speed": "triton", "energy": "cublas", "edp": "cublas"}, [])
    assert [tuned_kernels.find(known, goal) for goal in ("speed", "energy")] == ["triton", "cublas"]
    chosen.batch_size += 1
    for other in (
        tuned_kernels.key_of(chosen, "H100", "2.11"),
        known.replace("H100", "H200"),
        known.replace("2.11", "2.13"),
    ):
        assert tuned_kernels.find(other, "speed") is None
    tuned_kernels.keep("another", {"speed": "eager", "energy": "eager", "edp": "eager"}, [])
    assert tuned_kernels.find(known, "speed") == "triton"


@pytest.mark.parametrize(
    "named",
    ["x86_64 Kernel Module", "Open Kernel Module for x86_64", "Open Kernel Module for aarch64"],
)
def test_the_driver_s_version_is_read_from_its_own_words(named):
    """The closed module and the open one, whose name ends in the processor's: 580.95.05 of both; no module, none."""
    words = f"NVRM version: NVIDIA UNIX {named}  580.95.05  Release Build  (someone@U22)\nGCC version: gcc 12.3.0\n"
    assert tuned_kernels.version_in(words) == "580.95.05"
    assert tuned_kernels.version_in("GCC version: gcc 12.3.0\n") is None


def test_a_foreign_file_is_told(tmp_path):
    """A file that tune did not write is named, with what to do."""
    file = tuned_kernels.path()
    file.parent.mkdir(parents=True)
    file.write_text("[1, 2")
    assert str(file).startswith(str(tmp_path))
    with pytest.raises(EngineError, match=r"tuned\.json: not what `wattflow tune` writes"):
        tuned_kernels.find("key", "speed")
