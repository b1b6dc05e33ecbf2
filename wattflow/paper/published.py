"""What arXiv 2310.03003 printed: facts only, each with how it is known, from published.csv.

    exact              a cell of a table
    text               a number of the text
    bar_not_readable   a bar without a number: its height is not known, and no guess stands in its place

A blank column says any: the text has one number for all batches of a figure.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

TAGS = ("exact", "text", "bar_not_readable")
NOT_READABLE = "bar_not_readable"


@dataclass(frozen=True)
class Published:
    """One number of the paper; `value` is null where it could not be read, `to` the upper end of a range."""

    object: str  # fig2 to fig9, table2 to table5
    metric: str
    gpu: str | None  # V100 or A100; null: both
    dataset: str | None
    series: str | None
    x: str | None
    value: float | None
    to: float | None
    unit: str
    tag: str
    place: str

    def is_of(self, metric: str, dataset: str | None, series: str | None, x: str | None) -> bool:
        """Whether this is the number of a cell, or one for all such cells."""
        asked = ((self.dataset, dataset), (self.series, series), (self.x, x))
        return self.metric == metric and all(own is None or own == cell for own, cell in asked)


@cache
def published() -> tuple[Published, ...]:
    """Return all rows of published.csv, in its order."""
    with Path(__file__).with_name("published.csv").open(newline="", encoding="utf-8") as file:
        return tuple(_row(row) for row in csv.DictReader(file))


def _row(row: dict[str, str]) -> Published:
    return Published(
        object=row["object"],
        metric=row["metric"],
        gpu=row["gpu"] or None,
        dataset=row["dataset"] or None,
        series=row["series"] or None,
        x=row["x"] or None,
        value=float(row["value"]) if row["value"] else None,
        to=float(row["to"]) if row["to"] else None,
        unit=row["unit"],
        tag=row["tag"],
        place=row["place"],
    )


def of_object(name: str) -> list[Published]:
    """Return what is published of one figure or table."""
    return [one for one in published() if one.object == name]


def of_cell(
    name: str, metric: str, dataset: str | None, series: str | None, x: str | None
) -> list[Published]:
    """Return what is published of one cell: its numbers, else the row that says that there is none."""
    found = [one for one in of_object(name) if one.is_of(metric, dataset, series, x)]
    return [one for one in found if one.value is not None] or found


@dataclass(frozen=True)
class Slip:
    """A number of the text that the table's own cells do not bear out."""

    metric: str
    series: str | None
    text: float
    cells: float  # the mean of the cells


def slips(name: str) -> list[Slip]:
    """Return the means in the text that differ from the mean of the printed cells by more than their last digit."""
    found = []
    for one in of_object(name):
        if one.x != "mean" or one.value is None:
            continue
        alike = [
            other.value
            for other in of_object(name)
            if other.tag == "exact" and (other.metric, other.series) == (one.metric, one.series)
        ]
        mean = fmean(value for value in alike if value is not None)
        if abs(mean - one.value) > _LAST_DIGIT:
            found.append(Slip(one.metric, one.series, one.value, mean))
    return found


_LAST_DIGIT = 0.05  # the text rounds 6.71 to 6.7
