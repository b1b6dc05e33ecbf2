"""What a bundle carries of records, choices and overrides: what is listed, each name by its pseudonym."""

import re

import pytest
from sweeps import choices

from wattflow.errors import RefusedError
from wattflow.publish.pseudonyms import Pseudonyms, Surroundings
from wattflow.publish.records import (
    published_choices,
    published_command,
    published_overrides,
    published_part,
    published_record,
)
from wattflow.store.schema import Part, Record

AROUND = Surroundings(
    users=frozenset({"quill"}), nodes=frozenset({"n17"}), private=frozenset({"proj-x", "mysite"})
)
NAMES = Pseudonyms(b"salt", AROUND, measured=False)
RANK = {"rank": 0, "node": "n17", "local_rank": 0, "gpu_uuid": "GPU-1", "device": "NVIDIA H100"}
NODE = {
    "node": "n17",
    "meter": "nvml",
    "source": "nvml_buffer",
    "boundary": "gpu",
    "driver": "580.00",
    "period_ms": 20.0,
    "devices": [{"ordinal": 0, "uuid": "GPU-1", "bus_id": "00:06.0", "name": "NVIDIA H100", "ecc": True,
                 "serial": "1320"}],
    "host": {"uuid": "host-n17", "name": "host (package-0)", "source": "rapl", "period_ms": 50.0},
    "control": [{"uuid": "GPU-1", "prior_limit_w": 700.0, "power_limit_w": 400.0, "sm_clock_mhz": None,
                 "limit_in_force_w": 400.0}],
    "sidecar_restarts": 0,
}  # fmt: skip
RECORD = {
    "schema_version": 1,
    "point_id": "0" * 12,
    "attempt": 2,
    "status": "failed",
    "error": "cannot read /data/quill/x",
    "error_rank": 0,
    "reason": None,
    "started_ns": 1,
    "ended_ns": 2,
    "choices": {"seed": 3},
    "job": {
        "job_id": "4711",
        "array_task": "5",
        "restart": 1,
        "cluster": "mysite",
        "step": "4711.0",
    },
    "ranks": [RANK],
    "nodes": [NODE],
    "prompts": {"sha256": "ab" * 32, "count": 4, "path": "/data/secret.json"},
    "pieces": [{"attempt": 2, "first_batch": 0, "batches": 3, "log": "/x"}],
    "load_shared": False,
    "reference_rounds": 0,
    "measure": {"command": ["python", "secret.py"], "nodes": 2},
    "parts": [],
    "engine": {"name": "paper", "weights": "/data/quill/x", "parameters": 7},
    "work": {"decode_steps": 5},
    "ceilings": {"copy_bytes_per_s": 1.0, "product_flops_per_s": 2.0, "source": "on n17"},
    "versions": {"torch": "2.13.0", "quill": "1 of quill"},
    "git": "c0ffee" * 6 + "beef-dirty",
    "later": "what a later version may add",
}


def test_a_record_with_names_becomes_one_without():
    """Every name in a whole record is replaced or left out; figures, versions and statuses stay."""
    found = published_record(RECORD, NAMES)
    node, gpu = NAMES.node("n17"), NAMES.device("GPU-1")
    assert found["error"] == "withheld"
    assert found["job"] == {"job_id": NAMES.job("4711"), "array_task": "5", "restart": 1,
                            "cluster": NAMES.cluster("mysite")}  # fmt: skip
    assert found["ranks"] == [RANK | {"node": node, "gpu_uuid": gpu}]
    (info,) = found["nodes"]
    assert (info["node"], info["driver"], info["host"]["uuid"]) == (node, "580.00", f"host-{node}")
    assert info["devices"] == [
        {"ordinal": 0, "name": "NVIDIA H100", "ecc": True, "uuid": gpu, "bus_id": None}
    ]
    assert info["control"][0] == NODE["control"][0] | {"uuid": gpu}
    assert found["prompts"] == {"sha256": "ab" * 32, "count": 4}
    assert found["pieces"] == [{"attempt": 2, "first_batch": 0, "batches": 3}]
    assert found["measure"] == {"command": ["(withheld: 2 words)"], "nodes": 2}
    assert found["engine"] == {"name": "paper", "weights": "(path)", "parameters": 7}
    assert found["ceilings"]["source"] == f"on {node}"
    assert found["versions"] == {"torch": "2.13.0", "(user)": "1 of (user)"}
    assert found["git"] == RECORD["git"]
    assert "later" not in found


def test_each_field_of_a_record_is_carried_or_left_out_on_purpose():
    """What a record comes to hold later stays out of bundles until it is listed here and in records.py."""
    assert set(RECORD) - {"later"} == set(Record.__annotations__)
    carried = set(published_record(RECORD, NAMES))
    assert carried == set(Record.__annotations__) - {"parts"}  # which have files of their own


def test_a_record_that_has_just_begun():
    """What is not there yet is not there in a bundle; an error and a commit that are none are null."""
    found = published_record(
        {"point_id": "0" * 12, "attempt": 1, "status": "running", "git": "main"}, NAMES
    )
    assert found == {"point_id": "0" * 12, "attempt": 1, "status": "running", "error": None, "git": None}  # fmt: skip


def test_a_nodes_part():
    """Every field is carried, the node by its pseudonym and an error as withheld."""
    part = {
        "schema_version": 1, "node": "n17", "task": 1, "status": "finished", "error": "quill's", "exit_code": 3,
        "ranks": [RANK], "nodes": [NODE], "tokens_out": 7, "bad_lines": 0, "still_running": 0,
        "stopped": [[5, 9]],
    }  # fmt: skip
    found = published_part(part, NAMES)
    assert set(found) == set(part) == set(Part.__annotations__)
    assert found["node"] == found["ranks"][0]["node"] == NAMES.node("n17")
    assert (found["error"], found["exit_code"], found["tokens_out"]) == ("withheld", 3, 7)
    assert found["stopped"] == [[5, 9]]
    del part["stopped"]  # of a command that never stood still
    assert set(published_part(part, NAMES)) == set(part)


def test_choices_of_a_site_are_left_out():
    """Account, partition, setup and the profile's name go; what makes the id, and numbers, stay."""
    point = choices(cluster__account="proj-x", cluster__partition="p1", cluster__name="mysite")
    found = published_choices(point, NAMES)
    assert found["cluster"]["account"] is None
    assert found["cluster"]["partition"] is None
    assert found["cluster"]["setup"] == []
    assert re.fullmatch(r"cluster-[0-9a-f]{10}", found["cluster"]["name"])
    assert found["cluster"]["gpus_per_node"] == 1
    assert found["model"]["name"] == "tiny"
    assert found["sweeps_dir"] is None
    assert found["control"]["journal_dir"] is None
    assert set(found["cluster"]["cost"].values()) == {None}


def test_choices_of_a_measured_command():
    """Of the command the number of words is said."""
    found = published_choices({"measure": {"command": ["a", "b", "c"]}, "power": {}}, NAMES)
    assert found == {"measure": {"command": published_command(["a", "b", "c"])}, "power": {}}
    assert published_command(["a", "b", "c"]) == ["(withheld: 3 words)"]


def test_a_choice_that_makes_the_point_id_and_holds_a_path_is_refused():
    """A model's revision that is a path can neither be shown nor left out; a shipped value that names a node can."""
    with pytest.raises(RefusedError, match=r"model\.revision=/data/v2"):
        published_choices(choices(model__revision="/data/v2"), NAMES)
    bf16 = Pseudonyms(b"salt", Surroundings(nodes=frozenset({"bf16"})), measured=False)
    assert published_choices(choices(precision="bf16"), bf16)["precision"] == "bf16"


def test_overrides_of_a_submit():
    """Overrides whose key makes the point_id are kept unless they hold a path; those of a site are not."""
    overrides = [
        "grid=shards",
        "model=llama-7b",
        "batch_size=8,16",
        "model.path=/data/x",
        "cluster=mysite",
        "sweep=quills-own",
        "model.revision=/data/v2",
        "~cluster.setup",
        "power.poll_ms=20",
        "hydra.run.dir=x",
    ]
    assert published_overrides(overrides, NAMES) == [
        *overrides[:3],
        "model.path=(withheld)",
        "cluster=(withheld)",
        "sweep=(withheld)",
        "model.revision=(withheld)",
        "~cluster.setup=(withheld)",
        "power.poll_ms=20",
        "hydra.run.dir=(withheld)",
    ]
