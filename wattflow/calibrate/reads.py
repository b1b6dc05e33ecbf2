"""What a calibration read from the sensors of one GPU, as arrays."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wattflow.calibrate.sources import BUFFER, COUNTER, GPM, NAMES, SETTLED, WATCHED
from wattflow.energy import response
from wattflow.energy.counter import Counter, counter
from wattflow.energy.curve import Curve, Floats, Ints, curve
from wattflow.power.calibration_steps import StepRecord
from wattflow.store.sources import longest_spacing_ns, most_w

_NO_TIMES = np.zeros(0, np.int64)


class Reads:
    """The values that the sensors of one GPU gave, by source and step."""

    def __init__(self, steps: Sequence[StepRecord], uuid: str, table: pa.Table) -> None:
        """Take the steps of a calibration, and what was read of one GPU (schema.READS)."""
        self.steps, self._uuid = steps, uuid
        self._by_source = {
            source: [
                part[name].fill_null(0).to_numpy()
                for name in ("step", "start_ns", "end_ns", "stamp_ns", "value")
            ]
            for source in NAMES
            if len(part := table.filter(pc.equal(table["source"], source)))
        }

    @property
    def sources(self) -> list[str]:
        """The sources that gave any value, in the order of WATCHED."""
        return [source for source in WATCHED if source in self._by_source]

    def numbers(self, name: str) -> list[int]:
        """Return the numbers of the steps of a name."""
        return [number for number, step in enumerate(self.steps) if step["name"] == name]

    def calls(self, source: str, steps: Sequence[int]) -> tuple[Ints, Ints, Ints, Floats]:
        """Return start, end, the driver's stamp (unix ns) and value of a source's reads in some steps."""
        if source not in self._by_source:
            return _NO_TIMES, _NO_TIMES, _NO_TIMES, np.zeros(0)
        step, start, end, stamp, value = self._by_source[source]
        picked = np.isin(step, list(steps))
        return start[picked], end[picked], stamp[picked], value[picked]

    def edges(self, number: int) -> list[int]:
        """Return when a step began, when its load went on and off in turn, and when the step ended; unix ns."""
        step = self.steps[number]
        return [step["start_ns"], *step["edges_ns"].get(self._uuid, []), step["end_ns"]]

    def settle_ns(self, number: int) -> int:
        """Return how long after an edge all sensors that a step's load is meant for have settled."""
        half_s = self.steps[number]["half_s"]
        assert half_s is not None, "only loads of plateaus have edges to settle after"
        return round(SETTLED * half_s * 1e9)

    def series(self, source: str, steps: Sequence[int]) -> tuple[Ints, Floats]:
        """Return stamps and values: by the driver's stamps, or when a new value was first read; a counter's as W."""
        start, end, stamp, value = self.calls(source, steps)
        if source == BUFFER:
            stamps, first = np.unique(stamp, return_index=True)
            return stamps, value[first]
        if source == COUNTER:
            return response.ticks_as_power(self.ticks(steps))
        if source == GPM:  # reads between two renewals have no value
            known = np.isfinite(value)
            return end[known], value[known]
        new = response.renewals(start, end, value)
        return new.time_ns, new.value

    def ticks(self, steps: Sequence[int]) -> Counter:
        """Return the counter's ticks in some steps, at the times of their beat where they keep one."""
        start, end, _, value = self.calls(COUNTER, steps)
        known = (value >= 0) & (value < 2**63)  # not for NaN either
        middle = (start + end) // 2
        return response.regular(counter(middle[known], value[known].astype(np.uint64)))

    def curve(self, source: str, steps: Sequence[int]) -> Curve:
        """Return power as it is integrated: at the buffer's stamps, or at each poll."""
        start, end, stamp, value = self.calls(source, steps)
        stamps = stamp if source == BUFFER else (start + end) // 2
        return curve(
            stamps, value, longest_ns=longest_spacing_ns(source, 20.0), highest_w=most_w(source)
        )
