"""Names become pseudonyms, the same one for the same name; what a text must not say is taken out of it."""

import re

import pytest
from sweeps import choices

from wattflow.publish.pseudonyms import Pseudonyms, Surroundings, is_public, private_texts

AROUND = Surroundings(
    users=frozenset({"quill"}),
    nodes=frozenset({"n17", "login1", ""}),
    private=frozenset({"proj-x", "mysite"}),
)
NAMES = Pseudonyms(b"salt", AROUND, measured=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8 GPUs a node", "8 GPUs a node"),
        ("2.13.0+cu130", "2.13.0+cu130"),
        ("shards=4 does not divide n_heads=6", "shards=4 does not divide n_heads=6"),
        ("tokens/s, J/token", "tokens/s, J/token"),
        ("read /data/a b.bin", "read (path) b.bin"),
        ("read '/data/a b.bin'", "read '(path)'"),
        ("in ~/x/y: no", "in (path): no"),
        ("see https://h.org/u?q=1 there", "see (path) there"),
        ("file:///home/quill/x", "(path)"),
        ("quill said, quills too", "(user) said, quills too"),
        ("quill_x", "(user)_x"),
        ("cluster mysite, account proj-x", "cluster (withheld), account (withheld)"),
        ("n17 and n170", "NODE and n170"),
        ("n17.cluster.example.org died", "NODE died"),
        ("on GPU-0a1b2c3d-1", "on DEVICE"),
    ],
)
def test_texts(text, expected):
    """What is replaced in a text, and what is not: names as words of their own, paths, addresses, UUIDs."""
    want = expected.replace("NODE", NAMES.node("n17"))
    assert NAMES.text(text) == want.replace("DEVICE", NAMES.device("GPU-0a1b2c3d-1"))


def test_without_names_a_text_stays():
    """Where nothing is known of the surroundings, no word of a text is one of them."""
    assert (
        Pseudonyms(b"salt", Surroundings(), measured=False).text("quill on n17") == "quill on n17"
    )


def test_a_json_value_keeps_its_form():
    """Texts at any depth are replaced, numbers stay, and an entry whose key is a name is left out."""
    value = {"by": ["quill", 3, None], "quill": 1, "in": {"a": "/data/x"}}
    assert NAMES.value(value) == {"by": ["(user)", 3, None], "in": {"a": "(path)"}}


@pytest.mark.parametrize(
    ("pseudonym", "form"),
    [
        (NAMES.node("n17"), r"node-[0-9a-f]{10}"),
        (NAMES.device("GPU-1"), r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
        (NAMES.device("MIG-GPU-1/7/0"), r"MIG-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
        (NAMES.device("host-n17"), f"host-{NAMES.node('n17')}"),
        (NAMES.device("node-n17"), f"node-{NAMES.node('n17')}"),
        (NAMES.device("accel3-n17"), f"accel3-{NAMES.node('n17')}"),
        (NAMES.job("4711"), r"job-[0-9a-f]{10}"),
        (NAMES.cluster("mysite"), r"cluster-[0-9a-f]{10}"),
        (NAMES.cluster("local"), "local"),
        (NAMES.phase("decode"), "decode"),
        (NAMES.phase("forward"), "forward"),
        (NAMES.phase("reading the secret file"), r"phase-[0-9a-f]{10}"),
        (NAMES.phase("quill"), r"phase-[0-9a-f]{10}"),
    ],
)
def test_pseudonyms_have_the_form_of_names(pseudonym, form):
    """A GPU's is a UUID, a host's its node's; local, our own phases and a phase of one word stay as they are."""
    assert re.fullmatch(form, pseudonym)


def test_one_name_has_one_pseudonym_by_kind_and_salt():
    """The same name is another thing as a node than as a job, and another with another salt; no job has none."""
    other = Pseudonyms(b"pepper", AROUND, measured=False)
    assert NAMES.node("4711") == NAMES.node("4711") != NAMES.node("4712")
    assert NAMES.node("4711").removeprefix("node-") != NAMES.job("4711").removeprefix("job-")
    assert NAMES.node("4711") != other.node("4711")
    assert NAMES.job(None) is None


def test_a_name_that_is_no_text_is_an_error():
    """A damaged record's node of another type gets no pseudonym."""
    with pytest.raises(TypeError):
        NAMES.node(17)


def test_the_point_id_of_a_measured_command_is_replaced():
    """It is a hash of the command's words; that of a point holds no name and stays."""
    measured = Pseudonyms(b"salt", AROUND, measured=True)
    assert NAMES.point("0123456789ab") == "0123456789ab"
    assert re.fullmatch(r"[0-9a-f]{12}", measured.point("0123456789ab"))
    assert measured.point("0123456789ab") != "0123456789ab"


def test_what_a_site_calls_its_own_is_private():
    """An account and a setup line are; a model's name is not, even where the sweep is called the same, nor `local`."""
    point = choices(
        model__name="llama-7b",
        sweep__name="llama-7b",
        cluster__account="proj-x",
        cluster__setup=["source venv"],
    )
    found = private_texts([point])
    assert {"proj-x", "source venv"} <= found
    assert not {"llama-7b", "tiny", "local"} & found
    assert is_public("model.name")
    assert is_public("cluster.gpu_type")
    assert not is_public("cluster.account")
