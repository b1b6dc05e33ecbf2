"""The report of the paper: its files, verdicts, gaps and escaped text."""

import pytest
from paper_sweeps import table_three, write_rows

from wattflow.paper.objects import OBJECTS, chosen
from wattflow.paper.page import document, published_text, write
from wattflow.paper.published import of_object
from wattflow.paper.results import found


def test_a_page_an_svg_and_a_pdf_of_each_object(tmp_path):
    """With Table III's numbers, its slip, its verdicts, and the set-up of both."""
    table_three(tmp_path, repeats=3)
    here, notes = found("full", tmp_path)
    written = write("full", chosen(["table3"]), here, notes, tmp_path / "out")
    assert sorted(path.name for path in written.files) == ["table3.pdf", "table3.svg"]
    assert (tmp_path / "out" / "table3.pdf").read_bytes().startswith(b"%PDF")
    text = written.page.read_text()
    assert (
        "The text says 19.49 % time at 150 W; the mean of the table&#39;s own cells is 19.56 %."
        in text
    )
    assert "21.7 %" in text
    assert "V100 32 GB and A100 80 GB, capped at 250 W" in text
    by_claim = {one["claim"]: one for one in document(written)}
    saves = by_claim["The first cap below the limit saves energy."]
    assert (saves["verdict"], saves["comparisons"]) == ("holds", 3)
    assert 0.7 < saves["low"] < saves["high"] < 0.8


def test_every_object_is_drawn_though_nothing_was_run(tmp_path):
    """Published values and gaps, with a note; two objects stand for all in the files."""
    written = write("cpu", chosen(["fig2", "table5"]), [], ["Nothing was run."], tmp_path / "out")
    text = written.page.read_text()
    assert "Nothing was run." in text
    assert "not run at this scale" in text
    assert "No bar of this figure could be read: its published values are null." in text
    assert "A100 / V100, 13B: 1.25 times the token rate (text, text on Figure 2)." in text
    assert len(written.files) == 4


def test_what_others_wrote_is_escaped(tmp_path):
    """The name of a GPU and an error stand in the page as text."""
    bad = "<script>alert(1)</script>"
    measured = {"status": "failed", "counts": False, "error": bad, "gpu_name": bad}
    write_rows(tmp_path, "paper-shards", [({"shards": 2}, measured)])
    here, notes = found("full", tmp_path)
    text = write("full", [OBJECTS["table5"]], here, notes, tmp_path / "out").page.read_text()
    assert bad not in text
    assert "failed: &lt;script&gt;alert(1)" in text


def test_simulated_watts_carry_their_mark(tmp_path):
    """~ before each, and a note that no verdict rests on them."""
    chosen_by = {"shards": 1, "dataset__name": "gsm8k", "max_gen_len": 128}
    measured = {"simulated": True, "boundary": "host", "energy_j": 1234.0, "duration_s": 10.0}
    write_rows(tmp_path, "paper-scaling", [(chosen_by, measured)])
    here, notes = found("full", tmp_path)
    text = write("full", [OBJECTS["fig4"]], here, notes, tmp_path / "out").page.read_text()
    assert "~123 W" in text
    assert "no verdict on energy rests on them" in text


@pytest.mark.parametrize(
    ("name", "text"), [("fig6", "3 to 4 J/token"), ("fig7", "null"), ("table2", "1 GPUs")]
)
def test_published_numbers_read_with_their_units(name, text):
    """A range with both ends; null for a bar."""
    assert published_text(of_object(name)[0]) == text
