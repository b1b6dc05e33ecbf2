"""Faults in files of conf/: one line that names the file, the key and what it takes."""

import pytest

from wattflow.errors import RefusedError
from wattflow.plan import grid

CASES = [
    (
        "cluster",
        "name: mine\ntime_min: long\n",
        "mine.yaml: cluster.time_min=long: takes a whole number",
    ),
    (
        "cluster",
        "name: mine\ntime_min: null\n",
        "mine.yaml: cluster.time_min=null: takes a whole number",
    ),
    ("cluster", "name: mine\ntime_minutes: 3\n", "no such key. Did you mean cluster.time_min?"),
    (
        "cluster",
        "name: mine\npower_caps: {~: x}\n",
        "a key has no name",
    ),
    ("cluster", "name: mine\nlauncher: slrum\n", "cluster.launcher=slrum: not one of local, slurm"),
    (
        "cluster",
        "launcher: local\n",
        "cluster.name: has no value: the file that was chosen in conf/cluster/ is empty",
    ),
    ("cluster", "name: [\n", 'mine.yaml", line 2, column 1'),
    ("cluster", "name: mine\nname: yours\n", "found duplicate key name"),
    (
        "cluster",
        "name: mine\npartition: ${no.key}\n",
        "cluster.partition: ${no.key}: interpolations are not resolved",
    ),
    (
        "cluster",
        "name: mine\npartition: ${oc.env:NO_SUCH}\n",
        "cluster.partition: ${oc.env:NO_SUCH}: interpolations are not resolved",
    ),
    (
        "cluster",
        "name: mine\nsbatch_options:\n  exclusive:\n",
        "cluster.sbatch_options.exclusive=null: takes text, and '' for a bare --exclusive",
    ),
    (
        "cluster",
        "",
        "cluster.name: has no value: the file that was chosen in conf/cluster/ is empty",
    ),
    ("grid", "precision: fp16\n", "the file of a grid begins with the line `# @package _global_`"),
    (
        "grid",
        "# @package _global_\nshard: 3\n",
        "mine.yaml: shard: no such key. Did you mean shards?",
    ),
    (
        "grid",
        "# @package _global_\ndefaults:\n  - override /model: nosuch\n",
        "a list of defaults names model/nosuch, no such file: looked for ",
    ),
    (
        "grid",
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      shards: 1,x\n",
        "shards=x: takes a whole number",
    ),
    (
        "grid",
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      shards: [1, 2]\n",
        "hydra.sweeper.params of the grid's file: shards=[1,2]: takes a whole number",
    ),
    (
        "grid",
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      shard: 1,2\n",
        "shard=1,2: no such key. Did you mean shards?",
    ),
]


@pytest.mark.parametrize(("group", "text", "message"), CASES)
def test_a_fault_in_a_file_is_said_in_one_line(group, text, message, tmp_path, monkeypatch):
    """A wrong type, key or name, a file that is no YAML, a config that is not there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / group).mkdir(parents=True)
    (tmp_path / "conf" / group / "mine.yaml").write_text(text)
    with pytest.raises(RefusedError) as caught:
        grid.expand(["n_prompts=8", "sweep.repeats=1", f"{group}=mine"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_that_is_not_there_names_all_folders(tmp_path, monkeypatch):
    """One's own two first, there or not, then the shipped one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    with pytest.raises(
        RefusedError,
        match=f"looked for {tmp_path}/conf/cluster/x.yaml, {tmp_path}/home/wattflow/conf/cluster/x.yaml and "
        "/.*/conf/cluster/x.yaml",
    ):
        grid.expand(["cluster=x"])
