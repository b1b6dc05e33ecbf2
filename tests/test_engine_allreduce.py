"""Sums over ranks: by gloo without a GPU, in a buffer, and the rows up to which another way is quicker."""

import torch

from wattflow.engine.allreduce import largest_won

pytest_plugins = ("rank_groups",)


def test_ranks_without_a_gpu_sum_over_gloo_and_say_how_long_it_takes(two, four):
    """1 + 2 is 3 and 1 + 2 + 3 + 4 is 10; all ranks report one time for each number of rows, and why gloo."""
    for answers, total in ((two, 3), (four, 10)):
        for answer in answers:
            assert answer["summed"].tolist() == [[total, 10 * total]]
            assert answer["reduce"]["allreduce"] == "gloo"
            assert answer["reduce"]["allreduce_reason"] == "no GPU"
            assert answer["reduce"] == answers[0]["reduce"]
            assert sorted(answer["reduce"]["allreduce_us"]) == [1, 2]
            assert all(us > 0 for us in answer["reduce"]["allreduce_us"].values())


def test_products_may_be_summed_in_one_buffer(two, four):
    """Where all row-parallel products are written to one buffer, spoiled after each sum, logits stay bit-equal."""
    for answer in [*two, *four]:
        anywhere, in_one = answer["buffered"]
        assert torch.equal(anywhere, in_one)
        assert anywhere.abs().max() > 0


def test_quantised_shards_are_no_further_off_than_one_rank(alone, two, four):
    """fp8 moves logits; ranks that quantise their own parts move them by as much, a quarter more at most."""
    (one, again) = alone["quantised"]
    assert one == again > 0
    for answer in [*two, *four]:
        shared, whole = answer["quantised"]
        assert 0 < shared < 1.25 * whole


def test_one_rank_sums_nothing(alone):
    """Without peers there is no all-reduce, and the record has none."""
    assert alone["reduce"] == {"allreduce": None}


def test_the_other_way_serves_the_rows_up_to_where_it_stops_winning():
    """Quicker at 1 to 4 rows, slower at 8, quicker again at 16: it serves 4; slower at the first: none."""
    base = {1: 10.0, 2: 10.0, 4: 11.0, 8: 12.0, 16: 20.0}
    assert largest_won(base, {1: 6.0, 2: 6.0, 4: 8.0, 8: 13.0, 16: 15.0}) == 4
    assert largest_won(base, {n: us - 1 for n, us in base.items()}) == 16
    assert largest_won(base, {n: us + 1 for n, us in base.items()}) == 0
