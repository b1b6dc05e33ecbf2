"""The files, folders and bytes that a sweep will leave, which sites cap both.

Folders count, as an inode each. The sizes are those of files that real sweeps left: a trace takes 9 kB and 8 bytes a
sample, and collecting keeps a second copy of it. What a program prints to its log is its own and not in it. A test
holds that a real sweep leaves within 10 % of the files and a factor of 1.5 of the bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wattflow.config.checks import OF_HOSTS
from wattflow.config.choices import Config, Power, computes_on_cpu
from wattflow.plan.estimate import Past
from wattflow.slurm.shapes import Shape

_BUFFER_HZ = 53.0  # samples of the driver's buffer, with counters between
_TRACE_BYTES, _SAMPLE_BYTES = 9_000, 8
_RECORD_BYTES, _RANK_BYTES = 4_500, 700  # record.json
_SPANS_BYTES, _ITERATION_BYTES = 3_300, 24
_REQUESTS_BYTES, _REQUEST_BYTES, _TEXT_BYTES_A_TOKEN = 2_000, 5, 3
_TABLES_BYTES, _ROW_BYTES = 125_000, 700  # results/points.parquet and phases.parquet
_GRID_BYTES, _POINT_BYTES = 13_500, 60  # grid.parquet
_JOURNAL_BYTES, _SCRIPT_BYTES, _PICKLE_BYTES = 400, 2_500, 700
_BUCKETS = 256  # files of results/traces


@dataclass(frozen=True)
class Footprint:
    """What a sweep leaves once it is collected."""

    files: int  # folders too
    bytes: int  # of attempts whose time is known, and of all else
    bytes_per_s: float  # and for each second of an attempt whose time is not known
    unknown: int  # points of no known time

    def size_words(self) -> str:
        """Return the bytes, and those of each second of points whose time is not known."""
        more = f" and {_size(self.bytes_per_s)} a second of {self.unknown} points of unknown time"
        return f"about {_size(self.bytes)}{more if self.unknown else ''}"


def footprint(shapes: Sequence[Shape], configs: Mapping[str, Config], past: Past) -> Footprint:
    """Return what points leave, by what they ask for and what like ones took."""
    files = 10 + 3 * 2  # the sweep's own files and folders, and two locks of submit and collect
    size = _TABLES_BYTES + _GRID_BYTES + 1_000
    per_s, unknown = 0.0, 0
    points = 0
    for shape in shapes:
        sent, sent_size = _sending(shape)
        files, size = files + sent, size + sent_size
        for point_id in shape.point_ids:
            config = configs[point_id]
            points += 1
            left, fixed, rate = _attempt(config, shape)
            expected = past.expect(config)
            unknown += expected is None
            per_s += rate if expected is None else 0.0
            size += fixed + _ROW_BYTES + _POINT_BYTES
            size += int(rate * expected.seconds) if expected is not None else 0
            files += 0 if shape.cluster.pack else left
        if shape.cluster.pack:
            files += 1 if shape.is_local else len(shape.tasks)  # archives
    files += round(_BUCKETS * (1 - (1 - 1 / _BUCKETS) ** points))
    return Footprint(files, size, per_s / max(1, unknown), unknown)


def _sending(shape: Shape) -> tuple[int, int]:
    """Return the files and bytes of what is sent: scripts and pickles an array, a link, logs and results a task."""
    if shape.is_local:
        return 3, 1_000  # a folder with two logs
    ranks = shape.nodes * shape.ranks_per_node
    arrays, tasks = len(shape.arrays), len(shape.tasks)
    collecting = 6  # a folder, its script and pickle, two logs and a result
    files = arrays * 3 + tasks * (1 + 3 * ranks) + collecting
    size = arrays * (_SCRIPT_BYTES + _PICKLE_BYTES + _JOURNAL_BYTES)
    size += tasks * ranks * 500 + _SCRIPT_BYTES + _PICKLE_BYTES
    return files, size


def _attempt(config: Config, shape: Shape) -> tuple[int, int, float]:
    """Return the files of one attempt with its folders, their bytes, and the bytes of each second."""
    nodes, ranks = shape.nodes, shape.nodes * shape.ranks_per_node
    devices = nodes if _measures_host(config) else ranks
    folders = 2 + 3  # of the point and the attempt, and three in it
    iterations = nodes if config.engine.name == "vllm" else 0
    files = folders + 2 + nodes + iterations + devices
    prompts, tokens = config.n_prompts or 0, config.max_gen_len
    text = 0 if config.weights == "dummy" else _TEXT_BYTES_A_TOKEN * tokens
    size = _RECORD_BYTES + ranks * _RANK_BYTES + nodes * _SPANS_BYTES
    size += _REQUESTS_BYTES + prompts * (_REQUEST_BYTES + text)
    if iterations:
        size += nodes * (_SPANS_BYTES + _ITERATION_BYTES * prompts * tokens // config.batch_size)
    size += 2 * devices * _TRACE_BYTES  # of the attempt and of results/
    return files, size, 2 * devices * _hz(config.power, host=_measures_host(config)) * _SAMPLE_BYTES


def _measures_host(config: Config) -> bool:
    return computes_on_cpu(config) or config.power.meter in OF_HOSTS


def _hz(power: Power, *, host: bool) -> float:
    polled = 1000.0 / power.poll_ms
    return polled if host else max(polled, _BUFFER_HZ)


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError
