"""The verbs of this machine's GPUs: what they do where there is none."""

from commands import call


def test_restore_of_an_empty_journal_puts_back_nothing(tmp_path):
    """No job left anything in the folder: 0 GPUs and exit code 0, also without a driver."""
    done = call("restore", "--journal-dir", "journal", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "0 GPUs put back.\n")


def test_calibrate_without_a_gpu_says_so_in_one_line(tmp_path):
    """No driver here: exit code 2, no traceback, and no folder is made."""
    done = call("calibrate", "--out", "new", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("wattflow: no GPU to calibrate")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()
