"""The verb `init-site`: a first profile of a cluster, for its user to check."""

from pathlib import Path
from typing import Annotated

import typer

from wattflow.cli.printing import print_text, talk
from wattflow.errors import RefusedError
from wattflow.slurm.profile import profile
from wattflow.slurm.site import look
from wattflow.store.files import check_name, make_folder, write_atomic


def init_site(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The profile's name: cluster=NAME.")],
    partition: Annotated[
        str | None,
        typer.Option("--partition", metavar="NAME", help="By default the one with most GPUs."),
    ] = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("-n", "--dry-run", help="Print the profile and write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a profile of that name.")] = False,
) -> None:
    """Write a first profile of this cluster for you to check.

    conf/cluster/NAME.yaml follows from sinfo, scontrol and sacctmgr; each line that Slurm cannot know is marked CHECK.
    """
    path = Path("conf") / "cluster" / f"{check_name(name, 'profile')}.yaml"
    if path.exists() and not (force or dry_run):
        raise RefusedError(
            f"{path}: there already. --force replaces it, -n shows what it would be."
        )
    made = profile(look(), name, partition)
    if dry_run:
        print_text(made.text.rstrip("\n"))
    else:
        make_folder(path.parent.parent, 0o755)
        make_folder(path.parent, 0o755)
        write_atomic(path, made.text.encode(), 0o644)
        print_text(str(path))
    for one in made.to_check:
        talk(f"check {one}")
    talk(f"`wattflow plan cluster={name} --script` shows the job that it makes.")
