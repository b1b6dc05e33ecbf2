"""Record what real Slurms say of several sites into tests/data/sites, a JSON file a site; needs root and Slurm.

    python tests/record_sites.py            # slurm/testcluster/install.sh adds what it needs

One slurmdbd serves all; each site is a slurmctld of its own with nodes that nobody has started: Slurm's cloud nodes,
which are idle until a job wants them. What wattflow asks of a site is recorded word for word, and `sinfo --json` beside
it; the names of this machine and of folders are replaced.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from wattflow.slurm import site

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "slurm" / "testcluster"
SITES = Path(__file__).parent / "data" / "sites"
BASE_PORT = 15200
CONF = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SchedulerType=sched/backfill
GresTypes=gpu
ResumeProgram=/bin/true
SuspendProgram=/bin/true
SuspendTime=3600
PrivateData=cloud
{own}
"""
DATABASE = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStorageTRES=gres/gpu
"""
NO_DATABASE = "AccountingStorageType=accounting_storage/none\n"
RES = "SelectType=select/cons_res\nSelectTypeParameters=CR_Core_Memory\n"
TRES = "SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU_Memory\n"
# name: lines of slurm.conf, whether there is a database, what an administrator did with sacctmgr
CENTRES: dict[str, tuple[str, bool, list[str]]] = {
    # GPUs by their type, two partitions of nodes whose names have dashes and zeros; one account a kind of GPU
    "typed": (
        TRES + "AccountingStorageEnforce=associations,limits,qos\n"
        "NodeName=gpu-v[001-003] CPUs=80 RealMemory=160000 Gres=gpu:v100:4 Feature=v100-32g,volta State=CLOUD\n"
        "NodeName=gpu-a[001-002] CPUs=128 RealMemory=470000 Gres=gpu:a100:8 Feature=a100 State=CLOUD\n"
        "PartitionName=gpu_p13 Nodes=gpu-v[001-003] Default=YES MaxTime=4-04:00:00 State=UP\n"
        "PartitionName=gpu_p5 Nodes=gpu-a[001-002] MaxTime=20:00:00 AllowAccounts=abc_a100 State=UP\n",
        True,
        [
            "add account abc_v100 abc_a100",
            "add user ann account=abc_v100",
            "add user ann account=abc_a100",
        ],
    ),
    # no database at all
    "no_accounting": (
        TRES + "NodeName=n[1-4] CPUs=32 RealMemory=128000 Gres=gpu:2 State=CLOUD\n"
        "PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n",
        False,
        [],
    ),
    # nodes of three kinds in one partition, which jobs have to tell apart by a constraint
    "mixed": (
        TRES
        + "NodeName=t[1-3] CPUs=40 RealMemory=190000 Gres=gpu:rtx2080ti:8 Feature=turing,ib State=CLOUD\n"
        "NodeName=h[1-2] CPUs=64 RealMemory=770000 Gres=gpu:h100:4 Feature=hopper,ib State=CLOUD\n"
        "NodeName=c[1-2] CPUs=64 RealMemory=770000 Feature=ib State=CLOUD\n"
        "PartitionName=all Nodes=ALL Default=YES MaxTime=2-00:00:00 State=UP\n",
        True,
        [
            "add account lab",
            "add user ann account=lab",
            "modify user where name=ann set MaxSubmitJobs=20",
        ],
    ),
    # jobs have whole nodes; a large limit on arrays
    "whole_nodes": (
        TRES + "MaxArraySize=10001\nMaxJobCount=50000\n"
        "NodeName=nid[001001-001004] CPUs=288 RealMemory=857000 Gres=gpu:4 Feature=gh200 State=CLOUD\n"
        "PartitionName=normal Nodes=nid[001001-001003] Default=YES MaxTime=1-00 OverSubscribe=EXCLUSIVE State=UP\n"
        "PartitionName=debug Nodes=nid001004 MaxTime=30:00 OverSubscribe=EXCLUSIVE State=UP\n",
        True,
        ["add account g123", "add user ann account=g123"],
    ),
    # a select plugin that does not know --gpus-per-node, wckeys, MIG slices in a partition of their own, one is down
    "old": (
        RES + "TrackWCKey=yes\n"
        "NodeName=a[1-2] CPUs=64 RealMemory=500000 Gres=gpu:a100_1g.5gb:7 Feature=ampere State=CLOUD\n"
        "NodeName=p[1-2] CPUs=24 RealMemory=250000 Gres=gpu:tesla_p100-pcie-16gb:4 Feature=pascal State=CLOUD\n"
        "PartitionName=mig Nodes=a[1-2] MaxTime=8:00:00 State=UP\n"
        "PartitionName=on Nodes=p[1-2] Default=YES MaxTime=12:00:00 State=UP\n"
        "PartitionName=gone Nodes=p[1-2] MaxTime=12:00:00 State=DOWN\n",
        True,
        ["add account proj1", "add user ann account=proj1 wckeys=w1"],
    ),
    # one of two clusters of a federation: sacctmgr lists the accounts of both
    "federated": (
        TRES + "FederationParameters=fed_display\nAccountingStorageEnforce=associations\n"
        "NodeName=f[1-2] CPUs=48 RealMemory=190000 Gres=gpu:v100:4 State=CLOUD\n"
        "PartitionName=accel Nodes=ALL Default=YES MaxTime=12:00:00 AllowQos=normal State=UP\n",
        True,
        [
            "add account users",
            "add user ann account=users",
            "add federation both clusters=federated,typed",
        ],
    ),
}


def run(command: Sequence[str], *, fails: bool = False) -> tuple[int, str]:
    """The exit code and output of a command; what it said on stderr where it failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode and not fails:
        raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr


def replaced(text: str, folder: Path) -> str:
    """Text without this machine's names and folders, and with one time."""
    text = re.sub(rf"\b{re.escape(socket.gethostname())}\b", "ctl", text)
    text = text.replace(str(folder), "/var/spool/slurm")
    text = re.sub(
        r"(Configuration data as of |BOOT_TIME += )\S+", r"\g<1>2026-11-30T12:00:00", text
    )
    return text.replace(str(ROOT), "/opt")


def record(name: str, folder: Path, number: int) -> None:
    """Start a site's controller, ask it what wattflow asks, and write the answers."""
    own, database, administrator = CENTRES[name]
    (folder / "state").mkdir(parents=True)
    own = (DATABASE.format(port=BASE_PORT + 1) if database else NO_DATABASE) + own
    port, host = BASE_PORT + 40 + number, socket.gethostname().split(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(name=name, host=host, port=port, folder=folder, own=own))
    os.environ["SLURM_CONF"] = str(conf)
    if database:
        run(["sacctmgr", "-i", "add", "cluster", name], fails=True)
    with (folder / "log").open("w") as log:
        controller = subprocess.Popen(["slurmctld", "-D", "-i"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while run(["timeout", "5", "sinfo", "-h"], fails=True)[0]:
            if controller.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name}: slurmctld: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.2)
        for words in administrator:
            here = "" if "federation" in words else f"cluster={name}"
            modified = words.replace("name=ann", f"name=ann {here}")
            run(["sacctmgr", "-i", *(modified if "modify" in words else f"{words} {here}").split()])
        answers: dict[str, str | None] = {}
        for key, command in {**site.commands("ann"), "sinfo --json": ["sinfo", "--json"]}.items():
            code, text = run(command, fails=True)
            answers[key] = replaced(text, folder) if code == 0 else None
        (SITES / f"{name}.json").write_text(json.dumps(answers, indent=1) + "\n")
        print(name, {key: None if text is None else len(text) for key, text in answers.items()})
    finally:
        controller.terminate()
        controller.wait()


def main() -> None:
    """Record all sites, or those that are named."""
    SITES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wfsites-") as name:
        Path(name).chmod(0o755)  # MariaDB runs as a user of its own
        settings = {"CLUSTER_DIR": f"{name}/db", "BASE_PORT": str(BASE_PORT), "NODES": "1"}
        environment = {**os.environ, **settings, "AUTH": "none"}
        os.environ["PATH"] += ":/usr/sbin:/sbin"
        subprocess.run([SCRIPTS / "up.sh"], env=environment, check=True)
        try:
            for number, centre in enumerate(sys.argv[1:] or CENTRES):
                record(centre, Path(name) / centre, number)
        finally:
            subprocess.run([SCRIPTS / "down.sh", "--wipe"], env=environment, check=False)
            shutil.rmtree(f"{name}/db", ignore_errors=True)


if __name__ == "__main__":
    main()
