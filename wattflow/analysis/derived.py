"""Choices that follow from others by a rule of `config.choices.resolve`, recognised in rows of a table.

Such a choice makes no comparison doubtful: whoever moves shards moves nodes.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from wattflow.config.choices import Config, Dataset, Model, resolve, with_leaves
from wattflow.errors import RefusedError
from wattflow.store.columns import CHOICE_KEYS
from wattflow.workload.prompts import Checker

OF_PROMPTS = ("n_prompts", "dataset_cycle")  # these follow from how many records a dataset has
RULES = ("nodes", "max_seq_len", "stop", *OF_PROMPTS)  # what is filled in where nobody names it
_SOURCES: tuple[str, ...] = (
    "dataset",
    "dataset_format",
    "dataset_path",
    "cluster_gpus_per_node",
    "shards",
)
_SOURCES += ("batch_size", "max_gen_len", "weights", "pipeline")
READ = (*RULES, *_SOURCES)  # the columns that a rule fills in or reads
_BLANK = Config(model=Model(name=""), dataset=Dataset(name=""))


def is_derived(name: str, row: Mapping[str, Any]) -> bool:
    """Return whether a row's value is what its rule fills in; false where a row or a dataset cannot say."""
    needed = [column for column in READ if column not in (name, "dataset_path")]
    if row["pipeline"] is None:  # of a sweep from before there were stages
        needed.remove("pipeline")
    if any(row[column] is None for column in needed):
        return False
    if name in OF_PROMPTS and row["dataset_path"] is not None:
        return False  # a path in a table is somebody's word: no file is opened for it
    known = {CHOICE_KEYS[column]: row[column] for column in needed}
    if name == "n_prompts":
        del known["dataset.cycle"]  # which follows from it
    try:
        resolved = resolve(with_leaves(_BLANK, known), _shipped)
    except (ArithmeticError, RefusedError, TypeError, ValueError):  # a table of others
        return False
    value = resolved.dataset.cycle if name == "dataset_cycle" else getattr(resolved, name)
    return bool(value == row[name])


@cache
def _count(name: str, text_format: str) -> int:
    return Checker().records(Config(dataset=Dataset(name=name, format=text_format)))


def _shipped(config: Config) -> int:
    return _count(config.dataset.name, config.dataset.format)
