"""The end of a followed sweep: its table, and what it leaves out."""

from sweeps import Gpu, Made, choices, make_attempt, make_sweep

from wattflow.cli import closing


def test_the_closing_table_says_which_finished_points_it_leaves_out(tmp_path, capsys):
    """A finished point whose trace is gone is named with its reason; one that counts is not."""
    points = [choices(repeat=0), choices(repeat=1)]
    sweep = make_sweep(tmp_path / "s", points)
    good, bad = (make_attempt(sweep, point, Made([Gpu("GPU-1")])) for point in points)
    bad.trace_path("node1", "GPU-1").unlink()
    closing.close(sweep)
    told = capsys.readouterr().err
    assert f"{bad.point_id} finished and does not count: A GPU of the job has no trace" in told
    assert good.point_id not in told
