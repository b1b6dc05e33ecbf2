"""RAPL's counters of a host, in a folder like the kernel's."""

RANGE_UJ = 262_143_328_850


def zone(folder, name, energy_uj=0):
    """One counter as the kernel shows it."""
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    return folder / "energy_uj"


def make_powercap(folder):
    """Two packages with their DRAM; the platform that holds them; cores that they hold; a second face of package 0."""
    root = folder / "powercap"
    for package in (0, 1):
        zone(root / f"intel-rapl:{package}", f"package-{package}")
        zone(root / f"intel-rapl:{package}:0", "core")
        zone(root / f"intel-rapl:{package}:1", "dram")
    zone(root / "intel-rapl:2", "psys")
    zone(root / "intel-rapl-mmio:0", "package-0")
    (root / "intel-rapl").mkdir()
    return root


def add_uj(powercap, **by_zone):
    """Let counters rise, going round at their range."""
    for name, uj in by_zone.items():
        path = powercap / name.replace("_", ":").replace("rapl", "intel-rapl") / "energy_uj"
        new = path.with_name("new")  # put in place whole, as a reader may come at any time
        new.write_text(f"{(int(path.read_text()) + uj) % RANGE_UJ}\n")
        new.replace(path)
