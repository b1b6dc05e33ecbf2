"""How long requests took that came while others were in work, from the moment at which each was meant to be sent.

    due ---- sent -- first read ------- first token - token - token - last token
     | late_s |                                |  itl  |
     | queue                |                  | tpot x (tokens - 1)    |
     | ttft                                    |
     | e2e                                                              |

A loop that is late sends late: times from the sending would hide what a user waits.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from wattflow.collect.scheduling import Load
from wattflow.config.choices import Slo
from wattflow.store.sources import SECOND_NS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SHARE = 0.1  # of the requests that came, by which those in the system grow where the engine does not keep up
_LEAST = 5.0  # requests, which a few bursts do not make


@dataclass(frozen=True)
class Latency:
    """Columns of results/points.parquet; null unless requests came while others were in work."""

    load_requests: int | None = None
    load_tokens_in: int | None = None
    late_s: float | None = None
    queue_p50_s: float | None = None
    queue_p90_s: float | None = None
    queue_p95_s: float | None = None
    queue_p99_s: float | None = None
    ttft_p50_s: float | None = None
    ttft_p90_s: float | None = None
    ttft_p95_s: float | None = None
    ttft_p99_s: float | None = None
    itl_p50_s: float | None = None
    itl_p90_s: float | None = None
    itl_p95_s: float | None = None
    itl_p99_s: float | None = None
    tpot_p50_s: float | None = None
    tpot_p90_s: float | None = None
    tpot_p95_s: float | None = None
    tpot_p99_s: float | None = None
    e2e_p50_s: float | None = None
    e2e_p90_s: float | None = None
    e2e_p95_s: float | None = None
    e2e_p99_s: float | None = None
    saturated: bool | None = None
    good_requests: int | None = None


@dataclass(frozen=True)
class RequestTimes:
    """Times of n requests, s; arrays of n, and the gaps between the tokens of each. NaN where there are none."""

    queue_s: Floats
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    gaps_s: list[Floats]

    @property
    def slowest_s(self) -> Floats:
        """Each request's own 99th percentile between tokens; 0 for one of a single token."""
        return np.array(
            [float(np.percentile(gaps, 99)) if len(gaps) else 0.0 for gaps in self.gaps_s]
        )


def latency(load: Load, slo: Slo) -> tuple[Latency, list[str]]:
    """Return the times of the requests of a load's part, and reason codes."""
    if load.requests is None or load.counted is None or load.part is None:
        return Latency(), []
    requests = load.requests.filter(pa.array(load.counted))
    times = request_times(requests, load.first)
    due_ns, end_ns = (load.requests[name].to_numpy() for name in ("due_ns", "end_ns"))
    late_ns = requests["sent_ns"].to_numpy() - requests["due_ns"].to_numpy()
    grew = is_saturated(due_ns[load.counted], end_ns, due_ns) if load.mode == "open" else None
    gaps_s = np.concatenate([*times.gaps_s, np.zeros(0)])
    return Latency(
        load_requests=requests.num_rows,
        load_tokens_in=pc.sum(requests["tokens_in"]).as_py(),
        late_s=float(late_ns.max(initial=0)) / SECOND_NS,
        **_percentiles("queue", times.queue_s),
        **_percentiles("ttft", times.ttft_s),
        **_percentiles("itl", gaps_s),
        **_percentiles("tpot", times.tpot_s),
        **_percentiles("e2e", times.e2e_s),
        saturated=grew,
        good_requests=_good(times, slo),
    ), ["saturated"] if grew else []


def request_times(requests: pa.Table, iterations: pa.Table) -> RequestTimes:
    """Return the times of requests by the iterations of rank 0."""
    starts, ends = (iterations[name].to_numpy() for name in ("start_ns", "end_ns"))
    due_ns = requests["due_ns"].to_numpy()
    read = requests["prefill_steps"].to_pylist()
    tokens_s = [
        (ends[np.asarray(steps, np.int64)] - due) / SECOND_NS
        for steps, due in zip(requests["token_steps"].to_pylist(), due_ns, strict=True)
    ]
    first_s = np.array([made[0] if len(made) else np.nan for made in tokens_s])
    last_s = np.array([made[-1] if len(made) else np.nan for made in tokens_s])
    after = np.array([max(len(made) - 1, 0) for made in tokens_s])
    begun_s = [
        (starts[steps[0]] - due) / SECOND_NS if steps else np.nan
        for steps, due in zip(read, due_ns, strict=True)
    ]
    return RequestTimes(
        queue_s=np.array(begun_s),
        ttft_s=first_s,
        tpot_s=np.where(after > 0, (last_s - first_s) / np.maximum(after, 1), np.nan),
        e2e_s=last_s,
        gaps_s=[np.diff(made) for made in tokens_s],
    )


def is_saturated(arrived_ns: Ints, end_ns: Ints, due_ns: Ints) -> bool:
    """Whether the requests in the system grew from the first fifth of the arrivals to the last.

    `arrived_ns` are the arrivals looked at; `end_ns` and `due_ns` are of all requests.
    """
    if len(arrived_ns) < 2:
        return False
    at = np.sort(arrived_ns)
    came, left = np.sort(due_ns), np.sort(end_ns)
    inside = np.searchsorted(came, at, side="right") - np.searchsorted(left, at, side="right")
    fifth = max(1, len(at) // 5)
    growth = float(inside[-fifth:].mean() - inside[:fifth].mean())
    return growth > max(_LEAST, _SHARE * len(at))


def _percentiles(name: str, values_s: Floats) -> dict[str, float]:
    """Return four percentiles of a time as columns; none where no request has it."""
    known = values_s[np.isfinite(values_s)]
    if not len(known):
        return {}
    found = np.percentile(known, [50, 90, 95, 99])
    return {f"{name}_p{q}_s": float(x) for q, x in zip((50, 90, 95, 99), found, strict=True)}


def _good(times: RequestTimes, slo: Slo) -> int | None:
    """Return how many requests meet the targets; null where there is no target."""
    if slo.ttft_s is None and slo.itl_s is None:
        return None
    good = np.isfinite(times.ttft_s)
    if slo.ttft_s is not None:
        good &= times.ttft_s <= slo.ttft_s
    if slo.itl_s is not None:
        good &= times.slowest_s <= slo.itl_s
    return int(good.sum())
