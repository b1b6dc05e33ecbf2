"""Verdicts on the paper's claims, from rows that make each hold, fail, and stay open."""

import pytest
from paper_sweeps import table_three, write_rows

from wattflow.paper.claims import CLAIMS, interval, verdicts, year_of
from wattflow.paper.results import found

SHARDS, PER_TOKEN, _, BATCH, _, ALIKE = CLAIMS[:6]
FASTER, DRAWS_MORE, SAVES, EDP, BUSY, FREE = CLAIMS[7:]


def judged(claim, folder):
    """The verdict of a claim on the sweeps of a folder."""
    return claim.verdict(found("full", folder)[0])


def scaling(folder, power_of, repeats=3, **over):
    """Points over 1, 2 and 4 shards, `repeats` each, on boards that all settings of a repeat share."""
    rows = []
    for shards in (1, 2, 4):
        for k in range(repeats):
            watts = power_of[shards] * (1 + 0.001 * (k - 1) * (-1 if shards == 2 else 1))
            measured = {
                "duration_s": 100.0,
                "energy_j": watts * 100.0,
                "tokens_per_s": 40.0,
                "energy_per_token_j": watts / 40.0,
                "boards": [f"GPU-{k}"],
            }
            chosen = {"dataset__name": "gsm8k", "shards": shards, "max_gen_len": 128, "repeat": k}
            rows.append((chosen, measured | over))
    write_rows(folder, "paper-scaling", rows)


def test_more_shards_more_watts_holds(tmp_path):
    """200, 400 and 800 W on boards that ran all three: both steps are established."""
    scaling(tmp_path, {1: 200.0, 2: 400.0, 4: 800.0})
    verdict = judged(SHARDS, tmp_path)
    assert (verdict.state, len(verdict.comparisons)) == ("holds", 2)
    assert verdict.low < 2.0 < verdict.high
    assert judged(PER_TOKEN, tmp_path).state == "holds"


def test_one_established_step_down_refutes_it(tmp_path):
    """800 W on four shards against 400 on two holds nothing where 2 shards draw less than 1."""
    scaling(tmp_path, {1: 600.0, 2: 300.0, 4: 800.0})
    verdict = judged(SHARDS, tmp_path)
    assert verdict.state == "does not hold"
    assert "1 of 2 comparisons contradict it, first shards 2 against 1" in verdict.why
    assert verdict.low < 0.5 < verdict.high < 1.0


@pytest.mark.parametrize(
    ("power_of", "repeats", "over", "why"),
    [
        ({1: 400.0, 2: 400.2, 4: 400.1}, 3, {}, "2 of 2 comparisons are open"),
        ({1: 200.0, 2: 400.0, 4: 800.0}, 1, {}, "one run a side shows no difference"),
        ({1: 200.0, 2: 400.0, 4: 800.0}, 3, {"simulated": True}, "its watts are simulated"),
        ({1: 200.0, 2: 400.0, 4: 800.0}, 3, {"boundary": "host"}, "no GPU was measured"),
        ({1: 200.0, 2: 400.0, 4: 800.0}, 3, {"counts": False}, "no point has finished and counts"),
    ],
)
def test_what_cannot_be_said_says_why(tmp_path, power_of, repeats, over, why):
    """No difference, one run, simulated watts, a host, nothing that counts."""
    scaling(tmp_path, power_of, repeats, **over)
    verdict = judged(SHARDS, tmp_path)
    assert verdict.state == "cannot be said here"
    assert why in verdict.why


def test_simulated_watts_decide_no_claim_at_all(tmp_path):
    """Neither for nor against: each of the thirteen says that it cannot be said."""
    scaling(tmp_path, {1: 200.0, 2: 400.0, 4: 800.0}, simulated=True)
    table_three(tmp_path, repeats=3, simulated=True)
    states = {one.state for one in verdicts(found("full", tmp_path)[0])}
    assert states == {"cannot be said here"}


def test_ranks_that_share_a_gpu_say_nothing_of_shards(tmp_path):
    """Only points whose ranks had a GPU each are compared: here those of one shard."""
    scaling(tmp_path, {1: 200.0, 2: 400.0, 4: 800.0}, gpus=1)
    verdict = judged(SHARDS, tmp_path)
    assert verdict.state == "cannot be said here"
    assert verdict.why == "one value of shards alone was measured"


def batches(folder, joules):
    """Points of two batches on three boards, with these joules a response."""
    rows = [
        (
            {"dataset__name": "gsm8k", "batch_size": batch, "max_gen_len": 128, "repeat": k},
            {
                "duration_s": 100.0,
                "energy_j": 40_000.0,
                "energy_per_response_j": of * (1 + 0.002 * (k - 1) * (batch == 64)),
                "boards": [f"GPU-{k}"],
                "tokens_per_s": 40.0,
            },
        )
        for batch, of in zip((64, 128), joules, strict=True)
        for k in range(3)
    ]
    write_rows(folder, "paper-scaling", rows)


@pytest.mark.parametrize(
    ("joules", "state"),
    [
        ((100.0, 101.0), "holds"),
        ((100.0, 200.0), "does not hold"),
        ((100.0, 110.2), "cannot be said here"),
    ],
)
def test_little_effect_is_an_interval_within_ten_percent(tmp_path, joules, state):
    """1 % holds, a factor of two does not, 10.2 % with its interval around 10 % is open."""
    batches(tmp_path, joules)
    assert judged(ALIKE, tmp_path).state == state


def test_table_three_saves_energy_and_its_product_with_time(tmp_path):
    """-22 to -24 % energy at 175 W for 6 to 7 % more time, repeats within 0.01 %."""
    table_three(tmp_path, repeats=3)
    saves, edp = judged(SAVES, tmp_path), judged(EDP, tmp_path)
    assert (saves.state, edp.state) == ("holds", "holds")
    assert len(saves.comparisons) == 3
    assert [f"{one.ratio.ratio:.4f}" for one in saves.comparisons] == ["0.7818", "0.7605", "0.7613"]


def test_table_three_once_is_not_established(tmp_path):
    """One run a cap, as the paper shows: the saving is printed and nothing is claimed."""
    table_three(tmp_path, repeats=1)
    verdict = judged(SAVES, tmp_path)
    assert verdict.state == "cannot be said here"
    assert "one run a side" in verdict.why


def gpus(folder, rates):
    """One model on two models of GPU, three repeats, tokens a second as given."""
    for (name, model), rate in zip(
        (("old", "v100-sxm2-32gb"), ("new", "a100-sxm4-80gb")), rates, strict=True
    ):
        rows = [
            (
                {"cluster__name": name, "cluster__gpu_model": model, "repeat": k},
                {
                    "duration_s": 100.0,
                    "energy_j": 20_000.0 * (2 if name == "new" else 1),
                    "tokens_per_s": rate * (1 + 0.001 * k),
                    "gpu_name": model,
                    "boards": [f"GPU-{name}-{k}"],
                },
            )
            for k in range(3)
        ]
        write_rows(folder, "paper-baseline", rows)


@pytest.mark.parametrize(
    ("rates", "state"),
    [
        ((100.0, 200.0), "holds"),
        ((200.0, 100.0), "does not hold"),
        ((100.0, 102.0), "cannot be said here"),
    ],
)
def test_the_newer_gpu_is_faster(tmp_path, rates, state):
    """Twice the rate, half of it, and 2 % between boards, which establish nothing under 10 %."""
    gpus(tmp_path, rates)
    assert judged(FASTER, tmp_path).state == state
    assert judged(DRAWS_MORE, tmp_path).state == "holds"


def test_one_gpu_model_says_nothing_of_a_newer_one(tmp_path):
    """The paper's V100 and A100 are not both here."""
    rows = [({"cluster__gpu_model": "h200"}, {"duration_s": 9.0, "energy_j": 9.0})]
    write_rows(tmp_path, "paper-baseline", rows)
    assert judged(FASTER, tmp_path).why == "one model of GPU alone was measured"


def use(folder, busy, accessed, full):
    """Points over three lengths: shares of time that kernels ran and memory was accessed, and how full it was."""
    rows = [
        (
            {"max_gen_len": length, "cluster__gpu_memory_gib": 100.0},
            {
                "duration_s": 9.0,
                "energy_j": 9.0,
                "gpu_activity_pct": busy + i,
                "memory_activity_pct": accessed + i,
                "memory_used_bytes": int(full * 2**30),
            },
        )
        for i, length in enumerate((256, 512, 1024))
    ]
    write_rows(folder, "paper-lengths", rows)


@pytest.mark.parametrize(
    ("busy", "state"),
    [(95.0, "holds"), (60.0, "does not hold"), (89.0, "cannot be said here")],
)
def test_kernels_run_nearly_always(tmp_path, busy, state):
    """95 to 97 % holds, 60 to 62 % does not, 89 to 91 % has 90 within its interval."""
    use(tmp_path, busy, 25.0, 60.0)
    verdict = judged(BUSY, tmp_path)
    assert verdict.state == state
    assert verdict.low < busy + 1 < verdict.high


@pytest.mark.parametrize(
    ("full", "state"),
    [(26.0, "holds"), (60.0, "does not hold"), (36.0, "cannot be said here")],
)
def test_activity_of_memory_is_not_how_full_it_is(tmp_path, full, state):
    """25 to 27 % of the time accessed: 26 % full would bear the paper out, 60 % does not."""
    use(tmp_path, 95.0, 25.0, full)
    assert judged(FREE, tmp_path).state == state


def test_nothing_run_is_said_of_each_claim():
    """With the grid that would test it."""
    found_nothing = list(verdicts([]))
    assert len(found_nothing) == len(CLAIMS) == 13
    assert {one.state for one in found_nothing} == {"cannot be said here"}
    assert found_nothing[0].why == "no point of paper-scaling was run at this scale"


def test_intervals_and_years_by_hand():
    """Of 1, 2, 3: mean 2, sd 1, t(2) = 4.302 (rounded down); one value has none."""
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(
        (2 - 4.302 / 3**0.5, 2 + 4.302 / 3**0.5), abs=1e-3
    )
    assert interval([1.0]) is None
    assert [year_of(name) for name in ("v100-sxm2-32gb", "NVIDIA A100 80GB", "fake")] == [
        2017,
        2020,
        None,
    ]
