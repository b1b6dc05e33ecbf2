"""The study's page: its plan is that of its hash, and its smallest differences are those of `resolve`."""

import hashlib
import re
from pathlib import Path

import pytest
import yaml

import wattflow
from wattflow.analysis.resolve import resolvable
from wattflow.plan.hydra import group_files

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "study.md").read_text()
PLAN = re.search(r"<!-- plan -->\n(.*?)<!-- /plan -->", TEXT, re.DOTALL)[1]


def test_the_plan_is_that_of_its_hash():
    """A change of the plan changes the hash that was published with it."""
    assert f"`{hashlib.sha256(PLAN.encode()).hexdigest()}`" in TEXT


@pytest.mark.parametrize(
    ("watts", "repeats", "percent"),
    [((600.0, 600.0), 3, "1.13 %"), ((350.0, 600.0), 3, "1.92 %"), ((600.0, 600.0), 5, "0.73 %")],
)
def test_its_smallest_differences_are_computed(watts, repeats, percent):
    """By the code of `wattflow resolve`."""
    assert f"{100 * resolvable(watts, 1, repeats):.2f} %" == percent
    assert percent in PLAN


def test_the_grids_that_it_names_are_there():
    """Each question's grid is a file."""
    named = set(re.findall(r"`(question-[a-z]+)`", TEXT))
    assert named == {name for name in group_files("grid") if name.startswith("question-")}


def test_the_citation_has_this_version():
    """CITATION.cff is YAML with the version of the package."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == wattflow.__version__
    assert cited["license"] == "Apache-2.0"
