"""Each pair of integral and counter in docs/measurements agrees within 1 %, or is explained or withdrawn on a page."""

import json
from pathlib import Path

import numpy as np
import pytest

from wattflow.energy.counter import counter, counter_between

DOCS = Path(__file__).parent.parent / "docs"
FILES = sorted((DOCS / "measurements").glob("*.json"))
MOST = 0.01
SECOND_NS = 1_000_000_000
EVERY_S = 5.0  # between two readings of the counter in the files that are withdrawn
TICK_S = (
    0.1  # between two values of the counter itself, by which windows of 2 s are known no better
)
PAGES = {
    "engine": "performance.md",
    "h100": "first-measurements.md",
    "h200x2": "first-measurements.md",
}


def pairs(found, path=""):
    """Yield (where, integral over counter - 1, seconds, J by each and U of each where known) of a document."""
    if isinstance(found, list):
        for at, one in enumerate(found):
            yield from pairs(one, f"{path}/{at}")
    if not isinstance(found, dict):
        return
    counted, ratio = found.get("counter_energy_j"), found.get("counter_ratio")
    if counted and "energy_j" in found:
        yield (
            path,
            found["energy_j"] / counted - 1,
            found.get("seconds", found.get("duration_s")),
            None,
        )
    elif ratio:
        yield path, ratio - 1, found.get("duration_s"), None
    if isinstance(found.get("counter"), list) and "buffer" in found:
        columns = (
            found[name] for name in ("seconds", "buffer", "counter", "buffer_U", "counter_U")
        )
        for at, (s, by_buffer, by_counter, *both) in enumerate(zip(*columns, strict=True)):
            yield f"{path}/{at}", by_buffer / by_counter - 1, s, np.hypot(*both) / by_counter
    for key, one in found.items():
        yield from pairs(one, f"{path}/{key}")


def test_all_pairs_are_read():
    """50 pairs of single windows or more, 85 of the windows by all methods; 14 of them differ by more than 1 %."""
    found = [one for file in FILES for one in pairs(json.loads(file.read_text()))]
    assert len([one for one in found if one[3] is None]) >= 50
    assert len([one for one in found if one[3] is not None]) >= 85
    assert sum(abs(apart) > MOST for _, apart, *_ in found) == 14


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_pair_beyond_one_percent_is_explained_or_withdrawn(file):
    """What differs by more than 1 % lies within both U, or the whole file's counter is withdrawn on its page."""
    document = json.loads(file.read_text())
    withdrawn = document.get("counter_withdrawn")
    found = list(pairs(document))
    for where, apart, seconds, both in found:
        if abs(apart) <= MOST:
            continue
        if both is not None:
            assert abs(apart) <= both, (
                f"{file.name}{where}: {apart:+.2%} is beyond both U, {both:.2%}"
            )
            continue
        # an edge may be off by a quarter of a tick times the watts by which it rises
        if seconds is not None and abs(apart) <= 2 * TICK_S / 4 / seconds:
            continue
        assert withdrawn, (
            f"{file.name}{where}: integral / counter - 1 is {apart:+.2%}, and nothing says why"
        )
        # an edge may be off by a quarter of the readings' distance times the watts by which it rises
        assert abs(apart) <= 2 * EVERY_S / 4 / seconds, f"{file.name}{where}: not explained by that"
    if withdrawn:
        assert withdrawn in (DOCS / PAGES[file.stem]).read_text()
        apart = [one[1] for one in found]
        low, high = (f"{100 * end(apart):+.1f}" for end in (min, max))
        assert f"integral / counter - 1 is {low} to {high} %" in withdrawn


def readings(idle_w, every_s, phase_s, marks_s=()):
    """A counter beside 10 s of 546 W that start at 15 s, read so often, and also at some instants."""
    seconds = np.arange(0.0, 40.0, 0.01)
    joules = np.cumsum(np.where((seconds >= 15) & (seconds < 25), 546.0, idle_w)) * 0.01
    at_s = np.sort(np.append(np.arange(phase_s, 40.0, every_s), marks_s))
    ticks = np.floor(at_s * 10 + 1e-9).astype(int) * 10
    return counter((at_s * SECOND_NS).astype(np.int64), (joules[ticks] * 1e3).astype(np.uint64))


def apart(found):
    """Return truth over counter - 1 of the 10 s."""
    return 5460.0 / counter_between(found, [15 * SECOND_NS], [25 * SECOND_NS]).energy_j[0] - 1


def test_a_counter_read_each_5_s_explains_what_was_withdrawn():
    """Between pauses of 120 W it is 0.5 to 24 % too low, beside 700 W too high; read at the edges it is right."""
    phases = np.linspace(0.0, 4.95, 100)
    low = [apart(readings(120.0, EVERY_S, phase)) for phase in phases]
    assert 0.0 < min(low) < 0.006
    assert 0.23 < max(low) < 0.25
    assert min(apart(readings(700.0, EVERY_S, phase)) for phase in phases) < -0.05
    marks = [15.0, 15.1, 25.0, 25.1]
    assert max(abs(apart(readings(120.0, EVERY_S, phase, marks))) for phase in phases) < 0.01
