"""Sweeps and bundles of an old version: today's verbs make of them what that version made, to 1e-12.

tests/data/golden/make.py wrote them by one old commit. Nothing here knows the package but its command line and
`wattflow.open_sweep`. Words for people (errors, notes, help, METHODS.md, the report's layout) are not held to; of a
report its figures are. After a change on purpose `python tests/test_golden.py` writes what is expected anew, and its
diff shows what changed.
"""

import contextlib
import csv
import hashlib
import io
import json
import lzma
import math
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

import wattflow

GOLDEN = Path(__file__).parent / "data" / "golden"
SWEEPS = sorted(path.name.partition(".")[0] for path in (GOLDEN / "sweeps").glob("*"))
BUNDLES = sorted(path.name.partition(".")[0] for path in (GOLDEN / "bundles").glob("*"))
RELATIVE = 1e-12
RECORDED_NS = 1_760_100_000_000_000_000  # the time of change of each record: results hold it

# the command line as `python -m wattflow.cli` runs it, call after call: most of a call is importing
CALLS = """
import contextlib, io, json, os, runpy, sys, traceback
for line in sys.stdin:
    folder, words = json.loads(line)
    os.chdir(folder)
    sys.argv = ["wattflow", *words]
    out, talk, code = io.StringIO(), io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(talk):
            runpy.run_module("wattflow.cli", run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
    except Exception:
        code = traceback.format_exc()
    print(json.dumps([code, out.getvalue(), talk.getvalue()]), flush=True)
"""

# beside what every sweep goes through
TABLES = {
    "repeats": [
        ["compare", "--by", "batch_size"],
        ["compare", "--by", "shards", "--metric", "tokens_per_s", "--reference", "2"],
        ["compare", "--by", "seed"],
    ],
    "profiles": [
        ["compare", "--by", "precision"],
        ["compare", "--by", "cluster_gpu_model", "--metric", "energy_j"],
    ],
    "caps": [
        ["caps", "--reference", "400"],
        ["caps", "--reference", "none", "--objective", "edp"],
        ["caps", "--reference", "123"],
    ],
    "clocks": [["caps", "--reference", "none", "--clocks"], ["caps", "--reference", "none"]],
    "priced": [
        ["compare", "--by", "batch_size"],
        ["cost", "--set", "cluster.cost.price_per_kwh=0.5"],
        ["cost", "--set", "cluster.cost.carbon_source=null"],
    ],
    "simulated": [["compare", "--by", "batch_size"], ["compare", "--by", "shards"]],
    "ran": [["compare", "--by", "engine"], ["compare", "--by", "shards"]],
}
# a report draws a timeline a point, which takes longer than all else
REPORTED = ["caps", "damaged", "measured", "priced", "profiles"]
PLANS = [
    ["shards=1,2,3", "batch_size=2,4", "n_prompts=8", "sweep.repeats=2"],
    ["model=llama-7b,llama-13b,llama-65b", "dataset=gsm8k", "dataset.cycle=true", "n_prompts=4096", "shards=1,4,8",
     "cluster=example-a100"],
    ["grid=power-caps", "model=llama-7b", "n_prompts=64", "cluster=example-a100"],
    ["grid=paper-scaling", "n_prompts=64", "cluster=example-v100"],
    ["grid=shards", "n_prompts=32", "max_gen_len=32"],
    ["grid=demo", "n_prompts=16"],
    ["engine=paper,fast,synthetic", "precision=fp32,bf16", "n_prompts=4", "batch_size=2", "temperature=0,0.8"],
    ["control.power_limit_w=null,300,400", "control.sm_clock_mhz=null,1200", "n_prompts=64", "seed=1"],
    ["model=tiny,smollm2-135m", "n_prompts=5", "batch_size=3", "top_p=0.9", "max_seq_len=600"],
]  # fmt: skip


@contextlib.contextmanager
def command_line():
    """A function that calls the command line in a folder, with some words each, and gives exit codes and output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "WATTFLOW"))}
    command = [sys.executable, "-c", CALLS]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def call(cwd, *calls):
            answers = []
            for words in calls:
                process.stdin.write(json.dumps([str(cwd), words]) + "\n")
                process.stdin.flush()
                code, out, talk = json.loads(process.stdout.readline())
                print(" ".join(words), "->", code, talk, sep="\n")  # shown where a test fails
                assert isinstance(code, int), code
                answers.append((code, out))
            return answers

        yield call


@pytest.fixture(scope="module")
def call():
    """The command line, in one process for all tests."""
    with command_line() as call:
        yield call


# --- what came out, as values of JSON -------------------------------------------------------------


def columns(rows):
    """Rows as columns: those that are alike in all rows as one value, null ones not at all."""
    names = dict.fromkeys(name for row in rows for name in row)
    found = {name: [row.get(name) for row in rows] for name in names}
    alike = {name: all(repr(v) == repr(of[0]) for v in of) for name, of in found.items()}
    return {
        "rows": len(rows),
        "alike": {name: of[0] for name, of in found.items() if alike[name] and of[0] is not None},
        "columns": {name: of for name, of in found.items() if not alike[name]},
    }


def flat(value, name=""):
    """A document as one row: the path of each leaf and its value."""
    if isinstance(value, dict) and value:
        parts = [flat(inner, f"{name}/{key}") for key, inner in value.items()]
        return {path: leaf for part in parts for path, leaf in part.items()}
    return {name: value}


def frame(found):
    """The rows of a table in an order of their own."""
    first = [name for name in ("point_id", "attempt", "phase", "node", "gpu_uuid") if name in found]
    found = found.sort(first, nulls_last=True)
    times = [name for name, kind in found.schema.items() if isinstance(kind, pl.Datetime)]
    found = found.with_columns(pl.col(times).dt.to_string("iso:strict"))
    return found.to_dicts()


def points(found):
    """The rows of points; of an error about a file the file alone, as its words may come from a library."""
    rows = frame(found)
    for row in rows:
        if "damaged" in row["reasons"]:
            row["error"] = re.findall(r"attempt-\d+/?[^\s:,]*", row["error"])[:1]
    return columns(rows)


def verdict(text):
    """A verdict without the words for people, and without what names a version or a file's bytes."""
    found = json.loads(text)
    for name in ("checked_by", "made_by", "path", "sha256", "tolerance"):
        del found[name]
    for one in [found, *found["attempts"]]:
        one["problems"] = len(one["problems"])
    assert not found.pop("kept")  # nothing of it was pruned
    assert not any(one.pop("kept") for one in found["attempts"])
    for one in found["attempts"]:
        one["largest"] = one["largest"] < RELATIVE
    found["attempts"] = columns(found["attempts"])
    return {**found, "notes": len(found["notes"])}


def samples(text):
    """OpenMetrics as its samples and the type and unit of each family."""
    lines = [line for line in text.splitlines() if not line.startswith("# HELP")]
    values = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {
        "families": [line for line in lines if line.startswith("#")],
        "samples": {name: float(value) for name, _, value in values},
    }


def undescribed(schema):
    """A JSON schema without its words for people."""
    if isinstance(schema, dict):
        return {k: undescribed(v) for k, v in schema.items() if k not in ("description", "title")}
    return [undescribed(one) for one in schema] if isinstance(schema, list) else schema


def exported(folder):
    """The documents of an export and its metrics."""
    return {
        "attempts": columns(
            [
                {"file": path.stem, **flat(json.loads(path.read_text()))}
                for path in sorted(folder.glob("attempts/*"))
            ]
        ),
        "metrics": samples((folder / "openmetrics.txt").read_text()),
    }


def report_figures(path):
    """How often each number stands alone in a cell of the report's tables."""
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", path.read_text())
    return dict(Counter(cell for cell in cells if re.fullmatch(r"[~+-]?[\d.,]*\d", cell.strip())))


def traces(folder):
    """For each device of an attempt: how many readings were collected, and the sum of each column."""
    rows = []
    for path in sorted(folder.glob("results/traces/*.parquet")):
        found = pl.read_parquet(path)
        owners = ["point_id", "attempt", "node", "gpu_uuid"]
        for owner, readings in found.group_by(owners, maintain_order=True):
            sums = {
                name: readings[name].cast(pl.Float64).sum()
                for name, kind in readings.schema.items()
                if (kind.is_numeric() or kind == pl.Boolean) and name not in owners
                if readings[name].null_count() < len(readings)
            }
            sources = dict(sorted(Counter(readings["source"]).items()))
            rows.append({"owner": " ".join(map(str, owner)), "sources": sources, **sums})
    return columns(sorted(rows, key=lambda row: row["owner"]))


def number(cell):
    """A cell of points.csv; one with a decimal point as a number."""
    return float(cell) if cell and re.fullmatch(r"-?\d+\.\d+(e[+-]?\d+)?", cell) else cell


def members(path):
    """What stands in a bundle: its members, its figures, its grid, and each record by its hash."""
    with zipfile.ZipFile(path) as bundle:
        names = sorted(bundle.namelist())
        rows = list(csv.DictReader(io.StringIO(bundle.read("points.csv").decode())))
        about = json.loads(bundle.read("bundle.json"))
        records = {
            name: hashlib.sha256(
                json.dumps(json.loads(bundle.read(name)), sort_keys=True).encode()
            ).hexdigest()[:16]
            for name in names
            if name.endswith(".json") and name != "bundle.json"
        }
    del about["bundled_by"], about["results_by"]
    for row in rows:
        row["error"] = row.get("error") if row["reasons"] != "damaged" else ""
    rows = [{name: number(cell) for name, cell in row.items()} for row in rows]
    return {"members": names, "points": columns(rows), "about": about, "records": records}


def types(path):
    """The columns of a table on disk: name, type, and unit where it has one."""
    schema = pq.read_schema(path)
    units = [(field.metadata or {}).get(b"unit", b"").decode() for field in schema]
    return [[field.name, str(field.type), unit] for field, unit in zip(schema, units, strict=True)]


def unpacked(name, cwd):
    """A copy of a sweep below a folder."""
    with tarfile.open(GOLDEN / "sweeps" / f"{name}.tar.xz") as packed:
        packed.extractall(cwd, filter="data")
    recorded(cwd / name)
    return cwd / name


def recorded(folder):
    """Give the records of a sweep the time of change that results hold."""
    for path in folder.glob("points/*/attempt-*/record.json"):
        os.utime(path, ns=(RECORDED_NS, RECORDED_NS))


def outcome(name, cwd, call):
    """All that the verbs make of one sweep, in a copy below a folder."""
    folder = unpacked(name, cwd)
    tables = [["cost"], ["usage"], *TABLES.get(name, [])]
    tables = [[verb, name, *words, "--json"] for verb, *words in tables]
    before, *made = call(
        cwd,
        ["verify", name, "--json"],
        ["collect", name],
        ["verify", name, "--json"],
        ["bundle", name, "--out", f"{name}.zip"],
        ["verify", f"{name}.zip", "--json"],
        ["export", name],
        *tables,
    )
    codes, texts = zip(*made, strict=True)
    opened = wattflow.open_sweep(folder)
    has_bundle = (cwd / f"{name}.zip").is_file()
    return {
        "exit_codes": [before[0], *codes],
        "before": verdict(before[1]) if before[1] else None,
        "verdict": verdict(texts[1]),
        "bundle_verdict": verdict(texts[3]) if has_bundle else None,
        "bundle": members(cwd / f"{name}.zip") if has_bundle else None,
        "points": points(opened.attempts),
        "chosen": [[row["point_id"], row["attempt"]] for row in opened.points.to_dicts()],
        "phases": columns(frame(opened.phases)),
        "boards": columns(frame(opened.boards())),
        "traces": traces(folder),
        "export": exported(folder / "results" / "export"),
        "tables": {
            " ".join(words): json.loads(text) if text else None
            for words, text in zip(tables, texts[5:], strict=True)
        },
        "types": {
            "points": types(folder / "results" / "points.parquet"),
            "phases": types(folder / "results" / "phases.parquet"),
            "traces": sorted({str(types(p)) for p in folder.glob("results/traces/*.parquet")}),
            "export": undescribed(
                json.loads((folder / "results" / "export" / "attempt.schema.json").read_text())
            ),
        },
    }


def reported(cwd, call):
    """The figures of some sweeps' reports."""
    folders = [unpacked(name, cwd) for name in REPORTED]
    made = call(cwd, *[[verb, name] for name in REPORTED for verb in ("collect", "report")])
    assert [code for code, _ in made] == [0] * len(made)
    return {f.name: report_figures(f / "results" / "report.html") for f in folders}


def bundle_outcome(name, cwd, call):
    """What verify says of an old bundle, packed and unpacked, and its tables as they are and collected once more."""
    (cwd / f"{name}.zip").write_bytes(
        lzma.decompress((GOLDEN / "bundles" / f"{name}.zip.xz").read_bytes())
    )
    with zipfile.ZipFile(cwd / f"{name}.zip") as bundle:
        bundle.extractall(cwd / name)
    opened = wattflow.open_sweep(cwd / name / "sweep")
    before = {"points": points(opened.attempts), "phases": columns(frame(opened.phases))}
    recorded(cwd / name / "sweep")
    made = call(
        cwd,
        ["verify", f"{name}.zip", "--json"],
        ["verify", name, "--json"],
        ["collect", f"{name}/sweep"],
    )
    again = wattflow.open_sweep(cwd / name / "sweep")
    return {
        "exit_codes": [code for code, _ in made],
        "verdict": verdict(made[0][1]),
        "unpacked": verdict(made[1][1]),
        "before": before,
        "points": points(again.attempts),
        "phases": columns(frame(again.phases)),
    }


def planned(cwd, call):
    """The ids, reasons and shapes of what some words ask for."""
    made = call(cwd, *[["plan", *words, "--json"] for words in PLANS])
    out = []
    for words, (code, text) in zip(PLANS, made, strict=True):
        plan = json.loads(text) if text else {"points": [], "shapes": [], "duplicates": None}
        ids = [[one["point_id"], one["reason"]] for one in plan["points"]]
        rest = {"shapes": plan["shapes"], "duplicates": plan["duplicates"]}
        out.append({"words": words, "exit_code": code, "points": ids, **rest})
    return out


# --- what is expected -----------------------------------------------------------------------------


def written(path, found):
    """Write what came out, a line an element of its second level."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=None, separators=(",\n", ": ")) + "\n")


def write_expected(cwd, call, names=tuple(SWEEPS)):
    """Write what comes out of some sweeps, of all old bundles, plans and reports as what is expected."""
    for name in names:
        (cwd / name).mkdir()
        found = outcome(name, cwd / name, call)
        written(GOLDEN / "expected" / "types.json", found.pop("types"))
        written(GOLDEN / "expected" / f"{name}.json", found)
    for path in (GOLDEN / "bundles").glob("*"):
        name = path.name.partition(".")[0]
        folder = cwd / f"bundle-{name}"
        folder.mkdir()
        written(GOLDEN / "expected" / f"{folder.name}.json", bundle_outcome(name, folder, call))
    written(GOLDEN / "expected" / "plans.json", planned(cwd, call))
    (cwd / "reports").mkdir()
    written(GOLDEN / "expected" / "reports.json", reported(cwd / "reports", call))


def expected(name):
    """What the old version made."""
    return json.loads((GOLDEN / "expected" / f"{name}.json").read_text())


def expanded(table):
    """The columns of what `columns` made, each with a value a row."""
    alike = {name: [value] * table["rows"] for name, value in table["alike"].items()}
    return {**alike, **table["columns"]}


def differences(old, new, where=""):
    """Where two values differ: floats by more than 1e-12 of the larger, all else at all."""
    if all(
        isinstance(one, dict) and one.keys() == {"rows", "alike", "columns"} for one in (old, new)
    ):
        yield from differences(expanded(old), expanded(new), where)
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differences(old.get(key), new.get(key), f"{where}/{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{where}/{i}")
    elif isinstance(old, float) and isinstance(new, float):
        if not math.isclose(old, new, rel_tol=RELATIVE):
            yield f"{where}: {old!r} was expected, {new!r} came out"
    elif type(old) is not type(new) or old != new:
        yield f"{where}: {old!r:.200} was expected, {new!r:.200} came out"


def check(old, new):
    """Fail with the first places where what came out is not what was expected."""
    found = list(differences(old, new))
    assert not found, f"{len(found)} differences:\n" + "\n".join(found[:30])


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_gives_what_it_gave(name, tmp_path, call):
    """Points, phases, exports, tables, verdicts and what is in the bundle are those of the old version."""
    found = outcome(name, tmp_path, call)
    check(expected("types"), found.pop("types"))
    check(expected(name), found)


def test_reports_show_the_figures_that_they_showed(tmp_path, call):
    """Each number in a cell of an old report's tables stands in today's as often, beside what it may show more."""
    found = reported(tmp_path, call)
    for name, figures in expected("reports").items():
        assert not Counter(figures) - Counter(found[name]), name


@pytest.mark.parametrize("name", BUNDLES)
def test_an_old_bundle_verifies_and_opens(name, tmp_path, call):
    """Its verdict, its tables, and what is collected from its traces are those of the old version."""
    check(expected(f"bundle-{name}"), bundle_outcome(name, tmp_path, call))


def test_words_plan_the_points_that_they_planned(tmp_path, call):
    """The ids, reasons and shapes of nine plans, n_prompts stated in each."""
    check(expected("plans"), planned(tmp_path, call))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary, command_line() as verbs:
        write_expected(Path(temporary), verbs)
