"""Processors of ranks beside each other."""

from wattflow.run import cpus


def test_shares_are_disjoint_and_even():
    """Of seven CPUs three ranks have two each, one is left; where there are fewer CPUs than ranks nobody is bound."""
    shares = cpus.shares(3, {900, 901, 902, 903, 904, 905, 906})
    assert shares == [[900, 901], [902, 903], [904, 905]]
    assert cpus.shares(3, {0, 1}) == []


def test_threads_of_one_core_stay_together(monkeypatch):
    """CPU k and k + 4 are threads of one core, as on most servers: two ranks share no core."""
    monkeypatch.setattr(cpus, "_core", lambda cpu: cpu % 4)
    assert cpus.shares(2, set(range(8))) == [[0, 4, 1, 5], [2, 6, 3, 7]]
