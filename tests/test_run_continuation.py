"""A point that was interrupted goes on from its last finished batch: nothing is run, answered or counted twice."""

import json
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from partial_attempts import BATCHES, slow, start, three_attempts
from processes import until
from sweeps import id_of, make_sweep

from wattflow.collect import collect
from wattflow.config import choices as config_choices
from wattflow.run import continuation
from wattflow.store import columns
from wattflow.store.columns import POINT
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import REQUEST, SPAN, PartialAttempt
from wattflow.store.tables import read_table
from wattflow.workload import prompts, tokenizer


def interrupt(ranks: list[subprocess.Popen], spool: Path, after_batches: int, signum: int) -> None:
    """Signal all ranks soon after so many batches, while there are some to go."""
    log = spool / "rank0.log"
    progress = json.dumps({"phase": "batches", "done": after_batches, "of": BATCHES})
    until(lambda: progress in log.read_text())
    time.sleep(0.05)
    for rank in ranks:
        rank.send_signal(signum)
    for rank in ranks:
        rank.wait(600)


@pytest.fixture
def spool():
    folder = Path(tempfile.mkdtemp(prefix="wattflow-partial-"))
    yield folder / "spool"
    shutil.rmtree(folder)


def recorded(sweep: SweepDir, point_id: str) -> list[tuple[str, list[PartialAttempt]]]:
    records = [attempt.read_record() for attempt in sweep.attempts(point_id)]
    return [(r["status"], r.get("pieces", [])) for r in records if r is not None]


def answered(attempt: AttemptDir) -> list[int]:
    return read_table(attempt.requests_path, REQUEST)["prompt"].to_pylist()


@pytest.mark.parametrize("signum", [signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_the_next_attempt_goes_on_from_the_last_finished_batch(signum, tmp_path, spool):
    """Two batches or more and a part of the next, then the others: twelve prompts once each, joules of two windows."""
    point = slow()
    point_id = id_of(point)
    sweep = make_sweep(tmp_path / "demo", [point])
    interrupt(start(sweep, point_id, spool), spool, 2, signum)
    ((status, (first,)),) = recorded(sweep, point_id)
    done = first["batches"]
    assert (status, first["attempt"], first["first_batch"]) == ("interrupted", 1, 0)
    assert 2 <= done < BATCHES
    collect.collect(sweep)
    (row,) = read_table(sweep.points_path, POINT).to_pylist()
    assert (row["reasons"], row["energy_j"]) == (["interrupted"], None)
    shutil.rmtree(spool)
    (rank,) = start(sweep, point_id, spool)
    assert rank.wait(600) == 0, (spool / "rank0.log").read_text()
    second = {"attempt": 2, "first_batch": done, "batches": BATCHES - done}
    assert recorded(sweep, point_id)[1] == ("finished", [first, second])
    one, two = sweep.attempts(point_id)
    prompts = list(range(2 * BATCHES))
    assert (answered(one), answered(two)) == (prompts[: 2 * done], prompts[2 * done :])
    collect.collect(sweep)
    cut, whole = read_table(sweep.points_path, POINT).to_pylist()
    assert (cut["reasons"], cut["energy_j"]) == (["interrupted"], None)
    assert (whole["status"], whole["pieces"], whole["counts"]) == ("finished", 2, False)
    assert "in_pieces" in whole["reasons"]
    assert (whole["responses"], whole["tokens_kept"]) == (12, 12 * 8)
    windows_s = [window_s(attempt) for attempt in (one, two)]
    assert whole["duration_s"] == pytest.approx(sum(windows_s))
    assert whole["energy_j"] == pytest.approx(70.0 * sum(windows_s), rel=1e-3)
    for count, per in (("tokens_kept", "token"), ("responses", "response")):
        uncertainty_j = whole[f"energy_per_{per}_u_j"]
        assert uncertainty_j == pytest.approx(whole["energy_u_j"] / whole[count])


def window_s(attempt: AttemptDir) -> float:
    """From the first prefill's start to the last decode's end."""
    rows = read_table(attempt.spans_path("n1"), SPAN).to_pylist()
    starts = [row["start_ns"] for row in rows if row["phase"] == "prefill" and row["rank"] == 0]
    ends = [row["end_ns"] for row in rows if row["phase"] == "decode" and row["rank"] == 0]
    return (max(ends) - min(starts)) / 1e9


@pytest.mark.slow
def test_two_ranks_stop_together_after_the_batch_under_way(tmp_path, spool):
    """Only rank 0 is signalled: both end after that batch, none waits for the other, and the batch is not lost."""
    point = slow(shards=2)
    point_id = id_of(point)
    sweep = make_sweep(tmp_path / "demo", [point])
    ranks = start(sweep, point_id, spool, world=2)
    interrupt(ranks[:1], spool, 2, signal.SIGUSR2)
    assert ranks[1].wait(600) != 0
    ((status, (first,)),) = recorded(sweep, point_id)
    assert status == "interrupted"
    assert 3 <= first["batches"] < BATCHES
    shutil.rmtree(spool)
    for rank in start(sweep, point_id, spool, world=2):
        assert rank.wait(600) == 0, (spool / "rank0.log").read_text()
    collect.collect(sweep)
    whole = read_table(sweep.points_path, POINT).to_pylist()[1]
    assert (whole["pieces"], whole["responses"], whole["tokens_kept"]) == (2, 12, 96)


def test_a_point_of_which_nothing_is_left_to_run_is_finished_at_once(tmp_path, spool):
    """Interrupted in its last idle window: the next attempt measures nothing, and the row has all batches."""
    sweep, attempts, point = three_attempts(tmp_path, slow(engine__synthetic_ms_per_token=0.1))
    record = attempts[2].read_record()
    assert record is not None
    record["status"] = "interrupted"
    attempts[2].write_record(record)
    sha256 = prompts_sha256(point)
    for attempt in attempts:
        changed = attempt.read_record()
        assert changed is not None
        changed["prompts"]["sha256"] = sha256
        attempt.write_record(changed)
    (rank,) = start(sweep, id_of(point), spool)
    assert rank.wait(600) == 0, (spool / "rank0.log").read_text()
    last = sweep.attempts(id_of(point))[-1]
    assert (last.number, list((last.path / "traces").iterdir())) == (4, [])
    whole = rows_of(sweep)[-1]
    assert (whole["attempt"], whole["status"], whole["responses"]) == (4, "finished", 24)
    assert whole["energy_j"] == pytest.approx(8.5 * 70 + 4 * 100 + 13 * 50, rel=1e-6)
    assert whole["job_energy_j"] is None


def prompts_sha256(point: dict[str, Any]) -> str:
    """The hash of the prompts that a point's attempts answer."""
    chosen = config_choices.from_dict(point)
    found = prompts.load(chosen, tokenizer.load(chosen.model, chosen.weights))
    return found.info["sha256"]


# --- from files whose joules are known by hand ----------------------------------------------------


def rows_of(sweep: SweepDir) -> list[dict[str, Any]]:
    collect.collect(sweep)
    rows: list[dict[str, Any]] = read_table(sweep.points_path, POINT).to_pylist()
    return rows


def test_joules_are_summed_over_the_windows_of_partial_attempts(tmp_path):
    """Windows of 8.5, 4 and 13 s at 70, 100 and 50 W are 1,645 J and 25.5 s; each attempt's phases are its own."""
    sweep, _, _ = three_attempts(tmp_path)
    *earlier, whole = rows_of(sweep)
    assert [row["energy_j"] for row in earlier] == [None, None]
    assert whole["energy_j"] == pytest.approx(8.5 * 70 + 4 * 100 + 13 * 50, rel=1e-6)
    assert whole["duration_s"] == pytest.approx(25.5)
    assert whole["power_w"] == pytest.approx(1645 / 25.5)
    assert (whole["pieces"], whole["tokens_kept"], whole["responses"]) == (3, 600, 24)
    assert whole["energy_per_token_j"] == pytest.approx(1645 / 600)
    assert (whole["counts"], whole["valid"]) == (False, False)
    assert set(whole["reasons"]) == {"in_pieces", "dummy_text"}
    phases = read_table(sweep.phases_path, columns.PHASE).to_pylist()
    for number, energy_j in ((1, 8.0 * 70), (2, 4 * 100), (3, 12 * 50)):
        own = [p for p in phases if p["attempt"] == number and p["phase"] in ("prefill", "decode")]
        assert sum(p["energy_j"] for p in own) == pytest.approx(energy_j, rel=1e-6)


def test_partial_attempts_by_different_kinds_of_meter_have_no_joules(tmp_path):
    """A GPU's joules and a host's are not added up."""
    sweep, _, _ = three_attempts(tmp_path, second_boundary="host")
    whole = rows_of(sweep)[-1]
    assert (whole["energy_j"], whole["power_w"]) == (None, None)
    assert {"mixed_boundary", "in_pieces"} <= set(whole["reasons"])


def test_a_lost_partial_attempt_costs_the_row_and_says_which_file(tmp_path):
    """The joules of the attempt that continued from it are unknown without it."""
    sweep, attempts, _ = three_attempts(tmp_path)
    attempts[0].spans_path("node1").write_bytes(b"PAR1")
    whole = rows_of(sweep)[-1]
    assert (whole["reasons"], whole["energy_j"]) == (["damaged"], None)
    assert str(attempts[0].spans_path("node1")) in whole["error"]


@pytest.mark.parametrize(
    ("damage", "batches"),
    [("nothing", 3), ("second trace", 2), ("second requests", 2), ("first spans", 0), ("first", 0)],
)
def test_an_attempt_goes_on_from_what_is_whole_alone(damage, batches, tmp_path):
    """Of two partial attempts of 2 and 1 batches: what is missing or damaged is run again, with all after it."""
    sweep, attempts, point = three_attempts(tmp_path)
    shutil.rmtree(attempts[2].path)
    if damage == "second trace":
        attempts[1].trace_path("node1", "GPU-0").unlink()
    elif damage == "second requests":
        attempts[1].requests_path.write_bytes(b"")
    elif damage == "first spans":
        attempts[0].spans_path("node1").write_bytes(b"rubbish")
    elif damage == "first":
        shutil.rmtree(attempts[0].path)
    assert continuation.find(sweep, id_of(point)).batches == batches


def test_what_is_run_again_on_purpose_starts_anew(tmp_path):
    """`resume --force` names the newest attempt; nothing up to it is gone on from."""
    sweep, attempts, point = three_attempts(tmp_path)
    shutil.rmtree(attempts[2].path)
    assert continuation.find(sweep, id_of(point), after=2).batches == 0
