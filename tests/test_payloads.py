"""What others wrote reaches a terminal as text alone: markup, controls, bidi and invisible letters, through each verb.

Each test plants one payload where a verb finds text of others: a record, a log, a grid, a table of results, a name of a
file, an answer of Slurm's, of a Prometheus, of a driver. Whatever the verb then prints is searched for what may not
reach a terminal.
"""

import json
import re
import sys
import zipfile

import pyarrow as pa
import pytest
from forgery import edit
from sent_sweeps import attempt, name_of, sent
from site_monitoring import served
from sweeps import Gpu, Made, choices, make_attempt, make_sweep

from wattflow.cli.app import main
from wattflow.collect.collect import collect
from wattflow.store.columns import CROSSCHECK

ESCAPES = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x1b]8;;http://x\x1b\\\x9b2J\x08\x7f\u202e\u2066\u200b\u200d\u2028\ufe0f\u3164"
MARKUP = "[/dev/nvidia0] [enforce fail at a.cpp:3] [link=http://x]y[/link] [bold]"
PAYLOAD = f"{MARKUP}{ESCAPES}"
NAME = "".join(c for c in PAYLOAD if c not in "/\x07")  # as a file may be called
SEEN = "[enforce fail at a.cpp:3]"

_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufe00-\ufe0f\u3164\ufeff]"
)


@pytest.fixture
def say(monkeypatch, capsys, tmp_path):
    """A verb as it is called on a terminal: its exit code, and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "dumb")  # no bold headings
    monkeypatch.setenv("COLUMNS", "200")

    def called(*words):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setattr(sys, "argv", ["wattflow", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert not _FORBIDDEN.findall(out + err)
        assert "Traceback" not in err
        return ended.value.code or 0, " ".join(f"{out}\n{err}".split())

    return called


# --- records and logs -----------------------------------------------------------------------------


@pytest.fixture
def failed(fake, tmp_path):
    """A sweep whose point failed with the payload as its error, in its log, and as its node's name."""
    made = sent(tmp_path, 1)
    one = attempt(made, 0, "failed", "101", error=PAYLOAD, error_rank=0)
    one.logs.mkdir(exist_ok=True)
    (one.logs / "rank0.log").write_text(f"{PAYLOAD}\n")
    one.error_path(0).write_text(
        json.dumps(
            {"rank": 0, "time_ns": 1, "interrupted": False, "error": PAYLOAD, "traceback": PAYLOAD}
        )
    )
    return made


def test_status_prints_an_error_as_text(say, failed):
    """Its markup is seen, its controls are not."""
    code, text = say("status", failed.sweep.path)
    assert code == 3
    assert SEEN in text


def test_logs_print_a_log_as_text(say, failed):
    """A line of a rank, and its error."""
    code, text = say("logs", failed.sweep.path)
    assert (code, text.count(SEEN) > 0) == (0, True)


def test_an_answer_of_slurms_is_text(say, fake, tmp_path):
    """A reason of squeue's, of sacct's, and an error of a command that fails."""
    made = sent(tmp_path, 2)
    fake.queue(f"101_0|PENDING|{PAYLOAD}|{name_of(made)}")
    fake.accounting(f"101_1|FAILED|{PAYLOAD}")
    assert SEEN in say("status", made.sweep.path)[1]
    for command in ("squeue", "scancel"):
        (fake.folder / "bin" / command).write_text(
            f"#!/bin/bash\ncat <<'END' >&2\n{PAYLOAD}\nEND\nexit 1\n"
        )
    (fake.folder / "cache").mkdir(exist_ok=True)
    for path in (fake.folder / "cache").rglob("*.json"):
        path.unlink()
    for verb in ("status", "resume", "cancel"):
        code, text = say(verb, made.sweep.path)
        assert code == (5 if verb == "status" else 1)
        assert SEEN in text


def test_a_refusal_of_sbatch_is_text(say, fake, tmp_path):
    """By `plan --test` and by `submit`."""
    (tmp_path / "conf" / "cluster").mkdir(parents=True)
    (tmp_path / "conf" / "cluster" / "mine.yaml").write_text(
        "name: mine\npartition: gpu\nshared_sweeps_dir: true\n"
    )
    (fake.folder / "bin" / "sbatch").write_text(
        f"#!/bin/bash\ncat <<'END' >&2\n{PAYLOAD}\nEND\nexit 1\n"
    )
    words = ("cluster=mine", "model=tiny", "n_prompts=4", "sweep.repeats=1", "engine=synthetic")
    for call in (("plan", *words, "--test"), ("submit", *words, "sweep=s")):
        code, text = say(*call)
        assert (code, SEEN in text) == (1, True)


def test_doctor_prints_what_it_found_as_text(say, fake, monkeypatch):
    """An error of sacct's, and a variable of the environment."""
    (fake.folder / "bin" / "sacct").write_text(
        f"#!/bin/bash\ncat <<'END' >&2\n{PAYLOAD}\nEND\nexit 1\n"
    )
    monkeypatch.setenv("SLURM_TMPDIR", NAME)
    code, text = say("doctor")
    assert (code, SEEN in text) == (0, True)


# --- results of others ----------------------------------------------------------------------------

VOCABULARY = {"point_id", "status", "reasons", "command", "cluster_cost", "versions", "engine_info"}


def foul(rows):
    """Put the payload into each column of text of a table of results."""
    for row in rows:
        for column, value in row.items():
            if column not in VOCABULARY and isinstance(value, str):
                row[column] = PAYLOAD
            elif column not in VOCABULARY and isinstance(value, list) and value:
                row[column] = [PAYLOAD if isinstance(one, str) else one for one in value]


@pytest.fixture
def foreign(fake, tmp_path):
    """A sweep of somebody's whose model, dataset, nodes, devices and sensors are called by the payload."""
    points = [
        choices(model__name=f"a{PAYLOAD}", dataset__name=PAYLOAD, batch_size=size, repeat=repeat)
        for size in (4, 8)
        for repeat in (0, 1)
    ]
    bad = choices(model__name=PAYLOAD, batch_size=16)
    sweep = make_sweep(tmp_path / "sweeps" / "theirs", [*points, bad])
    for number, point in enumerate(points):
        make_attempt(sweep, point, Made([Gpu("GPU-a")], started_s=60.0 * number))
    failure = make_attempt(sweep, bad, Made([Gpu("GPU-a")], status="failed"))
    failure.write_record({**failure.read_record(), "error": PAYLOAD})
    collect(sweep)
    edit(sweep.points_path, foul)
    edit(sweep.phases_path, foul)
    return sweep


RESULTS = {
    "status": ["sweeps/theirs"],
    "list": ["sweeps"],
    "usage": ["sweeps"],
    "compare": ["sweeps/theirs", "--by", "batch_size"],
    "compare with a choice that is none": ["sweeps/theirs", "--by", PAYLOAD],
    "compare by a value that is none": ["sweeps/theirs", "--by", "batch_size", "--reference", "9"],
    "caps": ["sweeps/theirs", "--reference", "none"],
    "cost": ["sweeps/theirs"],
    "cost by a factor of theirs": [
        "sweeps/theirs",
        "--set",
        f"cluster.cost.price_source={PAYLOAD}",
    ],
    "explain": ["sweeps/theirs", "POINT"],
    "crosscheck": ["sweeps/theirs"],
    "export": ["sweeps/theirs"],
    "pareto": ["sweeps/theirs"],
    "query": ["select model, node_names, error from points", "sweeps/theirs"],
    "query of no SQL": [PAYLOAD, "sweeps/theirs"],
    "verify": ["sweeps/theirs"],
    "bundle": ["sweeps/theirs", "-n"],
    "logs": ["sweeps/theirs"],
    "collect": ["sweeps/theirs"],
    "resume": ["sweeps/theirs", "-n"],
    "resume by a filter": ["sweeps/theirs", f"model={PAYLOAD}", "-n"],
}


@pytest.mark.parametrize("case", RESULTS)
def test_results_of_others_are_text(case, say, foreign):
    """Each verb that reads a sweep, of which every text column is the payload; some refuse it."""
    point = foreign.points()[0].point_id
    words = [point if word == "POINT" else word for word in RESULTS[case]]
    code, text = say(case.split()[0], *words)
    assert code in (0, 1, 2, 3)
    if case in ("status", "compare with a choice that is none"):
        assert "[/dev/nvidia0]" in text


def test_a_name_of_a_file_is_text(say, tmp_path):
    """Of a sweep's folder, of a damaged file, of a member of a bundle."""
    sweep = make_sweep(tmp_path / "sweeps" / NAME[:80], [choices()])
    for verb in ("status", "list", "verify", "compare", "bundle"):
        words = {"list": ["sweeps"], "compare": [sweep.path, "--by", "shards"]}
        say(verb, *words.get(verb, [sweep.path]))
    sweep.grid_path.write_bytes(b"PAR1 no more")
    for verb in ("status", "verify", "plan"):
        say(verb, *([f"sweep={NAME}"] if verb == "plan" else [sweep.path]))
    _, text = say("list", "sweeps")
    assert SEEN in text
    broken = tmp_path / f"{NAME[:80]}.zip"
    broken.write_bytes(b"PK\x03\x04 cut")
    assert say("verify", broken)[0] == 2


def test_a_member_of_a_bundle_is_text(say, tmp_path):
    """A bundle that brings a file which its sums do not name, unpacked: the name is printed."""
    made = make_sweep(tmp_path / "s", [choices(seed=1)])
    make_attempt(made, choices(seed=1), Made([Gpu("GPU-a")]))
    collect(made)
    code, text = say("bundle", made.path, "--out", tmp_path / "b.zip")
    assert code == 0, text
    with zipfile.ZipFile(tmp_path / "b.zip") as packed:
        packed.extractall(tmp_path / "x")
    (tmp_path / "x" / NAME[:80]).write_text("x")
    code, text = say("verify", tmp_path / "x")
    assert (code, SEEN in text) == (1, True)


# --- the site's own meters ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"status": "error", "errorType": PAYLOAD, "error": PAYLOAD},
        {"status": PAYLOAD},
        {"status": "success", "data": [PAYLOAD]},
    ],
)
def test_an_answer_of_a_prometheus_is_text(body, say, tmp_path):
    """An error in its own words, a status, names of metrics."""
    made = make_sweep(tmp_path / "s", [choices()])
    make_attempt(made, choices(), Made([Gpu("GPU-a")]))
    collect(made)

    def answer(_):
        return 400 if "error" in body else 200, {}, json.dumps(body, ensure_ascii=False).encode()

    with served(answer) as url:
        code, _ = say("crosscheck", made.path, "--prometheus", url, "--no-sacct")
    assert code in (0, 1)


def test_a_kept_crosscheck_of_others_is_text_in_the_report(say, tmp_path):
    """`report` draws what stands in results/crosscheck.parquet."""
    made = make_sweep(tmp_path / "s", [choices()])
    make_attempt(made, choices(), Made([Gpu("GPU-a")]))
    collect(made)
    from wattflow.store.tables import write_table

    row = {field.name: PAYLOAD for field in CROSSCHECK if pa.types.is_string(field.type)}
    about = {"schema_version": "1"}
    write_table(
        made.crosscheck_path,
        pa.Table.from_pylist([row], schema=CROSSCHECK).replace_schema_metadata(about),
    )
    assert say("report", made.path)[0] == 0
    page = made.report_path.read_text()
    assert not _FORBIDDEN.findall(page.split("<main>")[1].split("</main>")[0])


# --- commands that are measured -------------------------------------------------------------------


def test_measure_prints_what_a_command_left_as_text(tmp_path, monkeypatch):
    """A command that is none, a key of tokens that is none, a file of tokens that is damaged."""
    from commands import call

    monkeypatch.chdir(tmp_path)
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps({PAYLOAD: PAYLOAD}))
    simulated = ["--set", "power.meter=simulated"]
    for words in (
        ["--out", "a", NAME],
        [
            "--out",
            "b",
            "--tokens-json",
            str(tokens),
            "--tokens-key",
            PAYLOAD,
            *simulated,
            "--",
            "true",
        ],
        ["--out", "c", "--set", f"power.{PAYLOAD}=1", "--", "true"],
    ):
        done = call("measure", *words, cwd=tmp_path)
        assert not _FORBIDDEN.findall(done.stdout + done.stderr)
        assert "Traceback" not in done.stderr
