"""The words of the format itself: what records, tables, choices and shipped configs call things at every site.

A partition may be called gpu, and a user python: where a field says what kind of thing something is, such a word is
nobody's name. In free text, such as errors, names are replaced whatever they mean.
"""

import re
from collections.abc import Iterable
from functools import cache
from typing import get_args, get_type_hints

from wattflow.config.checks import allowed
from wattflow.config.identity import DEFAULTS
from wattflow.plan.conf import shipped_files
from wattflow.run.provenance import PACKAGES
from wattflow.store import schema
from wattflow.store.columns import CHOICE_KEYS, PHASE, POINT, REASONS
from wattflow.store.phases import COMMAND, MIXED, OUTSIDE, RESERVED
from wattflow.store.sources import SOURCES

_SHIPPED = (
    "model",
    "dataset",
    "engine",
    "power",
    "grid",
)  # groups of conf/ whose files are choices
_RECORDS = (schema.Record, schema.NodeInfo, schema.Device, schema.RankInfo, schema.JobInfo)
_HARDWARE = "NVIDIA GeForce RTX Tesla Quadro PCIe SXM SXM2 SXM3 SXM4 SXM5 SXM6 NVL HBM2 HBM2e HBM3 HBM3e Ti Ada Super"


@cache
def format_words() -> frozenset[str]:
    """Return all words of the format, in small letters."""
    tables = (POINT, PHASE, schema.SPAN, schema.REQUEST, schema.TRACE, schema.GRID)
    sensors = {name for source in SOURCES.values() for name in (source.meter, source.boundary)}
    found = {
        *REASONS,
        *SOURCES,
        *sensors,
        *schema.PHASES,
        *(COMMAND, MIXED, OUTSIDE, *RESERVED),
        *(*get_args(schema.Status), "waiting", "infeasible"),
        *(*PACKAGES, "cpu", "cuda", "slurm", "linux"),
        *(name for table in tables for name in table.names),
        *(key for record in _RECORDS for key in get_type_hints(record)),
        *(part for key in CHOICE_KEYS.values() for part in (key, *key.split("."))),
        *(value for key in DEFAULTS for value in allowed(key)),
        *(name for group in _SHIPPED for name in shipped_files(group)),
        *hardware_words([_HARDWARE]),
    }
    return frozenset(word.lower() for word in found)


def hardware_words(names: Iterable[str]) -> frozenset[str]:
    """Return the words of what vendors call their devices, such as `nvidia`, `h100` and `80gb`."""
    return frozenset(word for name in names for word in _parts(name))


def is_common(name: str, words: frozenset[str]) -> bool:
    """Return whether a name is one of some words, or is made of them and of numbers, as `gpu-a100` is."""
    return name.lower() in words or all(part.isdigit() or part in words for part in _parts(name))


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"[^a-z0-9]+", name.lower()) if part]
