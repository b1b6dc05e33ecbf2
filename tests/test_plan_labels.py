"""What a point is called is what it runs: its weights, tokenizer, dataset and checkpoint."""

import json
from dataclasses import replace

import pytest
from engine_ranks import random_weights, save_hf, save_meta

from wattflow.errors import RefusedError
from wattflow.plan import grid

ONE = ["sweep.repeats=1", "n_prompts=8", "dataset.on_bad=truncate"]
LINE = {"prompt": "one line", "text": "one line", "instruction": "one line"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty directory, as a person does who installed the package."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))


def save(place):
    """Write a checkpoint of the model `tiny`."""
    (made,) = grid.plan([*ONE, "model=tiny"]).points
    model = replace(made.config.model, path=str(place))
    save_hf(model, random_weights(model), 1)


@pytest.fixture
def folder(tmp_path):
    """A folder with a whole checkpoint of the model `tiny`."""
    save(tmp_path / "vicuna-7b")
    return tmp_path / "vicuna-7b"


def points(*overrides):
    return [point.config for point in grid.plan([*ONE, *overrides]).points]


def point(*overrides):
    (config,) = points(*overrides)
    return config


# --- weights --------------------------------------------------------------------------------------


def test_a_checkpoint_that_is_named_is_run(folder):
    """model.path was ignored without weights=hf."""
    config = point(f"model.path={folder}")
    assert (config.weights, config.stop) == ("hf", "eos")
    assert config.model.revision == "vicuna-7b"


def test_metas_files_are_told_from_hugging_faces(tmp_path):
    """By what lies in the folder."""
    model = point("model=tiny").model
    save_meta(tmp_path / "7B", model, random_weights(model), 1)
    assert point(f"model.path={tmp_path}/7B").weights == "meta"


def test_dummy_weights_that_are_asked_for_stay(folder):
    """With the tokenizer of a checkpoint, say."""
    config = point(f"model.path={folder}", "weights=dummy")
    assert (config.weights, config.stop, config.model.revision) == ("dummy", "length", None)


def test_without_a_path_weights_are_dummy_and_ids_stay():
    """As ever."""
    found = grid.plan([*ONE, "model=tiny"]).points[0]
    same = grid.plan([*ONE, "model=tiny", "weights=dummy"]).points[0]
    assert (found.config.weights, found.point_id) == ("dummy", same.point_id)


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path):
    """Instead of random weights under its name."""
    with pytest.raises(RefusedError, match=r"model\.path=.*/none: no such folder"):
        points(f"model.path={tmp_path}/none")


def test_a_home_of_nobody_is_a_path_that_is_not_there():
    """No traceback."""
    with pytest.raises(RefusedError, match="~nobody-here/x: this machine knows no such user"):
        points("model.path='~nobody-here/x'")


def test_a_profile_with_a_path_is_run_too(folder, tmp_path):
    """A file of one's own, which names the checkpoint itself: no revision is made up."""
    own = tmp_path / "conf" / "model"
    own.mkdir(parents=True)
    shapes = (
        "dim: 512\nn_layers: 2\nn_heads: 8\nn_kv_heads: 4\nffn_dim: 1024\nvocab_size: 512\n"
        f"tokenizer: bytes\npath: {folder}\n"
    )
    (own / "mine.yaml").write_text(f"name: mine\n{shapes}")
    config = point("model=mine")
    assert (config.weights, config.model.name, config.model.revision) == ("hf", "mine", None)
    (own / "base.yaml").write_text("name: base\n" + shapes.replace(f"path: {folder}\n", ""))
    (own / "tuned.yaml").write_text(f"defaults: [base]\npath: {folder}\n")
    config = point("model=tuned")  # the name is another file's
    assert (config.model.name, config.model.revision) == ("base", "vicuna-7b")


# --- the checkpoint's label -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "name", "revision"),
    [
        ([], "tiny", "vicuna-7b"),
        (["model.revision=v2"], "tiny", "v2"),
        (["model.name=vicuna"], "vicuna", None),
    ],
)
def test_a_name_beside_a_foreign_path_is_not_all(folder, more, name, revision):
    """A model's name alone would say that its own weights ran; what a person names is theirs."""
    model = point("model=tiny", "weights=hf", f"model.path={folder}", *more).model
    assert (model.name, model.revision) == (name, revision)


def test_a_folder_of_the_models_name_needs_no_revision(folder):
    """It says the same."""
    place = folder.rename(folder.with_name("tiny"))
    assert point(f"model.path={place}").model.revision is None


def test_two_checkpoints_are_two_points(folder, tmp_path):
    """By the names of their folders, whichever way they are named."""
    save(tmp_path / "other")
    found = points(f"model.path={folder},other")
    assert {config.model.revision for config in found} == {"vicuna-7b", "other"}
    assert {config.model.path for config in found} == {str(folder), str(tmp_path / "other")}


# --- the tokenizer --------------------------------------------------------------------------------


@pytest.fixture
def tokenizer_json():
    """A tokenizer with three words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"one": 0, "line": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return words.to_str()


def test_a_tokenizer_beside_the_weights_is_used(folder, tokenizer_json):
    """A model of bytes would read its prompts as bytes, and the label would not say so."""
    (folder / "tokenizer.json").write_text(tokenizer_json)
    assert point(f"model.path={folder}").model.tokenizer == "tokenizer_json"
    assert point(f"model.path={folder}", "model.tokenizer=bytes").model.tokenizer == "bytes"
    assert point(f"model.path={folder}", "weights=dummy").model.tokenizer == "bytes"


def test_a_tokenizers_file_that_is_named_is_used(tmp_path, tokenizer_json):
    """With dummy weights too."""
    (tmp_path / "words.json").write_text(tokenizer_json)
    config = point(f"model.tokenizer_path={tmp_path}/words.json")
    assert (config.model.tokenizer, config.weights) == ("tokenizer_json", "dummy")


# --- the dataset ----------------------------------------------------------------------------------


def prompts(place, form="jsonl"):
    """A file of eight prompts."""
    place.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(LINE)] * 8
    place.write_text("\n".join(lines) if form == "jsonl" else f"[{','.join(lines)}]")
    return place


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ([], "letters"),
        (["dataset=gsm8k"], "letters"),
        (["dataset.name=mine"], "mine"),
        (["dataset.name=alpaca"], "alpaca"),
    ],
)
def test_a_prompt_file_is_not_labelled_as_the_shipped_one(tmp_path, more, name):
    """By its own name, unless a person names it."""
    path = prompts(tmp_path / "letters.jsonl")
    config = point("dataset.format=jsonl", f"dataset.path={path}", *more)
    assert (config.dataset.name, config.dataset.path) == (name, str(path))


def test_the_shipped_prompts_keep_their_names():
    """They have no path."""
    assert [c.dataset.name for c in points("dataset=gsm8k")] == ["gsm8k"]


def test_two_files_are_two_points(tmp_path):
    """They collapsed into one."""
    prompts(tmp_path / "a.jsonl"), prompts(tmp_path / "b.jsonl")
    found = points("dataset.format=jsonl", "dataset.path=a.jsonl,b.jsonl")
    assert {(c.dataset.name, c.dataset.path) for c in found} == {
        ("a", str(tmp_path / "a.jsonl")),
        ("b", str(tmp_path / "b.jsonl")),
    }


def test_a_file_of_conf_that_names_its_own_prompts_is_right(tmp_path):
    """Also where it stands in place of a shipped one."""
    path = prompts(tmp_path / "data" / "cleaned.json", "alpaca")
    own = tmp_path / "conf" / "dataset"
    own.mkdir(parents=True)
    (own / "alpaca.yaml").write_text(f"name: alpaca\nformat: alpaca\npath: {path}\n")
    assert point("dataset=alpaca").dataset.name == "alpaca"
    other = prompts(tmp_path / "other.json", "alpaca")
    assert point("dataset=alpaca", f"dataset.path={other}").dataset.name == "other"


def test_a_grids_body_names_them_too(tmp_path):
    """A path in a grid's file, with a name and without."""
    path = prompts(tmp_path / "letters.jsonl")
    own = tmp_path / "conf" / "grid"
    own.mkdir(parents=True)
    body = f"# @package _global_\ndataset:\n  format: jsonl\n  path: {path}\n"
    (own / "bare.yaml").write_text(body)
    (own / "named.yaml").write_text(body + "  name: mine\n")
    assert point("grid=bare").dataset.name == "letters"
    assert point("grid=named").dataset.name == "mine"


def test_a_folder_alone_is_the_model_of_vllm(tmp_path):
    """Its name, shapes and identity come from config.json; two checkpoints of one shape are two points."""
    import json

    from wattflow.plan.grid import plan

    shapes = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "vocab_size": 300,
    }
    ids = set()
    for name in ("One", "Two"):
        (tmp_path / name).mkdir()
        config = {**shapes, "model_type": "qwen3", "intermediate_size": 96, "seed": name}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        words = ["engine=vllm", f"model.path={tmp_path / name}", "weights=dummy", "sweep.repeats=1"]
        (point,) = plan([*words, f"sweeps_dir={tmp_path}", "max_seq_len=512"]).points
        model = point.config.model
        assert point.reason is None
        assert (model.name, model.architecture, model.dim) == (name, "qwen3", 64)
        assert (model.n_heads, model.ffn_dim, model.vocab_size) == (8, 96, 300)
        ids.add((point.point_id, model.revision))
    assert len(ids) == len({revision for _, revision in ids}) == 2


def test_a_quantised_folder_brings_its_precision(folder):
    """Alone it is int8 to vLLM; what is typed stays, and is then refused."""
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "gptq", "bits": 8}
    (folder / "config.json").write_text(json.dumps(settings))
    words = (f"model.path={folder}", "engine=vllm", "batch_size=2")
    assert point(*words).precision == "int8"
    (made,) = grid.plan([*ONE, *words, "precision=bf16"]).points
    assert "has weights in int8 (gptq)" in (made.reason or "")
