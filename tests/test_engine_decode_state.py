"""What lies on the device between decode steps, on the CPU."""

import torch

from wattflow.engine.decode_state import EndLook, State


def test_two_rows_of_four_step_by_step():
    """Prompts of 3 and 5 tokens stand at positions 2 and 4; the second makes EOS 9, the first its limit of 2 tokens."""
    state = State.empty(rows=4, columns=3, device="cpu")
    state.begin([3, 5], [2, 3])
    assert state.positions.tolist() == [2, 4, 0, 0]
    assert state.ended.tolist() == [False, False, True, True]
    state.write(torch.tensor([7, 9, 0, 0]), last_position=5, eos_ids=(9,))
    assert state.tokens.tolist() == [7, 9, 0, 0]
    assert state.positions.tolist() == [3, 5, 1, 1]
    assert state.ended.tolist() == [False, True, True, True]
    assert not state.all_ended
    state.write(torch.tensor([8, 1, 0, 0]), last_position=5, eos_ids=(9,))
    assert state.output[:2].tolist() == [[7, 8, 0], [9, 1, 0]]
    assert state.positions.tolist() == [
        4,
        5,
        2,
        2,
    ]  # the second is full and stays in its last place
    assert state.all_ended


def test_each_of_several_eos_ends_a_row():
    """As models of chats have them."""
    state = State.empty(rows=3, columns=3, device="cpu")
    state.begin([1, 1, 1], [3, 3, 3])
    state.write(torch.tensor([7, 8, 9]), last_position=5, eos_ids=(9, 7))
    assert state.ended.tolist() == [True, False, True]


def test_without_eos_no_row_is_said_to_end():
    """With stop=length nothing is compared on the device, whatever a row makes."""
    state = State.empty(rows=1, columns=2, device="cpu")
    state.begin([1], [1])
    state.write(torch.tensor([9]), last_position=9, eos_ids=())
    assert not state.all_ended


def test_on_a_cpu_the_look_is_current():
    """The flag is read as it stands, since nothing is queued."""
    flag = torch.zeros(1, dtype=torch.bool)
    look = EndLook(flag)
    assert not look()
    flag.fill_(value=True)
    assert look()
