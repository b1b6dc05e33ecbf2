"""Rows of attempts whose files `wattflow prune` removed: results are made of them from then on.

    sweeps/<name>/pruned/   phases.parquet  points.parquet      the latter is written last, and before anything goes

So an attempt is kept from the moment that its rows are safe, whatever of its files is still there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from wattflow.errors import DamagedError
from wattflow.store.columns import PHASE, POINT
from wattflow.store.files import make_folder
from wattflow.store.layout import SweepDir
from wattflow.store.schema import SCHEMA_VERSION
from wattflow.store.tables import read_table, write_table

Key = tuple[str, int]  # point_id, attempt

PRUNED = "pruned"  # the reason code
_ABOUT = {"schema_version": str(SCHEMA_VERSION)}


@dataclass(frozen=True)
class Kept:
    """The rows of kept attempts, as the collector made them of files that are gone."""

    points: pa.Table  # a row an attempt
    phases: pa.Table

    @classmethod
    def read(cls, sweep: SweepDir) -> "Kept":
        """Read them, empty tables where nothing was pruned; DamagedError where one of the two is damaged or missing."""
        try:
            points = read_table(sweep.pruned / "points.parquet", POINT)
        except FileNotFoundError:
            return cls(POINT.empty_table(), PHASE.empty_table())
        except DamagedError as error:
            raise DamagedError(f"{error} {_next_step(sweep)}") from error
        try:
            return cls(points, read_table(sweep.pruned / "phases.parquet", PHASE))
        except FileNotFoundError as error:
            raise DamagedError(
                f"{error.filename}: not there, beside the rows of pruned attempts. {_next_step(sweep)}"
            ) from error
        except DamagedError as error:
            raise DamagedError(f"{error} {_next_step(sweep)}") from error

    @property
    def keys(self) -> set[Key]:
        """The kept attempts."""
        return set(keys_of(self.points))

    def with_attempts(self, keys: Iterable[Key], results: "Kept") -> "Kept":
        """Return these rows and those that results have of further attempts, marked as pruned."""
        new = set(keys) - self.keys
        rows = of_attempts(results.points, new).to_pylist()
        marked = [row | {"reasons": with_mark(row["reasons"]), "counts": False} for row in rows]
        return Kept(
            pa.concat_tables([_plain(self.points, POINT), pa.Table.from_pylist(marked, POINT)]),
            pa.concat_tables(
                [_plain(self.phases, PHASE), _plain(of_attempts(results.phases, new), PHASE)]
            ),
        )

    def write(self, sweep: SweepDir) -> None:
        """Replace what a sweep has of them."""
        make_folder(sweep.pruned)
        for name, table in (("phases", self.phases), ("points", self.points)):
            path = sweep.pruned / f"{name}.parquet"
            write_table(path, table.replace_schema_metadata(_ABOUT))


def _next_step(sweep: SweepDir) -> str:
    """Return what to do where the kept rows are damaged."""
    return (
        f"Restore {sweep.pruned} from a backup. Without one, move it elsewhere: where results/ is whole, "
        f"`wattflow collect {sweep.path}` keeps the rows with figures, marked files_gone."
    )


def with_mark(reasons: Sequence[str] | None) -> list[str]:
    """Return reason codes with that of a pruned attempt."""
    return list(dict.fromkeys([*(reasons or ()), PRUNED]))


def keys_of(table: pa.Table) -> list[Key]:
    """Return the attempt of each row."""
    columns: list[Any] = [table[name].to_pylist() for name in ("point_id", "attempt")]
    return list(zip(*columns, strict=True))


def of_attempts(table: pa.Table, keys: set[Key]) -> pa.Table:
    """Return the rows of some attempts."""
    rows = [i for i, key in enumerate(keys_of(table)) if key in keys]
    return table.take(pa.array(rows, pa.int64()))


def _plain(table: pa.Table, schema: pa.Schema) -> pa.Table:
    return table.select(schema.names).cast(schema).replace_schema_metadata(None)
