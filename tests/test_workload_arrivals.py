"""Arrivals: gaps by their law and seed, recorded traces in two formats, and what is wrong with a file in one line."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wattflow.config.choices import Config, Dataset, Workload
from wattflow.errors import RefusedError
from wattflow.workload import arrivals

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
DATA = Path(os.environ.get("WATTFLOW_DATA", "/nowhere")) / "azure"


def config(count=3, **load):
    """An open load of so many requests."""
    workload = Workload(mode="open", **load)
    return Config(workload=workload, n_prompts=count, max_gen_len=100, max_seq_len=1000)


def written(path, text):
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(("burstiness", "square"), [(1.0, 1.0), (0.25, 4.0), (16.0, 1 / 16)])
def test_gaps_have_the_rates_mean_and_the_burstiness_variance(burstiness, square):
    """20,000 gaps at 8 a second: mean 1/8 s, squared coefficient of variation 1/burstiness, by 5 %; the first is 0."""
    due_s = arrivals.drawn(20_001, 8.0, burstiness, seed=3)
    gaps_s = np.diff(due_s)
    assert due_s[0] == 0.0
    assert gaps_s.min() >= 0
    assert gaps_s.mean() == pytest.approx(1 / 8, rel=0.05)
    assert gaps_s.var() / gaps_s.mean() ** 2 == pytest.approx(square, rel=0.1)


def test_poisson_counts_scatter_as_their_mean():
    """Arrivals in windows of a second at 20/s: variance over mean 1; at burstiness 0.1 it is far above."""
    for burstiness, low, high in ((1.0, 0.85, 1.15), (0.1, 3.0, 20.0)):
        counts = np.bincount(arrivals.drawn(20_000, 20.0, burstiness, 0).astype(int))[:-1]
        assert low < counts.var() / counts.mean() < high


def test_a_seed_makes_the_same_arrivals_again_and_another_one_others():
    """The load follows from the choices alone."""
    again = [arrivals.load(replace(config(50, rate_per_s=2.0), seed=seed)) for seed in (1, 1, 2)]
    assert again[0] == again[1]
    assert again[0].due_s != again[2].due_s


def test_azures_format(tmp_path):
    """Stamps of 100 ns become seconds since the first request, in order of time."""
    rows = "2023-11-16 18:17:04.5000001,30,7\n2023-11-16 18:17:03.9799600,480,10\n"
    made = written(tmp_path / "a.csv", AZURE + rows)
    found = arrivals.load(config(2, trace=made))
    assert found.due_s == pytest.approx([0.0, 0.52004], abs=1e-6)
    assert (found.tokens_in, found.tokens_out) == ([480, 30], [10, 7])


def test_burstgpts_format(tmp_path):
    """Seconds, and names with spaces."""
    made = written(
        tmp_path / "b.csv",
        BURST + "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1,2,3,API log\n",
    )
    found = arrivals.load(config(2, trace=made))
    assert (found.due_s, found.tokens_in, found.tokens_out) == ([0.0, 40.0], [472, 1], [18, 2])


def test_a_rate_takes_the_traces_lengths_at_times_of_its_own(tmp_path):
    """Lengths as recorded, arrivals drawn: due are those of the same draw without a trace."""
    made = written(tmp_path / "b.csv", BURST + "5,m,472,18,490,x\n45,m,1,2,3,x\n46,m,3,4,7,x\n")
    found = arrivals.load(config(3, trace=made, rate_per_s=4.0))
    assert found.due_s == arrivals.load(config(3, rate_per_s=4.0)).due_s
    assert found.tokens_in == [472, 1, 3]


def test_closed_loads_have_no_times(tmp_path):
    """Requests are sent as others end."""
    made = written(tmp_path / "b.csv", BURST + "5,m,472,18,490,x\n")
    chosen = replace(config(1), workload=Workload(mode="closed", concurrency=1, trace=made))
    found = arrivals.load(chosen)
    assert (found.due_s, found.tokens_out) == (None, [18])


def test_requests_that_do_not_fit(tmp_path):
    """Refused with the line; skipped, with the others' times as they were; or cut, the output first."""
    made = written(
        tmp_path / "a.csv",
        BURST + "0,m,10,5,15,x\n1,m,990,120,1110,x\n2,m,20,0,20,x\n3,m,7,7,14,x\n",
    )
    with pytest.raises(RefusedError, match=r"line 3: 120 output tokens, and max_gen_len=100"):
        arrivals.load(config(2, trace=made))
    skip = replace(config(2, trace=made), dataset=Dataset(on_bad="skip"))
    found = arrivals.load(skip)
    assert (found.due_s, found.tokens_in, found.skipped) == ([0.0, 3.0], [10, 7], 2)
    cut = arrivals.load(replace(config(2, trace=made), dataset=Dataset(on_bad="truncate")))
    assert (cut.tokens_in, cut.tokens_out, cut.truncated) == ([10, 900], [5, 100], 1)
    with pytest.raises(RefusedError, match="Set n_prompts=2 or less"):
        arrivals.load(replace(skip, n_prompts=3))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a,b,c\n1,2,3\n", "those of no known trace"),
        (AZURE, "has no requests"),
        (AZURE + "yesterday,1,2\n", "line 2: TIMESTAMP is 'yesterday'"),
        (AZURE + "nan,1,2\n", "no time"),
        (AZURE + "0,-1,2\n", "ContextTokens is '-1', no count"),
        (AZURE + "0,1,2.5\n", "GeneratedTokens is '2.5', no count"),
        (AZURE + "0,1,99999999999999999999\n", "no count"),
        (AZURE + "0,1\n", "2 fields"),
        ("", "has no requests"),
    ],
)
def test_what_is_wrong_with_a_trace(tmp_path, text, fault):
    """File, line and column in one line."""
    with pytest.raises(RefusedError, match=fault) as error:
        arrivals.load(config(1, trace=written(tmp_path / "x.csv", text)))
    assert "x.csv" in str(error.value)


def test_a_missing_trace_is_refused(tmp_path):
    """As any file that somebody named."""
    with pytest.raises(RefusedError, match=r"none\.csv"):
        arrivals.load(config(1, trace=str(tmp_path / "none.csv")))


def test_ids_have_the_lengths_and_are_no_one_token():
    """Random tokens by seed, below the vocabulary."""
    made = arrivals.ids([5, 300], 50, seed=1)
    assert [len(row) for row in made] == [5, 300]
    assert {0 <= token < 50 for row in made for token in row} == {True}
    assert len(set(made[1])) > 30
    assert made == arrivals.ids([5, 300], 50, seed=1)


@pytest.mark.skipif(not DATA.is_dir(), reason="no public data")
@pytest.mark.parametrize(
    ("name", "count", "tokens_in", "rate"),
    [("conv", 19_366, 1154.7, 5.5), ("code", 8_819, 2047.8, 2.6)],
)
def test_the_public_traces_of_azure(name, count, tokens_in, rate):
    """As many requests as its page says, their published mean prompts, and an hour of time."""
    found = arrivals.read_trace(DATA / f"AzureLLMInferenceTrace_{name}.csv")
    assert len(found) == count
    assert np.mean([one.tokens_in for one in found]) == pytest.approx(tokens_in, rel=0.01)
    assert count / found[-1].due_s == pytest.approx(rate, rel=0.05)
