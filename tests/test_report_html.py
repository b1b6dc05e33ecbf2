"""Pages from templates: escaped, offline, and shipped with the package."""

import base64
import hashlib
import json
import re
from pathlib import Path

import jinja2
import pytest

from wattflow.report import html
from wattflow.report.html import asset, render

VENDORED = Path(html.__file__).parent / "vendored"
HOSTILE = "</script><img src=x>"


def test_what_others_wrote_is_escaped():
    """A title that holds markup is text in the page, and ends no element."""
    page = render("report/base.html.j2", title=HOSTILE)
    assert "<title>&lt;/script&gt;&lt;img src=x&gt;</title>" in page
    assert HOSTILE not in page


def test_a_page_fetches_nothing():
    """The policy forbids it, and the JavaScript that draws is in the page itself."""
    page = render("report/base.html.j2", title="t")
    assert "default-src 'none'" in page
    assert "vegaEmbed" in page
    assert "<script src" not in page


def test_a_forgotten_value_is_an_error():
    """A template that names a value which nobody gave fails, where a page with a hole in it would be worse."""
    with pytest.raises(jinja2.UndefinedError, match="title"):
        render("report/base.html.j2")


def test_scripts_and_styles_are_let_in_by_their_hash():
    """The policy names the sha256 of each inline script and style of the page, and neither others nor eval."""
    page = render("report/base.html.j2", title="t")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert "unsafe" not in policy
    inline = re.findall(r"<(script|style)>(.*?)</\1>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(of.encode()).digest()).decode() for _, of in inline]
    assert len(hashes) == 3
    assert sorted(re.findall(r"'sha256-([^']*)'", policy)) == sorted(hashes)


def test_what_others_wrote_of_a_page_is_as_they_released_it():
    """Files of other makers have the hashes of vendored.json, which names package, version and licence."""
    about = json.loads((VENDORED / "vendored.json").read_text())
    for name, sha256 in about["sha256"].items():
        assert hashlib.sha256((VENDORED / name).read_bytes()).hexdigest() == sha256
    assert about["licence"] == "MIT"
    assert "Permission is hereby granted" in (VENDORED / "LICENSE.txt").read_text()
    assert about["version"] in asset("report/vendored/dataTables.min.js")


@pytest.mark.parametrize(
    "name", ["draw.js", "report.js", "vendored/dataTables.min.js", "base.css", "report.css"]
)
def test_no_script_or_style_ends_its_element(name):
    """They stand in a page as they are."""
    assert not re.search(r"</(script|style)", asset(f"report/{name}"), re.IGNORECASE)
