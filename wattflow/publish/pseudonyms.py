"""What a bundle says in place of names: salted hashes of GPUs, nodes, jobs and sites, and nothing of people and paths.

One name has one pseudonym in a bundle, so that tables still join on it. What is carried is listed here; whatever else a
record or a table may come to hold is left out until it is.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from wattflow.config.checks import allowed
from wattflow.config.choices import flat
from wattflow.config.identity import is_hashed
from wattflow.errors import RefusedError
from wattflow.store.columns import CHOICE_KEYS, PHASE, POINT, choice_values
from wattflow.store.phases import COMMAND, MIXED, OUTSIDE
from wattflow.store.schema import PHASES, REQUEST, SPAN, TRACE

Row = dict[str, Any]
WITHHELD = "withheld"

# strings among the choices that make no point_id and name no site
_KEPT_CHOICES = {
    *("cluster.launcher", "cluster.gpu_request", "cluster.gpu_type", "cluster.gpu_model"),
    *("power.meter", "control.by", "sweep.block"),
}
_KEPT_METADATA = {
    *(b"schema_version", b"gpu_name", b"driver", b"meter", b"source", b"boundary", b"scope", b"period_ms"),
    *(b"attempt", b"restarts", b"dcgm_version", b"dcgm_field", b"averaging", b"stamped", b"age_ms"),
    b"counter_age_ms",
}  # fmt: skip
_KEPT_RECORD = (
    *("schema_version", "attempt", "status", "error_rank", "reason", "started_ns", "ended_ns"),
    *("reference_rounds", "load_shared"),
)  # fmt: skip
_KEPT_PART = ("schema_version", "task", "status", "exit_code", "tokens_out", "bad_lines", "still_running")  # fmt: skip
_KEPT_DEVICE = (
    *("ordinal", "name", "ecc", "persistence"),
    *("power_limit_default_w", "power_limit_min_w", "power_limit_max_w"),
)
_OUR_PHASES = {*PHASES, "other", COMMAND, MIXED, OUTSIDE}

_UUID = re.compile(r"\b(?:GPU|MIG)-[0-9A-Za-z][0-9A-Za-z/-]*")
_URL = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://\S+")
_QUOTED_PATH = re.compile(r"(?<=['\"`])~?/[^'\"`\n]*(?=['\"`])")
_PATH = re.compile(r"(?<![\w.])~?/[\w.@+~-][^\s'\"`,;:)]*")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}")
_NUMBERS = re.compile(r"[0-9.,]+")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:-dirty)?")


@dataclass
class Names:
    """What of a sweep's surroundings may stand in a text: users, nodes and hosts, and what a choice withholds."""

    users: set[str] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)
    withheld: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)

    def add(self, choices: Mapping[str, Any]) -> None:
        """Add the texts among some choices: those that a bundle leaves out, such as an account, and those it tells."""
        for key, value in flat(dict(choices)).items():
            texts = {text for text in _texts(value) if len(text) > 2}
            if is_hashed(key) or key in _KEPT_CHOICES:
                self.told |= texts
            else:
                self.withheld |= texts


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    for part in value if isinstance(value, list) else ():
        yield from _texts(part)


class Pseudonyms:
    """Names to pseudonyms, by a salt that the bundle does not hold."""

    def __init__(self, salt: bytes, names: Names, *, measured: bool) -> None:
        """`measured`: of a command under `measure`, whose point_id is a hash of its words and so is replaced too."""
        self._salt, self._measured = salt, measured
        self._nodes = _any_of(names.nodes)
        self._users = _any_of(names.users)
        # a sweep may be called what its model is, which is told anyway
        self._withheld = _any_of(names.withheld - names.told - {"local"})

    def _hash(self, kind: str, name: str, digits: int) -> str:
        named = (kind + ":" + name).encode()  # a name that is no text is an error, not a pseudonym
        return hmac.digest(self._salt, named, hashlib.sha256).hex()[:digits]

    # --- single names ---

    def node(self, name: str) -> str:
        """A node's pseudonym."""
        return f"node-{self._hash('node', name, 10)}"

    def device(self, uuid: str) -> str:
        """A device's, in the form of NVML's UUIDs; a host is told by its node."""
        if uuid.startswith("host-"):
            return f"host-{self.node(uuid.removeprefix('host-'))}"
        prefix = "MIG" if uuid.startswith("MIG-") else "GPU"
        h = self._hash("device", uuid, 32)
        return f"{prefix}-{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"

    def job(self, job_id: str | None) -> str | None:
        """A job's; null outside Slurm."""
        return None if job_id is None else f"job-{self._hash('job', job_id, 10)}"

    def cluster(self, name: str) -> str:
        """A site profile's, but for `local`, which is everybody's."""
        return name if name == "local" else f"cluster-{self._hash('cluster', name, 10)}"

    def point(self, point_id: str) -> str:
        """The point_id itself, since it holds no name; of a command's words a pseudonym."""
        return self._hash("point", point_id, 12) if self._measured else point_id

    def phase(self, name: str) -> str:
        """A phase's name; one that a command told is kept where it is one word."""
        if name in _OUR_PHASES or (_WORD.fullmatch(name) and self.text(name) == name):
            return name
        return f"phase-{self._hash('phase', name, 10)}"

    def text(self, text: str) -> str:
        """A text without paths, addresses, users and what choices withhold, and with pseudonyms for nodes and GPUs."""
        text = _UUID.sub(lambda match: self.device(match[0]), text)
        for pattern in (_URL, _QUOTED_PATH, _PATH):
            text = pattern.sub("(path)", text)
        text = self._nodes.sub(lambda match: self.node(match[1]), text)
        text = self._users.sub("(user)", text)
        return self._withheld.sub("(withheld)", text)

    def value(self, value: Any) -> Any:
        """A JSON value with each text in it, keys aside, put through `text`."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(part) for part in value]
        if isinstance(value, dict):
            return {key: self.value(part) for key, part in value.items() if self.text(key) == key}
        return value

    # --- what lies on disk ---

    def choices(self, choices: Mapping[str, Any]) -> Row:
        """A point's choices; RefusedError where one that makes the point_id holds a name or a path."""
        out: Row = {}
        for key, value in choices.items():
            if key == "measure":
                out[key] = {"command": self.command(value["command"])}
            elif isinstance(value, dict):
                out[key] = self._nested(value, f"{key}.")
            else:
                out[key] = self._choice(key, value)
        return out

    def _nested(self, values: Mapping[str, Any], prefix: str) -> Row:
        return {
            key: self._nested(value, f"{prefix}{key}.")
            if isinstance(value, dict) and value
            else self._choice(prefix + key, value)
            for key, value in values.items()
        }

    def _choice(self, key: str, value: Any) -> Any:
        if key == "cluster.name":
            return self.cluster(value)
        if key.startswith("cluster.cost."):
            return None  # a factor means nothing without its source, which may name anything
        if is_hashed(key):
            ours = isinstance(value, str) and value in allowed(key)
            if isinstance(value, str) and not ours and self.text(value) != value:
                raise RefusedError(
                    f"{key}={value}: holds a path or a name of this machine, and the point_id is made of it, so that "
                    "no bundle can leave it out. Run the sweep with another value, then bundle that."
                )
            return value
        if isinstance(value, str):
            return value if key in _KEPT_CHOICES else None
        return type(value)() if isinstance(value, list | dict) else value

    def command(self, command: list[str]) -> list[str]:
        """A measured command, of which only the number of words is told."""
        return [f"({WITHHELD}: {len(command)} words)"]

    def record(self, record: Mapping[str, Any]) -> Row:
        """A record.json, without the parts that reading joins to it."""
        out: Row = {key: record[key] for key in _KEPT_RECORD if key in record}
        out["point_id"] = self.point(record["point_id"])
        out["error"] = record.get("error") and WITHHELD
        if "choices" in record:
            out["choices"] = self.choices(record["choices"])
        if "prompts" in record:
            told = record["prompts"].items()
            out["prompts"] = {k: v for k, v in told if k == "sha256" or not isinstance(v, str)}
        for key in ("work", "ceilings"):
            if key in record:
                out[key] = {name: self.value(value) for name, value in record[key].items()}
        if "pieces" in record:
            numbers = ("attempt", "first_batch", "batches")
            out["pieces"] = [{key: piece[key] for key in numbers} for piece in record["pieces"]]
        if record.get("job"):
            job = record["job"]
            out["job"] = {
                "job_id": self.job(job["job_id"]),
                "array_task": job["array_task"],
                "restart": job["restart"],
                "cluster": self.cluster(job["cluster"]),
            }
        out |= self._ranks_and_nodes(record)
        if "measure" in record:
            measure = record["measure"]
            out["measure"] = {
                "command": self.command(measure["command"]),
                "nodes": measure["nodes"],
            }
        if "engine" in record:
            out["engine"] = self.value(record["engine"])
        if "versions" in record:
            told = record["versions"].items()
            out["versions"] = {self.text(name): self.text(version) for name, version in told}
        commit = record.get("git")
        out["git"] = commit if commit and _COMMIT.fullmatch(commit) else None
        return out

    def part(self, part: Mapping[str, Any]) -> Row:
        """A timings/<node>.json of a measured command."""
        out: Row = {key: part[key] for key in _KEPT_PART}
        out |= {"node": self.node(part["node"]), "error": part["error"] and WITHHELD}
        return out | self._ranks_and_nodes(part)

    def _ranks_and_nodes(self, record: Mapping[str, Any]) -> Row:
        out: Row = {}
        if "ranks" in record:
            out["ranks"] = [
                {
                    "rank": rank["rank"],
                    "node": self.node(rank["node"]),
                    "local_rank": rank["local_rank"],
                    "gpu_uuid": self.device(rank["gpu_uuid"]),
                    "device": self.text(rank["device"]),
                }
                for rank in record["ranks"]
            ]
        if "nodes" in record:
            out["nodes"] = [self._node_info(info) for info in record["nodes"]]
        return out

    def _node_info(self, info: Mapping[str, Any]) -> Row:
        kept = (
            "meter",
            "source",
            "boundary",
            "driver",
            "period_ms",
            "sidecar_restarts",
            "energy_j",
        )
        out: Row = {key: info[key] for key in kept if key in info}
        out["node"] = self.node(info["node"])
        out["devices"] = [
            {
                **{key: device[key] for key in _KEPT_DEVICE if key in device},
                "uuid": self.device(device["uuid"]),
                "bus_id": None,
            }
            for device in info["devices"]
        ]
        if info.get("host"):
            host = info["host"]
            told = {key: host[key] for key in ("name", "source", "period_ms")}
            out["host"] = {"uuid": self.device(host["uuid"]), **told}
        if "control" in info:
            numbers = ("prior_limit_w", "power_limit_w", "sm_clock_mhz", "limit_in_force_w")
            out["control"] = [
                {"uuid": self.device(one["uuid"]), **{key: one[key] for key in numbers}}
                for one in info["control"]
            ]
        return out

    def words(self, words: Iterable[str]) -> list[str]:
        """The words of a submit: those whose key a bundle carries, `KEY=(withheld)` for the others."""
        return [self._submit_word(word) for word in words]

    def _submit_word(self, word: str) -> str:
        key, equals, value = word.partition("=")
        bare = key.lstrip("+~").partition("@")[0]
        group = bare in ("model", "dataset", "engine", "power", "grid")
        told = group or (is_hashed(bare) and not bare.startswith("hydra")) or bare in _KEPT_CHOICES
        if equals and (told or _NUMBERS.fullmatch(value)) and self.text(word) == word:
            return word
        return f"{self.text(key)}=({WITHHELD})"

    # --- tables ---

    def trace(self, table: pa.Table) -> pa.Table:
        """A trace, with what its metadata says of the sensor."""
        told = {
            key: self.text(value.decode(errors="replace")).encode()
            for key, value in (table.schema.metadata or {}).items()
            if key in _KEPT_METADATA
        }
        for key, rename in (
            (b"node", self.node),
            (b"gpu_uuid", self.device),
            (b"point_id", self.point),
        ):
            if key in (table.schema.metadata or {}):
                told[key] = rename(table.schema.metadata[key].decode()).encode()
        return self._table(table, TRACE, {}).replace_schema_metadata(told)

    def spans(self, table: pa.Table) -> pa.Table:
        """The spans of a node."""
        return self._table(
            table, SPAN, {"node": self.node, "gpu_uuid": self.device, "phase": self.phase}
        )

    def requests(self, table: pa.Table) -> pa.Table:
        """The requests, without the text of the answers."""
        at = table.schema.get_field_index("text")
        table = table.set_column(at, REQUEST.field("text"), pa.nulls(table.num_rows, pa.string()))
        return self._table(table, REQUEST, {})

    def phases(self, table: pa.Table) -> pa.Table:
        """results/phases.parquet."""
        renames = {
            "point_id": self.point,
            "phase": self.phase,
            "node": self.node,
            "gpu_uuid": self.device,
        }
        return self._table(table, PHASE, renames)

    def _table(
        self, table: pa.Table, schema: pa.Schema, renames: Mapping[str, Callable[[str], str]]
    ) -> pa.Table:
        """The columns that are known here, each text in them replaced."""
        kept = [column for column in schema if column.name in table.schema.names]
        columns = [
            _replaced(table[column.name], renames.get(column.name, self.text))
            if pa.types.is_string(column.type)
            else table[column.name].cast(column.type)
            for column in kept
        ]
        told = table.schema.metadata or {}
        metadata = {key: told[key] for key in (b"schema_version", b"wattflow") if key in told}
        return pa.Table.from_arrays(columns, schema=pa.schema(kept, metadata=metadata))

    def points(
        self,
        table: pa.Table,
        choices: Mapping[str, Mapping[str, Any]],
        traced: set[tuple[str, int]],
    ) -> pa.Table:
        """results/points.parquet; `choices` are the grid's by point_id, `traced` the attempts whose traces are carried.

        Of another attempt the joules that it took are left out, as nobody could check them.
        """
        rows = []
        for row in table.to_pylist():
            told = self._point_row(row, choices[row["point_id"]])
            if (row["point_id"], row["attempt"]) not in traced:
                told |= {name: None for name in told if name.startswith("unfinished_")}
            rows.append(told)
        kept = [column for column in POINT if column.name in table.schema.names]
        about = table.schema.metadata or {}
        metadata = {key: about[key] for key in (b"schema_version", b"wattflow") if key in about}
        return pa.Table.from_pylist(rows, schema=pa.schema(kept, metadata=metadata))

    def _point_row(self, row: Row, choices: Mapping[str, Any]) -> Row:
        own = choice_values(self.choices(choices))
        out: Row = {}
        for column, value in row.items():
            key = CHOICE_KEYS.get(column)
            if key is not None:
                carried = is_hashed(key) or key in _KEPT_CHOICES or not isinstance(value, str)
                out[column] = value if carried and key != "cluster.name" else own[column]
            else:
                out[column] = self.text(value) if isinstance(value, str) else value
        tried = row["attempt"] is not None
        out["error"] = (WITHHELD if tried else self.text(row["error"])) if row["error"] else None
        out["point_id"] = self.point(row["point_id"])
        out["job_id"] = self.job(row["job_id"])
        for column, rename in (("boards", self.device), ("node_names", self.node)):
            out[column] = sorted(map(rename, row[column])) if row[column] else row[column]
        for column in ("engine_info", "versions"):
            told = row[column]
            out[column] = json.dumps(self.value(json.loads(told))) if told else told
        if row.get("command"):
            out["command"] = json.dumps(self.command(json.loads(row["command"])))
        out["record_stamp_ns"] = None
        return out


def _any_of(names: set[str]) -> re.Pattern[str]:
    """What finds any of some names as words of their own, the longest first, a domain behind them included."""
    some = sorted((name for name in names if name), key=lambda name: (-len(name), name))
    if not some:
        return re.compile(r"(?!)")
    either = "|".join(map(re.escape, some))
    return re.compile(rf"(?<![A-Za-z0-9])({either})(?:\.[A-Za-z][A-Za-z0-9-]*)*(?![A-Za-z0-9])")


def _replaced(column: pa.ChunkedArray, rename: Callable[[str], str]) -> pa.ChunkedArray:
    """A column of texts, each distinct one replaced."""
    encoded = column.combine_chunks().dictionary_encode()
    told = pa.array([rename(text) for text in encoded.dictionary.to_pylist()], pa.string())
    return pa.chunked_array([pc.take(told, encoded.indices)])
