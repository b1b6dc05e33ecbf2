"""Pages from templates: escaped, offline, and shipped with the package."""

import jinja2
import pytest

from wattflow.report.html import render

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
