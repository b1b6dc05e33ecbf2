"""What the states of points amount to: joules so far, and what is left."""

from sent_sweeps import attempt, beats, measured, name_of, sent

from wattflow.submit import status, summary


def test_energy_so_far_is_that_of_finished_and_running_attempts(fake, tmp_path):
    """3,000 J and 1,000 J so far are 4,000 J; the failed point's are not known, and the waiting one has none."""
    made = sent(tmp_path, 4)
    measured(made, 0, 3000.0, 30.0)
    beats(attempt(made, 1, "running", "101_1"), energy_j=1000.0, power_w=250.0, nodes=1)
    attempt(made, 2, "failed", "101_2", error="boom")
    fake.queue(f"101_1|RUNNING|None|{name_of(made)}", f"101_3|PENDING|None|{name_of(made)}")
    rows = status.states(made.sweep)
    assert summary.spent(rows) == [summary.Spent(4000.0, 2, 1, 250.0, 1, 1, 0, False)]


def test_simulated_joules_so_far_are_not_added_to_measured_ones(fake, tmp_path):
    """3,000 J measured and 1,000 J simulated are two sums; a point that reported none stands with the measured ones."""
    made = sent(tmp_path, 3)
    measured(made, 0, 3000.0, 30.0)
    measured(made, 1, 1000.0, 10.0, source="simulated")
    attempt(made, 2, "failed", "101_2", error="boom")
    assert summary.spent(status.states(made.sweep)) == [
        summary.Spent(3000.0, 1, 1, None, 0, 0, 0, False),
        summary.Spent(1000.0, 1, 0, None, 0, 0, 0, True),
    ]


def test_joules_that_a_sidecar_did_not_report_are_not_zero(fake, tmp_path):
    """Without any joules the sum is null."""
    made = sent(tmp_path, 1)
    measured(made, 0, None, 30.0)
    (found,) = summary.spent(status.states(made.sweep))
    assert found.energy_j is None


def test_what_is_left_is_the_mean_of_what_finished(fake, tmp_path):
    """Two of four seeds took 1,800 s at 3.6 MJ each: the others should take 1 GPU-hour and 2 kWh."""
    made = sent(tmp_path, 4)
    for number in (0, 1):
        measured(made, number, 3.6e6, 1800.0)
    fake.queue(*(f"101_{i}|PENDING|None|{name_of(made)}" for i in (2, 3)))
    left = summary.left(made.sweep, status.states(made.sweep))
    assert (left.gpu_hours, left.energy_kwh) == (1.0, 2.0)
    assert (left.same, left.shape, left.unknown, left.attempts) == (2, 0, 0, 2)
