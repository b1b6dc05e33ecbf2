"""The second copies of traces: which attempts a file holds, and those whose copies were pruned."""

import pyarrow.parquet as pq
from sweeps import Gpu, Made, choices, id_of, make_attempt, make_sweep

from wattflow.collect.collect import collect
from wattflow.collect.copies import CopiedAttempts, copy_traces, drop_copies, last_copies


def test_dropped_copies_stay_named_until_an_attempt_is_copied_again(tmp_path):
    """Without rows the file still says of which attempts it was; a copy made anew is no pruned one."""
    point = choices()
    sweep = make_sweep(tmp_path / "s", [point])
    attempts = [make_attempt(sweep, point, Made([Gpu("GPU-a")], started_s=s)) for s in (0.0, 99.0)]
    collect(sweep)
    path = sweep.traces / f"{id_of(point)[:2]}.parquet"
    keys = {(id_of(point), 1), (id_of(point), 2)}
    assert CopiedAttempts.read(path) == CopiedAttempts(frozenset(keys))
    rows = pq.read_metadata(path).num_rows
    drop_copies([path])
    assert CopiedAttempts.read(path) == CopiedAttempts(frozenset(keys), frozenset(keys))
    assert pq.read_metadata(path).num_rows == 0
    traces = {("node1", "GPU-a"): attempts[1].trace_path("node1", "GPU-a")}
    copy_traces(path, CopiedAttempts.read(path), {(id_of(point), 2): traces})
    assert CopiedAttempts.read(path).pruned == {(id_of(point), 1)}
    assert pq.read_metadata(path).num_rows == rows / 2


def test_no_file_or_a_damaged_one_has_no_attempts(tmp_path):
    """So that its attempts are collected anew."""
    path = tmp_path / "ab.parquet"
    assert CopiedAttempts.read(path) == CopiedAttempts()
    path.write_bytes(b"PAR1 and no more")
    assert CopiedAttempts.read(path) == CopiedAttempts()


def test_a_copy_is_never_replaced_by_nothing(tmp_path):
    """An attempt that is collected anew without traces keeps the copy, the last one there is."""
    sweep = make_sweep(tmp_path / "s", [choices()])
    attempt = make_attempt(sweep, choices(), Made([Gpu("GPU-a")]))
    collect(sweep)
    key = attempt.point_id, 1
    path = sweep.traces / f"{key[0][:2]}.parquet"
    before = pq.read_table(path)
    assert before.num_rows > 0
    assert last_copies(sweep, path) == set()
    attempt.trace_path("node1", "GPU-a").unlink()
    assert last_copies(sweep, path) == {key}
    copy_traces(path, CopiedAttempts.read(path), {key: {}})
    assert pq.read_table(path).equals(before)
    assert CopiedAttempts.read(path) == CopiedAttempts(frozenset({key}))
