"""What a calibration read of the sensors of one GPU, as arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wattflow.calibrate.sources import BUFFER, COUNTER, GPM, NAMES, NONE, SETTLED, WATCHED
from wattflow.energy import response
from wattflow.energy.counter import Counter, counter
from wattflow.energy.curve import Curve, Floats, Ints, curve
from wattflow.store.sources import longest_spacing_ns

# --- what follows ---------------------------------------------------------------------------------


class Reads:
    """What the sensors of one GPU gave, by source and step."""

    def __init__(self, record: Mapping[str, Any], gpu: Mapping[str, Any], table: pa.Table) -> None:
        self.steps: list[dict[str, Any]] = record["steps"]
        self.uuid = gpu["uuid"]
        self._of = {
            source: [
                part[name].fill_null(0).to_numpy()
                for name in ("step", "start_ns", "end_ns", "stamp_ns", "value")
            ]
            for source in NAMES
            if len(part := table.filter(pc.equal(table["source"], source)))
        }

    @property
    def sources(self) -> list[str]:
        """The sources that gave anything, in the order of WATCHED."""
        return [source for source in WATCHED if source in self._of]

    def numbers(self, *names: str) -> list[int]:
        """The places of the steps of these names."""
        return [k for k, step in enumerate(self.steps) if step["name"] in names]

    def of(self, source: str, steps: Sequence[int]) -> tuple[Ints, Ints, Ints, Floats]:
        """Start, end, the driver's stamp and value of a source's reads in some steps."""
        if source not in self._of:
            return NONE, NONE, NONE, np.zeros(0)
        step, start, end, stamp, value = self._of[source]
        picked = np.isin(step, list(steps))
        return start[picked], end[picked], stamp[picked], value[picked]

    def edges(self, step: int) -> list[int]:
        """When a step began, its load went on and off in turn, and the step ended; unix ns."""
        told = self.steps[step]
        return [told["start_ns"], *told["edges_ns"].get(self.uuid, []), told["end_ns"]]

    def settle_ns(self, step: int) -> int:
        """How long after an edge of a load all sensors that it is for have settled."""
        return round(SETTLED * float(self.steps[step]["half_s"]) * 1e9)

    def series(self, source: str, steps: Sequence[int]) -> tuple[Ints, Floats]:
        """Stamps and values: the driver's own stamps, or when a new value was first seen; a counter's as watts."""
        start, end, stamp, value = self.of(source, steps)
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
        """The ticks of the counter in some steps, on their beat where they keep one."""
        start, end, _, value = self.of(COUNTER, steps)
        return response.regular(counter((start + end) // 2, value.astype(np.uint64)))

    def curve(self, source: str, steps: Sequence[int]) -> Curve:
        """Power as it would be integrated: by the buffer's stamps, or as often as it was polled."""
        start, end, stamp, value = self.of(source, steps)
        stamps = stamp if source == BUFFER else (start + end) // 2
        return curve(stamps, value, longest_ns=longest_spacing_ns(source, 20.0))
