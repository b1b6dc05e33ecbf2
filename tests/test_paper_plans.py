"""From the paper's grids to submits: names, least hardware, what is missing and what is shared."""

import pytest
from sweeps import Gpu, Made, choices, make_attempt, make_sweep

from wattflow.config.choices import to_dict
from wattflow.errors import RefusedError
from wattflow.paper import plans
from wattflow.paper.objects import chosen


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Nothing was run."""
    monkeypatch.chdir(tmp_path)


def test_only_the_grids_that_an_object_needs():
    """Figure 4 needs paper-scaling, whose command is an ordinary submit."""
    (part,) = plans.parts("cpu", [], chosen(["fig4"]))
    assert part.grid == "paper-scaling"
    assert part.command[:4] == [
        "wattflow",
        "submit",
        "grid=paper-scaling",
        "sweep.name=paper-cpu-scaling-local",
    ]
    assert [one.name for one in part.objects] == [f"fig{n}" for n in range(4, 10)]
    assert (len(part.missing), part.done) == (6, 0)


@pytest.mark.parametrize(
    ("cluster", "shards"), [("example-v100", {1, 2, 8}), ("example-a100", {1, 4})]
)
def test_least_hardware_is_that_of_table_two(cluster, shards):
    """By the memory model: 1, 2 and 8 V100s with 32 GB, and 1, 1 and 4 A100s with 80 GB, as the paper has."""
    (part,) = plans.parts("full", [f"cluster={cluster}"], chosen(["fig2"]))
    assert {point.config.shards for point in part.plan.points} == shards
    assert part.plan.name == f"paper-full-baseline-{cluster}"
    largest = {p.config.shards for p in part.plan.points if p.config.model.name == "llama-65b"}
    assert largest == {max(shards)}


def test_overrides_stand_in_the_place_of_the_scales():
    """A caller's model is run in the place of the scale's; each cluster has a sweep of its own."""
    (part,) = plans.parts("cpu", ["model.n_layers=3"], chosen(["fig4"]))
    assert {point.config.model.n_layers for point in part.plan.points} == {3}
    both = plans.parts("full", ["cluster=example-a100,example-v100"], chosen(["table5"]))
    assert [one.plan.name for one in both] == [
        "paper-full-shards-example-a100",
        "paper-full-shards-example-v100",
    ]


@pytest.mark.parametrize("override", ["grid=demo", "sweep=x", "sweep.name=x", "sweep.zip=[]"])
def test_names_of_grids_and_sweeps_are_not_the_callers(override):
    """They are the verb's own; `wattflow submit` takes any."""
    with pytest.raises(RefusedError, match="names its own grids and sweeps"):
        plans.parts("cpu", [override], chosen(None))


def test_a_point_that_two_grids_share_is_sent_once(tmp_path):
    """In one call, and where another sweep of the scale tried it before."""
    baseline, scaling, lengths, shards = plans.parts("cpu", [], chosen(None))
    assert [len(one.missing) for one in (baseline, scaling, lengths, shards)] == [6, 5, 0, 0]
    shared = {p.point_id: p for p in baseline.plan.points}.keys() & {
        p.point_id for p in scaling.plan.points
    }
    (point_id,) = shared
    point = next(p for p in baseline.plan.points if p.point_id == point_id)
    sweep = make_sweep(baseline.plan.sweep.path, [to_dict(point.config)])
    make_attempt(sweep, to_dict(point.config), Made([Gpu("GPU-a")]))
    (alone,) = plans.parts("cpu", [], chosen(["fig4"]))
    assert (len(alone.missing), alone.done) == (5, 1)
    assert point_id not in alone.missing


def test_sweeps_of_a_scale_are_found_by_name(tmp_path):
    """Those of another scale or grid are none."""
    for name in ("paper-cpu-scaling-local", "paper-cpu-baseline-x", "paper-full-scaling-local"):
        make_sweep(tmp_path / "sweeps" / name, [choices()])
    (tmp_path / "sweeps" / "paper-cpu-caps-empty").mkdir()
    found = plans.sweeps_of("cpu", tmp_path / "sweeps")
    assert [one.name for one in found] == ["paper-cpu-baseline-x", "paper-cpu-scaling-local"]
    (one,) = plans.sweeps_of("cpu", tmp_path / "sweeps", "paper-scaling")
    assert one.name == "paper-cpu-scaling-local"


def test_what_is_missing_is_sent_and_the_rest_is_listed(tmp_path, monkeypatch):
    """A dry run sends nothing; what cannot run is counted."""
    (part,) = plans.parts("full", ["cluster=example-v100"], chosen(["table3"]))
    assert not part.missing
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    result = plans.submit(part, dry_run=True)
    assert (result.points, result.infeasible) == (0, 27)
    assert not part.plan.sweep.path.exists()
