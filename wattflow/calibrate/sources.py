"""The sensors that a calibration watches."""

from wattflow.store.sources import SOURCES, of_kind

BUFFER, COUNTER, GPM = "nvml_buffer", "nvml_counter", "nvml_gpm"
POWER = tuple(name for name in of_kind("power", "nvml") if SOURCES[name].boundary == "gpu")
WATCHED = (*POWER, COUNTER, GPM)
NAMES = {name: source.label for name, source in SOURCES.items() if source.meter == "nvml"}
SETTLED = 0.57  # of the time between two edges: from there on a plateau is taken for one
