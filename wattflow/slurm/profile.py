"""A first profile of a site, from what its Slurm says: YAML with a comment beside what its user has to check."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from wattflow.errors import RefusedError, printable
from wattflow.slurm.site import Nodes, Partition, Site, is_slice

_TIME_MIN = 60
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_@./-]*")


@dataclass(frozen=True)
class Profile:
    """A profile's text, and what in it could not be known."""

    text: str
    to_check: list[str]


def profile(site: Site, name: str, wanted: str | None = None) -> Profile:
    """Return a profile for a partition, by default the one with most GPUs that the caller may use.

    RefusedError where there is no such partition, or none with whole GPUs.
    """
    partition = _chosen(site, wanted)
    nodes = max(_whole(partition), key=lambda one: (one.up, one.gpus_per_node))
    kinds = sorted({kind for one in _whole(partition) for kind, _ in one.gpus}, key=str)
    kind, gpus = max(nodes.gpus, key=lambda one: one[1])
    check: list[str] = []
    where = f"{site.cluster or 'this site'}, Slurm {site.version or 'of unknown version'}"
    lines = [
        f"# A first profile of {where}, made by `wattflow init-site`.",
        "# Check each line: `wattflow plan --script cluster=NAME` shows the job, docs/sites.md what sites differ by.",
        f"name: {_text(name)}",
        "launcher: slurm",
        f"partition: {_text(partition.name)}{_others(site, partition)}",
    ]
    lines += _who(site, partition, check)
    lines += _gpu_lines(site, nodes, kind, gpus, check)
    if len(kinds) > 1 or len({one.gpus for one in _whole(partition)}) > 1:
        feature = _telling(nodes, _whole(partition))
        named = ", ".join(str(one) for one in kinds)
        check.append(f"partition {partition.name} mixes nodes (GPUs: {named})")
        lines.append(
            f"constraint: {_text(feature) if feature else 'null'} # the partition mixes nodes; of this kind: "
            f"{', '.join(nodes.features) or 'no features'}"
        )
    lines += _limits(site, partition, nodes, gpus)
    lines += [
        "setup: [] # lines of shell that make your environment on the node, such as `module load cuda`",
        "python: null # the interpreter that submits; `python` with an environment from setup",
    ]
    lines += [f"# not answered: {' '.join(said.split())}" for said in site.unanswered]
    check += [f"not answered: {said}" for said in site.unanswered]
    # a comment with a letter that YAML takes for the end of a line would go on as a key
    return Profile("".join(f"{printable(line)}\n" for line in lines), check)


def _chosen(site: Site, wanted: str | None) -> Partition:
    if wanted is not None:
        found = next((one for one in site.partitions if one.name == wanted), None)
        if found is None:
            there = ", ".join(one.name for one in site.partitions)
            raise RefusedError(f"--partition {wanted}: no such partition. There are {there}.")
        if not _whole(found):
            raise RefusedError(
                f"--partition {wanted}: no node of it has whole GPUs. MIG slices are refused: their power is the "
                "whole board's."
            )
        return found
    able = [one for one in site.partitions if one.is_up and _whole(one) and _may(site, one)]
    if not able:
        raise RefusedError(
            "no partition that you may use has GPUs by sinfo. Where GPUs come with a partition that names none, say "
            "--partition NAME after adding gres to it, or write a profile by hand (docs/sites.md)."
        )
    return max(able, key=lambda one: (one.gpus, one.is_default))


def _whole(partition: Partition) -> list[Nodes]:
    """Return the kinds of nodes with GPUs that are no slices."""
    return [
        one
        for one in partition.nodes
        if one.gpus and not any(is_slice(kind) for kind, _ in one.gpus)
    ]


def _may(site: Site, partition: Partition) -> bool:
    """Whether one of the caller's accounts may use a partition, as far as that is known."""
    allowed = partition.accounts
    return allowed is None or not site.accounts or bool(set(allowed) & set(site.accounts))


def _others(site: Site, chosen: Partition) -> str:
    others = [one.name for one in site.partitions if one is not chosen and _whole(one)]
    return f" # others with GPUs: {', '.join(others)}" if others else ""


def _who(site: Site, partition: Partition, check: list[str]) -> list[str]:
    """Return account, QOS and wckey."""
    allowed = [
        one for one in site.accounts if partition.accounts is None or one in partition.accounts
    ]
    lines = []
    if allowed and (site.enforces_accounts or partition.accounts is not None):
        more = f" # or {', '.join(allowed[1:])}" if len(allowed) > 1 else ""
        lines.append(f"account: {_text(allowed[0])}{more}")
        if len(allowed) > 1:
            check.append(f"account: you have {', '.join(allowed)}")
    else:
        lines.append("account: null # the site's default")
    qos = [one for one in site.qos if partition.qos is None or one in partition.qos]
    lines.append(f"qos: null # yours: {', '.join(qos)}" if qos else "qos: null")
    if site.tracks_wckeys:
        lines.append("wckey: null # this site tracks wckeys, and may want one")
        check.append("wckey: the site tracks them")
    return lines


def _gpu_lines(
    site: Site, nodes: Nodes, kind: str | None, gpus: int, check: list[str]
) -> list[str]:
    request = "gpus-per-node" if site.by_gpus else "gres"
    model = _slug(kind) if kind else None
    check.append("gpu_model: the GPUs' name, part of every point_id")
    check.append("gpu_memory_gib: without it no point is refused for memory")
    typed = len(nodes.gpus) > 1 or kind is not None
    return [
        f"gpus_per_node: {gpus}",
        f"gpu_request: {request}",
        f"gpu_type: {_text(kind) if typed and kind else 'null'}",
        f"gpu_model: {_text(model) if model else 'null'} # CHECK: as `nvidia-smi -L` has it, such as h100-sxm5-80gb",
        "gpu_memory_gib: null # CHECK: of one GPU, such as 80",
    ]


def _limits(site: Site, partition: Partition, nodes: Nodes, gpus: int) -> list[str]:
    cpus = max(1, (nodes.cpus or gpus) // gpus)
    longest = partition.max_min
    time_min = min(_TIME_MIN, longest) if longest else _TIME_MIN
    limit = f" # of one task; the partition's limit is {longest}" if longest else " # of one task"
    memory = (
        ""
        if nodes.memory_mb is None
        else f" # the site's default; a node has {nodes.memory_mb // 1024}"
    )
    lines = [
        f"cpus_per_rank: {cpus} # a node has {nodes.cpus}",
        f"mem_gb_per_node: null{memory}",
        f"time_min: {time_min}{limit}",
        f"max_array_size: {site.max_array_size or 1001}",
    ]
    if site.max_submit is not None:
        lines.append(f"max_tasks: {site.max_submit} # MaxSubmitJobs")
    if partition.exclusive:
        lines.append(
            "bills: node # jobs have whole nodes here: a task of fewer ranks than GPUs leaves the others idle"
        )
    else:
        lines.append(
            "bills: gpu # CHECK: the site's hours, of the GPUs asked for or (node) of whole nodes"
        )
        lines.append(
            '# sbatch_options: {exclusive: ""} # CHECK: whole nodes, which no neighbour heats, and what they bill'
        )
    known = "" if site.accounting is not None else " # CHECK: whether sacct answers"
    lines.append(f"accounting: {'false' if site.accounting is False else 'true'}{known}")
    return lines


def _telling(nodes: Nodes, all_nodes: Sequence[Nodes]) -> str | None:
    """Return a feature that these nodes have and no others of the partition do; null where there is none."""
    counts = Counter(feature for one in all_nodes for feature in set(one.features))
    return next((feature for feature in nodes.features if counts[feature] == 1), None)


def _slug(kind: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")


def _text(value: str) -> str:
    """Return a text as YAML writes it: bare where it can be nothing else, else in JSON's quotes."""
    plain = _PLAIN.fullmatch(value) and value.lower() not in ("null", "true", "false", "yes", "no")
    return value if plain else json.dumps(value, ensure_ascii=True)
