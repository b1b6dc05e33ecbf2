"""Where configs are found, and what a damaged one comes to."""

import pytest

from wattflow.errors import RefusedError
from wattflow.plan import grid, hydra

ONE = ["n_prompts=8", "sweep.repeats=1"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty directory, as a person does who installed the package."""
    monkeypatch.chdir(tmp_path)


def test_a_sites_own_conf_is_found_first(tmp_path):
    """./conf adds profiles and replaces files of the same name; the rest still comes from the package."""
    (tmp_path / "conf" / "cluster").mkdir(parents=True)
    (tmp_path / "conf" / "cluster" / "mysite.yaml").write_text("name: mysite\npartition: gpu\n")
    (tmp_path / "conf" / "cluster" / "local.yaml").write_text(
        "name: local\nlauncher: local\ngpus_per_node: 3\ngpu_model: own\n"
    )
    _, points, _ = grid.expand([*ONE, "cluster=mysite,local"])
    assert points[0].config.cluster.partition == "gpu"
    assert points[1].config.cluster.gpus_per_node == 3


def test_a_folder_of_ones_own_hides_no_shipped_config(tmp_path):
    """With a ./conf that holds one profile, shipped models are still listed, listed in words and globbed."""
    (tmp_path / "conf" / "cluster").mkdir(parents=True)
    (tmp_path / "conf" / "cluster" / "mine.yaml").write_text("name: mine\nlauncher: local\n")
    assert {"mine", "local"} <= set(hydra.group_files("cluster"))
    assert "llama-7b" in hydra.group_files("model")
    for words in ("model=llama-7b,llama-13b", "model=glob([llama-7*,llama-13*])"):
        _, points, _ = grid.expand([*ONE, "cluster=mine", words])
        assert {point.config.model.name for point in points} == {"llama-7b", "llama-13b"}


@pytest.mark.parametrize(
    "text",
    [
        "shards: {1: 2",  # no YAML
        b"\xff\xfe\x00",  # no text
        "- 1\n- 2\n",  # a list
        "defaults: 7\n",
        "defaults:\n  - mine\n",  # names itself
        "# @package _global_\nhydra: null\n",
        "# @package _global_\nhydra:\n  sweeper: null\nnonsense: 1\n",
    ],
)
def test_a_damaged_config_is_refused_in_one_line(text, tmp_path):
    """The fuzzer found these: whatever Hydra and its YAML make of them, it is one line."""
    (tmp_path / "conf" / "grid").mkdir(parents=True)
    path = tmp_path / "conf" / "grid" / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RefusedError) as caught:
        grid.expand([*ONE, "grid=mine"])
    assert "\n" not in str(caught.value)
