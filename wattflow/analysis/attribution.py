"""The joules of each request of a load: a model's shares of measured joules, so that requests and idle are the meter.

Each block of time has measured joules. What a power model says of the requests in it and of idle is scaled to them:

    block     |   measured joules                     |
    shares    | idle | request 1 | request 2 | 3 | ...|

So requests + idle = meter on every device, whatever the model; the sums prove nothing of it. Two cruder models stand
beside: joules by tokens alone, and by the least bytes and FLOPs of the model's arithmetic. Their spread says how much
rests on the choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wattflow.analysis.power_model import (
    AMOUNTS,
    Floats,
    Ints,
    Overlaps,
    PowerModel,
    cut,
    delays_s,
    fit,
    overlaps,
)
from wattflow.config.choices import Model
from wattflow.store.sources import SECOND_NS, Response
from wattflow.workload import model as arithmetic

Bools = npt.NDArray[np.bool_]
BLOCK_S = 1.0
# of a forward pass on a current GPU, as the floors of docs/performance.md take them
_J_PER_BYTE, _J_PER_FLOP = 56e-12, 0.5e-12


@dataclass(frozen=True)
class Events:
    """What each request did in each iteration; arrays of one value an event."""

    request: Ints
    step: Ints
    amounts: Floats  # events x 5, see power_model.AMOUNTS
    requests: int

    def per_step(self, steps: int) -> Floats:
        """Return the amounts of all requests together by iteration, steps x 5."""
        columns = [np.bincount(self.step, column, steps) for column in self.amounts.T]
        return np.stack(columns, axis=1)

    def per_request(self, amounts: Floats) -> Floats:
        """Return the sums of one value an event by request."""
        return np.asarray(np.bincount(self.request, amounts, self.requests), np.float64)


@dataclass(frozen=True)
class Attribution:
    """The joules of n requests by three models, and what no request took; arrays of n, J of all devices together."""

    model: PowerModel
    request_j: Floats
    request_u_j: Floats  # standard uncertainty by the model's coefficients
    idle_j: float
    device_j: Floats  # of each device: requests x devices
    device_idle_j: Floats
    tokens_j: Floats  # by tokens alone
    work_j: Floats | None  # by bytes and FLOPs; null for a model whose arithmetic is not known
    measured_j: float
    amounts: Floats  # n x 5: of each request in all


@dataclass(frozen=True)
class Measured:
    """What the meter says of a load."""

    device_j: Floats  # joules of blocks, devices x blocks
    response: Response  # of the devices' sensors
    idle: tuple[float, float] | None = None  # joules and seconds of all devices, loaded and still
    whole: Bools | None = None  # blocks without a gap, that a model is fitted to; null: all

    @property
    def block_j(self) -> Floats:
        """Joules of blocks, of all devices together."""
        found: Floats = self.device_j.sum(axis=0)
        return found

    @property
    def idle_w(self) -> float:
        """Watts of all devices, loaded and still; 0 where they are unknown."""
        return self.idle[0] / self.idle[1] if self.idle and self.idle[1] > 0 else 0.0


def events(requests: pa.Table, seconds: Floats) -> Events:
    """Return what requests did in iterations of so many seconds, each shared evenly by its requests.

    `requests` are rows of requests.parquet. The first token comes with the prompt's last part; each later one reads all
    positions before it.
    """
    rows = zip(
        *(
            requests[name].to_pylist()
            for name in (
                "prefill_steps",
                "prefill_tokens",
                "token_steps",
                "cached_tokens",
                "tokens_in",
            )
        ),
        strict=True,
    )
    parts: list[tuple[Ints, Ints, Floats]] = []
    for number, (read, sizes, made, cached, tokens_in) in enumerate(rows):
        later = np.asarray(made[1:], np.int64)
        steps = np.concatenate([np.asarray(read, np.int64), later])
        amounts = np.zeros((len(steps), len(AMOUNTS)))
        amounts[: len(read), 1] = sizes
        if read:
            amounts[0, 2] = cached or 0
        amounts[len(read) :, 3] = 1.0
        amounts[len(read) :, 4] = tokens_in + 1 + np.arange(len(later))
        parts.append((np.full(len(steps), number), steps, amounts))
    request = np.concatenate([np.zeros(0, np.int64), *(part[0] for part in parts)])
    step = np.concatenate([np.zeros(0, np.int64), *(part[1] for part in parts)])
    whole = np.concatenate([np.zeros((0, len(AMOUNTS))), *(part[2] for part in parts)])
    # several tokens of one request in one iteration are one of its sequences
    pairs, at = np.unique(step * max(len(parts), 1) + request, return_inverse=True)
    of_step = np.bincount(pairs // max(len(parts), 1), minlength=len(seconds))
    whole[:, 0] = seconds[step] / of_step[step] / np.bincount(at)[at]
    return Events(request, step, whole, len(parts))


def blocks_of(iterations: pa.Table, least_s: float = BLOCK_S) -> Ints:
    """Return the iterations after which blocks end, and -1 for the start of the first: the same on all nodes."""
    start_ns = iterations["start_ns"].to_numpy()
    end_ns = iterations["end_ns"].to_numpy()
    base = start_ns[0]
    edges = cut((end_ns - base) / SECOND_NS, 0.0, least_s)
    return np.concatenate([[-1], np.searchsorted((end_ns - base) / SECOND_NS, edges[1:])])


def edges_ns(iterations: pa.Table, ends: Ints) -> Ints:
    """Return the edges of blocks by the clock of a node's own iterations."""
    end_ns = iterations["end_ns"].to_numpy()
    first = iterations["start_ns"].to_numpy()[:1]
    return np.concatenate([first, end_ns[ends[1:]]])


def attribute(
    requests: pa.Table, iterations: pa.Table, ends: Ints, measured: Measured, shapes: Model | None
) -> Attribution | None:
    """Return the joules of requests, by the iterations of rank 0; null where no model can be fitted.

    The meter's blocks are those that `ends` has. Its idle joules tell idle apart from a second of work.
    """
    start_ns, end_ns = (iterations[name].to_numpy() for name in ("start_ns", "end_ns"))
    start_s, end_s = (start_ns - start_ns[0]) / SECOND_NS, (end_ns - start_ns[0]) / SECOND_NS
    edges_s = (edges_ns(iterations, ends) - start_ns[0]) / SECOND_NS
    did = events(requests, end_s - start_s)
    falls = overlaps(start_s, end_s, edges_s, delays_s(measured.response))
    terms = np.column_stack([np.diff(edges_s), falls.of_blocks(did.per_step(len(start_s)))])
    found = fit(*_with_idle(terms, measured))
    if found is None:
        return None
    load = _Load(did, falls, terms)
    own_j = np.stack(
        [load.shared(row, terms @ found.joules, found.joules[1:]) for row in measured.device_j],
        axis=1,
    )
    totals = np.stack([did.per_request(column) for column in did.amounts.T], axis=1)
    spread = np.einsum("ri,ij,rj->r", totals, found.covariance[1:, 1:], totals)
    idle_by_device = measured.device_j.sum(axis=1) - own_j.sum(axis=0)
    return Attribution(
        model=found,
        request_j=own_j.sum(axis=1),
        request_u_j=np.sqrt(np.maximum(spread, 0.0)),
        idle_j=float(idle_by_device.sum()),
        device_j=own_j,
        device_idle_j=idle_by_device,
        tokens_j=load.by_weights(measured.block_j, _TOKENS),
        work_j=None if shapes is None else load.by_work(measured, shapes),
        measured_j=float(measured.device_j.sum()),
        amounts=totals,
    )


_TOKENS = np.array([0.0, 1.0, 0.0, 1.0, 0.0])


def _with_idle(terms: Floats, measured: Measured) -> tuple[Floats, Floats]:
    """Return the blocks without a gap, with those of the idle phase beside them, of a second each and all alike."""
    block_j = measured.block_j
    if measured.whole is not None:
        terms, block_j = terms[measured.whole], block_j[measured.whole]
    if measured.idle is None or measured.idle[1] <= 0:
        return terms, block_j
    joules, seconds = measured.idle
    count = max(1, int(seconds // BLOCK_S))
    still = np.zeros((count, terms.shape[1]))
    still[:, 0] = seconds / count
    return np.concatenate([terms, still]), np.concatenate([block_j, np.full(count, joules / count)])


@dataclass(frozen=True)
class _Load:
    """What requests did, how iterations fall into blocks, and the blocks' terms."""

    did: Events
    falls: Overlaps
    terms: Floats

    def shared(self, joules: Floats, modelled: Floats, weights: Floats) -> Floats:
        """Return each request's share of blocks' joules: its weighted amounts over what was modelled of the block."""
        factor = np.where(modelled > 0, joules / np.maximum(modelled, 1e-300), 0.0)
        each = self.did.amounts @ weights
        return self.did.per_request(each * self.falls.of_steps(factor)[self.did.step])

    def by_weights(self, joules: Floats, weights: Floats) -> Floats:
        """Return joules of requests in proportion to their weighted amounts in each block; none is left for idle."""
        return self.shared(joules, self.terms[:, 1:] @ weights, weights)

    def by_work(self, measured: Measured, shapes: Model) -> Floats:
        """Return joules of requests by the least bytes and FLOPs of their iterations, above idle."""
        read = arithmetic.read_parameters(shapes)
        kv_j = arithmetic.kv_bytes_per_token(shapes, "bf16") * _J_PER_BYTE
        attention_j = 4 * shapes.n_layers * arithmetic.query_width(shapes) * _J_PER_FLOP
        token_j = 2 * read * _J_PER_FLOP
        # an iteration reads the weights once, for all of its requests: in the place of its seconds
        steps, seconds = self.did.step, self.did.amounts[:, 0]
        whole_s = np.bincount(steps, seconds, self.falls.steps)[steps]
        once = seconds / np.maximum(whole_s, 1e-300)
        did = replace(self.did, amounts=np.column_stack([once, self.did.amounts[:, 1:]]))
        of_blocks = self.falls.of_blocks(did.per_step(self.falls.steps))
        load = _Load(did, self.falls, np.column_stack([self.terms[:, 0], of_blocks]))
        above_j = np.maximum(measured.block_j - measured.idle_w * self.terms[:, 0], 0.0)
        weights = np.array([2 * read * _J_PER_BYTE, token_j, 0.0, token_j, kv_j + attention_j])
        return load.by_weights(above_j, weights)


def class_energy(
    found: Attribution, members: Sequence[int], busy_s: float = 0.0
) -> tuple[float, float]:
    """Return what the load would take less without some requests, J, and its standard uncertainty by the model.

    `busy_s` are seconds of iterations that would not have been: others' iterations go on without them.
    """
    total = found.amounts[np.asarray(members, np.int64)].sum(axis=0)
    total[0] = busy_s
    u_j2 = float(total @ found.model.covariance[1:, 1:] @ total)
    return float(total @ found.model.joules[1:]), max(u_j2, 0.0) ** 0.5
