"""Grace's sockets by ACPI's power meters: which are added, and which readings are none. On folders like hwmon's."""

import pytest
from node_counters import make_hwmon, socket

from wattflow.errors import PowerError
from wattflow.power.hwmon import HwmonMeter, grace_sockets, sockets


@pytest.fixture
def hwmon(tmp_path):
    """One superchip."""
    return make_hwmon(tmp_path)


def test_each_watt_of_grace_is_counted_once(hwmon):
    """Of 560 W of the module and 61 + 20 W of its parts none is added to Grace's 96.5 W."""
    ((uuid, row),) = HwmonMeter(hwmon, "n1", 50.0).finish()
    assert (uuid, row["source"], row["power_w"], row["gap"]) == (
        "host-n1",
        "hwmon_grace",
        96.5,
        False,
    )


def test_sockets_are_added_and_found_by_either_name(hwmon):
    """A second socket whose kernel shows power1_input beside the label: 96.5 + 103.5 W."""
    socket(hwmon, 9, "grace power socket 1", 103.5, value="input", inner=".")
    meter = HwmonMeter(hwmon, "n1", 50.0)
    assert meter.devices[0]["name"] == "host (grace 0, grace 1)"
    assert meter.finish()[0][1]["power_w"] == 200.0


def test_one_meter_under_two_paths_is_one(hwmon):
    """The kernel links a device's files into the hwmon folder itself: counted once."""
    for path in list((hwmon / "hwmon1" / "device").iterdir()):
        (hwmon / "hwmon1" / path.name).symlink_to(path)
    assert [one.name for one in sockets(hwmon)] == ["cpu 0", "grace 0", "module 0", "sysio 0"]


def test_two_meters_of_one_socket_are_refused(hwmon):
    """Neither is known to be it, and both would count it twice."""
    socket(hwmon, 8, "Grace Power Socket 0", 90.0)
    with pytest.raises(PowerError, match="are both of grace 0"):
        grace_sockets(hwmon)


@pytest.mark.parametrize("reading", ["", "0", "-5000000", "96.5", "nan", "9" * 30, "²"])
def test_what_no_socket_draws_is_a_gap(hwmon, reading):
    """Nothing, 0 W, less than nothing, a torn file or gigawatts: no watts, and the sample after it has a gap."""
    meter = HwmonMeter(hwmon, "n1", 50.0)
    path = hwmon / "hwmon1" / "device" / "power1_average"
    path.write_text(reading)
    lost = meter.finish()[0][1]
    path.write_text("96500000\n")
    back = [meter.finish()[0][1] for _ in range(2)]
    assert (lost["power_w"], lost["gap"]) == (None, True)
    assert [(row["power_w"], row["gap"]) for row in back] == [(96.5, True), (96.5, False)]


def test_a_machine_without_grace_is_said(tmp_path, hwmon):
    """A folder without such meters, and one whose only socket does not answer, have no meter; the error says why."""
    with pytest.raises(PowerError, match="no power meter of a Grace socket"):
        HwmonMeter(tmp_path / "none", "n1", 50.0)
    (hwmon / "hwmon1" / "device" / "power1_average").write_text("0")
    with pytest.raises(PowerError, match="no microwatts of a socket"):
        HwmonMeter(hwmon, "n1", 50.0)
