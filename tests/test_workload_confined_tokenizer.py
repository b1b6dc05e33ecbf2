"""A tokenizer's files and its chat template are somebody's: whatever they do ends in a refusal, soon."""

import json
import os
import signal
import time

import pytest
from sweeps import choices

from wattflow.config.choices import Model
from wattflow.errors import RefusedError
from wattflow.store.confined import Budget
from wattflow.workload import confined_tokenizer, tokenizer
from wattflow.workload.conversations import Message

SMALL = Budget(memory_bytes=2**30, cpu_s=2.0, cpu_s_a_byte=20e-6)
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def words():
    """A tokenizer of some words, with chat signs among them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["<pad>", "</s>", "a", "b", "hello", "world", "<", ">", "user"]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


@pytest.fixture
def folder(tmp_path):
    words().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def model(folder, template=None, **more):
    """The choices of a model in a folder, with a chat template where one is given."""
    if template is not None:
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"chat_template": template, "eos_token": "</s>"})
        )
    return Model(name="m", tokenizer="tokenizer_json", path=str(folder), vocab_size=100,
                 chat=template is not None, **more)  # fmt: skip


def test_it_answers_as_the_same_tokenizer_in_this_process(folder):
    """Ids, texts, special ids and refusals; also after it was closed."""
    chosen = model(folder, CHAT)
    here, there = tokenizer.load(chosen, "hf"), confined_tokenizer.load(chosen, "hf")
    names = ("name", "vocab_size", "bos_id", "eos_id", "eos_ids", "pad_id")
    assert [getattr(there, name) for name in names] == [getattr(here, name) for name in names]
    chat = (Message("user", "hello"), Message("user", "b \u2028 world\n"))
    for _ in range(2):
        assert there.encode("hello world") == here.encode("hello world")
        assert there.encode("", chat) == here.encode("", chat)
        assert there.decode([4, 5, 99]) == here.decode([4, 5, 99]) == "hello world"
        there.close()
    for missing in (model(folder / "no" / "ne"), Model(name="m", tokenizer="odd", path="x")):
        with pytest.raises(RefusedError) as there_said:
            confined_tokenizer.load(missing, "hf")
        with pytest.raises(RefusedError) as here_said:
            tokenizer.load(missing, "hf")
        assert str(there_said.value) == str(here_said.value)


def test_bytes_need_no_child():
    """An ordinary run with dummy weights starts no process."""
    assert type(confined_tokenizer.load(Model(name="m"))) is tokenizer.Bytes


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HOSTILE = {
    "an endless loop": (LOOP, "it takes more than 3 s of a CPU"),
    "six gigabytes": ("{{ 'a' * 6000000000 }}", "memory"),
    "doubling": (
        "{% set n = namespace(s='a') %}{% for i in range(40) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
        "memory",
    ),
    "endless calls": (
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "the chat template failed",
    ),
    "a list's pop": ("{{ messages.pop() }}{{ [].pop() }}", "the chat template failed"),
    "Python's attributes": ("{{ ''.__class__.__mro__ }}", "the chat template failed"),
    "many tokens": ("{{ 'a ' * 30000000 }}", "it takes more than"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_template_ends_in_a_refusal(folder, kind):
    """In seconds, with the reason."""
    template, why = HOSTILE[kind]
    began_s = time.monotonic()
    there = confined_tokenizer.load(model(folder, template), "hf", SMALL)
    with pytest.raises(RefusedError, match=why):
        there.encode("hello")
    there.close()
    assert time.monotonic() - began_s < 60


@pytest.mark.parametrize("kind", ["no JSON", "a panic", "much padding", "huge"])
def test_a_hostile_tokenizers_file_ends_in_a_refusal(folder, kind):
    """Cut, of a kind that the library's code does not expect, with a length that fills memory, or simply too large."""
    path = folder / "tokenizer.json"
    made = json.loads(path.read_text())
    if kind == "no JSON":
        path.write_text(path.read_text()[:50])
    elif kind == "a panic":
        made["model"]["vocab"] = {"a": 2**63}
        path.write_text(json.dumps(made))
    elif kind == "much padding":
        made["normalizer"] = {"type": "Prepend", "prepend": "a" * 1_000_000}
        many = [made["normalizer"]] + [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
        ] * 40
        made["normalizer"] = {"type": "Sequence", "normalizers": many}
        path.write_text(json.dumps(made))
    else:
        made["model"]["vocab"] = {f"word{i:030d}": i for i in range(60)}
        path.write_text(json.dumps(made).ljust(2**28 + 1))
    with pytest.raises(RefusedError):
        confined_tokenizer.load(model(folder), "hf", SMALL).encode("a b hello world")


def test_much_honest_text_is_given_its_time(folder):
    """The budget grows with what is read: two seconds and 20 us a byte, of which the library needs one."""
    there = confined_tokenizer.load(model(folder), "hf", SMALL)
    text = "hello world " * 20_000
    assert all(len(there.encode(text)) == 40_000 for _ in range(20))
    there.close()


def test_a_warning_of_a_time_limit_is_the_parents(folder):
    """Slurm sends it to all processes of a step, Ctrl-C goes to all of a terminal's: the child answers on."""
    there = confined_tokenizer.load(model(folder), "hf")
    for signum in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(there._child._process.pid, signum)
    assert there.encode("hello") == [4]
    pid = there._child._process.pid
    there.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_plan_refuses_such_a_template_before_anything_is_sent(folder, monkeypatch):
    """By the checker of prompts, which every plan asks."""
    from wattflow.config.choices import from_dict
    from wattflow.workload.prompts import Checker

    monkeypatch.setattr(
        confined_tokenizer, "load", lambda m, w: confined_tokenizer.ConfinedTokenizer(m, w, SMALL)
    )
    model(folder, LOOP)
    config = from_dict(choices(n_prompts=2, weights="hf"))
    config.model = model(folder, LOOP)
    with pytest.raises(RefusedError, match="it takes more than"):
        Checker().check(config)
