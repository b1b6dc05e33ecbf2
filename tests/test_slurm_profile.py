"""First profiles of ten sites: the exact one of one, and each used by `plan --script`."""

import pytest
import yaml
from slurm_sites import MANY_ACCOUNTS, RECORDED, SITES, TYPED, asked

from wattflow.errors import RefusedError
from wattflow.plan import grid
from wattflow.slurm.profile import profile
from wattflow.slurm.site import look
from wattflow.submit import send


def made(site, name="mine", partition=None):
    """The profile of a site."""
    return profile(look(asked(site)), name, partition)


def test_the_whole_profile_is_this():
    """Each line with what has to be checked."""
    assert (
        made(MANY_ACCOUNTS).text
        == """\
# A first profile of c, Slurm 25.05.2, made by `wattflow init-site`.
# Check each line: `wattflow plan --script cluster=NAME` shows the job, docs/sites.md what sites differ by.
name: mine
launcher: slurm
partition: on # others with GPUs: old
account: proj1 # or proj2
qos: null # yours: normal
wckey: null # this site tracks wckeys, and may want one
gpus_per_node: 4
gpu_request: gpus-per-node
gpu_type: nvidia_a100-sxm4-80gb
gpu_model: nvidia-a100-sxm4-80gb # CHECK: as `nvidia-smi -L` has it, such as h100-sxm5-80gb
gpu_memory_gib: null # CHECK: of one GPU, such as 80
cpus_per_rank: 16 # a node has 64
mem_gb_per_node: null # the site's default; a node has 502
time_min: 60 # of one task; the partition's limit is 1440
max_array_size: 4001
max_tasks: 50 # MaxSubmitJobs
bills: gpu # CHECK: the site's hours, of the GPUs asked for or (node) of whole nodes
# sbatch_options: {exclusive: ""} # CHECK: whole nodes, which no neighbour heats, and what they bill
accounting: true
setup: [] # lines of shell that make your environment on the node, such as `module load cuda`
python: null # the interpreter that submits; `python` with an environment from setup
"""
    )


SCRIPTS = {
    "typed": [
        "#SBATCH --partition=gpu_p13",
        "#SBATCH --gpus-per-node=v100:2",
        "#SBATCH --account=abc@v100",
    ],
    "whole_nodes": [
        "#SBATCH --partition=normal",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --account=g123",
    ],
    "recorded_mixed": [
        "#SBATCH --gpus-per-node=rtx2080ti:2",
        "#SBATCH --constraint=turing",
        "#SBATCH --partition=all",
    ],
    "recorded_no_accounting": ["#SBATCH --partition=batch", "#SBATCH --gpus-per-node=2"],
    "recorded_typed": ["#SBATCH --account=abc_a100", "#SBATCH --gpus-per-node=a100:2"],
    "recorded_whole_nodes": ["#SBATCH --partition=normal", "#SBATCH --gpus-per-node=2"],
    "recorded_old": ["#SBATCH --partition=on", "#SBATCH --gres=gpu:tesla_p100-pcie-16gb:2"],
    "recorded_federated": ["#SBATCH --account=users", "#SBATCH --gpus-per-node=v100:2"],
    "many_accounts": ["#SBATCH --gpus-per-node=nvidia_a100-sxm4-80gb:2", "#SBATCH --account=proj1"],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_plan_can_use_it(name, tmp_path, monkeypatch):
    """Its file is a profile that `plan` takes, and the batch script asks for what the site has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wattflow.slurm.shapes.client.limits", lambda: (None, None))
    folder = tmp_path / "conf" / "cluster"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(made(SITES[name]).text)
    planned = grid.plan(["cluster=mine", "model=tiny", "shards=2"], repeats=1)
    (script,) = send.batch_scripts(planned)
    for line in SCRIPTS[name]:
        assert line in script.splitlines()


def test_a_site_without_gres_needs_a_hand():
    """sinfo does not know where its GPUs are."""
    with pytest.raises(RefusedError, match="no partition that you may use has GPUs by sinfo"):
        made(SITES["no_gres"])


@pytest.mark.parametrize(
    ("partition", "message"),
    [("gpus", "There are mig, on, gone"), ("mig", "MIG slices are refused")],
)
def test_a_partition_that_cannot_be_measured_is_refused(partition, message):
    """One that is not there, and one of slices."""
    with pytest.raises(RefusedError, match=message):
        made(RECORDED["old"], partition=partition)


def test_a_partition_can_be_named():
    """The one of A100s, though this user's accounts may not use it: no account is written."""
    text = made(TYPED, partition="gpu_p5").text
    assert "gpu_type: a100\n" in text
    assert "account: null" in text


def test_hostile_names_stay_texts(tmp_path, monkeypatch):
    """What Slurm says is not YAML of its own: quotes, breaks and truths are in quotes."""
    site = look(asked(MANY_ACCOUNTS))
    site.accounts = ['a: "b"\nsetup: [touch /tmp/x]', "proj2"]
    site.partitions[0].accounts = None
    text = profile(site, "mine").text
    assert 'account: "a: \\"b\\"\\nsetup: [touch /tmp/x]" # or proj2' in text


@pytest.mark.parametrize("end", ["\r", "\x85", "\u2028", "\u2029", "\x1b", "\x00"])
def test_no_name_ends_the_line_of_its_comment(end):
    """YAML ends lines at more letters than \\n, and refuses controls: each is a question mark."""
    expected = made(MANY_ACCOUNTS).text
    site = look(asked(MANY_ACCOUNTS))
    site.cluster, site.qos = f"c{end}evil: 1", ["normal", f"x{end}evil: 1"]
    text = profile(site, "mine").text
    assert text.startswith("# A first profile of c?evil: 1, Slurm 25.05.2")
    assert "qos: null # yours: normal, x?evil: 1\n" in text
    assert yaml.safe_load(text) == yaml.safe_load(expected)


def test_a_partition_of_no_gpus_is_not_chosen():
    """`gpu:0` is how some sites write nodes without any."""
    sinfo = MANY_ACCOUNTS["sinfo"].splitlines()[0].split("|")
    none = "|".join([sinfo[0], "gpu:0", *sinfo[2:]]) + "\n"
    with pytest.raises(RefusedError, match="no partition that you may use has GPUs"):
        made({**MANY_ACCOUNTS, "sinfo": none})
