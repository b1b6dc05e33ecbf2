"""Containers as centres run them: the exact words in batch scripts, folders that are mounted, what is refused."""

import os
import pickle
import shlex
import subprocess
from pathlib import Path

import pytest
from submissions import plan, point, seeds

from wattflow.config.choices import Cluster, Container
from wattflow.errors import RefusedError
from wattflow.plan import grid
from wattflow.slurm import containers
from wattflow.submit import send

IMAGE = "/images/vllm 0.24.sif"


def profile(kind, **container):
    """A site that runs jobs in an image of that kind."""
    chosen = {"kind": kind, "image": IMAGE, "pythonpath": "/proj/packages", **container}
    keys = {f"cluster__container__{key}": value for key, value in chosen.items()}
    return {**keys, "cluster__srun_options": ["--cpu-bind=cores"]}


def srun_words(made):
    """The words of the one srun in the batch script, without the names of logs, as bash splits them."""
    (text,) = send.batch_scripts(made)
    (line,) = [line for line in text.splitlines() if line.startswith("srun ")]
    words = shlex.split(line)
    at = words.index("--kill-on-bad-exit=1")
    return text, words[at:]


GUARD = ["-P", "-u", "-m", "wattflow.slurm.guard", "-u", "-m", "submitit.core._submit"]
INSIDE = ["env", "PYTHONNOUSERSITE=1", "PYTHONPATH=/proj/packages", "python3"]


def test_apptainer():
    """The image with --nv, the sweep, what points read and the packages mounted where they lie."""
    made = plan(
        Path("/shared/o'brien sweeps"),
        point(
            model__path="/models/Qwen3-8B",
            dataset__path="/data/my chats.jsonl",
            cluster__spool_dir="/scratch-local",
            **profile(
                "apptainer", binds=["/extra/", "/lib64/x:/inside:ro"], options=["--cleanenv"]
            ),
        ),
    )
    text, words = srun_words(made)
    bound = ["/shared/o'brien sweeps/demo", "/models", "/data", "/scratch-local", "/proj/packages"]
    bound += ["/extra", "/lib64/x:/inside:ro"]
    assert words == [
        "--kill-on-bad-exit=1",
        "--cpu-bind=cores",
        *("apptainer", "exec", "--nv", "--cleanenv", "--pwd", "/shared/o'brien sweeps/demo"),
        *(word for folder in bound for word in ("--bind", folder)),
        IMAGE,
        *INSIDE,
        *GUARD,
        "/shared/o'brien sweeps/demo/submitit/demo-00000000",
    ]
    assert 'export APPTAINER_BIND="${APPTAINER_BIND:+$APPTAINER_BIND,}$SLURM_TMPDIR"' in text


def test_pyxis():
    """srun's own options; every folder is named on both sides."""
    made = plan(Path("/shared"), *seeds(3, **profile("pyxis", options=["--container-readonly"])))
    _, words = srun_words(made)
    assert words == [
        "--kill-on-bad-exit=1",
        "--cpu-bind=cores",
        f"--container-image={IMAGE}",
        "--container-mounts=/shared/demo:/shared/demo,/proj/packages:/proj/packages",
        "--container-workdir=/shared/demo",
        "--container-readonly",
        *INSIDE,
        *GUARD,
        "/shared/demo/submitit/demo-00000000",
    ]


def test_edf():
    """CSCS: the environment's file has image and mounts."""
    chosen = profile("edf", image="/users/me/.edf/vllm.toml", pythonpath=None)
    made = plan(Path("/capstor/me"), point(cluster__python="/opt/venv/bin/python", **chosen))
    _, words = srun_words(made)
    assert words == [
        "--kill-on-bad-exit=1",
        "--cpu-bind=cores",
        "--environment=/users/me/.edf/vllm.toml",
        *("env", "PYTHONNOUSERSITE=1", "PYTHONPATH=", "/opt/venv/bin/python"),
        *GUARD,
        "/capstor/me/demo/submitit/demo-00000000",
    ]


@pytest.mark.parametrize("kind", ["apptainer", "pyxis", "edf"])
def test_hostile_names_stay_words(kind, fake, tmp_path):
    """Image, packages, folders and options with shell characters run nothing, and arrive as they are."""
    sentinel = tmp_path / "sentinel"
    evil = f"x'; touch {sentinel}; $(touch {sentinel}) `touch {sentinel}`"
    chosen = profile(kind, image=evil, pythonpath=f"/{evil}", options=[evil])
    made = plan(tmp_path / "it's $HOME", point(model__path=str(tmp_path / evil), **chosen))
    send.submit(made)
    for script in sorted(fake.folder.glob("job-*.sh")):
        subprocess.run(["bash", str(script)], check=True, env=dict(os.environ))
    assert not sentinel.exists()
    called = fake.calls("srun")[0]
    assert evil in called or any(evil in word for word in called)


def test_any_python_reads_what_is_pickled(fake, tmp_path):
    """Names of submitit's and of ours with texts, lists and numbers: no path or code that another Python lacks."""
    made = plan(tmp_path, *seeds(3, **profile("apptainer")))
    send.submit(made)
    known = {
        ("submitit.core.utils", "DelayedSubmission"),
        ("wattflow.slurm.sbatch", "OneOf"),
        ("wattflow.slurm.sbatch", "Call"),
    }
    read = []

    class Names(pickle.Unpickler):
        def find_class(self, module, name):
            assert (module, name) in known
            read.append(name)
            return super().find_class(module, name)

    for path in made.sweep.submitit.glob("*/*_submitted.pkl"):
        with path.open("rb") as file:
            Names(file).load()
    assert set(read) == {name for _, name in known}


def test_links_bring_the_folders_to_which_they_lead(tmp_path):
    """A snapshot of Hugging Face's cache is links to blobs, which a mount of the snapshot alone would not show."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "b1").write_text("weights")
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/b1")
    cluster = Cluster(name="c", container=Container(kind="apptainer", image="i"))
    words = containers.launch(cluster, Path("/s"), [str(snapshot)]).command
    assert [words[at + 1] for at, word in enumerate(words) if word == "--bind"] == [
        "/s",
        str(snapshot),
        str(tmp_path / "blobs"),
    ]


def test_a_folder_inside_another_is_mounted_once():
    """The model below the sweep's disk, the spool below /scratch."""
    cluster = Cluster(
        name="c",
        spool_dir="/scratch/tmp",
        container=Container(kind="pyxis", image="i", binds=["/scratch"]),
    )
    args = containers.launch(cluster, Path("/scratch/sweeps/s"), []).srun_args
    assert args[1] == "--container-mounts=/scratch:/scratch"


@pytest.mark.parametrize("kind", ["apptainer", "pyxis"])
@pytest.mark.parametrize("folder", ["/a,b/s", "/a:b:c:d/s", "/a:b/s", "/a:b"])
def test_a_folder_that_no_mount_can_name_is_refused(folder, kind):
    """Commas and colons separate mounts: one colon would show /a at the place b/s."""
    cluster = Cluster(name="c", container=Container(kind=kind, image="i"))
    with pytest.raises(RefusedError, match=f"'{folder}': .* cannot be mounted"):
        containers.launch(cluster, Path(folder), [])
    with pytest.raises(RefusedError, match=f"'{folder}': .* cannot be mounted"):
        containers.launch(cluster, Path("/s"), [f"{folder}/model.json"])
    cluster.container.pythonpath = folder
    with pytest.raises(RefusedError, match=f"'{folder}': .* cannot be mounted"):
        containers.launch(cluster, Path("/s"), [])


def test_the_profiles_binds_may_name_their_place_inside():
    """Where a colon is the profile's own, it parts the two."""
    container = Container(kind="pyxis", image="i", binds=["/a:/b"])
    args = containers.launch(Cluster(name="c", container=container), Path("/s"), []).srun_args
    assert args[1] == "--container-mounts=/s:/s,/a:/b"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cluster.container.image=x"], "kind is null; apptainer, pyxis or edf?"),
        (["cluster.container.kind=docker"], "not one of apptainer, pyxis, edf"),
        (["cluster.container.kind=apptainer"], "which one?"),
        (
            ["cluster.container.kind=pyxis", "cluster.container.image=x", "cluster=local"],
            "cluster=local starts no jobs by Slurm",
        ),
        (
            [
                "cluster.container.kind=pyxis",
                "cluster.container.image=x",
                "cluster.container.pythonpath=here",
            ],
            "cluster.container.pythonpath: here is no path from the root",
        ),
    ],
)
def test_a_container_that_cannot_be_entered_is_refused(words, message):
    """Before anything is sent, in one line."""
    with pytest.raises(RefusedError, match=message):
        grid.plan(["cluster=testcluster", *words])
