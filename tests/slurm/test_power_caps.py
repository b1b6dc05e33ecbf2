"""The power-cap prolog and epilog as a real Slurm runs them: two nodes with four fake GPUs each, at 500 W."""

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cap_nodes import Node, run
from slurm_sweeps import QUICK, plan, states, until

from wattflow.collect.collect import collect
from wattflow.submit import send

pytest_plugins = ("fake_nvml.fixtures",)
pytestmark = [pytest.mark.slurm, pytest.mark.fake_nvml]

BASELINE = [500, 500, 500, 500]
# features that no admin would give a node, so that what Slurm itself would stop reaches the prolog
HOSTILE = ["wf_cap1000000000", "wf_cap\u0969\u0966\u0966", "wf_cap300;`touch${IFS}HERE`"]


@dataclass(frozen=True)
class Site:
    """A cluster whose admin installed the caps on both of its nodes."""

    cluster: Any
    nodes: dict[str, Node]

    def limits_w(self) -> list[int]:
        """Of the GPUs of all nodes."""
        return [limit_w for node in self.nodes.values() for limit_w in node.limits_w()]

    def at_rest(self) -> bool:
        """Whether every GPU has the baseline and no journal is left."""
        journals = [uuid for node in self.nodes.values() for uuid in node.journal()]
        return self.limits_w() == BASELINE * 2 and journals == []


def slurm(*words: str) -> str:
    """What a Slurm command prints."""
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=600)
    return done.stdout


def sbatch(script: str, *options: str) -> int:
    """A job's number."""
    base = ("sbatch", "--parsable", "-n1", "--mem=64", "-o", "/dev/null", *options)
    return int(slurm(*base, "--wrap", script))


def job_state(job: int) -> str:
    return slurm("squeue", "-h", "-t", "all", "-o", "%T", "-j", str(job)).strip()


def node_state(name: str) -> str:
    return slurm("sinfo", "-h", "-p", "gpu", "-n", name, "-o", "%T").strip().rstrip("*")


@pytest.fixture(scope="module")
def site(cap_cluster: Any, cap_nodes: dict[str, Node]) -> Site:
    """Features are given to the nodes as slurm.conf would."""
    for name in cap_nodes:
        features = ",".join(["wf_cap300", "wf_cap350", "wf_cap400", *HOSTILE])
        slurm("scontrol", "update", f"nodename={name}", f"availablefeatures={features}")
    return Site(cap_cluster, cap_nodes)


@pytest.fixture(autouse=True)
def at_rest_after(site: Site) -> Iterator[None]:
    """After each test all limits are the baseline again and both nodes take jobs, whatever was done to them."""
    yield
    slurm("scancel", "--me")
    until(lambda: {node_state(name) for name in site.nodes} == {"idle"})
    until(site.at_rest)


def test_jobs_of_different_caps_share_a_node(site):
    """300 W on two GPUs, 400 W on one, none on the last; each job reads its own note; then all is as before."""
    node = site.nodes["node1"]
    caps = [("wf_cap300", 2), ("wf_cap400", 1), (None, 1)]
    jobs = []
    for cap, gpus in caps:
        options = ["-w", "node1", f"--gpus-per-node={gpus}", *([f"-C{cap}"] if cap else [])]
        script = f"cp {node.path}/notes/$SLURM_JOB_ID {node.path}/seen-$SLURM_JOB_ID; sleep 3600"
        jobs.append(sbatch(script, *options))
    until(lambda: all((node.path / f"seen-{job}").exists() for job in jobs))
    assert sorted(node.limits_w()) == [300, 300, 400, 500]
    told = [(node.path / f"seen-{job}").read_text().split() for job in jobs]
    assert [words[:2] for words in told] == [
        ["applied", "300"],
        ["applied", "400"],
        ["baseline", "-"],
    ]
    for (_, gpus), words in zip(caps, told, strict=True):
        uuids = words[2].split(",")
        assert len(uuids) == gpus
    by_uuid = {node.uuid(index): limit_w for index, limit_w in enumerate(node.limits_w())}
    assert {by_uuid[uuid] for uuid in told[0][2].split(",")} == {300}
    slurm("scancel", *map(str, jobs))


def test_a_feature_that_the_admin_does_not_allow_costs_the_job_nothing(site):
    """The node has it, the config does not: the job runs at the baseline, and its note tells why."""
    node = site.nodes["node1"]
    seen = node.path / "seen-350"
    job = sbatch(
        f"cp {node.path}/notes/$SLURM_JOB_ID {seen}",
        "-w",
        "node1",
        "--gpus-per-node=1",
        "-Cwf_cap350",
    )
    until(lambda: job_state(job) == "COMPLETED")
    assert seen.read_text().startswith("not_applied 350 GPU-")
    assert "does not allow 350 W" in seen.read_text()


PROFILE = """\
name: capped
launcher: slurm
partition: gpu
gpus_per_node: 4
gpu_model: fake
time_min: 5
accounting: false
power_caps: {{"300": wf_cap300, "350": wf_cap350}}
setup:
  - export LD_LIBRARY_PATH={library} FAKE_NVML_GPUS=4 FAKE_NVML_REASONS=0
  - export FAKE_NVML_STATE={nodes}/$SLURMD_NODENAME/gpus
"""


def test_a_sweep_of_caps_from_a_profile_to_its_rows(site, nvml_folder, tmp_path, monkeypatch):
    """300 W was in force and counts; 350 W, which the admin does not allow, ran at 500 W and is not shown as capped."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "cluster").mkdir(parents=True)
    text = PROFILE.format(library=nvml_folder, nodes=site.nodes["node1"].path.parent)
    (tmp_path / "conf" / "cluster" / "capped.yaml").write_text(text)
    asked = ["cluster=capped", "power.meter=nvml", "control.power_limit_w=300,350", "sweep=caps"]
    made = plan(tmp_path, *QUICK, *asked, "max_gen_len=64", "engine.synthetic_ms_per_token=10")
    send.submit(made)
    until(lambda: states(made.sweep) == {"done"})
    collect(made.sweep)
    rows = pq.read_table(made.sweep.points_path).to_pylist()
    told = {row["control_power_limit_w"]: row for row in rows}
    assert {cap: row["power_limit_w"] for cap, row in told.items()} == {300: 300.0, 350: 500.0}
    assert {cap: row["counts"] for cap, row in told.items()} == {300: True, 350: False}
    assert "not_applied" not in told[300]["reasons"]
    assert "not_applied" in told[350]["reasons"]


@pytest.mark.parametrize("feature", HOSTILE)
def test_a_hostile_request_that_reaches_the_prolog_sets_nothing(feature, site):
    """Where a node has such a feature, the job runs at the baseline, nothing of the text is run, and the note tells."""
    node = site.nodes["node1"]
    seen = node.path / "seen-hostile"
    seen.unlink(missing_ok=True)
    options = ["-w", "node1", "--gpus-per-node=1", f"-C{feature}"]
    job = sbatch(f"cp {node.path}/notes/$SLURM_JOB_ID {seen}", *options)
    until(lambda: job_state(job) == "COMPLETED")
    assert seen.read_text().startswith("not_applied - GPU-")
    assert node.limits_w() == BASELINE
    assert not list(Path(site.cluster.settings["CLUSTER_DIR"]).rglob("HERE"))
    assert not Path("/HERE").exists()


def test_slurm_takes_no_feature_that_is_not_the_nodes(site):
    """A hostile request ends at sbatch where no node has it; the prolog would refuse it too."""
    for feature in ("wf_cap300;$(id)", "wf_cap2000000000", "wf_cap\u0969\u0966"):
        with pytest.raises(subprocess.CalledProcessError):
            sbatch("true", "--gpus-per-node=1", f"-C{feature}")


def test_a_requeued_job_has_its_cap_again_and_leaves_none(site):
    """The epilog of the first run and the prolog of the second both ran."""
    job = sbatch("sleep 3600", "-w", "node2", "--gpus-per-node=4", "-Cwf_cap300", "--requeue")
    node = site.nodes["node2"]
    until(lambda: node.limits_w() == [300] * 4)
    slurm("scontrol", "requeue", str(job))
    until(lambda: node.limits_w() == BASELINE)
    until(lambda: node.limits_w() == [300] * 4)
    slurm("scancel", str(job))


def test_all_of_a_node_is_killed_and_it_boots(site):
    """slurmd, its steps and the job at once, with a cap in force; the driver keeps it. Boot, then slurmd."""
    job = sbatch("sleep 3600", "-w", "node2", "--gpus-per-node=2", "-Cwf_cap300", "--no-requeue")
    node = site.nodes["node2"]
    until(lambda: sorted(node.limits_w()) == [300, 300, 500, 500])
    site.cluster.node("kill", "node2")
    assert run(node, "boot").returncode == 0
    assert node.limits_w() == BASELINE
    site.cluster.node("start", "node2")
    slurm("scancel", str(job))
    until(lambda: job_state(job) not in ("RUNNING", "COMPLETING"))


def test_a_rebooted_node_has_the_baseline_and_not_the_factorys_limit(site):
    """Power was lost: no process ended in order, and the driver starts at 700 W."""
    job = sbatch("sleep 3600", "-w", "node2", "--gpus-per-node=1", "-Cwf_cap400", "--no-requeue")
    node = site.nodes["node2"]
    until(lambda: 400 in node.limits_w())
    site.cluster.node("kill", "node2")
    node.set_limits(700, 700, 700, 700)
    assert run(node, "boot").returncode == 0
    site.cluster.node("start", "node2")
    slurm("scancel", str(job))
    until(lambda: job_state(job) not in ("RUNNING", "COMPLETING"))


def test_slurmd_is_killed_and_started_and_the_jobs_end_takes_the_cap(site):
    """Without a boot between: the job runs on, and its epilog comes from the new slurmd."""
    job = sbatch("sleep 3600", "-w", "node2", "--gpus-per-node=1", "-Cwf_cap300")
    node = site.nodes["node2"]
    until(lambda: 300 in node.limits_w())
    site.cluster.node("stop", "node2")
    site.cluster.node("start", "node2")
    slurm("scancel", str(job))


def test_a_restore_that_fails_drains_the_node(site):
    """The epilog exits with 1 while the driver refuses; the admin's boot action mends it."""
    job = sbatch("sleep 3600", "-w", "node1", "--gpus-per-node=1", "-Cwf_cap300")
    node = site.nodes["node1"]
    until(lambda: 300 in node.limits_w())
    node.driver(FAKE_NVML_DENY="nvmlDeviceSetPowerManagementLimit")
    slurm("scancel", str(job))
    until(lambda: node_state("node1") in ("drained", "draining"))
    assert 300 in node.limits_w()
    node.driver()
    assert run(node, "boot").returncode == 0
    slurm("scontrol", "update", "nodename=node1", "state=resume")


def test_a_set_that_fails_does_not_drain(site):
    """The job runs at the baseline and reads why."""
    node = site.nodes["node1"]
    node.driver(FAKE_NVML_DENY="nvmlDeviceSetPowerManagementLimit")
    seen = node.path / "seen-denied"
    job = sbatch(
        f"cp {node.path}/notes/$SLURM_JOB_ID {seen}",
        "-w",
        "node1",
        "--gpus-per-node=1",
        "-Cwf_cap300",
    )
    until(lambda: job_state(job) == "COMPLETED")
    node.driver()
    assert "nvidia-smi did not set" in seen.read_text()
    assert node_state("node1") == "idle"


def prologs(node: Node) -> list[int]:
    """The process of a node's prolog, of which there must be one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if words[-2:-1] == ["prolog"] and words[-3].startswith(str(node.path)):
            found.append(int(folder.name))
    assert len(found) == 1
    return found


def test_a_killed_prolog_leaves_no_cap(site):
    """kill -9 of the script while nvidia-smi sets the limit: Slurm drains the node, and its epilog restores.

    The job may be requeued: of one that may not, slurmd 22.05 tells the failure again each 15 s, and each time drains.
    """
    node = site.nodes["node1"]
    node.driver(FAKE_NVML_LATENCY_US="nvmlDeviceSetPowerManagementLimit=10000000")
    job = sbatch("sleep 3600", "-w", "node1", "--gpus-per-node=1", "-Cwf_cap300", "--requeue")
    until(node.journal)
    for pid in prologs(node):
        os.kill(pid, signal.SIGKILL)
    node.driver()
    until(lambda: node_state("node1") == "drained")
    until(site.at_rest)
    slurm("scancel", str(job))
    slurm("scontrol", "update", "nodename=node1", "state=resume")
