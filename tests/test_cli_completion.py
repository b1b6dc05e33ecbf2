"""What a shell completes, as bash and zsh ask for it: sweeps, keys, and their values."""

import os
import subprocess
import sys

import pytest

from wattflow.cli import completion


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with two sweeps, a folder that is none, and a model of its own."""
    for name in ("shards", "shadow"):
        (tmp_path / "sweeps" / name).mkdir(parents=True)
        (tmp_path / "sweeps" / name / "grid.parquet").touch()
    (tmp_path / "sweeps" / "sharp").mkdir()
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("name: mine\n")
    monkeypatch.chdir(tmp_path)
    for name in ("COMP_WORDS", "COMP_CWORD"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_sweeps_by_name_and_by_path(folder):
    """Those below ./sweeps that have a grid; a path goes on with folders."""
    assert completion.sweeps("sha") == ["shadow", "shards"]
    assert completion.sweeps("x") == []
    assert completion.sweeps("sweeps/shar") == ["sweeps/shards/", "sweeps/sharp/"]
    assert completion.sweeps(f"{folder}/swee") == [f"{folder}/sweeps/"]
    assert completion.sweeps("[*") == []


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("batch", ["batch_size="]),
        ("cluster.container.k", ["cluster.container.kind="]),
        (
            "model=mi",
            ["model=mine", "model=mistral-7b", "model=mistral-7b-v0.1", "model=mixtral-8x7b"],
        ),
        ("precision=b", ["precision=bf16"]),
        ("precision=bf16,fp8,fp1", ["precision=bf16,fp8,fp16"]),
        ("dataset.shuffle=", ["dataset.shuffle=true", "dataset.shuffle=false"]),
        ("seed=", []),
        ("nothing=", []),
    ],
)
def test_keys_and_values_as_zsh_asks(folder, typed, expected):
    """The whole word; a list goes on after its last comma."""
    assert completion.overrides(typed) == expected


def test_values_as_bash_asks(folder, monkeypatch):
    """`=` is a word of its own there, so the value alone comes back."""
    monkeypatch.setenv("COMP_WORDS", "wattflow plan model = mi")
    monkeypatch.setenv("COMP_CWORD", "4")
    assert completion.overrides("mi") == [
        *("mine", "mistral-7b", "mistral-7b-v0.1", "mixtral-8x7b"),
    ]
    monkeypatch.setenv("COMP_WORDS", "wattflow plan batch")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert completion.overrides("batch") == ["batch_size="]


@pytest.mark.parametrize(
    ("words", "at", "expected"),
    [
        ("wattflow status sha", 2, ["shadow", "shards"]),
        ("wattflow plan engine = v", 4, ["vllm"]),
        ("wattflow crosso", 1, ["crossover"]),
    ],
)
def test_the_program_answers_the_shell(folder, words, at, expected):
    """By the protocol of the lines that `--show-completion` prints."""
    asked = {"_WATTFLOW_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
    code = "import sys; sys.argv = ['wattflow']; from wattflow.cli.app import app; app(prog_name='wattflow')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == expected, done.stderr
