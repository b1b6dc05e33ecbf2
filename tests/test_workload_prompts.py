"""Prompts: what the templates make, which records are drawn, what is refused, and what the record says of them."""

import dataclasses
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattflow.config.choices import Config, Dataset, Model
from wattflow.errors import RefusedError
from wattflow.workload import prompts as workload_prompts
from wattflow.workload import tokenizer
from wattflow.workload.prompts import Entry

MODEL = Model(name="tiny", vocab_size=512)
BYTES = tokenizer.load(MODEL)


def config(path=None, *, n_prompts=2, max_seq_len=1000, seed=0, **chosen):
    """Resolved choices over a prompt file."""
    chosen = {"name": "mine", "format": "jsonl", **chosen}
    return Config(
        model=MODEL,
        dataset=Dataset(path=None if path is None else str(path), **chosen),
        n_prompts=n_prompts,
        max_seq_len=max_seq_len,
        seed=seed,
    )


@pytest.fixture
def lines(tmp_path):
    """Writes prompts as JSON lines."""

    def write(*prompts):
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
        return path

    return write


def refusal(action, *args):
    """The message of the RefusedError that an action raises, checked to be one line."""
    with pytest.raises(RefusedError) as caught:
        action(*args)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def load(choices):
    """The prompts in bytes."""
    return workload_prompts.load(choices, BYTES)


def test_alpaca_default():
    """The default layout has the headings that Alpaca's models know, and no heading for an input that is missing."""
    text = workload_prompts.text_of(Entry("record 1", "Say hello."), Dataset(name="a"))
    assert text == (
        "Carry out the instruction below. Answer with the result alone.\n\n"
        "### Instruction:\nSay hello.\n\n### Response:\n"
    )


def test_alpaca_default_with_input():
    """An input has a heading of its own between instruction and response."""
    text = workload_prompts.text_of(Entry("record 1", "Translate.", "Hallo"), Dataset(name="a"))
    assert text.endswith("### Instruction:\nTranslate.\n\n### Input:\nHallo\n\n### Response:\n")
    assert text.startswith("Carry out the instruction below, on the input that follows it.")


def test_gsm8k_default():
    """A question is followed by how to show its result."""
    text = workload_prompts.text_of(Entry("line 1", "How many?"), Dataset(name="g", format="gsm8k"))
    assert text == (
        "How many?\n\nWork this out step by step. End with a line that holds #### and, after it, the result alone."
    )


@pytest.mark.parametrize(
    ("entry", "format_", "text"),
    [
        (Entry("", "Translate.", "Hallo"), "alpaca", "Translate.\n\nHallo"),
        (Entry("", "Say hello."), "alpaca", "Say hello."),
        (Entry("", "How many?"), "gsm8k", "How many?"),
    ],
)
def test_plain(entry, format_, text):
    """The plain template adds nothing to the fields."""
    assert (
        workload_prompts.text_of(entry, Dataset(name="x", format=format_, template="plain")) == text
    )


@pytest.mark.parametrize("template", ["default", "plain"])
def test_jsonl_is_sent_as_it_is(template):
    """Prompts of one's own are not touched by either template."""
    chosen = Dataset(name="x", format="jsonl", template=template)
    assert workload_prompts.text_of(Entry("", " as is\n"), chosen) == " as is\n"


@pytest.mark.parametrize("name", ["alpaca", "gsm8k"])
def test_shipped(name):
    """Without a path, 64 shipped prompts come by name, all within the demo's 512 tokens even as bytes."""
    prompts = load(config(name=name, format=name, n_prompts=64, max_seq_len=512))
    assert prompts.info["count"] == 64
    assert sorted(prompts.indices) == list(range(64))


def test_not_shipped():
    """A name without shipped prompts needs a path."""
    assert "Set dataset.path" in refusal(load, config())


def test_read_alpaca(tmp_path):
    """A JSON list gives instruction and input; an input that is missing, null or empty is none."""
    path = tmp_path / "a.json"
    path.write_text(
        json.dumps(
            [
                {"instruction": "Do", "input": "this", "output": "done"},
                {"instruction": "Go", "input": ""},
                {"instruction": "Be", "input": None},
                {"instruction": "Up"},
            ]
        )
    )
    assert workload_prompts.read(path, "alpaca") == [
        Entry("record 1", "Do", "this"),
        Entry("record 2", "Go"),
        Entry("record 3", "Be"),
        Entry("record 4", "Up"),
    ]


@pytest.mark.parametrize(
    ("answer", "result"),
    [("2+2 = <<2+2=4>>4\n#### 4", "4"), ("#### 1,250 ", "1250"), ("it is 4", None), ("####", None)],
)
def test_read_gsm8k_result(tmp_path, answer, result):
    """The reference result is what follows the last ####, without commas; none where there is nothing."""
    path = tmp_path / "g.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": answer}))
    assert workload_prompts.read(path, "gsm8k") == [Entry("line 1", "q", answer=result)]


def test_read_jsonl(tmp_path):
    """Either key will do, blank lines are passed over, and places are lines of the file."""
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"text": "b", "id": 7}\n{"prompt": "c", "answer": "d"}\n')
    assert workload_prompts.read(path, "jsonl") == [
        Entry("line 1", "a"),
        Entry("line 3", "b"),
        Entry("line 4", "c", answer="d"),
    ]


@given(st.lists(st.text(min_size=1), min_size=1))
def test_read_any_text(texts):
    """Any text survives JSON lines, also one with the line breaks that only Unicode knows."""
    data = "\n".join(json.dumps({"prompt": text}, ensure_ascii=False) for text in texts).encode()
    entries = workload_prompts.parse(data, "here", "jsonl")
    assert [entry.instruction for entry in entries] == texts


def test_read_with_byte_order_mark(tmp_path):
    """A file that an editor opened with a byte order mark is read like any other."""
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf[{"instruction": "Do"}]')
    assert workload_prompts.read(path, "alpaca") == [Entry("record 1", "Do")]


def test_draw_known_answer(lines):
    """Seed 0 draws records 2, 4, 3 of five, today as on the day of the first release."""
    assert load(config(lines(*"abcde"), n_prompts=3)).indices == [2, 4, 3]


@given(st.integers(0, 2**32), st.integers(1, 64))
def test_draw_as_documented(seed, count):
    """Anyone can redraw with numpy's Generator, and a record is drawn at most once."""
    prompts = load(config(name="alpaca", format="alpaca", n_prompts=count, seed=seed))
    assert prompts.indices == np.random.default_rng(seed).permutation(64)[:count].tolist()
    assert len(set(prompts.indices)) == count


def test_smaller_draw_begins_the_larger(lines):
    """With one seed, fewer prompts are the first of more prompts."""
    path = lines(*"abcdefgh")
    assert load(config(path, n_prompts=3)).texts == load(config(path, n_prompts=7)).texts[:3]


def test_first_without_shuffle(lines):
    """shuffle=false takes the file's first records."""
    assert load(config(lines(*"abc"), shuffle=False)).texts == ["a", "b"]


def test_cycle(lines):
    """cycle repeats the drawn order until n_prompts are there."""
    prompts = load(config(lines(*"abc"), n_prompts=7, cycle=True, shuffle=False))
    assert prompts.texts == list("abcabca")
    assert prompts.info["count"] == 7


def test_more_than_the_file_refused(lines):
    """Without cycle, more prompts than records are refused, and the message says what can be set."""
    message = refusal(load, config(lines(*"abc"), n_prompts=4))
    for told in ("n_prompts=4", "3 records", "n_prompts=3", "dataset.cycle=true", "dataset.path"):
        assert told in message


def test_info_known_answer(lines):
    """Bytes after BOS: prompts of 1, 2, 3 and 10 bytes have 2, 3, 4 and 11 tokens."""
    prompts = load(config(lines("a", "bb", "ccc", "d" * 10), n_prompts=4, shuffle=False))
    texts = '["a","bb","ccc","dddddddddd"]'
    assert prompts.info == {
        "sha256": hashlib.sha256(texts.encode()).hexdigest(),
        "count": 4,
        "skipped": 0,
        "truncated": 0,
        "tokens_min": 2,
        "tokens_mean": 5.0,
        "tokens_p50": 3.5,
        "tokens_p95": pytest.approx(4 + 0.85 * 7),
        "tokens_max": 11,
    }


def test_hash_follows_text_and_order(lines):
    """The same records give the same hash; another seed or another text gives another."""
    path = lines(*"abcdefgh")
    first = load(config(path, n_prompts=8)).info["sha256"]
    assert load(config(path, n_prompts=8)).info["sha256"] == first
    assert load(config(path, n_prompts=8, seed=1)).info["sha256"] != first
    assert load(config(lines(*"abcdefgi"), n_prompts=8)).info["sha256"] != first


def test_answers_follow_the_draw():
    """Each prompt keeps its own reference result."""
    prompts = load(config(name="gsm8k", format="gsm8k", n_prompts=64))
    assert all(answer is not None for answer in prompts.answers)
    mill = next(i for i, text in enumerate(prompts.texts) if text.startswith("Maren bakes"))
    assert prompts.answers[mill] == "7900"


def test_longest_that_fits(lines):
    """max_seq_len=5 holds BOS, three bytes and one token of output; a fourth byte does not fit."""
    assert load(config(lines("abc"), n_prompts=1, max_seq_len=5)).info["tokens_max"] == 4
    message = refusal(load, config(lines("abcd"), n_prompts=1, max_seq_len=5))
    for told in ("line 1", "5 tokens", "max_seq_len=5", "room for 4", "on_bad=skip or truncate"):
        assert told in message


def test_100_kb_refused(lines):
    """A prompt of 100 kB is refused in one short line."""
    assert "100001 tokens" in refusal(load, config(lines("x" * 100_000), n_prompts=1))


@pytest.mark.parametrize("text", ["", " \n\t", "\u3000"])
def test_empty_refused(lines, text):
    """A prompt without a visible character is refused, with its line."""
    message = refusal(load, config(lines("a", text), shuffle=False))
    assert "line 2" in message
    assert "empty" in message


@pytest.mark.parametrize("bad", ["", "x" * 2000])
def test_skip_draws_replacements(lines, bad):
    """skip passes a bad record over, says so, and draws the next ones until n_prompts are there."""
    prompts = load(config(lines("a", bad, "c", "d"), n_prompts=3, on_bad="skip", shuffle=False))
    assert prompts.texts == ["a", "c", "d"]
    assert (prompts.info["count"], prompts.info["skipped"]) == (3, 1)


def test_skip_with_nothing_left(lines):
    """Where the file has no replacement, fewer prompts come back, and count says how many."""
    prompts = load(config(lines("a", "", "c"), n_prompts=3, on_bad="skip"))
    assert (prompts.info["count"], prompts.info["skipped"]) == (2, 1)


def test_skip_and_cycle(lines):
    """cycle repeats only what can be used."""
    prompts = load(
        config(lines("a", "", "c"), n_prompts=5, on_bad="skip", cycle=True, shuffle=False)
    )
    assert prompts.texts == ["a", "c", "a", "c", "a"]


def test_skip_everything_refused(lines):
    """A file without any usable record is refused."""
    assert "each of the 2 records" in refusal(load, config(lines("", " "), on_bad="skip"))


def test_truncate_keeps_the_first(lines):
    """truncate keeps the first tokens, counts the prompt, and leaves its text whole."""
    prompts = load(config(lines("abcdef", "gh"), max_seq_len=5, on_bad="truncate", shuffle=False))
    assert prompts.tokens == [[256, 97, 98, 99], [256, 103, 104]]
    assert prompts.texts == ["abcdef", "gh"]
    assert prompts.info["truncated"] == 1


def test_truncate_cannot_mend_empty(lines):
    """There is nothing to keep of an empty prompt."""
    assert "empty" in refusal(load, config(lines("a", ""), on_bad="truncate"))


@pytest.mark.parametrize(
    ("data", "format_", "told"),
    [
        (b"", "jsonl", "empty"),
        (b" \n\n", "alpaca", "empty"),
        (b"[]", "alpaca", "no records"),
        (b'{"prompt": "a"}\n{"prompt": "b"\n', "jsonl", "line 2: not JSON"),
        (b'{"prompt": "a"}\n{"prompt": "b', "jsonl", "line 2: not JSON"),
        (b'{"prompt": "a"}\nplain words\n', "jsonl", "line 2: not JSON"),
        (b'{"prompt": "a"}\n7\n', "jsonl", "line 2: 7 is not a JSON object"),
        (b'{"prompt": 7}\n', "jsonl", "line 1: prompt is 7, not text"),
        (b'{"prompt": "a"}\n{"prompt": "\xe9"}', "jsonl", "line 2: byte 0xe9 is not UTF-8"),
        (b'{"prompt": "\\ud83d"}', "jsonl", "half a surrogate pair"),
        (b'[{"instruction": "a"},\n{"instruction": "b"}', "alpaca", "line 2: not JSON"),
        (b'[{"instruction": "a"}, 7]', "alpaca", "record 2: 7 is not a JSON object"),
        (b'[{"instruction": null}]', "alpaca", "record 1: instruction is null, not text"),
        (b'[{"instruction": "a", "input": 7}]', "alpaca", "record 1: input is 7, not text"),
        (b'[{"question": "a", "answer": "b"}]', "alpaca", "dataset.format=gsm8k"),
        (b'[{"instruction": "a"}]', "gsm8k", "Set dataset.format=alpaca"),
        (b'{"text": "a"}', "alpaca", "Set dataset.format=prompts"),
        (b'{"question": "a", "answer": "b"}', "jsonl", "Set dataset.format=gsm8k"),
        (b'{"question": "a"}', "gsm8k", "needs question and answer"),
        (b'{"a\\nb": 1}', "jsonl", "needs prompt or text"),
        (b"[" * 100_000, "alpaca", "not a list of records"),
        (b'{"prompt": ' + b"1" * 5000 + b"}", "jsonl", "line 1: not JSON"),
        (b"\x1f\x8b\x08\x00", "jsonl", "packed by gzip"),
    ],
)
def test_bad_file(tmp_path, data, format_, told):
    """A bad file is refused in one short line that names the file, the place and the fault."""
    path = tmp_path / "prompts"
    path.write_bytes(data)
    message = refusal(workload_prompts.read, path, format_)
    assert told in message
    assert str(path) in message


def test_missing_file(tmp_path):
    """A missing file is named."""
    message = refusal(load, config(tmp_path / "none.jsonl"))
    assert "none.jsonl: no such file" in message


def test_folder_is_no_file(tmp_path):
    """A folder in a file's place is named as such."""
    assert "not a file, nor a folder of datasets" in refusal(
        workload_prompts.read, tmp_path, "jsonl"
    )


def test_unreadable_file(tmp_path):
    """What the system will not open, such as a name of 300 letters, is refused with the system's reason."""
    assert "File name too long" in refusal(workload_prompts.read, tmp_path / ("x" * 300), "jsonl")


def test_check_finds_what_load_would(lines):
    """check refuses an over-long prompt and a vocabulary that cannot be, and accepts what can be run."""
    good = config(lines("a", "b"))
    workload_prompts.Checker().check(good)
    assert "tokens" in refusal(
        workload_prompts.Checker().check, dataclasses.replace(good, max_seq_len=2)
    )
    small = dataclasses.replace(good, model=Model(name="m", vocab_size=100))
    assert "too small" in refusal(workload_prompts.Checker().check, small)


def test_check_needs_no_torch():
    """A login node checks the shipped prompts without torch, in far less than a second."""
    code = (
        "import sys, time; from wattflow.workload import prompts as dataset; from wattflow.config.choices import *\n"
        "chosen = Config(model=Model(name='m', vocab_size=512), dataset=Dataset(name='alpaca'),\n"
        "                n_prompts=64, max_seq_len=768)\n"
        "times = []\n"
        "for _ in range(5):\n"
        "    start = time.process_time(); dataset.Checker().check(chosen); times.append(time.process_time() - start)\n"
        "print('torch' in sys.modules, sorted(times)[2] < 0.3)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False True\n"
