"""Join the rates of a command's nodes, each of which has a window of its own.

    node 1   |----- 10 s, 3,000 J, 100 tokens -----|              300 W   10 tokens/s
    node 2   |----- 30 s, 9,000 J, 300 tokens ----------- ... |   300 W   10 tokens/s
    both     12,000 J, 400 tokens                                 600 W   20 tokens/s

Over either node's window alone the sums would make other watts and tokens a second. Joules a token need no window.
"""

from collections.abc import Mapping, Sequence

from wattflow.collect.quantities import POWER_TIME, Amount, close
from wattflow.collect.reading import Spans
from wattflow.energy.curve import Joules
from wattflow.nullable import complete_sum, known_sum, quadrature, quotient
from wattflow.store.phases import NOT_WITHIN
from wattflow.store.schema import Part
from wattflow.store.sources import SECOND_NS


def rates(
    ranks: Mapping[int, Spans],
    command_parts: Sequence[Part],
    devices: Mapping[str, Sequence[Joules]],
    beside: Mapping[str, Mapping[str, Amount]],
) -> dict[str, float | None]:
    """Return the columns that are rates of a command over several nodes, and replace ratios of its sums.

    `devices` are the joules in their node's window, by node; none where the energy is withheld. Those `beside` them are
    by boundary, then by node. Empty for one node, and
    where no window is 1 % longer than another, so that the sums over one of them are as good.
    """
    spans = {one.device.node: one for _, one in sorted(ranks.items(), reverse=True)}
    windows = {node: one.window() for node, one in spans.items()}
    seconds = {node: (w[1] - w[0]) / SECOND_NS for node, w in windows.items() if w is not None}
    if not seconds or close(min(seconds.values()), max(seconds.values()), POWER_TIME):
        return {}
    tokens = _tokens(spans, command_parts)
    joules = [one for node in seconds for one in devices.get(node, ())]
    return {
        "power_w": complete_sum(quotient(one.energy_j, one.seconds) for one in joules),
        "power_u_w": quadrature(quotient(one.u_j, one.seconds) for one in joules),
        **{
            f"{of}_power_w": complete_sum(
                quotient(energies[node].energy_j if node in energies else None, seconds[node])
                for node in seconds
            )
            for of, energies in beside.items()
            if of != "accelerator"
        },
        "tokens_per_s": complete_sum(quotient(n, seconds.get(node)) for node, n in tokens.items()),
    }


def _tokens(spans: Mapping[str, Spans], parts: Sequence[Part]) -> dict[str, int]:
    """Return the output tokens by node: those of --tokens-json where a node has some, else those of the spans."""
    by_file = {part["node"]: n for part in parts if (n := part["tokens_out"]) is not None}
    if by_file:
        return by_file
    by_spans = {node: _kept(of_node) for node, of_node in spans.items()}
    return {node: n for node, n in by_spans.items() if n is not None}


def _kept(spans: Spans) -> int | None:
    pairs = zip(spans.tokens["tokens_kept"], spans.phase, strict=True)
    return known_sum(n for n, phase in pairs if phase not in NOT_WITHIN)
