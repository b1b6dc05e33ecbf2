"""Tables in a terminal of 80 and of 60 columns: they fit, and no number is broken."""

import re
import sys

import pytest
from rich.cells import cell_len
from sweeps import Gpu, Made, choices, constant, make_attempt, make_sweep

from wattflow.cli import closing, tables
from wattflow.cli.app import app
from wattflow.collect.collect import collect
from wattflow.errors import WattflowError
from wattflow.store.layout import SweepDir

HEADINGS = ["point_id", "n", "what happened"]
ROWS = [["0123456789ab", "12,345.6", "batch_size=8 model=llama-7b"], ["ba9876543210", "7", "-"]]


def laid(width, rows=ROWS, headings=HEADINGS, numbers=(1,)):
    return tables.lines([headings, *rows], numbers, width)


def test_a_table_that_fits_stands_as_it_is():
    """Columns are parted by two blanks, numbers stand on the right."""
    assert laid(80) == (
        ["point_id             n  what happened"],
        [
            "0123456789ab  12,345.6  batch_size=8 model=llama-7b",
            "ba9876543210         7  -",
        ],
    )


def test_long_texts_are_wrapped_at_blanks_and_marks():
    """The column of text gives way, those of ids and numbers do not."""
    assert laid(45)[1][:2] == [
        "0123456789ab  12,345.6  batch_size=8 model=",
        "                        llama-7b",
    ]


def test_where_no_table_fits_each_row_is_a_list():
    """A line a column, an empty one between two rows, no line of headings."""
    assert laid(30) == (
        [],
        [
            "point_id       0123456789ab",
            "n              12,345.6",
            "what happened  batch_size=8",
            "               model=llama-7b",
            "",
            "point_id       ba9876543210",
            "n              7",
            "what happened  -",
        ],
    )


@pytest.mark.parametrize(
    "whole",
    ["-1.25e-05", "1,234,567.8", "119/120", "2026-11-30", "12:30:05", "123_4", "~0.25", "+3.5"],
)
def test_no_number_time_or_id_is_broken(whole):
    """At the mark within it."""
    lines = tables.wrapped(f"measured in {whole} of something", len(whole))
    assert whole in lines


def test_wide_letters_count_double():
    """A table of Chinese names is aligned by cells, not by letters."""
    _, (first, second) = laid(80, [["模型", "1", "a"], ["ab", "2", "b"]])
    assert cell_len(first[: first.index("a")]) == cell_len(second[: second.index("b", 3)])


@pytest.mark.parametrize("width", [1, 10, 20])
def test_a_terminal_of_no_width_is_no_error(width):
    """As a pipe's far end may say of itself."""
    assert laid(width)


# --- each verb ------------------------------------------------------------------------------------

LONG = "Meta-Llama-3.1-405B-Instruct-FP8-dynamic-per-token-with-a-suffix-of-its-own"
DATA = "open-orca-deduplicated-and-filtered-in-november-of-2026"
NAME = "by-control.power_limit_w-batch_size-and-model-with-more-0a1b2c3d"
WHY = (
    "its task ended as OUT_OF_MEMORY, as when a rank is killed: CUDA out of memory. Tried to allocate 20.31 GiB. GPU 0 "
    "has a total capacity of 79.10 GiB of which 1,234.5 MiB is free; see "
    "/scratch/project_462000123/somebody/sweeps/long/points/logs/error-rank0.json"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a collected sweep of long names: two caps, two batch sizes, two repeats; one point failed."""
    home = tmp_path_factory.mktemp("home")
    names = {"model__name": LONG, "dataset__name": DATA, "cluster__launcher": "slurm"}
    points = [
        choices(batch_size=size, control__power_limit_w=cap, repeat=repeat, **names)
        for size in (8, 16)
        for cap in (300, 400)
        for repeat in (0, 1)
    ]
    bad = choices(batch_size=1024, control__power_limit_w=400, **names)
    sweep = make_sweep(home / "sweeps" / NAME, [*points, bad])
    for number, point in enumerate(points):
        limit = float(point["control"]["power_limit_w"])
        watts = limit * (0.9 + 0.01 * point["repeat"])
        gpu = Gpu(f"GPU-0a1b2c3d-0000-4000-8000-{number % 2:012}", constant(watts))
        make_attempt(sweep, point, Made([gpu], limit_w=limit, started_s=60.0 * number))
    failed = make_attempt(sweep, bad, Made([Gpu("GPU-b")], status="failed"))
    failed.write_record({**failed.read_record(), "error": WHY})
    collect(sweep)
    return home


WORDS = {
    "status": [f"sweeps/{NAME}"],
    "list": [],
    "compare": [f"sweeps/{NAME}", "--by", "batch_size"],
    "caps": [f"sweeps/{NAME}", "--reference", "400"],
    "cost": [f"sweeps/{NAME}"],
    "usage": [],
    "explain": [f"sweeps/{NAME}", "FIRST"],
    "resolve": ["--watts", "300", "150"],
    "verify": [f"sweeps/{NAME}"],
    "bundle": [f"sweeps/{NAME}", "-n"],
    "crosscheck": [f"sweeps/{NAME}"],
    "pareto": [f"sweeps/{NAME}"],
    "query": ["select * from points", f"sweeps/{NAME}"],
    "keys": [],
    "doctor": [],
    "plan": ["grid=paper-scaling", "n_prompts=8", f"model.name={LONG}", f"sweep={NAME}"],
}
NUMBER = re.compile(r"(?<![\w.-])[~+-]?\d[\d,.]*(?:e[+-]?\d+)?(?![\w.])")


@pytest.fixture
def drawn(monkeypatch, fake):
    """What was laid out for the terminal that stdout now is, of 80 columns: of each table the cells, and its lines.

    The lines of 60 columns are laid out beside them, without another run of the verb.
    """
    monkeypatch.setenv("COLUMNS", "80")
    fake.accounting("17.0|123456", "17.batch|1")
    found = []
    lay = tables.lines

    def lines(cells, numbers, width):
        for columns in (60, 80):
            head, body = lay(cells, numbers, columns)
            found.append((cells, columns, [*head, *body]))
        assert width == 80
        return head, body

    monkeypatch.setattr(tables, "lines", lines)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    return found


def assert_fit(drawn):
    assert drawn
    for cells, columns, lines in drawn:
        assert len(cells) > 1
        assert max(map(cell_len, lines)) <= columns
        for text in (text for row in cells for text in row):
            for number in NUMBER.findall(text):
                assert any(number in line for line in lines), number


@pytest.mark.parametrize("verb", WORDS)
def test_the_table_of_every_verb_fits(verb, folder, drawn, monkeypatch):
    """Of a sweep with long names, on real results; numbers stand whole."""
    monkeypatch.chdir(folder)
    first = next((folder / "sweeps" / NAME / "points").iterdir()).name
    words = [first if word == "FIRST" else word for word in WORDS[verb]]
    with pytest.raises(SystemExit) as ended:
        app([verb, *words], standalone_mode=True)
    assert ended.value.code in (
        (3, 5) if verb == "status" else (0, 1) if verb == "verify" else (0,)
    )
    assert_fit(drawn)


def test_the_closing_table_fits(folder, drawn):
    """That `submit --wait` and `run` end with."""
    with pytest.raises(WattflowError, match="did not finish"):
        closing.close(SweepDir(folder / "sweeps" / NAME))
    assert_fit(drawn)
