"""What points ask of Slurm: shapes, tasks, arrays, options for limits."""

from pathlib import Path

import pytest
from submissions import plan, point, seeds

from wattflow.errors import RefusedError
from wattflow.plan import feasible
from wattflow.plan.points import Point
from wattflow.slurm import shapes
from wattflow.slurm import shapes as slurm_shapes
from wattflow.submit import send

# --- shapes ---------------------------------------------------------------------------------------


def shapes_of(*points: Point) -> list[slurm_shapes.Shape]:
    return slurm_shapes.shapes([(p.point_id, p.config) for p in points])


CAPS = {"cluster__power_caps": {"300": "wf_cap300", "400": "partition=cap400"}}


def test_a_cap_is_asked_for_by_the_sites_feature():
    """300 W is a node feature beside the profile's own, 400 W a partition; each is a shape of its own."""
    asked = {**CAPS, "cluster__constraint": "h100", "cluster__partition": "gpu"}
    points = [
        point(control__power_limit_w=300, **asked),
        point(control__power_limit_w=400, **asked),
        point(**asked),
    ]
    found = [shape.control for shape in shapes_of(*points)]
    assert found == [{"constraint": "h100&wf_cap300"}, {"partition": "cap400"}, {}]
    text = "".join(send.batch_scripts(plan(Path("/s"), *points)))
    lines = [line.split(" ", 1)[1] for line in text.splitlines() if line.startswith("#SBATCH")]
    assert [line for line in lines if "--constraint" in line] == [
        "--constraint='h100&wf_cap300'",
        "--constraint=h100",
        "--constraint=h100",
    ]
    assert [line for line in lines if "--partition" in line] == [
        "--partition=gpu",
        "--partition=cap400",
        "--partition=gpu",
    ]


def test_a_cap_may_be_any_option_of_sbatch():
    """As of Perlmutter's users: #SBATCH --gpu-power=200; the profile's own constraint stays."""
    asked = {"cluster__power_caps": {"200": "gpu-power=200"}, "cluster__constraint": "gpu"}
    capped = point(control__power_limit_w=200, **asked)
    (shape,) = shapes_of(capped)
    assert shape.control == {"gpu-power": "200"}
    (text,) = send.batch_scripts(plan(Path("/s"), capped))
    assert "#SBATCH --gpu-power=200\n" in text
    assert "#SBATCH --constraint=gpu\n" in text


def test_a_clock_is_asked_for_by_gpu_freq():
    """Slurm's own option sets clocks without rights of the user."""
    (text,) = send.batch_scripts(plan(Path("/s"), point(control__sm_clock_mhz=1200)))
    assert "#SBATCH --gpu-freq=1200" in text


def test_the_collect_job_asks_for_no_cap(fake, tmp_path):
    """The job that collects has no GPU to cap."""
    capped = point(control__power_limit_w=300, **CAPS)
    send.submit(plan(tmp_path, capped))
    points, collector = fake.scripts().values()
    assert "wf_cap300" in points
    assert "wf_cap300" not in collector


def test_a_job_that_sets_limits_itself_asks_slurm_for_none():
    """control.by=nvml is for nodes of one's own: sbatch hears nothing of it."""
    asked = {"control__power_limit_w": 300, "control__by": "nvml"}
    (shape,) = shapes_of(point(**asked))
    assert shape.control == {}


def test_a_cap_that_the_site_does_not_offer_is_no_point_to_send():
    """350 W is infeasible where the site offers 300 and 400, and the reason names them."""
    made = point(control__power_limit_w=350, **CAPS)
    assert "offers 300, 400" in feasible.why_not(made.config)
    local = point(control__power_limit_w=350, cluster__launcher="local")
    assert feasible.why_not(local.config) is None


def test_points_that_ask_for_the_same_share_a_shape():
    """Seeds share a shape; another number of shards or another time limit makes another."""
    points = [
        point(seed=1),
        point(seed=2),
        point(shards=2, cluster__gpus_per_node=2),
        point(seed=3, cluster__time_min=5),
    ]
    assert [len(shape.point_ids) for shape in shapes_of(*points)] == [2, 1, 1]


def test_shards_are_spread_over_the_gpus_of_as_few_nodes_as_hold_them():
    """Eight shards on nodes of four GPUs are two nodes with four ranks each; two shards are one node with two."""
    eight, two = (point(shards=n, cluster__gpus_per_node=4) for n in (8, 2))
    assert [(s.nodes, s.ranks_per_node) for s in shapes_of(eight, two)] == [(2, 4), (1, 2)]


@pytest.mark.parametrize(("shards", "nodes"), [(3, 2), (8, 1), (1, 2)])
def test_shards_that_do_not_spread_evenly_are_refused(shards, nodes):
    """Ranks a node times nodes must be shards, and no more than a node's GPUs."""
    with pytest.raises(RefusedError, match=f"shards={shards}.*nodes={nodes}"):
        shapes_of(point(shards=shards, nodes=nodes, cluster__gpus_per_node=4))


def test_tasks_pack_points_and_arrays_hold_no_more_tasks_than_the_site_allows():
    """Nine points, two a task, three tasks an array: 2+2+2 | 2+1."""
    (shape,) = shapes_of(*seeds(9, cluster__points_per_task=2, cluster__max_array_size=3))
    assert [[len(task) for task in array] for array in shape.arrays] == [[2, 2, 2], [2, 1]]


def test_a_block_runs_all_arms_of_a_repeat_in_one_task():
    """Three batch sizes x two repeats are two tasks of three points in the plan's order, with the time of three."""
    chosen = [
        point(batch_size=size, repeat=repeat, sweep__block="board", cluster__time_min=10)
        for size, repeat in ((8, 0), (2, 1), (4, 0), (8, 1), (2, 0), (4, 1))
    ]
    points = [(f"{c.config.batch_size}-{c.config.repeat}", c.config) for c in chosen]
    (shape,) = slurm_shapes.shapes(points)
    assert shape.tasks == [["8-0", "4-0", "2-0"], ["2-1", "8-1", "4-1"]]
    assert shape.cluster.time_min == 30


def test_gpu_hours_are_gpus_times_the_limit_of_every_task():
    """Three tasks of 2 nodes x 2 GPUs and 30 minutes are 6 GPU-hours on 3 node-hours."""
    (shape,) = shapes_of(*seeds(3, shards=4, cluster__gpus_per_node=2, cluster__time_min=30))
    assert (shape.row()["gpu_hours"], shape.row()["node_hours"]) == (6.0, 3.0)


def test_several_shapes_share_what_a_profile_allows():
    """Three shapes of five points, at most four tasks: no shape is rounded up past it."""
    points = [
        point(seed=seed, shards=shards, cluster__gpus_per_node=4, cluster__max_tasks=4)
        for seed in range(5)
        for shards in (1, 2, 4)
    ]
    asked = shapes.fitting(shapes_of(*points))
    assert [len(shape.tasks) for shape in asked] == [1, 1, 1]


# --- side by side ---------------------------------------------------------------------------------


def test_a_node_of_four_gpus_has_as_many_slots_as_a_shapes_points_fit():
    """Points of one, two and three GPUs have four, two and one slots; a task holds as many, or so many times more."""
    asked = {"cluster__side_by_side": True, "cluster__gpus_per_node": 4}
    found = shapes_of(
        *seeds(9, **asked),
        *seeds(3, shards=2, **asked),
        *seeds(1, shards=3, **asked),
        *seeds(1, shards=8, **asked),
    )
    assert [shape.slots for shape in found] == [4, 2, 1, 1]
    assert [[len(task) for task in shape.tasks] for shape in found] == [[4, 4, 1], [2, 1], [1], [1]]
    assert [shape.gpus_per_node for shape in found] == [4, 4, 3, 4]
    (twice,) = shapes_of(*seeds(9, cluster__points_per_task=2, **asked))
    assert [len(task) for task in twice.tasks] == [8, 1]
    row = found[0].row()
    assert (row["slots"], row["node_hours"], row["gpu_hours"]) == (4, 3.0, 12.0)


def test_blocks_stay_whole_beside_each_other():
    """sweep.block=board: each of three repeats is one slot's, two of them a task."""
    asked = {"cluster__side_by_side": True, "cluster__gpus_per_node": 2, "sweep__block": "board"}
    points = [point(seed=s, repeat=r, **asked) for r in range(3) for s in range(2)]
    (shape,) = shapes_of(*points)
    assert [len(task) for task in shape.tasks] == [4, 2]
    assert shape.cluster.time_min == 120


@pytest.mark.parametrize(
    ("over", "why"),
    [
        ({"cluster__launcher": "local"}, "one after another"),
        ({"cluster__container__kind": "pyxis"}, "container"),
        ({"power__meter": "simulated"}, "cannot be separated"),
        ({"engine__device": "cpu"}, "cannot be separated"),
    ],
)
def test_points_that_cannot_share_a_node_say_why(over, why):
    """No launcher for it, no srun, or one meter for all; without the wish there is nothing to say."""
    asked = point(cluster__side_by_side=True, **over)
    assert why in feasible.why_not(asked.config)
    assert "side_by_side" not in str(feasible.why_not(point(**over).config))


def test_the_job_of_a_node_has_one_task_that_leaves_all_to_its_steps():
    """One process with all CPUs and GPUs, whose own step overlaps the points'; alone a rank has its own share."""
    asked = {"cluster__gpus_per_node": 4, "cluster__cpus_per_rank": 3}
    text, alone = (
        send.batch_scripts(plan(Path("/s"), point(cluster__side_by_side=beside, **asked)))[0]
        for beside in (True, False)
    )
    for line in ("--ntasks-per-node=1", "--cpus-per-task=12", "--gpus-per-node=4"):
        assert f"#SBATCH {line}" in text
    assert "export SRUN_CPUS_PER_TASK=12" in text
    assert "--overlap" in text
    assert "--overlap" not in alone
    assert "#SBATCH --gpus-per-node=1" in alone


def test_a_round_of_a_control_is_a_task_of_a_node():
    """Eight repeats in two slots: two tasks of four with the time of three; other numbers of repeats say why not."""
    asked = {"cluster__side_by_side": True, "cluster__gpus_per_node": 2, "cluster__time_min": 10}
    asked |= {"sweep__block": "neighbours", "sweep__repeats": 8}
    points = [point(repeat=r, **asked) for r in range(8)]
    (shape,) = shapes_of(*points)
    assert shape.tasks == [[p.point_id for p in points[:4]], [p.point_id for p in points[4:]]]
    assert shape.cluster.time_min == 30
    assert feasible.why_not(points[0].config) is None
    six = point(**{**asked, "sweep__repeats": 6})
    assert "6 is no multiple of 4" in feasible.why_not(six.config)
    alone = point(**{**asked, "cluster__side_by_side": False})
    assert "needs cluster.side_by_side=true" in feasible.why_not(alone.config)
