"""`wattflow init-site` and `doctor --cluster` by stand-ins for Slurm's commands; tests/slurm has the real ones."""

import json

import pytest
from slurm_sites import TYPED, asked

from wattflow.cli import doctor, site
from wattflow.cli.app import main
from wattflow.slurm.site import look


@pytest.fixture
def verb(tmp_path, monkeypatch, capsys):
    """Runs a verb in an empty folder at a typed site; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for module in (site, doctor):
        monkeypatch.setattr(module, "look", lambda: look(asked(TYPED)))

    def run(*words):
        monkeypatch.setattr("sys.argv", ["wattflow", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return run


def test_it_writes_a_profile_and_says_what_to_check(verb, tmp_path):
    """The path on stdout; a second time it is refused without --force."""
    code, out, err = verb("init-site", "mine")
    assert (code, out) == (0, "conf/cluster/mine.yaml\n")
    assert "check gpu_model" in err
    written = (tmp_path / "conf" / "cluster" / "mine.yaml").read_text()
    code, _, err = verb("init-site", "mine", "--partition", "cpu_p1")
    assert code == 2
    assert "there already. --force replaces it" in err
    assert verb("init-site", "mine", "--force", "--partition", "gpu_p5")[0] == 0
    assert (tmp_path / "conf" / "cluster" / "mine.yaml").read_text() != written


def test_a_dry_run_writes_nothing(verb, tmp_path):
    """The profile on stdout."""
    code, out, _ = verb("init-site", "mine", "-n")
    assert code == 0
    assert "partition: gpu_p13" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "a b", ""])
def test_a_name_that_is_no_file_is_refused(verb, name):
    """As any other name."""
    assert verb("init-site", name)[0] == 2


def test_doctor_lists_partitions(verb):
    """A row a kind of node, and as JSON."""
    code, out, err = verb("doctor", "--cluster")
    assert code == 0
    assert "8 a100" in out
    assert "your accounts: abc@v100, abc@cpu" in err
    found = json.loads(verb("doctor", "--cluster", "--json")[1])
    assert len(found["partitions"]) == 4
