"""What the sweeps of a scale have found, put together by grid."""

import pytest
from paper_sweeps import row_of, write_rows
from sweeps import choices, make_sweep

from wattflow.paper.objects import SIZE
from wattflow.paper.plans import sweep_name
from wattflow.paper.results import LABEL, found

FINISHED = {"duration_s": 10.0, "energy_j": 1000.0, "tokens_per_s": 5.0}


def test_a_point_is_found_in_whichever_sweep_ran_it(tmp_path):
    """Table V lists a point that Figure 4's sweep ran: it has that row, in its own place."""
    chosen = {"shards": 2, "max_gen_len": 128}
    waiting = {"status": "waiting", "counts": False, "valid": False, "attempt": None}
    write_rows(tmp_path, "paper-scaling", [(chosen, FINISHED)])
    write_rows(tmp_path, "paper-shards", [(chosen, waiting), ({**chosen, "shards": 1}, waiting)])
    scaling, shards = found("full", tmp_path)[0]
    assert scaling.points["status"].to_list() == ["finished"]
    assert shards.points["status"].to_list() == ["finished", "waiting"]
    assert shards.points["shards"].to_list() == [2, 1]
    assert (shards.cluster, shards.gpu) == ("local", "NVIDIA H200")


def test_a_sweep_without_results_is_named(tmp_path):
    """It has to be collected first."""
    make_sweep(tmp_path / sweep_name("full", "paper-caps", "local"), [choices()])
    here, notes = found("full", tmp_path)
    assert here == []
    assert "paper-full-caps-local: not collected yet; `wattflow collect" in notes[0]


def test_rows_have_the_models_size_and_how_full_memory_is(tmp_path):
    """Half of 80 GiB; models of one name are distinguished by their layers."""
    rows = [
        (
            {"model__n_layers": n, "cluster__gpu_memory_gib": 80.0, "cluster__gpu_model": "a100"},
            {**FINISHED, "memory_used_bytes": 40 * 2**30},
        )
        for n in (4, 2)
    ]
    write_rows(tmp_path, "paper-baseline", rows)
    ((one,), _) = found("full", tmp_path)
    assert one.points["memory_occupancy_pct"].to_list() == pytest.approx([50.0, 50.0])
    assert one.points[LABEL].to_list() == ["tiny, 4 layers", "tiny, 2 layers"]
    large, small = one.points[SIZE]
    assert large > small


def test_rows_are_those_of_results():
    """The helper's rows have the columns of results/points.parquet."""
    row = row_of(choices(shards=2), duration_s=2.0, energy_j=8.0)
    assert (row["power_w"], row["boards"], row["shards"]) == (4.0, ["GPU-0", "GPU-1"], 2)
