"""Tags and notes of a sweep."""

import pytest

from wattflow.errors import DamagedError, RefusedError
from wattflow.store.layout import SweepDir, notes_path
from wattflow.store.notes import Notes, add, check, read


@pytest.fixture
def sweep(tmp_path):
    made = SweepDir(tmp_path / "s")
    made.make()
    return made


def test_tags_and_notes_add_up(sweep):
    """Tags once each and in order, notes as they came; a tag alone is no note."""
    assert read(sweep) == Notes()
    add(sweep, ["paper", "a100"], "first try")
    add(sweep, ["paper"], "")
    add(sweep, [], "after the new driver")
    assert read(sweep) == Notes(("a100", "paper"), ("first try", "after the new driver"))


@pytest.mark.parametrize(
    ("tags", "note"), [(["a b"], ""), (["../x"], ""), ([], "two\nlines"), ([], "x" * 501)]
)
def test_what_is_no_tag_or_no_line_is_refused(tags, note):
    """Before anything is sent or written."""
    with pytest.raises(RefusedError, match=r"--tag|--note"):
        check(tags, note)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"tags": [1], "notes": []}', '{"tags": [], "notes": ["x"]}', "x"]
)
def test_a_damaged_file_is_named(text, sweep):
    """In one line."""
    notes_path(sweep).write_text(text)
    with pytest.raises(DamagedError, match=r"notes\.json"):
        read(sweep)
