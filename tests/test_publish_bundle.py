"""`wattflow bundle` packs what it takes to verify a sweep, and nothing that shows whose machine it was.

The grep of this file looks into every member of a bundle: its bytes, and of Parquet files all texts and all metadata.
"""

import getpass
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sweeps import Gpu, Made, choices, constant, demo, id_of, make_attempt, make_sweep

from wattflow.analysis.sweep import open_sweep
from wattflow.collect.collect import collect
from wattflow.errors import RefusedError
from wattflow.publish import archive
from wattflow.publish.bundle import bundle
from wattflow.publish.verdict import lines
from wattflow.publish.verify import verify
from wattflow.store.layout import SweepDir
from wattflow.submit.resume import resume

ROOT = Path(__file__).parent.parent
WATTFLOW = [sys.executable, "-m", "wattflow.cli"]
USER, ACCOUNT, PROMPT = "quillfeather", "proj-marmalade", "zanzibar umbrella"
NODES = NODE, _ = "gpunode17", "gpunode18"
UUID = "GPU-0a1b2c3d-0000-4000-8000-000000000001"


# --- the grep -------------------------------------------------------------------------------------


def texts(member, data):
    """All that can be read in a member: its bytes as they are, and what a Parquet file holds packed."""
    if not member.endswith(".parquet"):
        yield data
    if member.endswith(".parquet"):
        file = pq.ParquetFile(pa.BufferReader(data))
        schema = file.schema_arrow
        metadata = [file.metadata.metadata or {}, schema.metadata or {}]
        metadata += [column.metadata or {} for column in schema]
        # ARROW:schema is that schema once more as numbers and text, in whose bytes a short name comes up by chance
        for one in metadata:
            yield from (key + b" " + value for key, value in one.items() if key != b"ARROW:schema")
        yield " ".join(schema.names).encode()
        for column in file.read().columns:
            yield "\n".join(map(str, column.to_pylist())).encode()


def grep(members, needles):
    """The needles that stand in any of some (name, bytes), whatever their case, each with the first such name.

    The packed bytes of a Parquet file are searched too, but for names so short that they come up there by chance.
    """
    found = {}
    for name, data in members:
        for needle in needles:
            word = re.escape(needle).encode()
            if len(needle) < 4:
                word = rb"(?<![A-Za-z0-9])" + word + rb"(?![A-Za-z0-9])"
            where = [name.encode(), *texts(name, data), *([data] if len(needle) > 3 else [])]
            if any(re.search(word, text, re.IGNORECASE) for text in where):
                found.setdefault(needle, name)
    return found


def members_of(path):
    if path.is_dir():
        return [(str(p.relative_to(path)), p.read_bytes()) for p in path.rglob("*") if p.is_file()]
    with zipfile.ZipFile(path) as packed:
        return [(name, packed.read(name)) for name in packed.namelist()]


# --- a real sweep, and a real measurement, of somebody --------------------------------------------


def call(*words, cwd, **environment):
    done = subprocess.run(
        [*WATTFLOW, *map(str, words)],
        cwd=cwd,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "CUDA_"))},
            "PYTHONPATH": str(ROOT),
            "LOGNAME": USER,
            "SLURMD_NODENAME": NODE,
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Somebody's folder, with a sweep that was run there and a command measured on two nodes, simulated."""
    where = tmp_path_factory.mktemp("somewhere") / USER
    where.mkdir()
    prompts = [{"instruction": f"{PROMPT} {i}", "output": "x"} for i in range(4)]
    (where / "secret-prompts.json").write_text(json.dumps(prompts))
    call(
        *(
            "run",
            "engine=paper",
            "precision=fp32",
            "power=simulated",
            "n_prompts=4",
            "batch_size=2",
            "max_gen_len=8",
        ),
        *("power.idle_s=0.2", "power.poll_ms=20", "dataset.template=plain", "sweep=mine"),
        *(
            f"dataset.path={where}/secret-prompts.json",
            "dataset.name=mine",
            f"cluster.account={ACCOUNT}",
        ),
        f"cluster.setup=[source {where}/venv]",
        cwd=where,
    )
    # what real weights and a failure would leave there too
    (attempt,) = where.glob("sweeps/mine/points/*/attempt-1")
    answers = pq.read_table(attempt / "requests.parquet")
    at = answers.schema.get_field_index("text")
    said = pa.array([f"{PROMPT}?"] * answers.num_rows, pa.string())
    answers = answers.set_column(at, answers.schema.field("text"), said)
    pq.write_table(answers, attempt / "requests.parquet")
    failed = attempt.with_name("attempt-2")
    failed.mkdir()
    record = json.loads((attempt / "record.json").read_text())
    why = f"cannot read {where}/model of {USER} on {NODE}.example.org for {PROMPT!r}"
    record |= {"attempt": 2, "status": "failed", "error": why}
    (failed / "record.json").write_text(json.dumps(record))
    call("collect", "mine", cwd=where)
    program = (
        "import time, wattflow\n"
        f"with wattflow.span('reading {PROMPT}', tokens_out=3): time.sleep(0.3)\n"
        "with wattflow.span('forward', tokens_out=4): time.sleep(0.3)"
    )
    settings = ["--set", "power.meter=simulated", "--set", "power.poll_ms=20"]
    words = ["measure", "--out", "measured", *settings, "--", sys.executable, "-c", program]
    step = {f"SLURM_{k}": "2" for k in ("NNODES", "NTASKS", "STEP_NUM_NODES", "STEP_NUM_TASKS")}
    step |= {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_JOB_ACCOUNT": ACCOUNT}

    def on_node(node):
        own = {"SLURM_NODEID": f"{node}", "SLURM_PROCID": f"{node}", "SLURMD_NODENAME": NODES[node]}
        call(*words, f"--data={where}", cwd=where, **step | own)

    with ThreadPoolExecutor() as both:
        list(both.map(on_node, range(2)))
    call("collect", "measured", cwd=where)
    call("bundle", "mine", "--out", "mine.zip", cwd=where)
    call("bundle", "measured", "--out", "measured.zip", cwd=where)
    return where


def needles(home):
    host = platform.node()
    return [USER, *NODES, ACCOUNT, PROMPT, str(home), "secret-prompts", host, host.split(".")[0]]


@pytest.mark.parametrize("name", ["mine", "measured"])
def test_a_bundle_names_nobody(home, name):
    """Neither user, node, host, account, path nor prompt stands in any member, nor in what Parquet files hold."""
    assert grep(members_of(home / f"{name}.zip"), needles(home)) == {}


def test_the_same_grep_finds_them_where_they_are(home):
    """In the sweep itself each of them is found, so that the grep above can fail."""
    names = {USER, NODE, ACCOUNT, PROMPT, str(home), "secret-prompts"}
    assert set(grep(members_of(home / "sweeps/mine"), names)) == names
    assert {USER, *NODES, PROMPT} <= set(grep(members_of(home / "measured"), needles(home)))


def test_the_grep_looks_into_packed_columns(tmp_path):
    """A name in a compressed column, and one in a file's metadata, is found though its bytes do not show it."""
    table = pa.table({"a": [f"x{i} {USER}" for i in range(2000)]}).replace_schema_metadata(
        {"who": NODE}
    )
    pq.write_table(table, tmp_path / "t.parquet", compression="zstd", use_dictionary=False)
    data = (tmp_path / "t.parquet").read_bytes()
    assert data.count(USER.encode()) < 10
    assert set(grep([("t.parquet", data)], [USER, NODE, "nobody"])) == {USER, NODE}


@pytest.mark.parametrize("name", ["mine", "measured"])
def test_what_was_really_run_verifies(home, name):
    """A real sweep's and a real measurement's bundle pass, and so do both as they lie on disk."""
    for path in (home / f"{name}.zip", home / ("sweeps/mine" if name == "mine" else name)):
        verdict = verify(path)
        assert verdict.verified, "\n".join(lines(verdict))
        assert verdict.attempts[0].figures > 60


def test_a_measured_command_is_withheld_and_its_figures_are_not(home, tmp_path):
    """The command's number of words is said, phases of one word are kept; 7 tokens on each node are 14."""
    archive.unpack(home / "measured.zip", tmp_path)
    (row,) = pq.read_table(tmp_path / "sweep/results/points.parquet").to_pylist()
    assert json.loads(row["command"]) == ["(withheld: 4 words)"]
    assert row["tokens_kept"] == 14
    assert row["nodes_seen"] == 2
    phases = {
        r["phase"] for r in pq.read_table(tmp_path / "sweep/results/phases.parquet").to_pylist()
    }
    assert "forward" in phases
    assert any(re.fullmatch(r"phase-[0-9a-f]{10}", phase) for phase in phases)
    (original,) = pq.read_table(home / "measured/results/points.parquet").to_pylist()
    assert row["point_id"] != original["point_id"]
    assert verify(home / "measured.zip").withheld_ids == 1


def test_work_and_ceilings_are_carried(home, tmp_path):
    """The roofline's columns of a real run come out of its bundle again."""
    archive.unpack(home / "mine.zip", tmp_path)
    row = pq.read_table(tmp_path / "sweep/results/points.parquet").to_pylist()[0]
    assert row["decode_roofline_share"] > 0
    assert row["ceilings_source"].endswith("in fp32, after the batches")


def test_logs_journals_and_answers_stay(home):
    """No member is a log, a pickle or a journal; requests have counts and no text."""
    names = [name for name, _ in members_of(home / "mine.zip")]
    assert not [n for n in names if re.search(r"log|pkl|journal|salt|heart", n)]
    (requests,) = [name for name in names if name.endswith("requests.parquet")]
    table = pq.read_table(pa.BufferReader(dict(members_of(home / "mine.zip"))[requests]))
    assert table["text"].null_count == table.num_rows == 4
    assert table["tokens_kept"].to_pylist() == [8] * 4


# --- pseudonyms -----------------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path):
    """One point on two GPUs of one node, twice; collected."""
    point = choices(shards=2)
    made = make_sweep(tmp_path / "s", [point])
    gpus = [Gpu(UUID, constant(80.0)), Gpu(UUID[:-1] + "2", constant(120.0))]
    for _ in range(2):
        make_attempt(made, point, Made(gpus))
    collect(made)
    return made


def test_one_gpu_has_one_pseudonym_so_that_tables_join(sweep, tmp_path):
    """Record, spans, traces and results name the same two pseudonyms, in both attempts, in the form of UUIDs."""
    bundle(sweep, tmp_path / "b.zip")
    archive.unpack(tmp_path / "b.zip", tmp_path / "b")
    inside = tmp_path / "b/sweep"
    expected = set(pq.read_table(inside / "results/phases.parquet")["gpu_uuid"].to_pylist())
    assert len(expected) == 2
    assert all(re.fullmatch(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", u) for u in expected)
    assert not any(UUID[:12] in uuid for uuid in expected)
    for attempt in inside.glob("points/*/attempt-*"):
        record = json.loads((attempt / "record.json").read_text())
        assert {rank["gpu_uuid"] for rank in record["ranks"]} == expected
        (spans,) = (attempt / "timings").iterdir()
        assert set(pq.read_table(spans)["gpu_uuid"].to_pylist()) == expected
        traced = {pq.read_schema(p).metadata[b"gpu_uuid"] for p in (attempt / "traces").iterdir()}
        assert {uuid.decode() for uuid in traced} == expected
    (row, _) = pq.read_table(inside / "results/points.parquet").to_pylist()
    assert set(row["boards"]) == expected


def test_the_same_sweep_makes_the_same_bytes(sweep, tmp_path):
    """With the salt that the sweep keeps a bundle comes out again byte for byte; with another one no name is alike."""
    first = bundle(sweep, tmp_path / "1.zip")
    again = bundle(sweep, tmp_path / "2.zip")
    assert first.sha256 == again.sha256 == archive.sha256(tmp_path / "2.zip")
    assert stat.S_IMODE((sweep.path / "bundle.salt").stat().st_mode) == 0o600
    (sweep.path / "bundle.salt").unlink()
    bundle(sweep, tmp_path / "3.zip")
    one, other = ({name for name, _ in members_of(tmp_path / f"{i}.zip")} for i in (1, 3))
    traces = {name for name in one if "/traces/" in name}
    assert len(traces) == 4
    assert not traces & other


def test_an_unpacked_bundle_is_a_sweep(sweep, tmp_path):
    """Its tables open as those of any sweep; collected once more it has the same joules and its traces."""
    before = open_sweep(sweep.path).points["energy_j"].to_list()
    bundle(sweep, tmp_path / "b.zip")
    archive.unpack(tmp_path / "b.zip", tmp_path / "b")
    assert open_sweep(tmp_path / "b/sweep").points["energy_j"].to_list() == before
    with pytest.raises(RefusedError, match="not submitted from here"):
        resume(SweepDir.existing(tmp_path / "b/sweep"))
    collect(SweepDir.existing(tmp_path / "b/sweep"))
    again = open_sweep(tmp_path / "b/sweep")
    assert again.points["energy_j"].to_list() == before
    assert again.traces().collect().height > 1000


def test_sha256sum_agrees(sweep, tmp_path):
    """The hashes are what the ordinary command reads."""
    bundle(sweep, tmp_path / "b.zip")
    archive.unpack(tmp_path / "b.zip", tmp_path / "b")
    words = ["sha256sum", "--check", "--strict", "sha256sums"]
    subprocess.run(words, cwd=tmp_path / "b", check=True, capture_output=True)


def test_a_choice_that_makes_the_point_id_and_holds_a_path_is_refused(tmp_path):
    """A model's revision that is a path can neither be shown nor left out; the error names it."""
    point = choices(model__revision="/data/quill/v2")
    made = make_sweep(tmp_path / "s", [point])
    make_attempt(made, point, Made([Gpu(UUID)]))
    collect(made)
    with pytest.raises(RefusedError, match=r"model\.revision=/data/quill/v2"):
        bundle(made, tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


def test_a_sweep_may_be_called_what_its_model_is(tmp_path):
    """The sweep's own name is left out, but not the model's, though both are `llama-7b`, nor an account's."""
    point = choices(model__name="llama-7b", sweep__name="llama-7b", cluster__account="bf16")
    made = make_sweep(tmp_path / "s", [point])
    make_attempt(made, point, Made([Gpu(UUID)]))
    collect(made)
    bundle(made, tmp_path / "b.zip")
    text = dict(members_of(tmp_path / "b.zip"))["METHODS.md"].decode()
    assert "Model: llama-7b in bf16" in text
    assert verify(tmp_path / "b.zip").verified


@pytest.mark.parametrize("collected", [True, False])
def test_a_claimed_attempt_without_a_record(tmp_path, collected):
    """It runs, or was killed: bundles say so and verify, whether or not it was collected, and alone at its point."""
    points = [choices(shards=2), choices(seed=1)]
    made_sweep = make_sweep(tmp_path / "t", points)
    make_attempt(made_sweep, points[0], Made([Gpu(UUID), Gpu(UUID[:-1] + "2")]))
    collect(made_sweep)
    for point in points:
        made_sweep.claim_attempt(id_of(point))
    if collected:
        collect(made_sweep)
    made = bundle(made_sweep, tmp_path / "b.zip")
    words = ": has no record; it still runs, or was killed"
    assert [line.partition(":")[2] for line in made.left_out] == [words[1:], words[1:]]
    for path in (tmp_path / "b.zip", made_sweep.path):
        verdict = verify(path)
        assert verdict.verified, "\n".join(lines(verdict))
    forged = tmp_path / "b"
    archive.unpack(tmp_path / "b.zip", forged)
    if collected:  # nobody hides an attempt by calling it running
        table = pq.read_table(forged / "sweep/results/points.parquet")
        rows = table.to_pylist()
        (one,) = [row for row in rows if row["counts"]]
        one |= {"status": "running"}
        pq.write_table(
            pa.Table.from_pylist(rows, schema=table.schema), forged / "sweep/results/points.parquet"
        )
        archive.write_sums(forged)
        assert not verify(forged).verified


def test_results_older_than_an_attempt_are_refused(sweep, tmp_path):
    """An attempt that ended since `collect` would contradict them: nothing is written, and the line says what to do."""
    make_attempt(sweep, choices(shards=2), Made([Gpu(UUID)], status="failed"))
    with pytest.raises(
        RefusedError, match=r"attempt 3 is failed, and unknown .* Run `wattflow collect"
    ):
        bundle(sweep, tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


# --- the command, and what people read ------------------------------------------------------------


def test_a_dry_run_lists_the_members_and_writes_nothing(sweep, tmp_path):
    """The list is that of the real bundle; neither file nor salt is there afterwards."""
    made = bundle(sweep, tmp_path / "b.zip", dry_run=True)
    assert not (tmp_path / "b.zip").exists()
    assert not (sweep.path / "bundle.salt").exists()
    names = {re.sub(r"[0-9a-f]{4,}", "#", name) for name, _ in made.members}
    bundle(sweep, tmp_path / "b.zip")
    assert names == {
        re.sub(r"[0-9a-f]{4,}", "#", name) for name, _ in members_of(tmp_path / "b.zip")
    }


def test_an_existing_file_and_an_uncollected_sweep_are_refused(sweep, tmp_path):
    """Nothing is written over, and nothing is packed that has no results."""
    (tmp_path / "b.zip").write_text("mine")
    with pytest.raises(RefusedError, match="exists"):
        bundle(sweep, tmp_path / "b.zip")
    assert (tmp_path / "b.zip").read_text() == "mine"
    shutil.rmtree(sweep.results)
    with pytest.raises(RefusedError, match="wattflow collect"):
        bundle(sweep, tmp_path / "c.zip")


def test_the_methods_say_what_the_records_say(tmp_path):
    """Model, engine, sensor, window, boundary, repeats, uncertainties and means stand in the methods, by hand."""
    point = choices(shards=2, repeat=0)
    points = [point, choices(shards=2, repeat=1)]
    made = make_sweep(tmp_path / "s", points)
    for one, watts in zip(points, (80.0, 82.0), strict=True):
        gpus = [Gpu(UUID, constant(watts)), Gpu(UUID[:-1] + "2", constant(120.0))]
        make_attempt(made, one, Made(gpus))
    collect(made)
    bundle(made, tmp_path / "b.zip")
    text = dict(members_of(tmp_path / "b.zip"))["METHODS.md"].decode()
    for words in (
        "2 x NVIDIA H100 80GB HBM3 (driver 580.159.04), nodes: 1",
        "1 setting, ran 2 times each.",
        "Model: tiny in bf16",
        "tensor-parallel shards: 2; engine: paper",
        "the driver's own sample buffer",
        "a sample each 20 ms",
        "from the first prefill's start to the last decode's end",
        "the GPU boards that the job used",
        "at least 100.00 % was covered",
        "2 attempts of 2 count.",
        # 8.5 s of 200 and 202 W: 1,700 and 1,717 J
        "| tiny | 2 | 23.529 ± 0 | 201 ± 17 |",
        "| 1,710 ± 140 |",
    ):
        assert words in text, text


def test_the_command_prints_the_path_the_hash_and_the_verdict(tmp_path):
    """stdout is the path alone; stderr has the sha256 that sha256sum prints."""
    collect(demo(tmp_path / "sweeps/d"))
    done = call("bundle", "d", cwd=tmp_path)
    assert done.stdout == "d.zip\n"
    assert f"sha256 {archive.sha256(tmp_path / 'd.zip')}" in done.stderr
    assert "`wattflow verify d.zip` passes." in done.stderr
    assert getpass.getuser() not in done.stderr.replace(str(tmp_path), "")
