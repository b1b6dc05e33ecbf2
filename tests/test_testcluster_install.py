"""What `make test` may do to a machine: slurm/testcluster/install.sh, with Debian's and systemd's commands replaced."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "slurm" / "testcluster" / "install.sh"
ALL_BUT = '#!/bin/sh\n[ "$3" = {missing} ] && exit 1\nprintf installed\n'
LOGGED = '#!/bin/sh\necho "$(basename "$0") $*" >> "$CALLS"\n'


def calls(folder, missing, apt_get="exit 0"):
    """What it calls as root on a machine that lacks one package, in order."""
    commands = {
        "dpkg-query": ALL_BUT.format(missing=missing),
        "id": "#!/bin/sh\necho 0\n",
        "apt-get": LOGGED + apt_get,
        "systemctl": LOGGED,
    }
    for name, text in commands.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    log = folder / "calls"
    log.touch()
    path = {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(log)}
    done = subprocess.run([SCRIPT], env={**os.environ, **path}, capture_output=True, check=False)
    assert done.returncode == 0
    return log.read_text().splitlines()


@pytest.mark.parametrize(
    ("package", "unit"),
    [("prometheus", "prometheus.service"), ("mariadb-server", "mariadb.service")],
)
def test_an_added_daemon_never_runs(tmp_path, package, unit):
    """It is masked before its package comes, so that nothing starts it, and disabled when the mask goes."""
    assert calls(tmp_path, package) == [
        f"systemctl mask {unit}",
        f"apt-get install -y -qq --no-install-recommends {package}",
        f"systemctl unmask {unit}",
        f"systemctl disable {unit}",
    ]


def test_no_mask_stays_where_nothing_could_be_added(tmp_path):
    """apt-get fails twice: the mask goes all the same."""
    told = calls(tmp_path, "prometheus", "exit 100")
    assert sum(line.startswith("apt-get install") for line in told) == 2
    assert told[-2:] == [
        "systemctl unmask prometheus.service",
        "systemctl disable prometheus.service",
    ]


def test_daemons_that_were_there_are_left_alone(tmp_path):
    """A machine that lacks Chromium alone keeps its own Prometheus and MariaDB as they are."""
    assert calls(tmp_path, "chromium") == [
        "apt-get install -y -qq --no-install-recommends chromium"
    ]
