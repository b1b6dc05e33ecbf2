"""Fixtures for tests of the NVML path, imported by those that need them."""

import _ctypes
import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

import fake_nvml
from wattflow.config.choices import Power
from wattflow.power.meter import Meter
from wattflow.power.open import choose


@pytest.fixture(scope="session")
def nvml_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the fake libnvidia-ml.so.1; skips where it cannot be built, unless WATTFLOW_REQUIRE forbids."""
    why = fake_nvml.missing()
    if why is not None:
        if "fake_nvml" in os.environ.get("WATTFLOW_REQUIRE", "").split(","):
            pytest.fail(f"WATTFLOW_REQUIRE has fake_nvml, but {why}")
        pytest.skip(f"fake_nvml: {why}")
    return fake_nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml_path(nvml_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fake library on the LD_LIBRARY_PATH of processes started by the test, with an environment of its own."""
    for name in list(os.environ):
        if name.startswith(("FAKE_NVML_", "SLURM", "CUDA_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_folder))
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    return nvml_folder


@pytest.fixture
def fake_driver(nvml_path: Path) -> Iterator[None]:
    """The fake library loaded into this process, where pynvml finds it by its soname, and unloaded afterwards."""
    library = ctypes.CDLL(str(nvml_path / "libnvidia-ml.so.1"))
    yield
    if pynvml.nvmlLib is not None:
        _ctypes.dlclose(pynvml.nvmlLib._handle)
        pynvml.nvmlLib = None
        pynvml._nvmlLib_refcount = 0
        pynvml._nvmlGetFunctionPointer_cache.clear()
    _ctypes.dlclose(library._handle)


@pytest.fixture
def open_meter(fake_driver: None) -> Iterator[Callable[..., Meter]]:
    """A function that opens the meter of the fake driver; it is closed after the test."""
    meters: list[Meter] = []

    def opened(**power: Any) -> Meter:
        meters.append(choose(Power(**{"meter": "nvml", **power}), "n1"))
        return meters[-1]

    yield opened
    for meter in meters:
        meter.close()


@pytest.fixture
def set_driver(nvml_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """A function that sets one of the fake driver's variables for processes started from then on."""
    return monkeypatch.setenv
