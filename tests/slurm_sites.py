"""Ten sites as their Slurm says them: six recorded from real ones of version 22.05.8, four written by hand.

tests/record_sites.py records the six again. The four are of versions that no package here has, in the forms that
documentation of such sites shows; they are no site's own output. Each site differs from the others in what breaks a
profile: typed and untyped GRES, MIG, mixed nodes, no accounting, whole nodes, no GRES at all, accounts that a partition
wants, a database of several clusters.
"""

import json
from pathlib import Path

from wattflow.errors import SlurmError


def config(version, *, select="select/cons_tres", storage="accounting_storage/slurmdbd", **more):
    """Some lines of `scontrol show config`."""
    settings = {
        "AccountingStorageEnforce": "associations,limits,qos",
        "AccountingStorageType": storage,
        "ClusterName": "c",
        "MaxArraySize": "1001",
        "MaxJobCount": "10000",
        "SLURM_VERSION": version,
        "SelectType": select,
        "TrackWCKey": "No",
        **more,
    }
    lines = [f"{key:<23} = {value}" for key, value in sorted(settings.items())]
    return "Configuration data as of 2026-11-30T12:00:00\n" + "\n".join(lines) + "\n"


# typed GRES with sockets; V100 and A100 in partitions of their own, an account a kind of GPU
TYPED = {
    "sinfo": """\
gpu_p13|gpu:v100:4(S:0-1)|200|80|160000|4-04:00:00|v100-16g,volta|up|alloc
gpu_p13|gpu:v100:4(S:0-1)|120|80|160000|4-04:00:00|v100-32g,volta|up|mix
gpu_p5|gpu:a100:8(S:0-7)|30|128|470000|4-04:00:00|a100|up|alloc
gpu_p5|gpu:a100:8(S:0-7)|2|128|470000|4-04:00:00|a100|up|drain*
cpu_p1|(null)|720|80|180000|4-04:00:00|(null)|up|idle
""",
    "config": config("23.11.10"),
    "partition": """\
PartitionName=gpu_p13 AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL Default=NO OverSubscribe=NO State=UP
PartitionName=gpu_p5 AllowGroups=ALL AllowAccounts=abc@a100 AllowQos=ALL Default=NO OverSubscribe=NO State=UP
PartitionName=cpu_p1 AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL Default=YES OverSubscribe=NO State=UP
""",
    "assoc": "c|abc@v100|qos_gpu-t3,qos_gpu-t4|\nc|abc@cpu|qos_cpu-t3|300\n",
    "user": "abc@v100\n",
}
# whole nodes of four superchips, no type, no limit on arrays but a large one
WHOLE_NODES = {
    "sinfo": """\
normal|gpu:4|2600|288|857000|1-00:00:00|gh200|up|alloc
debug|gpu:4|24|288|857000|30:00|gh200|up|idle
""",
    "config": config("24.05.4", MaxArraySize="10001"),
    "partition": """\
PartitionName=normal AllowAccounts=ALL AllowQos=ALL Default=YES OverSubscribe=EXCLUSIVE State=UP
PartitionName=debug AllowAccounts=ALL AllowQos=ALL Default=NO OverSubscribe=EXCLUSIVE State=UP
""",
    "assoc": "c|g123|normal|\n",
    "user": "g123\n",
}
# wckeys, several accounts, a partition that is down, a name that YAML would read as a truth
MANY_ACCOUNTS = {
    "sinfo": """\
on|gpu:nvidia_a100-sxm4-80gb:4(S:0,3)|56|64|515000|1-00:00:00|a100,ssd|up|mix
old|gpu:p100:4|90|24|250000|1-00:00:00|p100|down|down*
""",
    "config": config("25.05.2", TrackWCKey="Yes", MaxArraySize="4001"),
    "partition": """\
PartitionName=on AllowAccounts=proj1,proj2,proj3 AllowQos=ALL Default=NO OverSubscribe=NO State=UP
PartitionName=old AllowAccounts=ALL AllowQos=ALL Default=NO OverSubscribe=NO State=DOWN
""",
    "assoc": "c|proj2|normal|100\nc|proj1|normal|50\nc|other|normal|\n",
    "user": "proj1\n",
}
# GPUs come with the partition: no GRES is configured
NO_GRES = {
    "sinfo": "accel|(null)|16|48|190000|12:00:00|v100|up|idle\n",
    "config": config("23.02.7", select="select/linear"),
    "partition": "PartitionName=accel AllowAccounts=ALL AllowQos=ALL Default=YES OverSubscribe=EXCLUSIVE\n",
    "assoc": "c|users|normal|\n",
    "user": "users\n",
}
RECORDED = {
    path.stem: json.loads(path.read_text())
    for path in sorted((Path(__file__).parent / "data" / "sites").glob("*.json"))
}
BY_HAND = {
    "typed": TYPED,
    "whole_nodes": WHOLE_NODES,
    "many_accounts": MANY_ACCOUNTS,
    "no_gres": NO_GRES,
}
SITES = BY_HAND | {f"recorded_{name}": site for name, site in RECORDED.items()}


def asked(site):
    """Answers as a site's commands give them; null is a command that fails."""

    def ask(command):
        if command[0] == "sinfo":
            key = "sinfo"
        elif command[0] == "scontrol":
            key = "config" if "config" in command else "partition"
        else:
            key = "assoc" if "assoc" in command else "user"
        answer = site[key]
        if answer is None:
            raise SlurmError(
                f"{command[0]}: You are not running a supported accounting_storage plugin"
            )
        return answer

    return ask
