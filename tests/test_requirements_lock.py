"""The lock file names what pyproject.toml asks for, in versions that it allows."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED = dict(
    re.findall(r"^([a-z0-9-]+)==(\S+) \\$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
)
# of a machine without a GPU; vllm and transformers have environments of their own
ASKED = [
    *PROJECT["dependencies"],
    *(one for extra in ("engine", "query") for one in PROJECT["optional-dependencies"][extra]),
]


@pytest.mark.parametrize("text", ASKED)
def test_each_requirement_is_locked_in_a_version_that_it_allows(text):
    """By name and version; a new requirement without its line is found here."""
    asked = Requirement(text)
    assert asked.specifier.contains(LOCKED[asked.name].partition("+")[0])
