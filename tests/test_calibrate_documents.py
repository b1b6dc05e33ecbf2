"""The fields of a calibration's JSON: those of the passports that are shipped, and no others."""

import json
from pathlib import Path

import pytest

from wattflow.calibrate.documents import (
    PASSPORT_VERSION,
    Aliasing,
    Answer,
    Fit,
    Passport,
    Sensor,
    Spread,
)

SHIPPED = sorted((Path(__file__).parent.parent / "docs" / "passports").glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_passport_has_the_declared_fields(path):
    """Each level of a real passport has every field that is declared for it, and none besides."""
    passport = json.loads(path.read_text())
    assert passport["schema_version"] == PASSPORT_VERSION
    assert list(passport) == [name for name in Passport.__annotations__ if name != "reference"]
    for source, sensor in passport["sources"].items():
        assert set(sensor) >= Sensor.__required_keys__
        extra = Sensor.__optional_keys__ if source == "nvml_buffer" else set()
        assert set(sensor) - Sensor.__required_keys__ == extra
        assert set(sensor["period_ms"]) == set(Spread.__annotations__)
        assert set(sensor["answer"]) == set(Answer.__annotations__)
        assert set(sensor["answer"]["on"]) == set(Fit.__annotations__)
    assert all(list(one) == list(Aliasing.__annotations__) for one in passport["aliasing"])
