"""Which sensors a calibration watches."""

from wattflow.calibrate.sources import BUFFER, COUNTER, GPM, NAMES, POWER, WATCHED


def test_what_is_watched_has_a_name_and_the_best_comes_first():
    """The driver's buffer before polled power, then the counter and GPM; only NVML's own sensors."""
    assert (*POWER, COUNTER, GPM) == WATCHED
    assert POWER[0] == BUFFER
    assert set(WATCHED) <= set(NAMES)
    assert all(name.startswith("nvml_") for name in NAMES)
