"""The verb `doctor`: what this machine can measure. Apart from others, as it runs where their imports fail."""

from typing import Annotated

import typer

from wattflow.cli.arguments import AsJson
from wattflow.cli.printing import print_json, print_table, talk
from wattflow.doctor import examine
from wattflow.slurm.site import look


def doctor(
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Show the cluster's partitions in place of it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what this machine can measure, and what is missing.

    Sensors, rights, GPUs, Slurm and folders, as seen by this user.
    """
    if cluster:
        _cluster(as_json=as_json)
        return
    findings = examine()
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        print_table(["check", "status", "detail"], findings)


def _cluster(*, as_json: bool) -> None:
    """Show the partitions as Slurm has them, a row a kind of node."""
    site = look()
    rows = [
        {
            "partition": partition.name,
            "up": partition.is_up,
            "nodes": nodes.count,
            "nodes_up": nodes.up,
            "gpus": " + ".join(f"{n} {kind or 'gpu'}" for kind, n in nodes.gpus) or "none",
            "cpus": nodes.cpus,
            "memory_gib": None if nodes.memory_mb is None else nodes.memory_mb // 1024,
            "max_min": partition.max_min,
            "exclusive": partition.exclusive,
            "features": ",".join(nodes.features),
        }
        for partition in site.partitions
        for nodes in partition.nodes
    ]
    if as_json:
        print_json({"cluster": site.cluster, "version": site.version, "partitions": rows})
        return
    if rows:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
    talk(f"Slurm {site.version or 'of unknown version'}, cluster {site.cluster or 'unknown'}.")
    if site.accounts:
        talk(f"your accounts: {', '.join(site.accounts)}; QOS: {', '.join(site.qos) or 'none'}.")
    for said in site.unanswered:
        talk(f"not answered: {said}")
    talk("`wattflow init-site NAME` writes a first profile for the one with most GPUs.")
