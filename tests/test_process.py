"""Processes of this machine and of others, as a job id names them."""

import os
import subprocess
from pathlib import Path

from processes import until

from wattflow import process


def test_a_pid_used_again_is_not_taken_for_the_job():
    """The start time differs, so the job counts as gone."""
    mine = process.job_id(os.getpid())
    assert process.lives(mine)
    assert process.lives(mine.rpartition(":")[0] + ":1") is False


def test_a_childs_parent_is_this_process_until_it_ends():
    """A zombie, which only waits to be collected, has none any more."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        assert process.parent(child.pid) == os.getpid()
        child.kill()
        until(lambda: process.parent(child.pid) is None)
    assert process.parent(child.pid) is None


def test_a_process_of_another_machine_is_neither_alive_nor_gone():
    """Its machine alone could tell."""
    assert process.lives("local:elsewhere:1:1") is None


def test_no_process_is_started_with_the_working_folder_in_its_path(tmp_path):
    """A child of ours imports no torch.py of the folder that it starts in, and no module starts one otherwise."""
    (tmp_path / "torch.py").write_text("raise SystemExit('planted')")
    code = "import importlib.util as u; print(u.find_spec('torch').origin)"
    done = subprocess.run(
        process.python("-c", code), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert str(tmp_path) not in done.stdout
    package = Path(process.__file__).parent
    starts = {
        path.relative_to(package).as_posix(): line.strip()
        for path in package.rglob("*.py")
        for line in path.read_text().splitlines()
        if "sys.executable" in line and path.name != "process.py"
    }
    assert set(starts) == {"slurm/sbatch.py", "power/dcgmi.py"}  # with -P behind it; with -I
    assert '"-I"' in starts["power/dcgmi.py"]
