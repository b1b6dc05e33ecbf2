"""Verify in a child under limits: a bundle is a stranger's, and what it does to a library ends that child alone."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wattflow.errors import RefusedError, WattflowError
from wattflow.publish import verdict
from wattflow.publish.archive import inside
from wattflow.publish.bundle import ABOUT
from wattflow.publish.verify import limit_memory, verify
from wattflow.store.confined import ConfinedError, Limits, confined

_MEMORY_BYTES = 16 * 2**30  # of addresses; what is used is limited too, by `verify.limit_memory`
_CPU_S, _CPU_S_A_MB, _WALL = 120, 0.5, 3.0  # an honest bundle takes 0.1 s a MB
_MB = 1e6


@dataclass(frozen=True)
class Outcome:
    """A verdict in words and as a document."""

    verified: bool
    table: list[list[Any]]  # a row an attempt, under verdict.HEADINGS
    lines: list[str]  # the verdict last
    document: dict[str, Any]


def verify_confined(path: Path) -> Outcome:
    """Verify in a child; RefusedError for what is nothing to verify. What no child survives is not verified."""
    try:
        answer = json.loads(confined(f"{__name__}:answer", str(path), _limits(path)))
    except ConfinedError as error:
        reason = f"{path} cannot be read: {error}."
        found = verdict.Verdict(path, "bundle", None, "?", problems=[reason])
        return Outcome(False, [], [f"NOT VERIFIED: {reason}"], verdict.as_json(found))
    if "error" in answer:
        kind = RefusedError if answer["exit_code"] == RefusedError.exit_code else WattflowError
        raise kind(answer["error"])
    return Outcome(**answer)


def answer(path: str) -> str:
    """Return the outcome, or why there is none, as JSON; the child's part."""
    if _is_bundle(Path(path)):
        limit_memory()
    try:
        found = verify(Path(path))
    except WattflowError as error:
        return json.dumps({"error": str(error), "exit_code": error.exit_code})
    except MemoryError:
        text = f"{path}: takes more memory than an honest bundle does."
        return json.dumps({"error": text, "exit_code": RefusedError.exit_code})
    document = verdict.as_json(found)
    return json.dumps(
        asdict(Outcome(found.verified, verdict.table(found), verdict.lines(found), document))
    )


def _limits(path: Path) -> Limits:
    """Return the limits for a bundle, by its size; a sweep's directory is as large as its owner made it."""
    if not _is_bundle(path):
        return Limits()
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    size = sum(file.stat().st_size for file in files)
    cpu_s = round(_CPU_S + _CPU_S_A_MB * size / _MB)
    return Limits(_MEMORY_BYTES, cpu_s, _WALL * cpu_s)


def _is_bundle(path: Path) -> bool:
    return path.is_file() or (inside(path, ABOUT) / ABOUT).is_file()
