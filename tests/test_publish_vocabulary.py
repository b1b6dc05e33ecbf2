"""A site may call its things what the format calls its own: bundles of it verify, and name nobody."""

import json
import re
import shlex

import pyarrow.parquet as pq
import pytest
from sweeps import Gpu, Made, choices, constant, make_attempt, make_sweep
from test_docs import PAGES, commands, fences
from test_publish_bundle import grep, members_of

from wattflow.collect.collect import collect
from wattflow.config import choices as config_choices
from wattflow.plan import grid
from wattflow.publish import bundle as packing
from wattflow.publish.bundle import bundle
from wattflow.publish.tables import _AS_THEY_ARE
from wattflow.publish.verdict import lines
from wattflow.publish.verify import verify
from wattflow.publish.vocabulary import format_words, hardware_words, is_common
from wattflow.store import schema
from wattflow.store.columns import CHOICE_KEYS, PHASE, POINT

WORDS = [
    "gpu",
    "python",
    "nvml",
    "nvml_buffer",
    "finished",
    "torch",
    "wattflow",
    "H100",
    "host",
    "decode",
    "paper",
]
# each private field of a sweep that text can be given for
FIELDS = {
    "partition": "cluster__partition",
    "account": "cluster__account",
    "reservation": "cluster__reservation",
    "qos": "cluster__qos",
    "profile": "cluster__name",
    "sweep": "sweep__name",
    "path": "model__path",
    "prompts": "dataset__path",
    "python": "cluster__python",
}  # fmt: skip


def packed(folder, monkeypatch, points, *, node="node1", users=(), reasons=()):
    """The bundle of a sweep of some points, each run once on the GPUs that it needs; it must verify."""
    monkeypatch.setattr(packing, "_owners", lambda _: set(users))
    can = points[: len(points) - len(reasons)]
    made = make_sweep(folder / "s", points, [*[None] * len(can), *reasons])
    for i, point in enumerate(can):
        gpus = [Gpu(f"GPU-{k}", constant(80.0 + k), node) for k in range(point["shards"])]
        make_attempt(
            made, point, Made(gpus, started_s=100.0 * i, tokens=32, hosts={node: constant(9.0)})
        )
    collect(made)
    bundle(made, folder / "b.zip")
    verdict = verify(folder / "b.zip")
    assert verdict.verified, "\n".join(lines(verdict))
    return folder / "b.zip"


@pytest.mark.parametrize("word", WORDS)
def test_a_word_of_the_format_as_every_private_name(tmp_path, monkeypatch, word):
    """Partition, account, profile, sweep, paths, setup, node and user may all be called so at once."""
    over = dict.fromkeys(FIELDS.values(), word)
    point = choices(**over, cluster__setup=[word], cluster__gpu_model="h100-sxm5-80gb")
    packed(tmp_path, monkeypatch, [point], node=word, users=[word])


@pytest.mark.parametrize("field", [*FIELDS.values(), "node", "user", "setup"])
@pytest.mark.parametrize("word", ["gpu", "python"])
def test_a_word_of_the_format_as_one_private_name(tmp_path, monkeypatch, word, field):
    """Each private field by itself may hold a word that sensors, versions and states are called by."""
    over = {field: word} if field in FIELDS.values() else {}
    over |= {"cluster__setup": [word]} if field == "setup" else {}
    node = word if field == "node" else "node1"
    users = [word] if field == "user" else []
    packed(tmp_path, monkeypatch, [choices(**over)], node=node, users=users)


def test_every_word_of_the_format_is_somebodys_name(tmp_path, monkeypatch):
    """All reason codes, sensors, states, columns, keys and enumerated values are users and lines of setup at once."""
    words = sorted(format_words())
    assert {
        "gap",
        "nvml_buffer",
        "finished",
        "energy_j",
        "gpus-per-node",
        "bf16",
        "boundary",
    } <= set(words)
    path = packed(tmp_path, monkeypatch, [choices(cluster__setup=words)], users=words)
    (trace,) = [
        data for name, data in members_of(path) if "traces/node-" in name and "GPU-" in name
    ]
    about = pq.read_schema(packing.io.BytesIO(trace)).metadata
    assert (about[b"scope"], about[b"boundary"], about[b"source"]) == (
        b"gpu",
        b"gpu",
        b"nvml_buffer",
    )
    (record,) = [
        json.loads(data) for name, data in members_of(path) if name.endswith("record.json")
    ]
    assert record["versions"] == {"wattflow": "0.1.0", "torch": "2.13.0"}
    assert record["engine"] == {"name": "paper", "attention": "sdpa"}
    assert record["nodes"][0]["host"]["name"] == "host (package-0)"


def test_names_in_free_text_are_replaced_though_the_format_knows_them(tmp_path, monkeypatch):
    """Why a point cannot run may name a partition `gpu`, an account and a node: none of it is left, nor any user."""
    reason = "node-x17 of gpu and my_project is quillfeather's, in /home/quillfeather/x"
    site = {
        "cluster__partition": "gpu",
        "cluster__account": "my_project",
        "cluster__reservation": "node-x17",
    }
    points = [choices(**site), choices(shards=3, **site)]
    path = packed(tmp_path, monkeypatch, points, users=["quillfeather"], reasons=[reason])
    needles = ["node-x17", "my_project", "quillfeather"]
    assert grep(members_of(path), needles) == {}
    points_parquet = dict(members_of(path))["sweep/results/points.parquet"]
    (why,) = [
        r["error"]
        for r in pq.read_table(packing.io.BytesIO(points_parquet)).to_pylist()
        if r["error"]
    ]
    assert why == "(withheld) of (withheld) and (withheld) is (user)'s, in (path)"


def test_what_is_a_word_of_the_format():
    """A word as a whole, whatever its case, or one made of such words and numbers; no part of a longer name."""
    words = format_words() | hardware_words(["NVIDIA H100 80GB HBM3"])
    for name in (
        "gpu",
        "GPU",
        "H100",
        "h100-80gb",
        "gpu-h100",
        "nvml_buffer",
        "nvidia-ml-py",
        "2024",
    ):
        assert is_common(name, words), name
    for name in ("my_project", "gpu-quill", "quill", "p_energy", "n17", "mysite", "max", "mark"):
        assert not is_common(name, words), name


def test_each_column_of_text_has_a_rule():
    """A column is the format's own or holds names of a kind; one that nobody thought of is taken for free text."""
    named = {"point_id", "node", "node_names", "gpu_uuid", "boards", "phase", "job_id", "text"}
    named |= {"engine_info", "versions", "command", "ceilings_source", "error", "reasons"}
    tables = (POINT, PHASE, schema.SPAN, schema.REQUEST, schema.TRACE)
    found = {
        f.name for table in tables for f in table if str(f.type) in ("string", "list<item: string>")
    }
    assert found - set(CHOICE_KEYS) == named | _AS_THEY_ARE


# --- what is printed ------------------------------------------------------------------------------


def first_points(overrides, most=2):
    """The first points of some overrides that can run, and one that cannot."""
    points = grid.expand(tuple(overrides))[1]
    can = [point for point in points if point.reason is None][:most]
    cannot = [point for point in points if point.reason is not None][:1]
    return [config_choices.to_dict(point.config) for point in can + cannot], [
        p.reason for p in cannot
    ]


@pytest.mark.parametrize(
    "profile", ["example-a100", "example-perlmutter", "example-v100", "testcluster", "local"]
)
def test_each_shipped_profile_goes_through_bundle_and_verify(tmp_path, monkeypatch, profile):
    """A copy of it, as its first line says, makes bundles that verify and hold neither account nor setup."""
    points, reasons = first_points(
        [f"cluster={profile}", "grid=shards", "model=llama-7b", "sweep=mine"]
    )
    path = packed(tmp_path, monkeypatch, points, users=["quillfeather"], reasons=reasons)
    assert grep(members_of(path), ["abc@v100", "venvs", "projects", "quillfeather"]) == {}


PRINTED = sorted(
    {
        (page, shlex.join(word for word in words[1:] if not word.startswith("-")))
        for page in PAGES
        for words in commands(page)
        if words[0] in ("plan", "submit")
    }
)


@pytest.mark.parametrize("page", sorted({page for page, _ in PRINTED}), ids=lambda page: page.name)
def test_each_printed_command_goes_through_bundle_and_verify(tmp_path, monkeypatch, page):
    """With the configs that its page shows, each plan and submit makes bundles that verify."""
    for language, text in fences(page):
        config = re.match(r"(?:# @package _global_\n)?# (conf/\w+/\w+\.yaml)\n", text)
        if language == "yaml" and config:
            (tmp_path / config[1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / config[1]).write_text(text)
        if text.startswith("{"):
            (tmp_path / "letters.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)
    for i, line in enumerate(line for where, line in PRINTED if where == page):
        points, reasons = first_points(shlex.split(line), most=1)
        packed(tmp_path / f"{i}", monkeypatch, points, users=["gpu"], reasons=reasons)
