"""Power meters of Grace sockets and Cray's counters, in folders made like the kernel's: no such node is at hand."""

import time


def socket(folder, number, label, watts, *, value="average", inner="device"):
    """One ACPI power meter as hwmon shows it; returns the file of its microwatts."""
    device = folder / f"hwmon{number}" / inner
    device.mkdir(parents=True)
    (device / "power1_oem_info").write_text(f"{label}\n")
    (device / f"power1_{value}").write_text(f"{round(watts * 1e6)}\n")
    return device / f"power1_{value}"


def make_hwmon(folder):
    """A superchip with one socket: the module holds Grace, which holds CPU and SysIO; and a disk that is neither."""
    root = folder / "hwmon"
    socket(root, 0, "Module Power Socket 0", 560.0)
    socket(root, 1, "Grace Power Socket 0", 96.5)
    socket(root, 2, "CPU Power Socket 0", 61.0)
    socket(root, 3, "SysIO Power Socket 0", 20.0)
    (root / "hwmon4").mkdir()
    (root / "hwmon4" / "name").write_text("nvme\n")
    return root


class Cray:
    """The pm_counters of one node: `renew` writes the next scan."""

    def __init__(self, folder, accelerators=0):
        self.folder = folder / "pm_counters"
        self.folder.mkdir()
        self.devices = ["", *(f"accel{k}_" for k in range(accelerators))]
        self.freshness = 100
        self.write("raw_scan_hz", 10)
        self.write("startup", 7)
        self.write("generation", 1)
        self.renew(dict.fromkeys(self.devices, 100))

    def write(self, name, text):
        new = self.folder / ".new"  # put in place whole, as a reader may come at any time
        new.write_text(f"{text}\n")
        new.replace(self.folder / name)

    def renew(self, watts, joules=1000, stamp_us=None):
        """Show watts by device and joules of each, stamped now."""
        stamp_us = time.time_ns() // 1000 if stamp_us is None else stamp_us
        for name, power in watts.items():
            self.write(f"{name}power", f"{power} W {stamp_us} us")
            self.write(f"{name}energy", f"{joules} J {stamp_us} us")
        self.freshness += 1
        self.write("freshness", self.freshness)
        return stamp_us * 1000
