"""New values of cluster.* for points that are sent again."""

import pytest

from wattflow.errors import RefusedError
from wattflow.plan.settings import cluster_settings


def test_values_are_typed_by_their_keys():
    """As in a submit: text stays text."""
    words = ["cluster.time_min=10", "cluster.account=0123", "cluster.setup=['a b',1e5]"]
    assert cluster_settings([*words, "cluster.qos=null"]) == {
        "cluster.time_min": 10,
        "cluster.account": "0123",
        "cluster.setup": ["a b", "1e5"],
        "cluster.qos": None,
    }


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("cluster.time_min=10,20", "takes one value here"),
        ("cluster.time_min=2h", "takes a whole number of minutes"),
        ("cluster.time_min=0", "must be at least 1"),
        ("cluster.name=other", "keep theirs"),
        ("cluster.gpu_model=h100", "keep theirs"),
        ("cluster.nosuch=1", "no such key"),
        (r"cluster.account=$\\{oc.env:HOME}", "interpolations are not resolved"),
    ],
)
def test_what_is_no_value_is_refused(word, message):
    """In one line, by its key."""
    with pytest.raises(RefusedError, match=message):
        cluster_settings([word])
