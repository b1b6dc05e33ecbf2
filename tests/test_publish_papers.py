"""What people read of results is held to them: a report's figures, and a bundle's papers."""

import json
import re

import pytest
from sweeps import Gpu, Made, choices, collected, constant

from wattflow.publish.papers import joules_problems, lock_problems, means_problems
from wattflow.publish.verify import verify
from wattflow.report import methods
from wattflow.report.page import report


@pytest.fixture
def sweep(tmp_path):
    """Batches of 4 on a board of 100 W and of 8 on one of 200: 850 and 1,700 J, 4.25 and 8.5 J/token."""
    points = [choices(batch_size=size) for size in (4, 8)]
    made = [Made([Gpu("GPU-a", constant(watts))]) for watts in (100.0, 200.0)]
    return collected(tmp_path / "s", made, points)


def edit_json(page, change):
    """Change the figures in a page's JSON."""
    text = page.read_text()
    held = re.search(r'(<script id="wattflow-figures"[^>]*>)(.*?)(</script>)', text, re.DOTALL)
    figures = json.loads(held[2])
    change(figures)
    page.write_text(text[: held.start(2)] + json.dumps(figures) + text[held.end(2) :])


# --- the report -----------------------------------------------------------------------------------


def test_an_untouched_report_passes(sweep):
    """Nothing is found, and nothing is left uncompared."""
    report(sweep)
    verdict = verify(sweep.directory.path)
    assert (verdict.problems, verdict.notes) == ([], [])


def test_a_figure_edited_in_the_json_is_found(sweep):
    """150 W in place of 200: the problem says where, and how the report is drawn anew."""
    page = report(sweep)
    edit_json(page, lambda f: f["results"][1]["means"]["power_w"].update(mean=150.0))
    (problem,) = verify(sweep.directory.path).problems
    assert "report.html shows other figures" in problem
    assert "`wattflow report" in problem
    assert "results 2 means power_w mean: 150.0, recomputed 200.0" in problem


@pytest.mark.parametrize(
    ("text", "other"),
    [
        (">200 ± 14</td>", ">150 ± 14</td>"),  # a cell of the results
        ("<b>2,550 ± 210 J</b>", "<b>2,050 ± 210 J</b>"),  # what the sweep took
        ('<td class="n">2.000</td>', '<td class="n">1.000</td>'),  # the ratio of the two
        ("</tbody>", '<tr><td class="n">16</td></tr></tbody>'),  # a row more
    ],
)
def test_a_figure_edited_in_a_table_is_found(sweep, text, other):
    """What a person sees is held to the results too: its JSON may be as it was."""
    page = report(sweep)
    assert text in page.read_text()
    page.write_text(page.read_text().replace(text, other, 1))
    verdict = verify(sweep.directory.path)
    assert not verdict.verified
    assert "report.html shows other figures" in verdict.problems[0]


def test_a_stale_report_is_found(sweep, tmp_path):
    """A report that was drawn before half of the points were there."""
    page = report(sweep).read_text()
    half = collected(
        tmp_path / "half", [Made([Gpu("GPU-a", constant(100.0))])], [choices(batch_size=4)]
    )
    half.directory.report_path.write_text(page)
    assert "report.html shows other figures" in verify(half.directory.path).problems[0]


def test_a_report_from_before_is_said_to_be(sweep):
    """Without embedded figures nothing of it is compared, and a note says so; the tables are compared as ever."""
    page = report(sweep)
    text = re.sub(
        r'<script id="wattflow-figures".*?</script>', "", page.read_text(), flags=re.DOTALL
    )
    page.write_text(text)
    verdict = verify(sweep.directory.path)
    assert verdict.verified
    (note,) = verdict.notes
    assert "report.html: predates reports that hold their figures as JSON" in note
    assert sum(one.figures for one in verdict.attempts) > 200


def test_a_report_of_another_wattflow(sweep):
    """Its JSON is compared; how it laid the figures out is not, which a note says."""
    page = report(sweep)
    edit_json(page, lambda f: f.update(wattflow="0.0.9"))
    page.write_text(
        page.read_text().replace('<td class="n">200 ± 14</td>', '<td class="n">200.0</td>')
    )
    verdict = verify(sweep.directory.path)
    assert verdict.verified
    assert "drawn by another wattflow" in verdict.notes[0]
    edit_json(page, lambda f: f["cards"].update(tokens=1.0))
    assert "cards tokens: 1.0, recomputed 400.0" in verify(sweep.directory.path).problems[0]


def test_figures_in_a_form_of_another_version(sweep):
    """A later version's JSON is not guessed at."""
    edit_json(report(sweep), lambda f: f.update(version=99))
    verdict = verify(sweep.directory.path)
    assert verdict.verified
    assert "a form of another version, not compared" in verdict.notes[0]


def test_json_that_is_none(sweep):
    """A cut document is a problem of the report, and no traceback."""
    page = report(sweep)
    page.write_text(page.read_text().replace('{"version"', '{"version', 1))
    assert "are no JSON" in verify(sweep.directory.path).problems[0]


# --- METHODS.md, README.md, lock.txt --------------------------------------------------------------


def rows_of(sweep):
    return sweep.attempts.to_dicts()


def test_the_means_of_methods_follow(sweep):
    """Untouched nothing is found; with 170 W in place of 200 both lines are told."""
    text = methods.text(rows_of(sweep), [])
    assert means_problems(text, rows_of(sweep)) == ([], [])
    ((problem,), notes) = means_problems(
        text.replace("| 200 ± 14 |", "| 170 ± 14 |"), rows_of(sweep)
    )
    assert problem.startswith("METHODS.md: | 8 | 1 | 23.529 | 170 ± 14 |")
    assert "where the means are | 8 | 1 | 23.529 | 200 ± 14 |" in problem
    assert notes == []


def test_a_line_more_or_less_is_found(sweep):
    """A setting that is left out, and one that stands twice."""
    text = methods.text(rows_of(sweep), [])
    line = next(line for line in text.splitlines() if line.startswith("| 8 |"))
    assert (
        "METHODS.md: nothing where" in means_problems(text.replace(line, ""), rows_of(sweep))[0][0]
    )
    twice = text.replace(line, f"{line}\n{line}")
    assert means_problems(twice, rows_of(sweep))[0][0].endswith("where the means are nothing")


def test_an_older_table_is_held_to_its_own_heading(tmp_path):
    """Means that pool two profiles follow from the rows as headed, 2 ± 1.4 J/token; a note says what they pool."""
    points = [choices(cluster__name=n, cluster__gpu_model=n) for n in ("site-a", "site-b")]
    made = [Made([Gpu("GPU-a", constant(energy_j * 200 / 8.5))]) for energy_j in (1.0, 3.0)]
    rows = collected(tmp_path / "s", made, points).attempts.to_dicts()
    table = """
| model | n | tokens_per_s | power_w | energy_per_token_j | energy_per_response_j | energy_j |
| --- | --- | --- | --- | --- | --- | --- |
| tiny | 2 | 23.529 ± 0 | ~47.059 ± 33 | ~2 ± 1.4 | ~50 ± 35 | ~400 ± 283 |
""".replace("~", "")
    problems, (note,) = means_problems(table, rows)
    assert problems == []
    assert (
        "its means are over points that differ in cluster, which this wattflow keeps apart" in note
    )
    assert len(means_problems(table.replace("2 ± 1.4", "2 ± 1.3"), rows)[0]) == 1


def test_the_joules_of_the_readme(sweep):
    """850 and 1,700 J are 2,550 J, with their doubt, or as papers of before have them."""
    for stated in ("2,550 ± 210 J", "2,550.0 J"):
        assert joules_problems(f"2 count: {stated} in their measured windows", rows_of(sweep)) == []
    assert joules_problems("2 count: 2,540 ± 210 J in their measured windows", rows_of(sweep)) == [
        "README.md: does not state the joules that count, 2,550 ± 210 J."
    ]


def test_the_versions_of_the_lock():
    """Another version of torch than the records have is found."""
    records = [{"versions": {"torch": "2.13.0"}}]
    text = methods.lock(records)
    assert lock_problems(text, records) == []
    assert lock_problems(text.replace("2.13", "2.12"), records) != []
