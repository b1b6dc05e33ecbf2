"""`wattflow price`: its table, its JSON, and what it refuses."""

import json

import pytest
from commands import call
from hidden_power import LAW
from served_sweeps import swept_load


def test_the_table_and_json_of_a_load(tmp_path):
    """The hidden law's joules of an input token with an interval, and a request dearer with its share of idle watts."""
    sweep, _ = swept_load(tmp_path / "s")
    done = call("price", str(sweep.path), "--in", "500", "--out", "50", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    head, line = (text.split("\t") for text in done.stdout.splitlines()[:2])
    row = dict(zip(head, line, strict=True))
    assert row["workload_rate_per_s"] == "3.0"
    assert "±" in row["J/input token"]
    assert row["J/cached token"] == "-"
    assert float(row["J/request, all"]) > float(row["J/request, own"]) > 0
    (found,) = json.loads(call("price", str(sweep.path), "--json", cwd=tmp_path).stdout)
    assert found["input_token_j"] == pytest.approx(LAW[2], rel=0.05)
    assert found["own_request_j"] is None


@pytest.mark.parametrize(
    "words", [["--in", "5"], ["--in", "5", "--out", "2", "--cached", "5"], ["--cached", "1"]]
)
def test_lengths_come_together(tmp_path, words):
    """--in without --out, and as many cached tokens as there are, are refused before anything is read."""
    done = call("price", "nowhere", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert "--in" in done.stderr
    assert "Traceback" not in done.stderr
