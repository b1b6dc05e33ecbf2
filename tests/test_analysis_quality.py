"""Right answers beside joules: shares with their interval, joules of failed tries, and why a number is missing."""

import json

import pyarrow as pa
import pytest
from sweeps import ABOUT, Gpu, Made, choices, constant, make_attempt, make_sweep

import wattflow
from wattflow.analysis.quality import DUMMY, NONE_RIGHT, of_answers, of_sweep, wilson
from wattflow.collect.collect import collect
from wattflow.config.choices import from_dict
from wattflow.errors import RefusedError
from wattflow.store.schema import REQUEST
from wattflow.store.tables import read_table, write_table
from wattflow.workload import prompts, tokenizer

ROW = {"point_id": "ab" * 6, "simulated": False}


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 1, 0.2065, 1.0)],
)
def test_wilsons_interval(right, n, low, high):
    """As tables have it."""
    assert wilson(right, n) == pytest.approx((low, high), abs=1e-4)


def test_joules_of_failed_tries_are_in_each_right_answer():
    """700 J of the answers and 300 J of a try that was cut short, over 5 right ones of 10: 200 J each."""
    attempts = [
        {"energy_j": None, "unfinished_energy_j": 300.0},
        {"energy_j": 700.0, "unfinished_energy_j": None},
    ]
    found = of_answers(ROW, attempts, [True, False] * 5, None)
    assert (found.right, found.answers, found.tries, found.energy_j) == (5, 10, 2, 1000.0)
    assert found.per_right_j == 200.0
    assert found.per_right_low_j == pytest.approx(100 / 0.7634, rel=1e-3)
    assert found.per_right_high_j == pytest.approx(100 / 0.2366, rel=1e-3)
    assert found.reason is None


@pytest.mark.parametrize(
    ("attempts", "marks", "reason"),
    [
        ([{"energy_j": 9.0, "unfinished_energy_j": None}], [False] * 4, NONE_RIGHT),
        ([{"energy_j": None, "unfinished_energy_j": None}], [True], "an earlier try is unknown"),
    ],
)
def test_a_missing_number_has_its_reason(attempts, marks, reason):
    """No right answer makes no joules of one, and an unknown try makes all unknown."""
    found = of_answers(ROW, attempts, marks, None)
    assert (found.per_right_j, found.per_right_low_j, found.per_right_high_j) == (None, None, None)
    assert reason in found.reason


def answered(tmp_path, texts_of, **over):
    """A collected sweep of one point of two batches of four, whose answers are what `texts_of` makes of references."""
    point = choices(
        dataset__name="gsm8k",
        dataset__format="gsm8k",
        n_prompts=8,
        batch_size=4,
        max_gen_len=64,
        **over,
    )
    sweep = make_sweep(tmp_path / "s", [point])
    attempt = make_attempt(
        sweep, point, Made([Gpu("GPU-a", constant(100.0))], tokens=16, dummy=False)
    )
    config = from_dict(point)
    drawn = prompts.load(config, tokenizer.load(config.model, config.weights))
    rows = read_table(attempt.requests_path, REQUEST).to_pylist()
    for row, text in zip(rows, texts_of(drawn.answers), strict=True):
        row["text"] = text
    table = pa.Table.from_pylist(rows, schema=REQUEST).replace_schema_metadata(ABOUT)
    write_table(attempt.requests_path, table)
    record = json.loads(attempt.record_path.read_text())
    record["prompts"]["sha256"] = drawn.info["sha256"]
    attempt.record_path.write_text(json.dumps(record))
    collect(sweep)
    return wattflow.open_sweep(sweep.path)


def test_a_sweep_is_marked_by_the_files_results(tmp_path):
    """Eight shipped problems: six answered right by the rule, one without the mark, one wrong."""

    def texts(answers):
        right = [f"So it is so.\n#### {answer}" for answer in answers]
        return [*right[:6], f"The answer is {answers[6]}.", "#### 123456789"]

    (found,) = of_sweep(answered(tmp_path, texts))
    assert (found.answers, found.right, found.share) == (8, 6, 0.75)
    assert found.energy_j == pytest.approx(850.0, rel=1e-3)  # 100 W for 2 x 4 s and a pause
    assert found.per_right_j == pytest.approx(found.energy_j / 6)


def test_dummy_weights_have_no_right_answers(tmp_path):
    """Their text is null, which is no wrong answer."""
    (found,) = of_sweep(answered(tmp_path, lambda answers: [None] * len(answers)))
    assert (found.right, found.share, found.per_right_j, found.reason) == (None, None, None, DUMMY)


def test_other_prompts_than_those_that_ran_mark_nothing(tmp_path):
    """The record has the hash of what was sent."""
    sweep = answered(tmp_path, lambda answers: [f"#### {answer}" for answer in answers])
    (attempt,) = sweep.directory.attempts(sweep.points["point_id"][0])
    record = json.loads(attempt.record_path.read_text())
    record["prompts"]["sha256"] = "00" * 32
    attempt.record_path.write_text(json.dumps(record))
    collect(sweep.directory)
    (found,) = of_sweep(wattflow.open_sweep(sweep.directory.path))
    assert found.reason == "the prompts' file is another one than that which ran"


def test_a_sweep_without_answers_is_refused(tmp_path):
    """Nothing counts."""
    sweep = make_sweep(tmp_path / "s", [choices()])
    collect(sweep)
    with pytest.raises(RefusedError, match="no point counts"):
        of_sweep(wattflow.open_sweep(sweep.path))
