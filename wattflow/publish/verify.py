"""Recompute every published figure of a sweep, or of a bundle, from its raw traces and timings, without a GPU.

    wattflow verify sweeps/NAME | BUNDLE.zip

    hashes (of a bundle) -> choices against point_ids -> devices against records -> traces, records -> rows -> tables

It reads only, and shares with `collect` what makes an attempt's row. A bundle is somebody else's: nothing in it is
unpickled or run, names are checked before a path is made of them, sizes before anything is read.
"""

import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wattflow.errors import DamagedError, RefusedError
from wattflow.publish import archive, papers
from wattflow.publish.bundle import ABOUT, BUNDLE_VERSION, CSV, LOCK, METHODS, README, SWEEP
from wattflow.publish.recompute import Recomputation
from wattflow.publish.results import Results, read_results
from wattflow.publish.verdict import Verdict
from wattflow.store.files import read_json, read_own
from wattflow.store.layout import SweepDir
from wattflow.store.packed import FOLDER
from wattflow.store.tables import unpacked_size

MOST_ROWS = 10_000_000  # of a table in a bundle: two days of samples each 20 ms
MOST_TABLE_BYTES = 2**30  # of its columns, unpacked
MOST_JSON_BYTES = 2**26
MEMORY_BYTES = 8 * 2**30


def verify(path: Path) -> Verdict:
    """Check a sweep's directory, a bundle, or an unpacked bundle; RefusedError for what is none of these."""
    if path.is_file():
        with tempfile.TemporaryDirectory(prefix="wattflow-verify-") as name:
            folder = Path(name)
            left = archive.unpack(path, folder)
            return _bundle(path, archive.inside(folder, ABOUT), archive.sha256(path), left)
    folder = archive.inside(path, ABOUT)
    if (folder / ABOUT).is_file():
        left = [name for name in archive.files(folder) if archive.left_behind(name)]
        return _bundle(path, folder, None, left)
    if path.suffix == ".zip" and not path.exists():
        raise RefusedError(f"{path}: no such file. `wattflow bundle` makes one of a sweep.")
    results = read_results(SweepDir.existing(path), bundled=False)
    verdict, _ = _recompute(path, results)
    if results.sweep.report_path.is_file():
        problems, notes = papers.report_problems(results.sweep)
        verdict.problems += problems
        verdict.notes += notes
    return verdict


def limit_memory() -> None:
    """Let this process take no more memory than any honest bundle needs, so that a crafted one ends it alone."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MEMORY_BYTES, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def _bundle(path: Path, folder: Path, sha256: str | None, left: Sequence[str]) -> Verdict:
    """Check a bundle whose files lie below a folder, beside what a file manager `left` there."""
    sums = archive.read_sums(folder)
    wrong = archive.wrong_sums(folder, sums)
    _check_sizes(folder)
    try:
        about = _about(path, folder)
        results = read_results(SweepDir(folder / SWEEP), bundled=True)
    except (RefusedError, DamagedError) as error:
        if not wrong:
            raise RefusedError(str(error)) from error
        verdict = Verdict(path, "bundle", sha256, "?", problems=[str(error)])
        verdict.hashed_files, verdict.wrong_files = len(sums), wrong
        return verdict
    verdict, recomputed = _recompute(path, results)
    verdict.kind, verdict.sha256 = f"bundle of a {verdict.kind}", sha256
    verdict.hashed_files, verdict.wrong_files = len(sums), wrong
    verdict.notes += [
        f"{name}: a file manager's, not the bundle's: not looked at." for name in left
    ]
    left_out = about.get("left_out")
    for line in left_out if isinstance(left_out, list) else []:
        verdict.notes.append(f"not whole when it was packed: {line}")
    for name in (CSV, METHODS, LOCK, README):
        try:
            problems, notes = _paper(name, read_own(folder / name).decode(), results, recomputed)
            verdict.problems += problems
            verdict.notes += notes
        except (FileNotFoundError, UnicodeDecodeError):
            verdict.problems.append(f"{name}: not there, or no text.")
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            verdict.problems.append(f"{name}: cannot be held to such records ({error!a}).")
    return verdict


def _recompute(path: Path, results: Results) -> tuple[Verdict, Recomputation]:
    """Return the verdict on what was published, and what was recomputed."""
    kind = "measurement" if results.measured else "sweep"
    verdict = Verdict(
        path, kind, None, results.made_by, points=len(results.grid), notes=results.notes()
    )
    recomputed = Recomputation(results, verdict)
    verdict.attempts = list(recomputed.checks.values())
    return verdict, recomputed


def _paper(
    name: str, text: str, results: Results, recomputed: Recomputation
) -> tuple[list[str], list[str]]:
    """Return what is wrong in one of a bundle's papers, and notes on it."""
    rows = list(recomputed.rows.values())
    if name == METHODS:
        return papers.means_problems(text, rows)
    if name == CSV:
        return papers.csv_problems(text, results, recomputed), []
    if name == LOCK:
        return papers.lock_problems(text, recomputed.records), []
    return papers.joules_problems(text, rows), []


def _about(path: Path, folder: Path) -> dict[str, Any]:
    """Return what bundle.json says; RefusedError where it is not there, or of another version."""
    about = read_json(folder / ABOUT) if (folder / ABOUT).is_file() else None
    if not isinstance(about, dict) or not (folder / SWEEP / "grid.parquet").is_file():
        raise RefusedError(f"{path}: no bundle: {ABOUT} or {SWEEP}/grid.parquet is not in it.")
    version = about.get("bundle_version")
    if version != BUNDLE_VERSION:
        raise RefusedError(
            f"{path}: a bundle of version {version!a}; this wattflow reads version {BUNDLE_VERSION}."
        )
    return about


def _check_sizes(folder: Path) -> None:
    """RefusedError where a file would unpack to more than an honest one, or hides in an archive of its own."""
    for name in archive.files(folder):
        path = folder / name
        if path.parent == folder / SWEEP / FOLDER:
            raise RefusedError(f"{name}: files lie in an archive of their own: no bundle has that.")
        if archive.left_behind(name):
            continue
        if not name.endswith(".parquet"):
            if path.stat().st_size > MOST_JSON_BYTES:
                raise RefusedError(f"{name}: {path.stat().st_size} bytes, more than any such file.")
            continue
        try:
            rows, size = unpacked_size(path)
        except (OSError, DamagedError):
            continue  # whoever reads it says so
        if rows > MOST_ROWS or size > MOST_TABLE_BYTES:
            raise RefusedError(
                f"{name}: {rows} rows, {size} bytes unpacked; a table of a bundle has at most {MOST_ROWS} "
                f"and {MOST_TABLE_BYTES}."
            )
