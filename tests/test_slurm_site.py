"""What sinfo, scontrol and sacctmgr say of several kinds of sites."""

import json
from collections import Counter

import pytest
from slurm_sites import MANY_ACCOUNTS, RECORDED, SITES, TYPED, WHOLE_NODES, asked

from wattflow.errors import SlurmError
from wattflow.slurm.site import is_slice, look, minutes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4-04:00:00", 4 * 1440 + 240),
        ("1-00:00:00", 1440),
        ("2-12", 2 * 1440 + 720),
        ("8:00:00", 480),
        ("30:00", 30),
        ("45", 45),
        ("infinite", None),
        ("n/a", None),
    ],
)
def test_times_as_slurm_writes_them(text, expected):
    """Days, hours, minutes and seconds, or none."""
    assert minutes(text) == expected


def test_nodes_of_a_kind_are_counted_by_what_they_can_take():
    """32 nodes of eight A100s, two of them drained; the types and counts of GRES with sockets."""
    site = look(asked(TYPED))
    (nodes,) = next(one for one in site.partitions if one.name == "gpu_p5").nodes
    assert (nodes.count, nodes.up, nodes.gpus) == (32, 30, (("a100", 8),))
    by_name = {one.name: one for one in site.partitions}
    assert by_name["gpu_p13"].gpus == 320 * 4
    assert by_name["cpu_p1"].gpus == 0
    assert by_name["gpu_p5"].accounts == ("abc@a100",)
    assert site.accounts == ["abc@v100", "abc@cpu"]
    assert (site.max_submit, site.version, site.by_gpus) == (300, "23.11.10", True)


def test_the_default_account_comes_first():
    """sacctmgr lists them in another order."""
    site = look(asked(MANY_ACCOUNTS))
    assert site.accounts == ["proj1", "proj2", "other"]
    assert site.tracks_wckeys
    assert [one.name for one in site.partitions if one.is_up] == ["on"]


def test_slices_and_other_gres_are_told_apart():
    """MIG names parts of a GPU; nvme is no GPU."""
    by_name = {one.name: one for one in look(asked(RECORDED["old"])).partitions}
    assert all(is_slice(kind) for kind, _ in by_name["mig"].nodes[0].gpus)
    assert not is_slice("nvidia_a100-sxm4-80gb")
    sinfo = "gpu|gpu:h100:4(S:0-1),nvme:1|6|64|770000|2-00:00:00|hopper|up|idle\n"
    (partition,) = look(asked({**TYPED, "sinfo": sinfo})).partitions
    assert partition.nodes[0].gpus == (("h100", 4),)
    assert look(asked(RECORDED["federated"])).partitions[0].qos == ("normal",)


def test_accounts_of_another_cluster_in_the_database_are_none_here():
    """One slurmdbd serves six clusters, some of them a federation: sacctmgr lists the user's accounts in all."""
    accounts = {name: look(asked(site)).accounts for name, site in RECORDED.items()}
    assert "typed|abc_v100|" in RECORDED["federated"]["assoc"]
    assert accounts == {
        "federated": ["users"],
        "mixed": ["lab"],
        "no_accounting": [],
        "old": ["proj1"],
        "typed": ["abc_v100", "abc_a100"],
        "whole_nodes": ["g123"],
    }


@pytest.mark.parametrize("name", RECORDED)
def test_the_plain_form_says_what_the_json_form_does(name):
    """Nodes and GPUs of each partition, of `sinfo --json` beside what is read."""
    counted = Counter()
    for node in json.loads(RECORDED[name]["sinfo --json"])["nodes"]:
        gpus = int(node["gres"].rpartition(":")[2]) if node["gres"] else 0
        for partition in node["partitions"]:
            counted[partition] += gpus
    found = {one.name: one.gpus for one in look(asked(RECORDED[name])).partitions}
    assert found == dict(counted)


def test_a_site_without_accounting_is_not_asked_for_accounts():
    """sacctmgr would fail; whole nodes are seen where they are."""
    site = look(asked(RECORDED["no_accounting"]))
    assert (site.accounting, site.accounts, site.unanswered) == (False, [], [])
    assert look(asked(WHOLE_NODES)).partitions[0].exclusive


def test_what_does_not_answer_is_noted():
    """All but sinfo may fail."""
    site = look(asked({**TYPED, "config": None, "partition": None, "assoc": None, "user": None}))
    assert len(site.unanswered) == 4
    assert len(site.partitions) == 3
    with pytest.raises(SlurmError, match="sinfo"):
        look(asked({**TYPED, "sinfo": None}))


@pytest.mark.parametrize("name", SITES)
def test_lines_that_nobody_knows_are_passed_over(name):
    """A banner, an empty line and a cut one."""
    site = {**SITES[name], "sinfo": f"Welcome!\n\n{SITES[name]['sinfo']}x|y\n"}
    assert look(asked(site)).partitions == look(asked(SITES[name])).partitions


def test_a_count_of_no_gpus_is_none():
    """Beside others, and alone."""
    sinfo = "a|gpu:0|1|64|1|1:00|f|up|idle\nb|gpu:a100:0,gpu:h100:4|1|64|1|1:00|f|up|idle\n"
    first, second = look(asked({**TYPED, "sinfo": sinfo})).partitions
    assert first.nodes[0].gpus == ()
    assert second.nodes[0].gpus == (("h100", 4),)
