"""What Slurm says of a site: partitions with their GPUs and limits, accounts, and how its jobs are accounted.

Read from sinfo, scontrol and sacctmgr in their plain forms, which all versions from 22.05 have. Nothing is changed, and
what a command does not say is null.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from wattflow.errors import SlurmError
from wattflow.process import user_name
from wattflow.slurm import client

Ask = Callable[[Sequence[str]], str]  # a command's output; SlurmError where there is none

# gpu:a100:4(S:0-1), gpu:4, gpu:nvidia_a100_1g.5gb:7(S:0); other GRES stand beside it
_GPU = re.compile(r"\bgpu:(?:([A-Za-z0-9_.+-]+):)?(\d+)")
_SLICE = re.compile(r"\dg\.\d+gb|mig", re.IGNORECASE)
_DOWN = re.compile(r"down|drain|fail|maint|unk|boot", re.IGNORECASE)


@dataclass(frozen=True)
class Nodes:
    """Nodes of one kind in a partition."""

    count: int
    up: int  # of these, that can take jobs
    cpus: int | None
    memory_mb: int | None
    gpus: tuple[tuple[str | None, int], ...]  # (type, how many a node); none: no GPUs
    features: tuple[str, ...]

    @property
    def gpus_per_node(self) -> int:
        """All GPUs of a node, of any type."""
        return sum(count for _, count in self.gpus)


@dataclass
class Partition:
    """A partition and its nodes."""

    name: str
    nodes: list[Nodes] = field(default_factory=list)
    is_up: bool = True
    is_default: bool = False
    max_min: int | None = None  # null: no limit, or not said
    exclusive: bool = False  # jobs have whole nodes
    accounts: tuple[str, ...] | None = None  # that may use it; null: all
    qos: tuple[str, ...] | None = None

    @property
    def gpus(self) -> int:
        """All GPUs of nodes that are up."""
        return sum(nodes.gpus_per_node * nodes.up for nodes in self.nodes)


@dataclass
class Site:
    """What Slurm says of a site and of the caller there."""

    cluster: str | None = None
    version: str | None = None
    partitions: list[Partition] = field(default_factory=list)
    max_array_size: int | None = None
    max_submit: int | None = None
    accounting: bool | None = None  # whether sacct can answer
    enforces_accounts: bool = False
    tracks_wckeys: bool = False
    by_gpus: bool = False  # whether --gpus-per-node is known
    accounts: list[str] = field(default_factory=list)  # the caller's, the default one first
    qos: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)  # commands, each with what it said


def look(ask: Ask = client.ask) -> Site:
    """Return what this site's Slurm says; SlurmError where not even sinfo answers."""
    words = commands(user_name())
    site = Site(partitions=_partitions(ask(words["sinfo"])))
    with _noted(site):
        _read_config(site, ask(words["config"]))
    with _noted(site):
        _read_limits(site, ask(words["partition"]))
    if site.accounting is not False:
        with _noted(site):
            _read_accounts(site, ask(words["assoc"]))
        with _noted(site):
            _default_first(site, ask(words["user"]).strip())
    return site


def commands(user: str) -> dict[str, list[str]]:
    """Return what is asked, by a word for each: nodes, settings, partitions, the user's accounts and default one."""
    manager = ["sacctmgr", "-nP", "show"]
    return {
        "sinfo": ["sinfo", "-h", "-o", "%R|%G|%D|%c|%m|%l|%f|%a|%t"],
        "config": ["scontrol", "show", "config"],
        "partition": ["scontrol", "-o", "show", "partition"],
        "assoc": [
            *manager,
            "assoc",
            "where",
            f"user={user}",
            "format=Cluster,Account,QOS,MaxSubmitJobs",
        ],
        "user": [*manager, "user", user, "format=DefaultAccount"],
    }


@contextlib.contextmanager
def _noted(site: Site) -> Iterator[None]:
    """Keep what a command said in the place of an answer."""
    try:
        yield
    except SlurmError as error:
        site.unanswered.append(str(error))


def _partitions(table: str) -> list[Partition]:
    """Return partitions with their kinds of nodes, in sinfo's order."""
    found: dict[str, Partition] = {}
    kinds: dict[tuple[str, ...], list[int]] = {}
    for line in table.splitlines():
        fields = [one.strip() for one in line.split("|")]
        if len(fields) != 9:
            continue
        name, gres, count, cpus, memory, limit, features, available, state = fields
        partition = found.setdefault(name, Partition(name))
        partition.is_up &= available == "up"
        partition.max_min = minutes(limit)
        nodes = _number(count) or 0
        counts = kinds.setdefault((name, gres, cpus, memory, features), [0, 0])
        counts[0] += nodes
        counts[1] += 0 if _DOWN.search(state) else nodes
    for (name, gres, cpus, memory, features), (nodes, up) in kinds.items():
        known = () if features in ("(null)", "") else tuple(features.split(","))
        found[name].nodes.append(
            Nodes(nodes, up, _number(cpus), _number(memory), _gpus(gres), known)
        )
    return list(found.values())


def _gpus(gres: str) -> tuple[tuple[str | None, int], ...]:
    """Return what GPUs a GRES names; a count of 0, which some sites write for nodes without any, is none."""
    counts = [(kind or None, int(count)) for kind, count in _GPU.findall(gres)]
    return tuple((kind, count) for kind, count in counts if count > 0)


def is_slice(kind: str | None) -> bool:
    """Whether a GPU's type names a part of one (MIG), whose power is the whole board's."""
    return kind is not None and _SLICE.search(kind) is not None


def _number(text: str) -> int | None:
    """Return a number, of `64+` the least."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found else None


def minutes(text: str) -> int | None:
    """Return a time of Slurm's, [days-]hours:minutes:seconds or minutes[:seconds], in minutes; null for no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if found is None:
        return None
    days, *rest = found.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None:  # days-hours[:minutes[:seconds]]
        hours, mins = [*parts, 0][:2]
        return int(days) * 24 * 60 + hours * 60 + mins
    if len(parts) == 3:
        return parts[0] * 60 + parts[1]
    return parts[0]


def _read_config(site: Site, text: str) -> None:
    settings = dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", text, re.MULTILINE))
    site.cluster = settings.get("ClusterName")
    site.version = settings.get("SLURM_VERSION")
    site.max_array_size = _number(settings.get("MaxArraySize", ""))
    site.accounting = not re.search(
        r"none|^\(null\)$|^$", settings.get("AccountingStorageType", "")
    )
    enforced = settings.get("AccountingStorageEnforce", "").lower()
    site.enforces_accounts = bool(re.search(r"associations|limits|all|safe|qos", enforced))
    site.tracks_wckeys = settings.get("TrackWCKey", "").lower() in ("yes", "1")
    site.by_gpus = settings.get("SelectType") == "select/cons_tres"


def _read_limits(site: Site, text: str) -> None:
    """Add what `scontrol show partition` says, a line each."""
    by_name = {partition.name: partition for partition in site.partitions}
    for line in text.splitlines():
        said = dict(re.findall(r"(\w+)=(\S*)", line))
        partition = by_name.get(said.get("PartitionName", ""))
        if partition is None:
            continue
        partition.is_default = said.get("Default") == "YES"
        partition.exclusive = said.get("OverSubscribe", said.get("Shared", "")) == "EXCLUSIVE"
        partition.accounts = _only(said.get("AllowAccounts"))
        partition.qos = _only(said.get("AllowQos"))


def _only(text: str | None) -> tuple[str, ...] | None:
    return None if text in (None, "", "ALL", "N/A", "(null)") else tuple(text.split(","))


def _read_accounts(site: Site, table: str) -> None:
    most: list[int] = []
    for line in table.splitlines():
        cluster, account, qos, submitted = [*line.split("|"), "", "", "", ""][:4]
        if site.cluster not in (None, cluster):
            continue  # one database serves several clusters
        if account and account not in site.accounts:
            site.accounts.append(account)
        site.qos += [one for one in qos.split(",") if one and one not in site.qos]
        if submitted.isdecimal():
            most.append(int(submitted))
    site.max_submit = min(most, default=None)


def _default_first(site: Site, default: str) -> None:
    if default in site.accounts:
        site.accounts.remove(default)
        site.accounts.insert(0, default)
