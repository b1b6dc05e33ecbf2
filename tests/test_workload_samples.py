"""The prompts that wattflow ships: their formats, their arithmetic, and that they travel with the package."""

import ast
import hashlib
import importlib.resources
import json
import operator
import re
from fractions import Fraction

import pytest

PROMPTS = importlib.resources.files("wattflow.workload") / "samples"
ALPACA = json.loads((PROMPTS / "alpaca.json").read_text("utf-8"))
GSM8K = [json.loads(line) for line in (PROMPTS / "gsm8k.jsonl").read_text("utf-8").splitlines()]

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def exact(expression):
    """The exact value of a sum of decimal numbers, such as 12*(11-6)/4."""

    def value(node):
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        return Fraction(ast.get_source_segment(expression, node))

    return value(ast.parse(expression, mode="eval").body)


def test_exact_known_answer():
    """12 * (11 - 6) / 8 is 7.5, and 0.1 + 0.2 is exactly 0.3."""
    assert exact("12*(11-6)/8") == Fraction("7.5")
    assert exact("0.1+0.2") == Fraction("0.3")


def test_alpaca_records():
    """64 different records hold the three fields as text, and a third of them an input."""
    assert len({record["instruction"] for record in ALPACA}) == len(ALPACA) == 64
    assert all(list(record) == ["instruction", "input", "output"] for record in ALPACA)
    assert all(record["instruction"].strip() and record["output"].strip() for record in ALPACA)
    assert 18 <= sum(bool(record["input"]) for record in ALPACA) <= 24


def test_gsm8k_records():
    """64 different problems hold question and answer."""
    assert len({record["question"] for record in GSM8K}) == len(GSM8K) == 64
    assert all(list(record) == ["question", "answer"] for record in GSM8K)


@pytest.mark.parametrize("record", GSM8K, ids=lambda record: record["question"][:30])
def test_gsm8k_arithmetic(record):
    """Each <<a*b=c>> is true, c follows it in the text, and the last c is the result."""
    steps = re.findall(r"<<(.+?)=(.+?)>>(\S+)", record["answer"])
    assert steps
    for expression, result, shown in steps:
        assert exact(expression) == Fraction(result)
        assert shown.startswith(result)
    assert record["answer"].split("\n")[-1] == f"#### {steps[-1][1]}"


@pytest.mark.parametrize("record", GSM8K, ids=lambda record: record["question"][:30])
def test_gsm8k_says_what_it_computes(record):
    """The words before an annotation spell the same sum: '3 * 4 = <<3*4=12>>12'."""
    for spoken, expression in re.findall(
        r"([\d.() */+-]+) = \$?<<(.+?)=", record["answer"].replace("$", "")
    ):
        assert exact(spoken.strip()) == exact(expression)


@pytest.mark.parametrize(
    ("name", "sha256"),
    [("alpaca.json", "d612789e37fe1934"), ("gsm8k.jsonl", "be6a68f8ca469e95")],
)
def test_prompts_never_change(name, sha256):
    """A shipped file keeps its bytes: figures of two releases would not compare otherwise."""
    assert hashlib.sha256((PROMPTS / name).read_bytes()).hexdigest()[:16] == sha256
