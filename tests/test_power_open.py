"""Which meter a node gets."""

from dataclasses import replace

import fake_dcgmi
import pytest
from host_counters import make_powercap
from node_counters import Cray, make_hwmon

from wattflow.config.choices import Config, Engine, Power
from wattflow.errors import PowerError
from wattflow.power.open import beside_meters, choose, settings_of

pytest_plugins = ("fake_nvml.fixtures",)


@pytest.fixture
def played(tmp_path, monkeypatch):
    """The folder of what the fake dcgmi plays and of the calls that it got."""
    return fake_dcgmi.install(tmp_path, monkeypatch)


@pytest.fixture
def powercap(tmp_path):
    """The counters of two packages with their DRAM."""
    return make_powercap(tmp_path)


def test_auto_is_simulated_without_nvml(monkeypatch):
    """Where NVML shows no GPU, auto takes the simulated meter, and says so."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    meter = choose(Power(meter="auto"), "n1")
    assert (meter.source, meter.boundary, meter.devices[0]["uuid"]) == (
        "simulated",
        "host",
        "host-n1",
    )


def test_nvml_asked_for_and_absent_says_what_to_do(monkeypatch):
    """power.meter=nvml without a GPU is an error with a way out."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(PowerError, match=r"power.meter=nvml on n1: .*power.meter=simulated"):
        choose(Power(meter="nvml"), "n1")


def test_unknown_meter_lists_the_right_ones():
    """A meter that does not exist is refused with the names of those that do."""
    with pytest.raises(
        PowerError, match="not one of auto, nvml, dcgm, rapl, hwmon, cray, simulated"
    ):
        choose(Power(meter="wattmeter"), "n1")


def test_dcgmi_that_is_missing_is_refused(monkeypatch, tmp_path):
    """Without dcgmi on the PATH the error says so, and what to take instead."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PowerError, match=r"dcgm on n1: dcgmi cannot be run .*power.meter=nvml"):
        choose(Power(meter="dcgm"), "n1")


def test_a_host_engine_that_is_down_is_refused(played, monkeypatch):
    """Where dcgmi reaches no host engine the error has its words, and what to look at."""
    monkeypatch.setenv("FAKE_DCGMI_DOWN", "1")
    with pytest.raises(PowerError, match=r"Host engine connection invalid.*systemctl status"):
        choose(Power(meter="dcgm"), "n1")


def test_auto_never_takes_dcgm(played, monkeypatch):
    """DCGM is taken only where it is asked for: auto asks dcgmi nothing."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose(Power(meter="auto"), "n1").name == "simulated"
    assert not (played / "calls.log").exists()


def test_no_rapl_is_said(tmp_path):
    """power.meter=rapl on a machine without it fails with the folder's name."""
    with pytest.raises(PowerError, match="no RAPL package"):
        choose(Power(meter="rapl", powercap_dir=str(tmp_path)), "n1")


def test_auto_takes_rapl_before_arithmetic(powercap, monkeypatch):
    """Without a GPU, auto measures the host by RAPL where it answers; power.host=false keeps it away."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    settings = {"meter": "auto", "powercap_dir": str(powercap)}
    assert choose(Power(**settings), "n1").source == "rapl"
    assert choose(Power(**settings, host=False), "n1").source == "simulated"


def test_auto_takes_grace_where_there_is_no_rapl(tmp_path, powercap, monkeypatch):
    """RAPL where it answers, else the sockets of a Grace CPU, also for a point on the CPU; never Cray's whole node."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    hwmon, cray = str(make_hwmon(tmp_path)), str(Cray(tmp_path).folder)
    without = {"powercap_dir": str(tmp_path), "hwmon_dir": hwmon, "cray_dir": cray}
    assert choose(Power(**without), "n1").source == "hwmon_grace"
    assert choose(Power(**{**without, "powercap_dir": str(powercap)}), "n1").source == "rapl"
    on_cpu = Config(engine=Engine(device="cpu"), power=Power(**without))
    assert settings_of(on_cpu).meter == "hwmon"
    assert choose(Power(meter="cray", **without), "n1").source == "cray_node"


def test_all_that_measures_a_node_is_beside_its_gpus(tmp_path, powercap):
    """One host, the node and its accelerators, as far as each answers; power.host=false has none of them."""
    power = Power(
        powercap_dir=str(powercap),
        hwmon_dir=str(make_hwmon(tmp_path)),
        cray_dir=str(Cray(tmp_path, accelerators=2).folder),
    )
    found = beside_meters(power, "n1")
    assert [one.source for one in found] == ["rapl", "cray_node", "cray_accelerator"]
    assert (
        beside_meters(replace(power, cray_dir="/no", powercap_dir="/no"), "n1")[0].name == "hwmon"
    )
    assert beside_meters(replace(power, host=False), "n1") == []


@pytest.mark.fake_nvml
class TestFakeDriver:
    """A node with GPUs that the job may not use."""

    def test_no_visible_gpu(self, open_meter, monkeypatch):
        """With CUDA_VISIBLE_DEVICES empty, auto is simulated and nvml is an error."""
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert open_meter(meter="auto").name == "simulated"
        with pytest.raises(PowerError, match="no GPU is visible"):
            open_meter()

    def test_a_module_is_never_replaced_by_a_host(self, open_meter, monkeypatch):
        """Where power.scope=module asks for a superchip's module, auto takes nothing else."""
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        with pytest.raises(PowerError, match="no GPU is visible"):
            open_meter(meter="auto", scope="module")


@pytest.mark.parametrize(
    ("engine", "power", "taken"),
    [
        (Engine(device="cpu"), Power(), "rapl"),
        (Engine(name="fast", device="cpu"), Power(host=False), "simulated"),
        (Engine(device="cpu"), Power(meter="simulated"), "simulated"),
        (Engine(device="auto"), Power(), "auto"),
        (Engine(name="synthetic", device="cpu"), Power(), "auto"),  # it computes nowhere
    ],
)
def test_a_point_on_the_cpu_is_measured_by_the_host(powercap, engine, power, taken):
    """Whatever GPUs its node has; by RAPL where it answers and is not switched off."""
    config = Config(engine=engine, power=replace(power, powercap_dir=str(powercap)))
    assert settings_of(config).meter == taken


def test_a_point_on_the_cpu_without_rapl_is_simulated(tmp_path):
    """As on a machine without GPUs."""
    config = Config(engine=Engine(device="cpu"), power=Power(powercap_dir=str(tmp_path)))
    assert settings_of(config).meter == "simulated"
