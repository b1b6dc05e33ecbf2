"""Chats: both ways in which files write them, cut where the model is to answer, as text or by the model's template."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from wattflow.config.choices import Config, Dataset, Model
from wattflow.errors import RefusedError
from wattflow.workload import conversations, prompts, tokenizer
from wattflow.workload.conversations import Message

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "Two."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "And"}, {"type": "text", "text": "now?"}],
    },
    {"role": "assistant", "content": "Three."},
]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


def entries(tmp_path, *records, turns="last"):
    """What a file of chats asks."""
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return prompts.read(path, "chat", turns=turns)


def test_the_last_turn_has_all_before_it(tmp_path):
    """The model is to answer the user's last message; what the record answered is the reference."""
    (entry,) = entries(tmp_path, {"messages": CHAT})
    assert (entry.place, entry.instruction, entry.answer) == ("line 1", "And\nnow?", "Three.")
    assert [message.role for message in entry.messages] == ["system", "user", "assistant", "user"]


def test_each_turn_can_be_a_prompt(tmp_path):
    """A conversation of several turns: each of the user's messages after what the record has before it."""
    found = entries(tmp_path, {"messages": CHAT}, {"conversations": SHAREGPT}, turns="all")
    assert [entry.place for entry in found] == [
        "line 1, turn 1",
        "line 1, turn 2",
        "line 2, turn 1",
    ]
    assert [entry.answer for entry in found] == ["Two.", "Three.", "Hello"]
    assert [len(entry.messages) for entry in found] == [2, 4, 1]


def test_an_object_of_lists_is_a_list_of_objects(tmp_path):
    """As datasets stores a sequence of features."""
    lists = {"from": ["human", "gpt"], "value": ["Hi", "Hello"]}
    (entry,) = entries(tmp_path, {"conversations": lists})
    assert entry.messages == (Message("user", "Hi"),)


def test_a_chat_as_text(tmp_path):
    """With roles, or the contents alone; one message is sent as it is."""
    (entry,) = entries(tmp_path, {"messages": CHAT[:4]})
    assert prompts.text_of(entry, Dataset(name="c", format="chat")) == (
        "System: Be brief.\n\nUser: How many?\n\nAssistant: Two.\n\nUser: And\nnow?\n\nAssistant:"
    )
    plain = Dataset(name="c", format="chat", template="plain")
    assert prompts.text_of(entry, plain) == "Be brief.\n\nHow many?\n\nTwo.\n\nAnd\nnow?"
    assert conversations.as_text([Message("user", " as is\n")], "default") == " as is\n"


def test_the_models_own_template_writes_all_messages(tmp_path):
    """model.chat=true: the template is given roles and contents, not the text."""
    words = {word: number for number, word in enumerate(["<s>", "U", "A", "Hi", "Yes", "Bye", "?"])}
    file = Tokenizer(models.WordLevel(words, unk_token="?"))
    file.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    file.save(str(tmp_path / "tokenizer.json"))
    template = "<s>{% for m in messages %} {{ 'U' if m.role == 'user' else 'A' }} {{ m.content }}{% endfor %} A"
    (tmp_path / "chat_template.jinja").write_text(template)
    (tmp_path / "chats.jsonl").write_text(
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "Yes"},
                    {"role": "user", "content": "Bye"},
                ]
            }
        )
    )
    model = Model(
        name="m", tokenizer="tokenizer_json", vocab_size=16, path=str(tmp_path), chat=True
    )
    dataset = Dataset(name="c", format="chat", path=str(tmp_path / "chats.jsonl"))
    config = Config(model=model, dataset=dataset, n_prompts=1, max_seq_len=64)
    found = prompts.load(config, tokenizer.load(model, "hf"))
    assert found.tokens == [
        [words[word] for word in ("<s>", "U", "Hi", "A", "Yes", "U", "Bye", "A")]
    ]
    prompts.Checker().check(config)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": "Hi"}, "line 1: messages is no list of messages"),
        ({"messages": ["Hi"]}, "line 1, message 1: not an object with role and content"),
        ({"messages": [{"role": "alien", "content": "x"}]}, "its role is 'alien', not one of"),
        ({"messages": [{"role": "user", "content": 7}]}, "message 1: its content is no text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "a part of its content is 'image_url'; text alone is sent",
        ),
        ({"messages": [{"role": "system", "content": "x"}]}, "no message of the user's"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "half a surrogate pair"),
        ({"conversations": {"from": ["human"], "value": []}}, "conversations is no list"),
        ({"prompt": "x"}, "dataset.format=chat needs messages or conversations or conversation"),
        ({"prompt": "x"}, "Set dataset.format=prompts"),
    ],
)
def test_a_bad_chat_is_refused_in_one_line(tmp_path, record, message):
    """With the file, the line, and the message's number."""
    with pytest.raises(RefusedError) as caught:
        entries(tmp_path, record)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
