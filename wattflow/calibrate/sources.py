"""The power sensors that a calibration watches, and what it found of each."""

from typing import Any

import numpy as np

BUFFER, COUNTER, GPM = "nvml_buffer", "nvml_counter", "nvml_gpm"
POWER = (BUFFER, "nvml_instant", "nvml_average", "nvml_usage", "nvml_usage_mean")
WATCHED = (*POWER, COUNTER, GPM)
NAMES = {
    BUFFER: "sample buffer",
    "nvml_instant": "field 186, instant",
    "nvml_average": "field 185, average",
    "nvml_usage": "power usage",
    "nvml_usage_mean": "power usage",
    COUNTER: "energy counter",
    "nvml_counter_field": "field 83, energy counter",
    "nvml_conditions": "clocks, temperature, limits",
    GPM: "GPM, memory activity",
}
SETTLED = 0.57  # of the time between two edges: from there on a plateau is taken for one

Passport = dict[str, Any]
NONE = np.zeros(0, np.int64)
