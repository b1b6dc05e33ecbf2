"""The tables of results/: which columns they have, what these mean, and what a reason does to its row."""

import csv
import json
import re
from pathlib import Path

import pyarrow as pa
import pytest
from sweeps import choices

from wattflow.config.identity import DEFAULTS
from wattflow.store import columns
from wattflow.store.columns import CHOICE_KEYS, POINT, REASONS, choice_values, column_of
from wattflow.store.schema import columns_of


def test_a_row_of_points_says_whose_it_is_then_what_was_chosen_then_what_was_measured():
    """Seven columns of identity, a column per choice, and tokens_in as the first figure."""
    names = POINT.names
    assert names[:7] == ["point_id", "attempt", "status", "counts", "valid", "reasons", "error"]
    assert names[7 : 7 + len(CHOICE_KEYS)] == list(CHOICE_KEYS)
    assert names[7 + len(CHOICE_KEYS)] == "tokens_in"
    assert len(names) == len(set(names)) == len(columns_of("points")) + len(CHOICE_KEYS)


def test_each_key_has_its_column():
    """Every key of the config is a column, except those of the sweep itself and the folder of sweeps."""
    keys = {key for key in DEFAULTS if not key.startswith("sweep")}
    # one column for each table
    whole = {re.sub(r"\.(cost|container|vllm|transformers|slo)\..*", r".\1", key) for key in keys}
    assert whole == set(CHOICE_KEYS.values())


@pytest.mark.parametrize(
    ("key", "column", "type_"),
    [
        ("model.name", "model", pa.string()),
        ("model.n_layers", "model_n_layers", pa.int64()),
        ("control.power_limit_w", "control_power_limit_w", pa.int64()),  # int | None
        ("temperature", "temperature", pa.float64()),
        ("dataset.cycle", "dataset_cycle", pa.bool_()),
        ("cluster.setup", "cluster_setup", pa.string()),  # a list, as JSON
    ],
)
def test_a_choices_column(key, column, type_):
    """Dots become underscores, `.name` goes, and the type is that of the choice."""
    assert column_of(key) == column
    assert CHOICE_KEYS[column] == key
    assert POINT.field(column).type == type_
    assert POINT.field(column).metadata == {b"unit": b"", b"meaning": f"Choice `{key}`.".encode()}


def test_choices_as_values_of_their_columns():
    """A list comes as JSON, and a choice that an older grid lacks is null."""
    chosen = choices(shards=2, cluster__setup=["module load x", "y"])
    del chosen["model"]["chat"]
    row = choice_values(chosen)
    assert list(row) == list(CHOICE_KEYS)
    assert row["shards"] == 2
    assert json.loads(row["cluster_setup"]) == ["module load x", "y"]
    assert row["model_chat"] is None


def test_each_reason_is_withheld_or_a_remark():
    """The file has no third word, no code twice and no code without a meaning; two known codes read as they are."""
    with Path(columns.__file__).with_name("reasons.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["effect"] for line in lines} == {"withheld", "remark"}
    assert [line["code"] for line in lines] == list(REASONS)
    assert all(reason.meaning.endswith(".") for reason in REASONS.values())
    assert REASONS["gap"] == (True, "Less than 99 % of the window was measured.")
    assert not REASONS["tokens_untold"].withheld
