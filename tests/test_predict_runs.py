"""Runs of sweeps as a fit needs them, boards apart, and what is predicted of planned points."""

import shutil
from dataclasses import replace

import numpy as np
import predictions
import pytest
from predictions import config, grid
from sweeps import Gpu, Made, choices, collected

from wattflow.analysis.sweep import open_sweep
from wattflow.errors import RefusedError
from wattflow.plan.grid import plan
from wattflow.predict.form import Fabric
from wattflow.predict.runs import measured_of, model_of


def runs_of(points):
    rng = np.random.default_rng(0)
    return [predictions.run(point, rng) for point in points]


@pytest.fixture(scope="module")
def model():
    return model_of(runs_of(grid()))


def test_runs_are_read_from_a_sweep(tmp_path):
    """Their seconds, joules, prompts' mean length and ceilings; those of a copy once."""
    words = (
        "cluster=local",
        "model=tiny",
        "engine=synthetic",
        "n_prompts=8",
        "batch_size=4,8",
        "max_gen_len=8",
    )
    made = plan([*words, "sweep.repeats=1", "sweep=s", f"sweeps_dir={tmp_path}"])
    found = measured_of(predictions.run_sweep(made))
    assert len(found) == 2
    copied = shutil.copytree(tmp_path / "s", tmp_path / "copy")
    assert len(measured_of(open_sweep([tmp_path / "s", copied]))) == 2
    for one in found:
        seconds, joules = predictions.truth(one.config)
        assert one.seconds == pytest.approx(seconds * predictions.SLOWER, rel=1e-3)
        assert one.joules == pytest.approx(joules * predictions.SLOWER, rel=1e-2)
        assert one.prompt_tokens == pytest.approx(10.0)
        assert one.ceilings == predictions.CEILINGS


def test_simulated_joules_and_rows_without_ceilings_are_not_learnt_from(tmp_path):
    """A prediction from them would be of nothing."""
    made = [Made([Gpu("GPU-1")], source="simulated"), Made([Gpu("GPU-1")])]
    sweep = collected(tmp_path / "s", made, [choices(batch_size=2), choices(batch_size=4)])
    assert measured_of(sweep) == []
    with pytest.raises(RefusedError, match="copy_bytes_per_s"):
        model_of([])


def test_boards_have_fits_of_their_own(model):
    """Another precision, engine or cap that never ran is not predicted."""
    made, why = model.predict(config("7b", 2, 100))
    assert made is not None
    assert why is None
    for other in (
        config(precision="fp8"),
        replace(config(), control=replace(config().control, power_limit_w=300)),
        replace(config(), engine=replace(config().engine, name="paper")),
    ):
        made, why = model.predict(other)
        assert made is None
        assert "no finished run of" in why


@pytest.mark.parametrize("other", [{"gpu_name": "another"}, {"boundary": "module"}])
def test_two_gpus_or_two_boundaries_under_one_profile_have_no_fit(other):
    """A profile need not name its GPU; what the driver and the sensor say holds runs apart."""
    runs = runs_of(grid())
    with pytest.raises(RefusedError, match="no fit together"):
        model_of([replace(runs[0], **other), *runs[1:]])


def test_a_dataset_whose_prompts_are_not_known_is_not_predicted(model):
    """Nor a length that depends on the answers."""
    point = config()
    assert (
        "dataset=gsm8k"
        in model.predict(replace(point, dataset=replace(point.dataset, name="gsm8k")))[1]
    )
    assert "stop=eos" in model.predict(replace(point, stop="eos"))[1]


def test_more_shards_than_were_measured_are_a_scenario_of_a_declared_fabric(model):
    """Without one they are refused; with one there is no interval, and a slower fabric costs more."""
    point = config("13b", 8, 64, shards=4)
    made, why = model.predict(point)
    assert made is None
    assert "--fabric" in why
    fast, slow = (
        replace(model, fabric=Fabric(8e-6, rate)).predict(point)[0] for rate in (350e9, 10e9)
    )
    assert fast.joules.low is None
    assert slow.seconds.value > fast.seconds.value
    assert slow.joules.value > fast.joules.value
    seen = replace(model, fabric=Fabric(8e-6, 350e9)).predict(config("13b", 8, 64))[0]
    assert seen.joules.low is not None


def test_a_board_of_too_few_configurations_says_so():
    """And is no reason to refuse the others."""
    runs = runs_of([*grid(), config(precision="fp8")])
    model = model_of(runs)
    assert len(model.boards) == 1
    (why,) = model.why_not.values()
    assert "1 configurations" in why
    with pytest.raises(RefusedError, match="1 configurations"):
        model_of(runs[-1:])
