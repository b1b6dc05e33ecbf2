"""Files of conf/: their values stay as they are written, and only one's own are taken."""

import os
import pwd

import pytest

from wattflow.config.choices import to_dict
from wattflow.config.keys import kind_of, not_null
from wattflow.errors import RefusedError
from wattflow.plan import grid
from wattflow.plan.conf import conf_dirs, searched_dirs
from wattflow.slurm.sbatch import batch_script
from wattflow.slurm.shapes import shapes

ONE = ["model=tiny", "n_prompts=8", "sweep.repeats=1"]


@pytest.fixture(autouse=True)
def conf(tmp_path, monkeypatch):
    """An empty conf/ of one's own, in the folder one works in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    (tmp_path / "conf").mkdir()
    return tmp_path / "conf"


def write(folder, name, text):
    """Write conf/GROUP/FILE."""
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def choices(*overrides):
    """The choices of the one point."""
    _, (point,), _ = grid.expand([*ONE, *overrides])
    return point.config


TEXTS = [
    *("16:00", "20:00:00", "2026-12-24", "2026-12-24T18:00", "0123", "0x1F", "0o17", "0b11"),
    *("1_000", "12e3", "7e12345678", "1e400", ".5", "1.10", "+1", "-0", ".inf", ".nan", "nan"),
    *("on", "no", "yes", "off", "y", "n", "true", "False", "="),
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_in_a_profile_stays_as_it_is_written(text, conf):
    """Times, octals, exponents, truths: for texts, texts in lists, and texts by name, keys too."""
    write(
        conf,
        "cluster/mine",
        f"name: mine\naccount: {text}\nsetup: [{text}]\nsbatch_options:\n  begin: {text}\n"
        f"power_caps:\n  {text}: {text}\n",
    )
    cluster = choices("cluster=mine").cluster
    assert cluster.account == text
    assert cluster.setup == [text]
    assert cluster.sbatch_options == {"begin": text}
    assert cluster.power_caps == {text: text}


@pytest.mark.parametrize("text", ["null", "~", ""])
def test_null_in_a_profile_is_null(text, conf):
    """As before: a key without a value."""
    write(conf, "cluster/mine", f"name: mine\naccount: {text}\n")
    assert choices("cluster=mine").cluster.account is None


def test_numbers_and_truths_of_a_profile_are_typed_by_their_keys(conf):
    """What takes a number gets one, written as YAML or Python have it."""
    write(
        conf,
        "cluster/mine",
        "name: 4090\ntime_min: 0123\nmax_array_size: 1_001\ngpu_memory_gib: 8e1\naccounting: no\n"
        'cpus_per_rank: "2"\ncost: {pue: 1.2, pue_source: 2026}\n',
    )
    cluster = choices("cluster=mine").cluster
    assert (cluster.name, cluster.time_min, cluster.max_array_size) == ("4090", 123, 1001)
    assert (cluster.gpu_memory_gib, cluster.accounting, cluster.cpus_per_rank) == (80.0, False, 2)
    assert (cluster.cost.pue, cluster.cost.pue_source) == (1.2, "2026")


@pytest.mark.parametrize("text", ["16:00", "0x1F", "1e3", "yes", "2h"])
def test_a_text_where_a_number_belongs_is_refused_by_its_key(text, conf):
    """Base 60 made 16:00 960 minutes."""
    path = write(conf, "cluster/mine", f"name: mine\ntime_min: {text}\n")
    with pytest.raises(
        RefusedError, match=f"^{path}: cluster.time_min={text}: takes a whole number"
    ):
        choices("cluster=mine")


def test_a_begin_arrives_at_sbatch_as_it_is_written(conf):
    """The line that Slurm reads."""
    write(
        conf,
        "cluster/mine",
        "name: mine\naccount: 0123\nqos: 1.10\ngpu_type: 1e5\nsbatch_options:\n  begin: 16:00\n",
    )
    plan = grid.plan([*ONE, "cluster=mine", "engine=synthetic"])
    (shape,) = shapes([(point.point_id, point.config) for point in plan.points])
    script = batch_script(shape, plan.sweep)
    for line in ("account=0123", "qos=1.10", "begin=16:00", "gpus-per-node=1e5:1"):
        assert f"#SBATCH --{line}\n" in script


def test_a_model_file_and_a_grid_file_are_read_alike(conf):
    """Revisions of two checkpoints are two points; a rule's revision is a text too."""
    write(conf, "model/mine", "name: mine\nvocab_size: 512\nrevision: 7e12345678\n")
    write(
        conf,
        "grid/revisions",
        "# @package _global_\nsweep:\n  exclude:\n    - when: {model.revision: 9e87654321}\n      reason: 12:30\n"
        "hydra:\n  sweeper:\n    params:\n      model.revision: 7e12345678,9e87654321\n      sweep.name: 1e5\n",
    )
    assert choices("model=mine").model.revision == "7e12345678"
    plan = grid.plan([*ONE, "grid=revisions"])
    assert plan.name == "1e5"
    assert {p.config.model.revision: p.reason for p in plan.points} == {
        "7e12345678": None,
        "9e87654321": "excluded: 12:30",
    }


# --- interpolations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cluster/mine", "name: mine\naccount: ${oc.env:SECRET}\n"),
        ("cluster/mine", "name: mine\nsetup: ['echo ${oc.env:SECRET}']\n"),
        ("cluster/mine", "name: mine\nsbatch_options: {x: '${oc.env:SECRET}'}\n"),
        ("cluster/mine", "name: ${oc.env:SECRET}\n"),
        ("grid/mine", "# @package _global_\nsweep: {name: '${oc.env:SECRET}'}\n"),
        ("grid/mine", "# @package _global_\ndefaults:\n  - override /model: ${oc.env:SECRET}\n"),
        (
            "grid/mine",
            "# @package _global_\nhydra:\n  sweeper:\n    params:\n      model.revision: a,${oc.env:SECRET}\n",
        ),
        (
            "grid/mine",
            "# @package _global_\nhydra:\n  sweeper:\n    params:\n      model.revision: $\\{oc.env:SECRET\\}\n",
        ),
    ],
)
def test_a_secret_of_the_environment_is_not_read(name, text, conf, monkeypatch):
    """Neither as a value nor as an item, a name, a group's file or a grid's value."""
    monkeypatch.setenv("SECRET", "tiny")
    write(conf, name, text)
    with pytest.raises(RefusedError, match="interpolations are not resolved"):
        grid.plan([*ONE, name.replace("/", "=")])


def test_a_line_of_shell_may_name_a_variable_for_the_shell(conf, monkeypatch):
    """$NAME, and ${NAME} with YAML's own escape of OmegaConf."""
    monkeypatch.setenv("SECRET", "swordfish")
    write(conf, "cluster/mine", "name: mine\nsetup: ['cd $SECRET', 'cd \\${SECRET}']\n")
    assert choices("cluster=mine").cluster.setup == ["cd $SECRET", "cd ${SECRET}"]


# --- whose files ----------------------------------------------------------------------------------


def test_ones_own_folder_below_home_is_searched_after_the_one_here(conf, tmp_path):
    """./conf, then $XDG_CONFIG_HOME/wattflow/conf, then what is shipped."""
    home = tmp_path / "home" / "wattflow" / "conf"
    assert searched_dirs()[:2] == [conf, home]
    assert home not in conf_dirs()
    write(home, "cluster/mine", "name: from-home\n")
    assert choices("cluster=mine").cluster.name == "from-home"
    write(conf, "cluster/mine", "name: from-here\n")
    assert choices("cluster=mine").cluster.name == "from-here"


def test_without_a_home_the_others_are_searched(conf, monkeypatch):
    """A user without a passwd entry and without HOME has none."""
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert searched_dirs()[0] == conf
    assert len(searched_dirs()) == 2


@pytest.mark.skipif(os.getuid() != 0, reason="giving a file away needs root")
@pytest.mark.parametrize("name", ["", "cluster", "cluster/mine.yaml"])
def test_a_config_of_somebody_else_is_refused(name, conf):
    """Of another owner: the file, its folder, conf/ itself; root's own are taken."""
    write(conf, "cluster/mine", "name: mine\nsetup: ['touch planted']\n")
    assert choices("cluster=mine").cluster.setup
    os.chown(conf / name, 12345, 12345)
    with pytest.raises(RefusedError, match="belongs to uid 12345"):
        choices("cluster=mine")


@pytest.mark.parametrize("name", ["", "cluster", "cluster/mine.yaml"])
def test_a_config_that_others_may_write_is_refused(name, conf):
    """Whoever writes it runs lines of shell in jobs."""
    write(conf, "cluster/mine", "name: mine\n")
    (conf / name).chmod(0o777)
    with pytest.raises(RefusedError, match=f"others may write to it.*chmod go-w {conf / name}"):
        choices("cluster=mine")


# --- what a file may set of Hydra's ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "grid/x",
            "# @package _global_\nhydra:\n  callbacks:\n    planted: {_target_: os.system}\n",
        ),
        ("grid/x", "# @package _global_\nhydra:\n  launcher: {_target_: os.system}\n"),
        ("grid/x", "# @package _global_\nhydra:\n  sweeper: {_target_: os.system}\n"),
        ("grid/x", "# @package _global_\nhydra:\n  run: {dir: /tmp/x}\n"),
        ("grid/x", "# @package hydra.callbacks.planted\n_target_: os.system\n"),
        ("grid/x", "# @package _global_\ndefaults:\n  - /model@hydra.callbacks.planted: tiny\n"),
        ("grid/x", "# @package _global_\ndefaults:\n  - override /hydra/callbacks: planted\n"),
        ("grid/x", "# @package _global_\ndefaults:\n  - /hydra/callbacks/planted\n"),
        (
            "config",
            "defaults:\n  - model: tiny\n  - _self_\nhydra:\n  callbacks: {x: {_target_: os.system}}\n",
        ),
    ],
)
def test_of_hydras_own_settings_only_the_sweepers_params_are_taken(name, text, conf):
    """A clone's conf/ runs no code: by whichever way Hydra would take it."""
    write(conf, name, text)
    write(conf, "hydra/callbacks/planted", "planted: {_target_: os.system}\n")
    with pytest.raises(RefusedError, match=r"hydra\.sweeper\.params alone"):
        grid.plan([*ONE, *(["grid=x"] if name == "grid/x" else [])])


# --- control characters ---------------------------------------------------------------------------


def text_keys():
    """Each key of a profile that takes text."""
    for key in to_dict(choices("cluster=local").cluster):
        kind = not_null(kind_of(f"cluster.{key}"))
        if kind is str:
            yield key, "{}"
        elif kind == list[str]:
            yield key, "[{}]"
        elif kind == dict[str, str]:
            yield key, "{{x: {}}}"
            yield key, "{{{}: x}}"


@pytest.mark.parametrize("mark", ["\\n", "\\r", "\\0", "\\x1b", "\\x85", "\\u2028"])
def test_no_text_of_a_profile_begins_a_line_of_the_batch_script(mark, conf):
    """For each key that takes text: the key is named, and nothing is sent."""
    keys = list(text_keys())
    assert len(keys) > 15
    for key, form in keys:
        path = write(conf, "cluster/mine", "name: mine\n" if key != "name" else "")
        value = form.format(f'"a{mark}touch planted"')
        path.write_text(path.read_text() + f"{key}: {value}\n")
        with pytest.raises(RefusedError, match=rf"cluster\.{key}|control character"):
            choices("cluster=mine")
