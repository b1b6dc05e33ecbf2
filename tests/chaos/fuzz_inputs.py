"""What `fuzz.py` damages beside a sweep's own files: results as verbs read them, bundles, texts of other programs.

No case may end in a traceback. Where bytes alone were damaged, what is still printed is what was true before.
"""

import contextlib
import csv
import io
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import engine_ranks
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sweeps import Gpu, Made, choices, make_attempt, make_sweep

from wattflow.analysis import cost
from wattflow.cli import app
from wattflow.collect.collect import collect
from wattflow.errors import RefusedError
from wattflow.measure import timeline
from wattflow.power import dcgmi
from wattflow.publish.bundle import bundle
from wattflow.slurm import client
from wattflow.workload import checkpoint

Damage = Callable[[bytes, random.Random], bytes]

VERBS: dict[str, list[str]] = {
    "status": ["--json"],
    "compare": ["--by", "batch_size", "--json"],
    "cost": ["--json"],
    "usage": ["--json"],
    "caps": ["--reference", "none", "--json"],
    "export": [],
    "crosscheck": ["--json"],
    "logs": ["0"],
    "report": [],
}
EXACT = (
    "compare",
    "cost",
    "usage",
    "caps",
)  # status falls back on records, which lack some figures
# where a byte of it is printed, one that was changed may be, as no file of text has a sum
TEXTS = {".json", ".jsonl", ".yaml"}


def ended(*arguments: str) -> tuple[int, str, str]:
    """The exit code, output and errors of the command line in this process; what it raises is raised."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", ["wattflow", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            app.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return code, out.getvalue(), err.getvalue()


class Others:
    """A collected sweep, its bundle and checkpoints, to be damaged one file at a time."""

    def __init__(self, folder: Path, damage: Damage) -> None:
        self.damage = damage
        points = [choices(batch_size=batch) for batch in (4, 8)]
        self.sweep = make_sweep(folder / "whole", points)
        for number, point in enumerate(points):
            noise = np.random.default_rng(number)
            gpus = [Gpu("GPU-0", lambda s, r=noise: 70.0 + r.normal(0.0, 1.0, len(s)))]
            make_attempt(self.sweep, point, Made(gpus, started_s=100.0 * number))
        collect(self.sweep)
        self.zip = folder / "whole.zip"
        bundle(self.sweep, self.zip)
        self.true = {verb: self.read(verb) for verb in VERBS}
        for verb in ("status", "compare", "cost", "usage", "export", "report"):
            assert self.true[verb][0] == 0, self.true[verb]
        assert ended("verify", str(self.zip))[0] == 0
        self.models = []
        weights = engine_ranks.random_weights(engine_ranks.tiny())
        for kind, save in (("meta", engine_ranks.save_meta), ("hf", engine_ranks.save_hf)):
            model = engine_ranks.tiny(path=str(folder / kind))
            where = (folder / kind,) if kind == "meta" else ()
            save(*where, model, weights, 2)
            checkpoint.check_header(model, kind)
            self.models.append((kind, model))

    def read(self, verb: str) -> tuple[int, str, str]:
        """What a verb says of the sweep."""
        return ended(verb, str(self.sweep.path), *VERBS[verb])


@contextlib.contextmanager
def damaged(path: Path, data: bytes | None):
    """The file with other bytes, or without any file."""
    whole = path.read_bytes()
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(whole)


def odd_table(data: bytes, random_: random.Random) -> bytes:
    """A whole Parquet file of ours with a column missing, of another type, or with values that no such column has."""
    table = pq.read_table(io.BytesIO(data))
    at = random_.randrange(table.num_columns)
    name, values = table.column_names[at], table.column(at)
    odd = random_.choice(["none", "text", "nulls", "rows", "nan", "double", "list"])
    n = table.num_rows
    if odd == "none":
        table = table.remove_column(at)
    elif odd == "rows":
        table = table.slice(0, random_.choice([0, n // 2]))
    elif odd == "double":
        table = pa.concat_tables([table, table])
    else:
        new = {
            "text": lambda: pa.array(["x"] * n),
            "nulls": lambda: pa.nulls(n, values.type),
            "nan": lambda: pa.array([float("nan")] * n),
            "list": lambda: pa.array([[1]] * n),
        }[odd]()
        with contextlib.suppress(pa.ArrowException):
            new = new.cast(values.type)
        table = table.set_column(at, pa.field(name, new.type), new)
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def case_verbs(made: Others, random_: random.Random) -> None:
    """Whatever is damaged of a collected sweep, each verb that reads it ends in one line, or says what was true."""
    paths = sorted(path for path in made.sweep.path.rglob("*") if path.is_file())
    paths = [path for path in paths if path.name != "report.html" and "export" not in path.parts]
    path = random_.choice(paths)
    data: bytes | None
    odd = path.suffix == ".parquet" and random_.random() < 0.4
    if odd:
        data = odd_table(path.read_bytes(), random_)
    else:
        data = None if random_.random() < 0.1 else made.damage(path.read_bytes(), random_)
    weights = [1.0 if verb == "report" else 4.0 for verb in VERBS]
    (verb,) = random_.choices(list(VERBS), weights)
    with damaged(path, data):
        code, out, err = made.read(verb)
    assert code in (0, 1, 2, 3, 4, 5), code
    assert "Traceback" not in err, err
    if code in (1, 2):
        said = [line for line in err.splitlines() if line.startswith("wattflow: ")]
        assert len(said) == 1, err
    elif code == 0 and not odd and path.suffix not in TEXTS and verb in EXACT:
        assert json.loads(out) == json.loads(made.true[verb][1]), (path, verb)


def case_bundle(made: Others, random_: random.Random) -> None:
    """A bundle with a changed byte is never verified; it may be refused as none."""
    data = made.zip.read_bytes()
    other = made.damage(data, random_)
    path = made.zip.with_name("other.zip")
    path.write_bytes(other)
    code, out, err = ended("verify", str(path))
    assert code in (1, 2), (out, err)
    assert "Traceback" not in err


def case_checkpoint(made: Others, random_: random.Random) -> None:
    """A checkpoint's damaged header is refused by name."""
    kind, model = random_.choice(made.models)
    assert model.path is not None
    path = random_.choice(sorted(p for p in Path(model.path).iterdir() if p.is_file()))
    with damaged(path, made.damage(path.read_bytes(), random_)):
        checkpoint.check_header(model, kind)
        checkpoint.hf_ranges(model, 2, 0) if kind == "hf" else checkpoint.meta_shapes(model)


SPANS = b"\n".join(
    json.dumps(
        {"phase": phase, "start_ns": k * 10**9, "end_ns": (k + 1) * 10**9, "pid": 1, "thread": 1}
        | {"tokens_in": 3, "tokens_out": 4}
    ).encode()
    for k, phase in enumerate(["load", "prefill", "decode"])
)


def case_spans(made: Others, random_: random.Random) -> None:
    """Lines of spans that are none are counted; what is left lies in the command's time, with whole tokens."""
    spans, _ = timeline.parse(made.damage(SPANS, random_).splitlines())
    for segment in timeline.segments(spans, 0, 3 * 10**9):
        assert 0 <= segment.start_ns <= segment.end_ns <= 3 * 10**9, segment
        for tokens in (segment.tokens_in, segment.tokens_out):
            assert tokens is None or (isinstance(tokens, int) and tokens >= 0), segment


PRICES = b"""time,price_per_kwh
2024-01-01T00:00:00+00:00,0.25
2024-01-01T01:00:00+00:00,0.125
2024-01-01T02:00:00+00:00,-0.5
"""


def case_prices(made: Others, random_: random.Random) -> None:
    """A table of prices is refused by the line, or its numbers are those that stand in it."""
    data = made.damage(PRICES, random_)
    try:
        text = data.decode()
        factor = cost.table(text, "price_per_kwh", "a test")
    except (ValueError, csv.Error) as error:
        raise RefusedError(str(error)) from error  # as bills does, with the file's name
    cells = set()
    for cell in re.split(r"[,\s]", text):
        with contextlib.suppress(ValueError):
            cells.add(float(cell.strip('"')))
    assert set(factor.values) <= cells, (factor.values, text)


SLURM = {
    "queue": "17_0|RUNNING|None|demo-1\n17_[1-3%2]|PENDING|Priority|demo-1\n18|COMPLETED|None|x|y\n",
    "ended": "17_0|COMPLETED|None\n17_1|CANCELLED by 1000|None\n17_[2-3]|PENDING|Priority\n",
    "joules": "17_0|\n17_0.batch|400\n17_0.0|1200\n18|4294967294\n",
    "limits": "Configuration data\nMaxArraySize           = 1001\nMaxJobCount             = 10000\n",
    "sinfo": "n1|n1\nn2|10.0.0.2\n",
    "job": "JobId=17 JobState=RUNNING PreemptTime=None Reason=None\n",
}
ASK: dict[str, Callable[[], object]] = {
    "queue": client.queue,
    "ended": lambda: client.ended(["17"]),
    "joules": lambda: client.consumed_energy_j(["17"]),
    "limits": client.limits,
    "sinfo": client.other_node,
    "job": lambda: client.was_preempted("17"),
    "named": lambda: client.jobs_named("demo-1"),
}
SLURM["named"] = "17\n18\n17\n"


def case_slurm(made: Others, random_: random.Random) -> None:
    """Whatever Slurm's commands print, tasks have ids of Slurm's and joules are numbers that stood there."""
    question = random_.choice(list(ASK))
    text = made.damage(SLURM[question].encode(), random_).decode(errors="replace")
    done = subprocess.CompletedProcess([], random_.choice([0, 0, 0, 1]), text, text)
    with mock.patch.object(client, "_run", return_value=done):
        found = ASK[question]()
    if question in ("queue", "ended"):
        assert isinstance(found, dict)
        assert all(task[:1].isdigit() for task in found)
    if question == "joules":
        assert isinstance(found, dict)
        assert all(str(int(joules)) in text for joules in found.values())


DMON = b"""#Entity   POWER  TOTEC  GPUTL
ID        W      mJ
GPU 0     71.5   123456 99
GPU 1     N/A    123457 98
"""
DISCOVERY = b"""1 GPU found.
| 0      | Name: NVIDIA A100                                                    |
|        | Device UUID: GPU-0a1b2c3d-0000-4000-8000-000000000001                |
"""


def case_sbatch(made: Others, random_: random.Random) -> None:
    """A job has the number of a line that says `Submitted batch job`, after an exit code 0; else there is none."""
    parts = [
        "Submitted batch job 17",
        "Submitted batch job",
        "cost of this job 12.5",
        "sbatch: 9",
        "17",
        "",
    ]
    answer = "\n".join(random_.choices(parts, k=random_.randint(0, 4))).encode()
    if random_.random() < 0.5:
        answer = made.damage(answer, random_)
    code = random_.choice([0, 0, 0, 1, 124])
    folder = made.zip.parent
    (folder / "answer").write_bytes(answer)
    fake = folder / "sbatch"
    fake.write_text(f'#!/bin/sh\ncat "{folder / "answer"}"\nexit {code}\n')
    fake.chmod(0o700)
    first = client._FIRST_TRY.format(sbatch=fake, limit_s=60, again="false")
    done = subprocess.run(
        ["sh", "-c", first, str(folder / "first")], capture_output=True, check=False
    )
    said = re.findall(rb"^Submitted batch job (\d+)", answer.replace(b"\0", b""), re.MULTILINE)
    assert (done.returncode == 0) == (code == 0 and bool(said)), (answer, code, done)
    if done.returncode == 0:
        assert re.match(rb"Submitted batch job (\d+)", done.stdout)[1] in said


def case_dcgm(made: Others, random_: random.Random) -> None:
    """Rows of `dcgmi dmon` with cells that are no numbers have null there; no number is made of other text."""
    text = made.damage(DMON, random_)
    table = dcgmi.Table([155, 156, 203])
    for _, values in table.feed(text + b"\n"):
        for value in values.values():
            assert value is None or (np.isfinite(value) and f"{value:.15g}".encode()[:3] in text)
    dcgmi.parse_discovery(made.damage(DISCOVERY, random_).decode(errors="replace"))


CASES: dict[str, tuple[float, Callable[[Others, random.Random], None]]] = {
    "verbs": (0.05, case_verbs),
    "bundle": (0.02, case_bundle),
    "checkpoint": (0.05, case_checkpoint),
    "spans": (0.1, case_spans),
    "prices": (0.1, case_prices),
    "slurm": (0.1, case_slurm),
    "sbatch": (0.02, case_sbatch),
    "dcgm": (0.1, case_dcgm),
}
