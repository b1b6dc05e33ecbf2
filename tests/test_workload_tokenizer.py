"""Tokenizers: ids by hand, round trips, special tokens, chat templates, and files that are refused."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from wattflow.config.choices import Model
from wattflow.errors import RefusedError
from wattflow.workload import tokenizer

SHIPPED = Path(tokenizer.__file__).parent / "samples" / "alpaca.json"
BYTES = tokenizer.load(Model(name="tiny", vocab_size=512))
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<s>You help.\n{% endif %}"
    "<s>{{ message['role'] }}\n{{ message['content'] | trim }}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def pieces_path(tmp_path_factory):
    """A sentencepiece model of 400 pieces, made as LLaMA's was: BPE, byte fallback, BOS 1 and EOS 2, no padding."""
    folder = tmp_path_factory.mktemp("pieces")
    sentencepiece.SentencePieceTrainer.train(
        input=str(SHIPPED),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.fixture(scope="session")
def json_text():
    """A byte-level BPE tokenizer.json of 400 tokens whose post-processor writes <s> first."""
    tokens = tokenizers.Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator([SHIPPED.read_text()], trainer)
    tokens.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return tokens.to_str()


@pytest.fixture
def checkpoint(tmp_path, json_text):
    """A checkpoint's folder with a tokenizer.json and the files beside it."""
    (tmp_path / "tokenizer.json").write_text(json_text)
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": TEMPLATE}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def from_pieces(path, **more):
    """The tokenizer of a sentencepiece file."""
    return tokenizer.load(
        Model(
            name="m", tokenizer="sentencepiece", tokenizer_path=str(path), vocab_size=400, **more
        ),
        "meta",
    )


def from_json(folder, *, vocab_size=400, **more):
    """The tokenizer of a checkpoint's folder."""
    return tokenizer.load(
        Model(
            name="m", tokenizer="tokenizer_json", path=str(folder), vocab_size=vocab_size, **more
        ),
        "hf",
    )


def refusal(action, *args, **kwargs):
    """The message of the RefusedError that an action raises, checked to be one line."""
    with pytest.raises(RefusedError) as caught:
        action(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_bytes_known_answer():
    """'Hé' is H (72) and the two UTF-8 bytes of é (195, 169), after BOS (256)."""
    assert BYTES.encode("Hé") == [256, 72, 195, 169]


@given(st.text())
def test_bytes_round_trip(text):
    """Every text comes back from its bytes."""
    assert BYTES.decode(BYTES.encode(text)) == text


@given(st.lists(st.integers(0, 511)))
def test_bytes_decode_never_fails(ids):
    """Whatever ids below vocab_size a model of random weights makes, they have a text."""
    assert isinstance(BYTES.decode(ids), str)


def test_bytes_decode_leaves_specials_out():
    """BOS, EOS, padding and ids above them have no text; half a character becomes U+FFFD."""
    assert BYTES.decode([256, 72, 105, 257, 258, 259, 511, 195]) == "Hi\ufffd"


def test_bytes_need_259_ids():
    """A vocabulary of 258 has no place for the padding id and is refused with the least that works."""
    assert "at least 259" in refusal(tokenizer.load, Model(name="m", vocab_size=258))
    assert tokenizer.load(Model(name="m", vocab_size=259)).pad_id == 258


@pytest.mark.parametrize("kind", ["sentencepiece", "tokenizer_json"])
def test_dummy_falls_back_to_bytes(kind):
    """A model with dummy weights and no file gets bytes, in the model's own vocabulary."""
    text = tokenizer.load(Model(name="m", tokenizer=kind, vocab_size=32000, chat=True), "dummy")
    assert (text.name, text.vocab_size) == ("bytes", 32000)


def test_dummy_uses_a_configured_file(pieces_path):
    """Dummy weights with a tokenizer file use it, so that prompts have their real lengths."""
    model = Model(
        name="m", tokenizer="sentencepiece", tokenizer_path=str(pieces_path), vocab_size=400
    )
    assert tokenizer.load(model, "dummy").name == "sentencepiece"


@pytest.mark.parametrize("kind", ["sentencepiece", "tokenizer_json"])
def test_real_weights_need_a_file(kind):
    """Real weights without a tokenizer are refused, naming the two keys that can be set."""
    message = refusal(tokenizer.load, Model(name="m", tokenizer=kind), "hf")
    assert "model.path" in message
    assert "model.tokenizer_path" in message


def test_sentencepiece_specials(pieces_path):
    """BOS comes first; padding, which the file lacks, falls to EOS."""
    text = from_pieces(pieces_path)
    assert (text.bos_id, text.eos_id, text.pad_id) == (1, 2, 2)
    assert text.encode("the train")[0] == 1


@given(st.text(st.characters(codec="utf-8", exclude_characters="\u2581\x00")))
def test_sentencepiece_round_trip(pieces_path, text):
    """Byte fallback brings every text back."""
    assert (
        from_pieces_cached(pieces_path).decode(from_pieces_cached(pieces_path).encode(text)) == text
    )


def from_pieces_cached(path, made={}):  # noqa: B006 - one load for all examples
    """The same tokenizer for all examples of a property."""
    if path not in made:
        made[path] = from_pieces(path)
    return made[path]


@given(st.lists(st.integers(0, 499)))
def test_sentencepiece_decode_never_fails(pieces_path, ids):
    """Ids that the file does not know, as a padded embedding has, are left out."""
    assert isinstance(from_pieces_cached(pieces_path).decode(ids), str)


def test_sentencepiece_found_beside_the_folder(pieces_path, tmp_path):
    """Meta's LLaMA keeps one tokenizer.model beside the folders of its checkpoints."""
    (tmp_path / "tokenizer.model").write_bytes(pieces_path.read_bytes())
    (tmp_path / "7B").mkdir()
    model = Model(name="m", tokenizer="sentencepiece", path=str(tmp_path / "7B"), vocab_size=400)
    assert tokenizer.load(model, "meta").eos_id == 2


def test_sentencepiece_stops_at_those_of_the_checkpoint_too(pieces_path, tmp_path):
    """A Hugging Face folder with a tokenizer.model has its generation_config.json beside it."""
    (tmp_path / "tokenizer.model").write_bytes(pieces_path.read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 5, 99999]}')
    model = Model(name="m", tokenizer="sentencepiece", path=str(tmp_path), vocab_size=400)
    assert tokenizer.load(model, "hf").eos_ids == (2, 5)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_sentencepiece_cut_short(pieces_path, tmp_path, part):
    """A file cut anywhere is refused, with its size."""
    data = pieces_path.read_bytes()
    cut = tmp_path / "tokenizer.model"
    cut.write_bytes(data[: int(len(data) * part)])
    assert f"{int(len(data) * part)} bytes" in refusal(from_pieces, cut)


def test_sentencepiece_tiktoken(tmp_path):
    """Meta's Llama 3 has a list of base64 words under the same name: the error says what to use instead."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"IQ== 0\nIg== 1\n")
    assert "tokenizer_json" in refusal(from_pieces, path)


def test_sentencepiece_has_no_chat(pieces_path):
    """A chat needs a template, which a sentencepiece file does not have."""
    assert "model.chat=false" in refusal(from_pieces, pieces_path, chat=True)


@pytest.mark.parametrize("kind", ["sentencepiece", "tokenizer_json"])
def test_larger_vocabulary_refused(kind, pieces_path, checkpoint):
    """A tokenizer of 400 tokens could give a model of 399 an id that it has no embedding for."""
    path = pieces_path if kind == "sentencepiece" else checkpoint / "tokenizer.json"
    model = Model(name="m", tokenizer=kind, tokenizer_path=str(path), vocab_size=399)
    message = refusal(tokenizer.load, model, "hf")
    assert "400 tokens" in message
    assert "399" in message


@pytest.mark.parametrize("kind", ["sentencepiece", "tokenizer_json"])
def test_missing_file_refused(kind, tmp_path):
    """A path without a file is named."""
    path = tmp_path / "none"
    model = Model(name="m", tokenizer=kind, tokenizer_path=str(path))
    assert str(path) in refusal(tokenizer.load, model, "hf")


@pytest.mark.parametrize("kind", ["sentencepiece", "tokenizer_json"])
def test_unreadable_file_refused(kind, tmp_path):
    """What the system will not open, such as a name of 300 letters, is refused with the system's reason."""
    model = Model(name="m", tokenizer=kind, tokenizer_path=str(tmp_path / ("x" * 300)))
    assert "File name too long" in refusal(tokenizer.load, model, "hf")


def test_json_specials(checkpoint):
    """Special tokens are found by name, given as text or as an object; padding falls to EOS."""
    text = from_json(checkpoint)
    assert (text.bos_id, text.eos_id, text.pad_id) == (0, 1, 1)


def test_json_special_ids_by_number(checkpoint):
    """Without names, generation_config counts before config.json, and of several ids the first."""
    (checkpoint / "tokenizer_config.json").unlink()
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": [2, 1]}')
    (checkpoint / "config.json").write_text('{"eos_token_id": 1, "bos_token_id": 0}')
    text = from_json(checkpoint)
    assert (text.bos_id, text.eos_id, text.pad_id) == (0, 2, 2)


@pytest.mark.parametrize("number", [True, -1, 2**40, "0", None, [True]])
def test_what_is_no_id_names_no_token(checkpoint, number):
    """true is not token 1, and a number outside the vocabulary is none."""
    (checkpoint / "tokenizer_config.json").write_text("{}")
    (checkpoint / "config.json").write_text(json.dumps({"bos_token_id": number}))
    assert from_json(checkpoint).bos_id is None


@pytest.mark.parametrize(
    ("tokenizer_config", "generation", "config", "stops"),
    [
        ({"eos_token": "</s>"}, {"eos_token_id": [1, 2]}, {}, (1, 2)),  # as Llama 3 was published
        ({"eos_token": "</s>"}, {"eos_token_id": 2}, {}, (1, 2)),
        ({}, {"eos_token_id": [2, 1]}, {"eos_token_id": 0}, (2, 1)),
        ({}, {}, {"eos_token_id": [1, 2]}, (1, 2)),
        ({"eos_token": "</s>"}, {}, {}, (1,)),
        ({"eos_token": "</s>"}, {"eos_token_id": [1, 99999, -1, None, True, "2"]}, {}, (1,)),
        ({}, {}, {}, ()),
    ],
)
def test_each_of_several_eos_tokens_stops(checkpoint, tokenizer_config, generation, config, stops):
    """Those of generation_config.json, else of config.json, beside the one by name; ids that no token has are none."""
    for name, settings in (
        ("tokenizer_config", tokenizer_config),
        ("generation_config", generation),
        ("config", config),
    ):
        (checkpoint / f"{name}.json").write_text(json.dumps(settings))
    assert from_json(checkpoint).eos_ids == stops


@given(st.text(st.characters(codec="utf-8")))
def test_json_round_trip(json_text, text):
    """Byte-level BPE brings every text back, without the special tokens that it may spell."""
    tokens = tokenizers.Tokenizer.from_str(json_text)
    made = tokenizer.TokenizerJson.__new__(tokenizer.TokenizerJson)
    made._tokens, made._chat, made._add_bos = tokens, None, False
    assert made.decode(made.encode(text)) == re.sub(r"<s>|</s>|<pad>", "", text)


def test_json_unknown_ids(checkpoint):
    """Ids between the file's tokens and vocab_size have no text."""
    text = from_json(checkpoint, vocab_size=512)
    assert text.decode([*text.encode("Hi"), 450, 511]) == "Hi"


def test_json_bos_once(checkpoint, json_text):
    """add_bos_token adds BOS where the post-processor does not, and never twice."""
    (checkpoint / "tokenizer_config.json").write_text('{"bos_token": "<s>", "add_bos_token": true}')
    whole = from_json(checkpoint).encode("Hi")
    (checkpoint / "tokenizer.json").write_text(
        json.dumps({**json.loads(json_text), "post_processor": None})
    )
    assert from_json(checkpoint).encode("Hi") == whole
    assert whole.count(0) == 1


def test_json_never_truncates(checkpoint, json_text):
    """A file that asks for a length of 4 does not shorten our prompts behind our back."""
    asks = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (checkpoint / "tokenizer.json").write_text(
        json.dumps({**json.loads(json_text), "truncation": asks})
    )
    assert from_json(checkpoint).decode(
        from_json(checkpoint).encode("one two three four five")
    ) == ("one two three four five")


@pytest.mark.parametrize("part", [0.0, 0.5, 0.999])
def test_json_cut_short(checkpoint, part):
    """A file cut anywhere is refused, with its size."""
    path = checkpoint / "tokenizer.json"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    assert f"{int(len(data) * part)} bytes" in refusal(from_json, checkpoint)


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "\xff"])
def test_json_settings_damaged(checkpoint, text):
    """A damaged tokenizer_config.json is named."""
    (checkpoint / "tokenizer_config.json").write_bytes(text.encode("latin1"))
    assert "tokenizer_config.json" in refusal(from_json, checkpoint)


def test_chat_known_answer(checkpoint):
    """The template wraps the prompt and opens the answer; its own <s> is the only one."""
    text = from_json(checkpoint, chat=True)
    ids = text.encode(" Why? ")
    shown = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json")).decode(
        ids, skip_special_tokens=False
    )
    assert shown == "<s>You help.\n<s>user\nWhy?</s>\n<s>assistant\n"


def test_chat_equals_transformers(checkpoint):
    """The ids of a chat are those of transformers' apply_chat_template."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(checkpoint / "tokenizer.json"), chat_template=TEMPLATE
    )
    ours = from_json(checkpoint, chat=True)
    for record in json.loads(SHIPPED.read_text())[:20]:
        messages = [{"role": "user", "content": record["instruction"]}]
        expected = theirs.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        assert ours.encode(record["instruction"]) == expected


def test_chat_template_file(checkpoint):
    """chat_template.jinja, where there is one, counts before tokenizer_config.json."""
    (checkpoint / "chat_template.jinja").write_text("Q: {{ messages[0].content }}")
    text = from_json(checkpoint, chat=True)
    assert text.decode(text.encode("Why?")) == "Q: Why?"


def test_chat_template_by_name(checkpoint):
    """Of several templates the one named default is taken."""
    several = [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    text = from_json(checkpoint, chat=True)
    assert text.decode(text.encode("Why?")) == "yes"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ messages.__class__.__mro__ }}", "__class__"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "__class__"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "__init__"),
        ("{% for %}", "does not compile"),
        ("{{ nothing.at.all }}", "nothing"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ 'x' * (10 ** 18) }}", "chat template failed"),
        ("{{ raise_exception('only\nsystem messages') }}", "only system messages"),
    ],
)
def test_chat_template_refused(checkpoint, template, told):
    """A template that reaches for Python's insides, or fails, is refused with its own words."""
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))

    def encode():
        from_json(checkpoint, chat=True).encode("Why?")

    assert told in refusal(encode)


def test_chat_without_template(checkpoint):
    """A chat model whose files hold no template is refused."""
    (checkpoint / "tokenizer_config.json").unlink()
    assert "chat_template" in refusal(from_json, checkpoint, chat=True)


def test_no_heavy_import():
    """Choosing and using bytes loads no torch, transformers, sentencepiece, tokenizers or jinja2."""
    code = (
        "import sys; from wattflow.workload import tokenizer; from wattflow.config.choices import Model;"
        "tokenizer.load(Model(name='m')).encode('x');"
        "print([m for m in ('torch','transformers','sentencepiece','tokenizers','jinja2') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"
