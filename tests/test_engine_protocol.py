"""What a row keeps of its output, which batches are refused, and the work that batches add up to."""

import engine_ranks as tools
import pytest

from wattflow.config import choices as config_choices
from wattflow.engine.protocol import kept, total_work
from wattflow.engine.synthetic import Synthetic

EOS = 7


def choices(**changes):
    """Choices of the small model in float32."""
    return tools.choices(tools.tiny(), precision="fp32", **changes)


@pytest.mark.parametrize(
    ("output", "eos_ids", "tokens", "reason"),
    [
        ([1, 2, 3, 4, 5], (), [1, 2, 3], "length"),
        ([1, 2], (), [1, 2], "max_seq_len"),
        ([1, EOS, 3, 4], (EOS,), [1], "eos"),
        ([EOS], (EOS,), [], "eos"),
        ([1, 2, 3, EOS], (EOS,), [1, 2, 3], "length"),
        ([1, 2, 9, EOS], (EOS, 9), [1, 2], "eos"),  # the first of several
        ([1, EOS, 3], (), [1, EOS, 3], "length"),
    ],
)
def test_what_a_row_keeps_of_three(output, eos_ids, tokens, reason):
    """At most max_gen_len tokens and none from the first EOS on; an EOS after max_gen_len comes too late."""
    assert kept(output, 3, eos_ids) == (tokens, reason)


def test_both_engines_report_their_work():
    """Prompts of 2 and 5 tokens, 6 new ones: `fast` prefills 7 tokens and makes 5 steps, `paper` 4 and 8."""
    asked = [[1, 2], [3, 4, 5, 6, 7]]
    fast = tools.generate(
        choices(engine=config_choices.Engine(name="fast", device="cpu")), tools.ALONE, asked
    )
    assert fast.work == {
        "decode_steps": 5,
        "decode_rows": 10,
        # step k reads the prompt, the first token and k more: (3 + ... + 7) + (6 + ... + 10)
        "decode_positions": 65,
        "prefills": 1,
        "prefill_tokens": 7,
        "prefill_squares": 4 + 25,
    }
    paper = tools.generate(choices(), tools.ALONE, asked)
    # the shortest prompt is read at once; places 2 to 9 are fed to both rows, which read 3 to 10 positions
    assert paper.work == {
        "decode_steps": 8,
        "decode_rows": 16,
        "decode_positions": 2 * sum(range(3, 11)),
        "prefills": 1,
        "prefill_tokens": 4,
        "prefill_squares": 8,
    }
    both = total_work([fast, paper])
    assert both["decode_steps"] == 13
    assert both["prefills"] == 2


def test_an_engine_that_computes_nothing_reports_null():
    """One batch without work makes the sum null, and so does none at all."""
    chosen = choices(engine=config_choices.Engine(name="synthetic", synthetic_ms_per_token=0.0))
    engine = Synthetic(chosen, tools.ALONE, eos_ids=())
    engine.load()
    engine.prefill([[1, 2]])
    assert total_work([engine.decode()]) is None
    assert total_work([]) is None
