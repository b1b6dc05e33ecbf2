"""Points in a real Apptainer's image on a real Slurm, with another Python inside: WATTFLOW_CONTAINERS names the folder.

tests/apptainer.sh makes it, in two minutes and with 0.7 GB, which is why the default run does without.
"""

import os
import shutil
from pathlib import Path

import pytest
from slurm_sweeps import QUICK, fresh, plan, states, until, with_cluster

from wattflow.config.choices import Container
from wattflow.store.files import read_json
from wattflow.submit import journal, send

FOLDER = os.environ.get("WATTFLOW_CONTAINERS")
CHECKOUT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(FOLDER is None, reason="WATTFLOW_CONTAINERS is not set: tests/apptainer.sh"),
]


@pytest.fixture
def site(tmp_path):
    """A folder with wattflow and links to the packages that the image lacks."""
    packages = Path(FOLDER) / "packages"
    made = tmp_path / "packages of mine"
    made.mkdir()
    for entry in packages.iterdir():
        (made / entry.name).symlink_to(entry)
    for name in ("wattflow", "conf"):
        shutil.copytree(CHECKOUT / name, made / name)
    return made


def test_points_run_in_an_image_and_are_collected_there(cluster, tmp_path, site):
    """Three points of an array in a sweep whose path needs quotes: done, by the image's Python, collected by a job."""
    container = Container(
        kind="apptainer",
        image=f"{FOLDER}/image",
        pythonpath=str(site),
        binds=[f"{FOLDER}/packages"],
        options=["--userns"],
    )
    made = plan(tmp_path / "two words", *QUICK, "seed=1,2,3", "sweep=inside")
    path = f"export PATH={FOLDER}/apptainer/usr/bin:$PATH"
    made = with_cluster(made, container=container, setup=[path])
    send.submit(made)
    until(lambda: not states(made.sweep) & {"waiting", "running"})
    assert states(made.sweep) == {"done"}, fresh(made.sweep)
    until(made.sweep.points_path.is_file)
    for point in made.points:
        (attempt,) = made.sweep.attempts(point.point_id)
        assert read_json(attempt.record_path)["versions"]["python"].startswith("3.12")
    collect = next(sent for sent in journal.read(made.sweep) if sent.kind == "collect")
    assert (collect.folder / f"{collect.job_id}_0_result.pkl").is_file()
