"""`wattflow tune`: order, choice and file by known numbers; the whole verb on a CPU with simulated watts."""

import contextlib
import json
import sys
import tempfile
from types import SimpleNamespace

import engine_ranks as tools
import pytest
import torch
from sweeps import START_NS, Gpu, Made, constant, trace_of
from typer.testing import CliRunner

from wattflow import tune
from wattflow.cli.app import app, main
from wattflow.energy.boards import METERED
from wattflow.engine import tuned_kernels
from wattflow.errors import RefusedError
from wattflow.run.device_locks import device_locks
from wattflow.tune import WindowResult

pytest_plugins = ("fake_nvml.fixtures",)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # locks of devices lie there
    torch.set_num_threads(1)


def result(kernels, tokens_per_s, joules):
    """One window: watts and the product of joules and seconds follow from the two."""
    known = joules is not None
    return WindowResult(
        kernels=kernels,
        tokens_per_s=tokens_per_s,
        energy_per_token_j=joules,
        energy_per_token_expanded_u_j=0.07 * joules if known else None,
        edp_js=joules / tokens_per_s if known else None,
        power_w=joules * tokens_per_s if known else None,
        power_expanded_u_w=0.07 * joules * tokens_per_s if known else None,
        bytes_per_s=tokens_per_s * 1e9,
        sm_clock_mhz=None,
        temperature_c=None,
        power_limit_w=None,
        under_cap=None,
    )


def test_the_quickest_the_cheapest_and_the_best_of_both():
    """100 tokens/s at 2 J, 200 at 3 J, 120 at 2.1 J, 90 at 4 J: speed b, energy a, 0.015 Js b; d is dominated."""
    measured = (("a", 100, 2.0), ("b", 200, 3.0), ("c", 120, 2.1), ("d", 90, 4.0))
    frontier = tune.summaries([result(*one) for one in measured])
    assert [one.kernels for one in frontier] == ["b", "c", "a", "d"]
    assert [one.kernels for one in frontier if one.dominated] == ["d"]
    assert [tune.choose(frontier, goal) for goal in ("speed", "energy", "edp")] == ["b", "a", "b"]
    best = {goal: tune.choose(frontier, goal) for goal in tuned_kernels.GOALS}
    assert tune.note(frontier[0], best) == "best by speed, edp"
    assert tune.note(frontier[3], best) == "dominated"


def test_intervals_of_windows():
    """98, 100, 102 tokens/s: mean 100, sd 2, half the 95 % interval 4.303 x 2 / sqrt(3) = 4.97; one window has none."""
    (summary,) = tune.summaries([result("a", v, 1.0) for v in (98.0, 100.0, 102.0)])
    assert summary.tokens_per_s == 100.0
    assert summary.tokens_per_s_half == pytest.approx(4.303 * 2 / 3**0.5)
    assert summary.windows == 3
    assert tune.summaries([result("a", 98.0, 1.0)])[0].tokens_per_s_half is None


def test_a_sets_joules_have_the_sensors_doubt_and_the_scatter():
    """0.98 to 1.02 J/token of one board, 7 % off in all windows alike: 0.07, and 4.303 x 0.02 / sqrt(3), squared."""
    (summary,) = tune.summaries([result("a", 100.0, joules) for joules in (0.98, 1.0, 1.02)])
    half = 4.303 * 0.02 / 3**0.5
    assert summary.energy_per_token_expanded_u_j == pytest.approx(
        (0.07**2 + half**2) ** 0.5, rel=1e-4
    )
    assert summary.power_expanded_u_w == pytest.approx(100 * summary.energy_per_token_expanded_u_j)
    (alone,) = tune.summaries([result("a", 100.0, 1.0)])
    assert alone.energy_per_token_expanded_u_j == pytest.approx(0.07)


@pytest.mark.parametrize(
    ("reference", "power_w", "relative"),
    [
        (None, 150.0, 2 * METERED.relative_u(150.0)),
        (
            {"gain": 0.05, "offset_w": 5.0, "gain_u": 0.004, "offset_u_w": 0.0, "correlation": 0.0, "made": "now"},
            145.0 / 1.05,
            0.008,
        ),
    ],
)  # fmt: skip
def test_a_windows_watts_are_its_boards(reference, power_w, relative):
    """150 W by a sensor, of which nothing is known but 19 other boards, or what a meter beside this one found."""
    made = Made([Gpu("GPU-a", constant(150.0))])
    start_ns = START_NS + 4_000_000_000
    window = SimpleNamespace(
        spans=[(start_ns, start_ns + 5_000_000_000)],
        kernels="a",
        tokens=500,
        bytes_per_step=1,
        steps=1,
    )
    ready = {
        "source": "nvml_buffer",
        "period_ms": 20.0,
        "devices": [
            {"uuid": "GPU-a", "name": "H100", **({"reference": reference} if reference else {})}
        ],
    }
    found = tune.window_result(window, trace_of(made, made.gpus[0]), ready)
    assert found.power_w == pytest.approx(power_w)
    assert found.power_expanded_u_w == pytest.approx(relative * power_w, rel=1e-3)
    assert found.energy_per_token_expanded_u_j == pytest.approx(relative * power_w / 100, rel=1e-3)


def test_without_joules_speed_decides():
    """A sensor that reported nothing in one window leaves no mean, and every goal takes the quickest."""
    measured = (("a", 100, 1.0), ("a", 100, None), ("b", 90, 0.1))
    frontier = tune.summaries([result(*one) for one in measured])
    assert frontier[0].energy_per_token_j is None
    assert {tune.choose(frontier, goal) for goal in tuned_kernels.GOALS} == {"a"}


def test_blocks_hold_each_set_once_in_changing_orders():
    """Twelve blocks of three: each has all three, and not all are in one order; the seed decides."""
    made = tune.order(["a", "b", "c"], 12)
    blocks = [tuple(made[i : i + 3]) for i in range(0, 36, 3)]
    assert all(sorted(block) == ["a", "b", "c"] for block in blocks)
    assert len(set(blocks)) > 2
    assert made == tune.order(["a", "b", "c"], 12)
    assert made != tune.order(["a", "b", "c"], 12, seed=1)


def test_what_cannot_be_tuned_is_refused():
    """Several points, an unknown goal, no time: refused before any work."""
    with pytest.raises(RefusedError, match="--goal power: not one of speed, energy, edp"):
        tune.point_config([], "power", 4, 4.0)
    for seconds in (0.0, float("nan"), float("inf")):
        with pytest.raises(RefusedError, match="take at least one"):
            tune.point_config([], "speed", 4, seconds)
    with pytest.raises(RefusedError, match="name 2 points"):
        tune.point_config(["batch_size=1,2"], "speed", 4, 4.0)


def test_the_verb_measures_chooses_and_keeps(monkeypatch):
    """On a CPU one set runs; its simulated joules are marked, and the engine then finds it by the goal."""
    monkeypatch.chdir(tools.ROOT)
    words = ["model=tiny", "precision=fp32", "batch_size=1", "max_gen_len=16", "power=simulated"]
    options = ["--windows", "2", "--seconds", "0.05"]
    done = CliRunner().invoke(app, ["tune", *words, "engine.device=cpu", *options])
    assert done.exit_code == 0, done.output
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert lines[1][0] == "eager"
    assert lines[1][2].startswith("~")
    assert lines[1][-1] == "best by speed, energy, edp"
    assert lines[2][-1] == "again, in a fresh window"
    (entry,) = json.loads(tuned_kernels.path().read_text()).values()
    assert entry["kernels"] == {"speed": "eager", "energy": "eager", "edp": "eager"}
    assert entry["frontier"][0]["windows"] == 2


CPU = ["model=tiny", "precision=fp32", "batch_size=1", "max_gen_len=8"]
REFUSED = {
    "a GPU is asked for": (["engine.device=cuda"], 1, "sees 0 GPUs there"),
    "no GPU computes beside GPUs": ([], 1, "would compute on the CPU beside 1 GPUs"),
    "a meter of GPUs": (["engine.device=cpu", "power=nvml"], 2, "power.meter=nvml measures GPUs"),
    "another engine": (["engine=synthetic"], 2, "engine=synthetic has one way only"),
}


@pytest.mark.fake_nvml
@pytest.mark.skipif(torch.cuda.is_available(), reason="a torch that computes on GPUs")
@pytest.mark.parametrize("why", REFUSED)
def test_tune_refuses_a_cpu_that_nobody_asked_for(why, fake_driver, monkeypatch, capsys):
    """The CPU's kernels are never kept as those of the node's GPUs: one line, no table, nothing in tuned.json."""
    overrides, code, said = REFUSED[why]
    monkeypatch.chdir(tools.ROOT)
    monkeypatch.setattr(sys, "argv", ["wattflow", "tune", *CPU, *overrides, "--windows", "1"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (code, "")
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not tuned_kernels.path().exists()


def test_tune_waits_for_a_sweep_on_the_same_device(monkeypatch):
    """Another one's lock is taken back when tune says that it waits: nothing is measured before that."""
    monkeypatch.chdir(tools.ROOT)
    words = ["model=tiny", "precision=fp32", "batch_size=1", "max_gen_len=8", "power=simulated"]
    chosen = tune.point_config([*words, "engine=fast", "engine.device=cpu"], "speed", 1, 0.01)
    said: list[str] = []
    with contextlib.ExitStack() as other:
        other.enter_context(device_locks(chosen, other.close))

        def say(text: str) -> None:
            said.append(text)
            other.close()

        tune.tune(chosen, "speed", 1, 0.01, say)
    assert said[0] == "waiting for another sweep on this machine"
    assert said[1].startswith("eager: ")
