"""The verb `doctor`: what this machine can measure. Apart from others, as it runs where their imports fail."""

from wattflow.cli.arguments import AsJson
from wattflow.cli.printing import print_json, print_table
from wattflow.doctor import examine


def doctor(as_json: AsJson = False) -> None:
    """Show what this machine can measure, and what is missing.

    Sensors, rights, GPUs, Slurm and folders, as seen by this user.
    """
    findings = examine()
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        print_table(["check", "status", "detail"], findings)
