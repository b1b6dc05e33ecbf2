"""A job loads the pickle that was sent and no other, and nothing of the sweep before its folder is known to be safe."""

import os
import subprocess

import pytest
from submitit.core.utils import DelayedSubmission
from sweeps import choices, make_sweep

from wattflow import process
from wattflow.errors import RefusedError
from wattflow.slurm import guard
from wattflow.slurm.sbatch import Call
from wattflow.submit import journal


class Planted:
    """What runs where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Sent:
    """A submission of one call, as it lies on disk once its job was released."""

    def __init__(self, sweep):
        self.sweep = sweep
        self.folder = sweep.submitit / "demo-1"
        self.folder.mkdir(mode=0o700)
        self.pickle = self.folder / "17_submitted.pkl"
        DelayedSubmission(Call("os:mkdir", (str(sweep.path / "ran"),))).dump(self.pickle)
        submission = journal.Submission("demo-1", "points", [["0" * 12]], self.folder, 0)
        journal.intend(sweep, submission)
        journal.write(sweep, "submitted", "demo-1", job_id="17", sha256=guard.sha256(self.pickle))
        journal.write(sweep, "released", "demo-1")

    @property
    def has_run(self):
        return (self.sweep.path / "ran").is_dir()

    def run(self, cwd):
        """What srun starts, in some working folder."""
        slurm = {
            "SLURM_JOB_ID": "17",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_NTASKS": "1",
        }
        slurm |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "n1"}
        command = [*process.python("-u", "-m", guard.MODULE), "-u", "-m", "submitit.core._submit"]
        return subprocess.run(
            [*command, str(self.folder)],
            env={**os.environ, **slurm, "SUBMITIT_EXECUTOR": "slurm"},
            cwd=cwd,
            check=False,
            capture_output=True,
            text=True,
        )


@pytest.fixture
def sent(tmp_path):
    return Sent(make_sweep(tmp_path / "lab" / "demo", [choices()]))


def test_what_was_sent_runs(sent, tmp_path):
    """The call in the pickle is made, by submitit."""
    done = sent.run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert sent.has_run
    assert list(sent.folder.glob("17_0_result.pkl"))


def test_modules_of_the_working_folder_do_not_run(sent, tmp_path):
    """torch.py, numpy.py or submitit/ where the job was sent from hide no real one."""
    here = tmp_path / "here"
    here.mkdir()
    for name in ("torch", "numpy", "submitit", "wattflow", "json"):
        (here / f"{name}.py").write_text("open('planted', 'w')")
    assert sent.run(here).returncode == 0
    assert sent.has_run
    assert not (here / "planted").exists()


def test_another_pickle_in_its_place_is_not_loaded(sent, tmp_path):
    """A pickle of another hash ends the job in one line; it was never unpickled."""
    DelayedSubmission(Planted(str(tmp_path / "planted"))).dump(sent.pickle)
    done = sent.run(tmp_path)
    assert done.returncode == 1
    assert "17_submitted.pkl: not what was sent" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "planted").exists()
    assert not sent.has_run


def test_a_sweep_swapped_by_a_member_of_the_group_is_not_read(sent, tmp_path):
    """Where the folder above is writable to a group, whole sweeps can be swapped, journals too: the job reads none."""
    lab = sent.sweep.path.parent
    lab.chmod(0o770)
    os.chown(lab, -1, 4242 if os.geteuid() == 0 else -1)
    sent.sweep.path.rename(tmp_path / "aside")
    other = Sent(make_sweep(lab / "demo", [choices(seed=2)]))
    other.sweep.journal_path.write_text("not even looked at")
    done = other.run(tmp_path)
    assert done.returncode == 1
    assert "lab: others may write to it (mode drwxrwx---)" in done.stderr
    assert "journal" not in done.stderr
    assert not other.has_run


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only root makes files of other users")
def test_another_users_sweep_in_its_place_is_not_read(sent, tmp_path):
    """In a folder with the sticky bit a sweep can only be another's if it was so from the start; it is not run."""
    os.chown(sent.sweep.path, 65534, 65534)
    done = sent.run(tmp_path)
    assert done.returncode == 1
    assert "demo: belongs to " in done.stderr
    assert not sent.has_run


def test_a_pickle_of_unknown_hash_is_not_loaded(sent):
    """What the journal does not know, nobody sent; the name of one that is not there is said."""
    (sent.sweep.submitit / "demo-2").mkdir()
    with pytest.raises(RefusedError, match="the journal has no hash of it"):
        guard.check(sent.sweep.submitit / "demo-2", sent.pickle, wait_s=0.0)
    sent.pickle.unlink()
    with pytest.raises(RefusedError, match=r"17_submitted\.pkl: not there"):
        guard.check(sent.folder, sent.pickle, wait_s=0.0)


def test_a_pickle_that_shows_late_is_waited_for(sent, monkeypatch):
    """A shared disk may show the journal or the pickle a moment later."""
    aside = sent.pickle.rename(sent.pickle.with_suffix(".late"))
    monkeypatch.setattr(guard.time, "sleep", lambda _: aside.rename(sent.pickle))
    guard.check(sent.folder, sent.pickle)


def test_a_task_finds_the_pickle_of_its_array_by_a_link(sent):
    """The link that a batch script makes is followed: it lies in a folder that is the owner's alone."""
    link = sent.folder / "17_3_submitted.pkl"
    link.symlink_to(sent.pickle.name)
    guard.check(sent.folder, link)
