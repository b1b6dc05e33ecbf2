"""Partial attempts of one point join to its figures: what adds up, what is the attempt's own, what must agree."""

import pytest

from wattflow.collect import merge
from wattflow.collect.conditions import Conditions
from wattflow.collect.description import Description
from wattflow.collect.neighbours import Neighbours
from wattflow.collect.quantities import Amount, Energy, Sampling, Throughput
from wattflow.collect.row import Figures


def part(number, energy_j, *, boundary="gpu", **over):
    """One partial attempt of 10 s and 100 tokens, with an idle of 5 J before it."""
    return Figures(
        Description(f"part {number}", boundary=boundary, driver=f"58{number}", boards=[f"GPU-{number}"], ecc=True),
        ["dummy_text"],
        Throughput(tokens_kept=100, duration_s=10.0, load_s=1.0 * number),
        Energy(
            window=Amount(energy_j, 2.0),
            job=Amount(energy_j + 5.0, 3.0),
            phases={"idle": Amount(5.0, 1.0), "prefill": Amount(100.0, 1.0)},
            idle_power_w=40.0 + number,
        ),
        Sampling(0.9 + number / 100, 0.1 * number, 500, 500),
        Amount(50.0, 1.0),
        Conditions(temperature_c=60.0 + number, power_limit_w=400.0),
        gpus=1,
        **over,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        ((False, False), False),
        ((False, True), True),
        ((None, True), True),
        ((False, None), None),
        ((None, None), None),
    ],
)
def test_parts_that_ran_alone_are_a_whole_that_did(parts, joined):
    """Beside others where one part was, alone where all were; the slots of the node stay known."""
    found = merge.join(
        [
            part(i, 1.0, neighbours=Neighbours(slots=4, beside=beside))
            for i, beside in enumerate(parts)
        ],
        Description("finished"),
        None,
    )
    assert found.neighbours == Neighbours(slots=4, beside=joined)


def test_windows_are_added_and_what_lies_around_is_the_attempts_own():
    """700 J and 300 J are 1,000 J in 20 s; u is added as it is; idle, load and job are those of the second alone."""
    parts = [part(1, 700.0), part(2, 300.0)]
    found = merge.join(parts, Description("finished"), parts[1])
    assert found.energy.window == Amount(1000.0, 4.0)
    assert found.energy.phases["prefill"] == Amount(200.0, 2.0)
    assert found.energy.phases["idle"] == Amount(5.0, 1.0)
    assert found.energy.job == Amount(305.0, 3.0)
    assert found.energy.idle_power_w == 42.0
    assert found.throughput == Throughput(tokens_kept=200, duration_s=20.0, load_s=2.0)
    assert found.sampling == Sampling(0.91, 0.2, 1000, 1000)
    assert found.host == Amount(100.0, 2.0)
    assert found.pieces == 2
    columns = found.columns()
    assert (columns["energy_per_token_j"], columns["power_w"]) == (5.0, 50.0)


def test_an_attempt_that_finished_no_batch_itself_has_nothing_around():
    """The row of a third attempt over two earlier ones: their windows, and no idle, load or job."""
    found = merge.join([part(1, 700.0), part(2, 300.0)], Description("finished"), None)
    assert found.energy.window.energy_j == 1000.0
    assert (found.energy.job, found.energy.phases["idle"]) == (Amount(), Amount())
    assert (found.throughput.load_s, found.energy.idle_power_w) == (None, None)


def test_a_part_that_is_unknown_makes_the_sum_unknown():
    """Without one part's joules there is no total; tokens are as known as before."""
    unknown = Figures(Description("part"), ["gap"], Throughput(tokens_kept=100, duration_s=10.0))
    found = merge.join([part(1, 700.0), unknown], Description("finished"), None)
    assert found.energy.window == Amount()
    assert found.throughput.tokens_kept == 200
    assert [*found.reasons] == ["dummy_text", "gap"]


def test_devices_of_all_parts_are_named_and_limits_must_agree():
    """Two boards and two drivers are named; what both agree on stands, the rest is null."""
    parts = [part(1, 700.0), part(2, 300.0)]
    found = merge.join(parts, Description("finished"), parts[1])
    assert found.about.boards == ["GPU-1", "GPU-2"]
    assert (found.about.driver, found.about.boundary) == ("581 + 582", "gpu")
    assert (found.about.ecc, found.about.status) == (True, "finished")
    assert found.conditions == Conditions(temperature_c=62.0, power_limit_w=400.0)


def test_energies_of_two_boundaries_are_not_added():
    """A part of a GPU and a part of a host make no sum, and the row says so."""
    parts = [part(1, 700.0), part(2, 300.0, boundary="host")]
    found = merge.join(parts, Description("finished"), parts[1])
    assert (found.energy, found.host) == (Energy(), Amount())
    assert "mixed_boundary" in found.reasons
