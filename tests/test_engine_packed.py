"""Prompts laid end to end: where their tokens belong, in which parts they come, and what attention reads."""

from itertools import chain

import pytest
import torch

from wattflow.engine import packed


def test_each_token_knows_its_row_and_its_place():
    """Prompts of 2, 1 and 3 tokens as rows 4, 5 and 6."""
    made = packed.pack([[7, 8], [9], [1, 2, 3]], 4, "cpu")
    assert made.tokens.tolist() == [7, 8, 9, 1, 2, 3]
    assert made.rows.tolist() == [4, 4, 5, 6, 6, 6]
    assert made.positions.tolist() == [0, 1, 0, 0, 1, 2]
    assert made.bounds.tolist() == [0, 2, 3, 6]
    assert made.last.tolist() == [1, 2, 5]
    assert made.lengths == (2, 1, 3)


@pytest.mark.parametrize(
    ("most", "expected"),
    [(100, [(4, 3, 5, 1)]), (7, [(4, 3), (5, 1)]), (2, [(4,), (3,), (5,), (1,)])],
)
def test_a_batch_comes_in_parts_of_so_many_tokens(most, expected):
    """Whole prompts alone, one at least, and all of them in order."""
    prompts = [[n] * length for n, length in enumerate((4, 3, 5, 1))]
    made = list(packed.parts(prompts, most, "cpu"))
    assert [part.lengths for part in made] == expected
    assert torch.cat([part.tokens for part in made]).tolist() == list(chain.from_iterable(prompts))
    rows = torch.cat([part.rows for part in made]).tolist()
    assert rows == [0] * 4 + [1] * 3 + [2] * 5 + [3]


def test_a_prompt_s_tokens_see_no_later_one_and_no_other_prompt():
    """A zero query reads means: 2; 2 and 6; then, of the next prompt, 100 alone."""
    query = torch.zeros(3, 2, 2, dtype=torch.float64)
    key = torch.zeros(3, 1, 2, dtype=torch.float64)
    value = torch.tensor([2.0, 6.0, 100.0]).double().view(3, 1, 1).expand(3, 1, 2)
    made = packed.pack([[0, 0], [0]], 0, "cpu")
    read = packed.attend_each(query, key, value, made)
    assert read.tolist() == [[2.0] * 4, [4.0] * 4, [100.0] * 4]


def test_without_a_gpu_there_is_no_attention_of_variable_length():
    assert packed.why_not_varlen("cpu", torch.bfloat16, 4, 2, 16) == "no GPU"
