"""Which of two settings costs less, from sweeps on disk whose joules are known by hand."""

import json

import pytest
from sweeps import Gpu, Made, choices, constant, make_attempt, make_sweep

from wattflow import open_sweep
from wattflow.analysis.cheapest import cheapest
from wattflow.analysis.pareto import pareto
from wattflow.cli.app import main
from wattflow.collect.collect import collect
from wattflow.errors import RefusedError

FIGURES = ("energy_per_token_j", "power_w")  # of the front


def compared(tmp_path, boards_of_four):
    """A sweep of batches 2 and 4 with three repeats each; 100 W and 90 W, on boards of 0, +10 and -10 %."""
    gains = {"GPU-a": 1.0, "GPU-b": 1.1, "GPU-c": 0.9, "GPU-d": 1.0, "GPU-e": 1.1, "GPU-f": 0.9}
    plan = [(2, 100.0, ["GPU-a", "GPU-b", "GPU-c"]), (4, 90.0, boards_of_four)]
    points = [
        (choices(batch_size=size, repeat=k), Gpu(board, constant(watts * gains[board])))
        for size, watts, boards in plan
        for k, board in enumerate(boards)
    ]
    sweep = make_sweep(tmp_path / "s", [point for point, _ in points])
    for point, gpu in points:
        make_attempt(sweep, point, Made([gpu]))
    collect(sweep)
    return open_sweep(sweep.path)


def test_boards_that_ran_both_settings_cancel(tmp_path):
    """10 % less on each of three boards that differ by 10 %: 0.9 exactly, paired and established."""
    first, second = compared(tmp_path, ["GPU-a", "GPU-b", "GPU-c"]).compare("batch_size").to_dicts()
    assert first["ratio"] is None
    assert second["ratio"] == pytest.approx(0.9, rel=1e-4)
    assert (second["how"], second["established"]) == ("paired", True)
    assert (first["n"], first["boards"]) == (3, 3)
    assert first["mean"] == pytest.approx(595 / 200 * 100 / 70, rel=1e-3)


def test_other_boards_establish_nothing_small(tmp_path):
    """The same joules from other boards are no difference of 10 %: the interval holds 1."""
    told = compared(tmp_path, ["GPU-d", "GPU-e", "GPU-f"]).compare("batch_size", reference=2)
    assert told["how"].to_list() == [None, "between boards"]
    assert told["established"].to_list() == [None, False]


@pytest.mark.parametrize(
    ("by", "metric", "why"),
    [
        ("colour", "energy_per_token_j", "--by colour: not a choice"),
        ("batch_size", "gpu_name", "--metric gpu_name: not a number"),
        ("seed", "energy_per_token_j", "a comparison needs two"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, by, metric, why):
    """A column that is no choice, one that is no number, and a choice with one value."""
    with pytest.raises(RefusedError, match=why):
        compared(tmp_path, ["GPU-a", "GPU-b", "GPU-c"]).compare(by, metric)


def test_the_command_prints_ratio_and_verdict(tmp_path, capsys, monkeypatch):
    """`wattflow compare` shows a row an arm with its interval, and how the ratio was found."""
    sweep = compared(tmp_path, ["GPU-a", "GPU-b", "GPU-c"])
    monkeypatch.setattr(
        "sys.argv", ["wattflow", "compare", str(sweep.directory.path), "--by", "batch_size"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    head, base, other = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert head[0] == "batch_size"
    assert base[-1] == "reference"
    assert other[-1] == "paired: established"
    assert other[-2].startswith("3 and 3 runs on the same boards; sensors as of 19 metered boards")
    assert "0.9000" in other


def test_simulated_joules_establish_nothing(tmp_path):
    """120 W and 90 W on one board, three repeats each: plain if measured, and no difference where made up."""
    for source, boundary, established in (
        ("nvml_buffer", "gpu", True),
        ("simulated", "host", False),
    ):
        points = [choices(batch_size=size, repeat=k) for size in (2, 4) for k in range(3)]
        sweep = make_sweep(tmp_path / source, points)
        for point in points:
            gpu = Gpu("GPU-a", constant(120.0 if point["batch_size"] == 2 else 90.0))
            make_attempt(sweep, point, Made([gpu], source=source, boundary=boundary, counter=False))
        collect(sweep)
        opened = open_sweep(sweep.path)
        told = opened.compare("batch_size").to_dicts()[1]
        assert (told["established"], told["why_not"]) == (
            established,
            None if established else "simulated",
        )
        assert opened.compare("batch_size", "tokens_per_s").to_dicts()[1]["why_not"] != "simulated"


def confounded(tmp_path, *moves):
    """A sweep of bf16 with batch 4 at 400 W and fp32 with batch 2 at 100 W; `moves` go along, too."""
    alike, other = ({"precision": p, "batch_size": s} for p, s in (("bf16", 4), ("fp32", 2)))
    other |= dict(moves)
    points = [choices(**of, repeat=k) for of in (alike, other) for k in range(3)]
    sweep = make_sweep(tmp_path / "s", points)
    for point in points:
        watts = 100.0 if point["precision"] == "fp32" else 400.0
        make_attempt(sweep, point, Made([Gpu(f"GPU-{point['repeat']}", constant(watts))]))
    collect(sweep)
    return open_sweep(sweep.path)


def test_what_moves_along_is_named_in_the_verdict(tmp_path, capsys):
    """fp32 with batch 2 costs a quarter; that is said of both."""
    sweep = confounded(tmp_path)
    row = sweep.compare("precision").to_dicts()[1]
    assert row["ratio"] == pytest.approx(0.25, rel=1e-3)
    assert (row["established"], row["moves_along"]) == (True, "batch_size 2 against 4")
    ended, out, _ = verb(capsys, "compare", sweep, "--by", "precision")
    assert not ended
    assert out.splitlines()[2].endswith(
        "established, of precision together with batch_size 2 against 4"
    )


def on_another_machine(tmp_path, change, **over):
    """Batch 2 at 300 W and batch 4 at 200 W on one board, three repeats each; `change` the records of batch 4."""
    points = [
        choices(batch_size=size, repeat=k, **(over if size == 4 else {}))
        for size in (2, 4)
        for k in range(3)
    ]
    sweep = make_sweep(tmp_path / "s", points)
    for i, point in enumerate(points):
        watts = 300.0 if point["batch_size"] == 2 else 200.0
        made = Made([Gpu("GPU-a", constant(watts + point["repeat"]))], started_s=60.0 * i)
        attempt = make_attempt(sweep, point, made)
        if point["batch_size"] == 4:
            record = json.loads(attempt.record_path.read_text())
            change(record)
            attempt.record_path.write_text(json.dumps(record))
    collect(sweep)
    return open_sweep(sweep.path)


def test_how_a_site_starts_one_setting_is_named(tmp_path):
    """Clocks that an option of Slurm lowered for batch 4 alone may make the difference."""
    options = {"cluster__sbatch_options": {"gpu-freq": "low"}}
    sweep = on_another_machine(tmp_path, lambda record: None, **options)
    row = sweep.compare("batch_size").to_dicts()[1]
    assert row["moves_along"] == 'cluster_sbatch_options {"gpu-freq": "low"} against {}'
    (found,) = cheapest(sweep.points)
    assert (found.setting, found.not_established) == ("batch_size 4", ["batch_size 2"])
    states = {one.chosen["batch_size"]: one.state for one in pareto(sweep.points, *FIGURES)}
    assert states == {4: "front", 2: "not established"}


def test_two_models_of_gpu_establish_nothing(tmp_path):
    """A third fewer joules on an A100 than on an H100 are not known to be those of the batch size."""

    def change(record):
        for device in record["nodes"][0]["devices"]:
            device["name"] = "NVIDIA A100-SXM4-80GB"

    sweep = on_another_machine(tmp_path, change)
    row = sweep.compare("batch_size").to_dicts()[1]
    assert (row["established"], row["why_not"]) == (False, "two models of GPU")
    assert row["moves_along"] == "gpu_name NVIDIA A100-SXM4-80GB against NVIDIA H100 80GB HBM3"
    (found,) = cheapest(sweep.points)
    assert (found.setting, found.not_established) == ("batch_size 4", ["batch_size 2"])
    states = {one.chosen["batch_size"]: one.state for one in pareto(sweep.points, *FIGURES)}
    assert states == {4: "front", 2: "not established"}


def test_other_software_is_named(tmp_path):
    """Another driver and torch are said beside the ratio; neither can be named by --with, and none has to be."""

    def change(record):
        record["versions"]["torch"] = "1.0.0"
        record["nodes"][0]["driver"] = "400.1"

    row = on_another_machine(tmp_path, change).compare("batch_size").to_dicts()[1]
    assert row["established"]
    assert row["moves_along"] == (
        "driver 400.1 against 580.159.04, versions.torch 1.0.0 against 2.13.0"
    )


@pytest.mark.parametrize("by", ["precision", "batch_size", "temperature"])
def test_two_choices_that_nobody_named_are_refused(tmp_path, capsys, by):
    """With a temperature that moves too, no ratio is made until both are named."""
    sweep = confounded(tmp_path, ("temperature", 0.5))
    ended, out, talk = verb(capsys, "compare", sweep, "--by", by)
    others = [name for name in ("batch_size", "precision", "temperature") if name != by]
    assert (ended, out) == (2, "")
    assert f"{by}: {', '.join(others)} move along with it" in talk
    assert f"--with {','.join(others)}" in talk
    ended, out, _ = verb(capsys, "compare", sweep, "--by", by, "--with", ",".join(others))
    assert not ended
    assert all(name in out.splitlines()[2] for name in others)


def test_null_is_a_value_that_is_compared(tmp_path, capsys):
    """Boards as found stand last, and can be the reference."""
    points = [choices(control__power_limit_w=cap, repeat=k) for cap in (None, 300) for k in (0, 1)]
    sweep = make_sweep(tmp_path / "s", points)
    for point in points:
        cap = point["control"]["power_limit_w"]
        gpu = Gpu("GPU-a", constant(float(cap or 400)))
        make_attempt(sweep, point, Made([gpu], limit_w=cap))
    collect(sweep)
    opened = open_sweep(sweep.path)
    rows = opened.compare("control_power_limit_w", reference="null").to_dicts()
    assert [row["control_power_limit_w"] for row in rows] == [300, None]
    assert rows[0]["ratio"] == pytest.approx(0.75, rel=1e-3)
    assert opened.compare("control_power_limit_w").to_dicts()[1]["ratio"] == pytest.approx(
        4 / 3, rel=1e-3
    )


def verb(capsys, name, sweep, *words):
    """What a verb printed of a sweep, and its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["wattflow", name, str(sweep.directory.path), *words])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code or 0, *capsys.readouterr()
