"""Power limits and clocks set for a job: the prior value returns, whatever ends it. No card is touched."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest
from fake_nvml import curves
from processes import until

from wattflow.config.choices import Control, Power
from wattflow.errors import PowerError
from wattflow.power.control import GpuControl, Journal, restore, restore_left
from wattflow.power.nvml_calls import call
from wattflow.power.sidecar_client import Sidecar
from wattflow.store.layout import AttemptDir

pytest_plugins = ("fake_nvml.fixtures",)

SITE_MW = 500_000  # what this site runs its 700 W boards at
UUIDS = [curves.uuid("n1", index) for index in range(2)]
GONE = "GPU-00000000-1111-2222-3333-444444444444"


@pytest.fixture
def board(tmp_path, nvml_path, monkeypatch):
    """The fake GPUs' limits and clocks on disk, as they outlive processes: a function that tells them."""
    folder = tmp_path / "board"
    folder.mkdir()
    for uuid in UUIDS:
        (folder / uuid).write_text(f"{SITE_MW} 0\n")
    monkeypatch.setenv("FAKE_NVML_STATE", str(folder))

    def told():
        return [tuple(map(int, (folder / uuid).read_text().split())) for uuid in UUIDS]

    return told


@pytest.fixture
def driver(board, fake_driver):
    """NVML open in this process."""
    call("nvmlInit")
    yield board
    call("nvmlShutdown")


@pytest.fixture
def journals(tmp_path):
    return tmp_path / "journals"


def control(journals, **asked):
    return Control(journal_dir=str(journals), **asked)


def left(journals):
    return sorted(path.name for path in journals.glob("*.json"))


class TestGpuControl:
    def test_nothing_is_set_where_the_prior_value_is_none(self, driver, journals, tmp_path):
        """-1 as a whole number without sign could never be put back."""
        (tmp_path / "board" / UUIDS[0]).write_text("4294967295 0\n")
        with pytest.raises(PowerError, match="to which nothing could be put back"):
            GpuControl(control(journals, power_limit_w=300), UUIDS[:1])
        assert left(journals) == []
        assert driver()[1] == (SITE_MW, 0)

    def test_the_prior_value_returns_not_the_default(self, driver, journals):
        """500 W becomes 300 W for the job and 500 W again, not the maker's 700 W."""
        held = GpuControl(control(journals, power_limit_w=300), UUIDS)
        assert driver() == [(300_000, 0), (300_000, 0)]
        assert [row["prior_limit_w"] for row in held.controlled] == [500.0, 500.0]
        assert [row["limit_in_force_w"] for row in held.controlled] == [300.0, 300.0]
        held.release()
        assert driver() == [(SITE_MW, 0), (SITE_MW, 0)]
        assert left(journals) == []

    def test_clocks_are_locked_and_free_again(self, driver, journals):
        """Clocks are locked at 1,200 MHz for the job and unlocked after it; the limit is left alone."""
        held = GpuControl(control(journals, sm_clock_mhz=1200), UUIDS[:1])
        assert driver() == [(SITE_MW, 1200), (SITE_MW, 0)]
        held.release()
        assert driver() == [(SITE_MW, 0), (SITE_MW, 0)]

    def test_out_of_bounds_is_refused_before_anything_is_set(self, driver, journals):
        """150 W is below what the board takes: the bounds are told, no GPU is touched."""
        with pytest.raises(PowerError, match="takes 200 to 700 W"):
            GpuControl(control(journals, power_limit_w=150), UUIDS)
        assert driver() == [(SITE_MW, 0)] * 2
        assert left(journals) == []

    def test_no_permission_leaves_nothing(self, driver, journals, monkeypatch):
        """An ordinary user is told what is needed; no journal stays."""
        monkeypatch.setenv("FAKE_NVML_DENY", "nvmlDeviceSetGpuLockedClocks")
        with pytest.raises(PowerError, match="needs root or CAP_SYS_ADMIN"):
            GpuControl(control(journals, power_limit_w=300, sm_clock_mhz=1200), UUIDS)
        assert driver()[1] == (SITE_MW, 0)

    def test_silent_clipping_is_read_back(self, driver, journals, monkeypatch):
        """A board that takes 400 W for 300 W without a word is told as 400 W in force."""
        monkeypatch.setenv("FAKE_NVML_LEAST_W", "400")
        held = GpuControl(control(journals, power_limit_w=300), UUIDS[:1])
        assert held.controlled[0]["limit_in_force_w"] == 400.0
        held.release()
        assert driver()[0] == (SITE_MW, 0)

    def test_two_jobs_never_hold_one_gpu(self, driver, journals):
        """A second job is refused while the first one holds a GPU, and takes it afterwards."""
        first = GpuControl(control(journals, power_limit_w=300), UUIDS[:1])
        with pytest.raises(PowerError, match="another job"):
            GpuControl(control(journals, power_limit_w=400), UUIDS[:1])
        assert driver()[0] == (300_000, 0)
        first.release()
        GpuControl(control(journals, power_limit_w=400), UUIDS[:1]).release()
        assert driver()[0] == (SITE_MW, 0)

    def test_a_failed_restore_keeps_the_journal(self, driver, journals, monkeypatch, caplog):
        """Where the prior value cannot be put back, the journal stays, and `restore` does it later."""
        held = GpuControl(control(journals, power_limit_w=300), UUIDS[:1])
        monkeypatch.setenv("FAKE_NVML_DENY", "nvmlDeviceSetPowerManagementLimit")
        held.release()
        assert "wattflow restore" in caplog.text
        assert left(journals) == [f"{UUIDS[0]}.json"]
        monkeypatch.delenv("FAKE_NVML_DENY")
        assert restore(control(journals)) == [UUIDS[0]]
        assert driver()[0] == (SITE_MW, 0)

    def test_a_gpu_that_is_gone_is_named_with_its_journal(self, driver, journals):
        """`restore` says which GPU NVML does not show and where its journal lies, and puts the others back."""
        GpuControl(control(journals, power_limit_w=300), UUIDS[:1]).release()
        Journal(GONE, SITE_MW, 300_000, None).write(journals)
        Journal(UUIDS[0], SITE_MW, 300_000, None).write(journals)
        with pytest.raises(PowerError, match=rf"{GONE}: its prior .*{GONE}\.json stays"):
            restore(control(journals))
        assert left(journals) == [f"{GONE}.json"]

    def test_another_tool_that_changed_the_limit_is_overruled(self, driver, journals, tmp_path):
        """What another tool set meanwhile goes: what was found before the job comes back."""
        held = GpuControl(control(journals, power_limit_w=300), UUIDS[:1])
        (tmp_path / "board" / UUIDS[0]).write_text("650000 0\n")
        held.release()
        assert driver()[0] == (SITE_MW, 0)

    def test_no_journal_no_cap(self, driver, tmp_path):
        """A folder that others may write to is refused, and nothing is set."""
        shared = tmp_path / "shared"
        shared.mkdir()
        shared.chmod(0o777)
        with pytest.raises(PowerError, match="mode 0700"):
            GpuControl(control(shared, power_limit_w=300), UUIDS)
        assert driver() == [(SITE_MW, 0)] * 2

    def test_a_link_for_a_folder_is_refused(self, driver, tmp_path):
        """A link that stands where the journals belong is not followed."""
        (tmp_path / "real").mkdir(mode=0o700)
        (tmp_path / "link").symlink_to(tmp_path / "real")
        with pytest.raises(PowerError, match="mode 0700"):
            GpuControl(control(tmp_path / "link", power_limit_w=300), UUIDS)

    def test_a_damaged_journal_is_named(self, driver, journals):
        """A journal that cannot be read stops the job: what was there before is not known."""
        GpuControl(control(journals, power_limit_w=300), UUIDS[:1]).release()
        (journals / f"{UUIDS[0]}.json").write_text('{"prior_mw"')
        with pytest.raises(PowerError, match="nvidia-smi -q -d POWER"):
            GpuControl(control(journals, power_limit_w=300), UUIDS[:1])
        with pytest.raises(PowerError, match="not readable"):
            restore_left(journals)
        assert driver()[0] == (SITE_MW, 0)

    def test_foreign_names_are_passed_over(self, driver, journals):
        """A file whose name is no UUID names no GPU, whatever it holds."""
        journals.mkdir(mode=0o700)
        (journals / "GPU-;rm.json").write_text('{"prior_mw": 1}')
        assert restore_left(journals) == []


STEPS = """
import os, signal, sys
from pathlib import Path
import pynvml
from wattflow.config.choices import Control
from wattflow.power import control

folder, uuid, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
step = 0

def counted(function):
    def call(*arguments, **options):
        global step
        step += 1
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

pynvml.nvmlInit()
for name in [name for name in dir(pynvml) if name.startswith("nvmlDevice")]:
    setattr(pynvml, name, counted(getattr(pynvml, name)))
for name in ("open", "write", "fsync", "close"):
    setattr(os, name, counted(getattr(os, name)))
Path.replace = counted(Path.replace)
Path.unlink = counted(Path.unlink)
held = control.GpuControl(Control(power_limit_w=300, sm_clock_mhz=1200, journal_dir=folder), [uuid])
held.release()
print(step)
"""


def killed_at(journals, step):
    """Hold and release in a process that is killed before its step-th step; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(journals), UUIDS[0], str(step)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == (0 if done.stdout else -signal.SIGKILL), done.stderr
    return done.stdout


def test_a_kill_between_every_two_steps_loses_no_prior_value(driver, journals):
    """Killed before each of its steps, a job leaves what the next comer needs to bring 500 W and free clocks back."""
    steps = int(killed_at(journals, 0))
    assert steps > 15
    leaked = 0
    for step in range(1, steps + 1):
        assert killed_at(journals, step) == ""
        leaked += driver()[0] != (SITE_MW, 0)
        if journals.is_dir():
            restore(control(journals))
        assert driver()[0] == (SITE_MW, 0), f"killed before step {step}"
        assert left(journals) == []
    assert leaked >= 3


@pytest.mark.parametrize(
    "next_job", [{"power_limit_w": 400}, {"power_limit_w": 300, "sm_clock_mhz": 1200}]
)
def test_a_kill_and_a_new_job_keep_the_first_prior_value(driver, journals, next_job):
    """After a kill at 300 W the next job finds 300 W on the board, and yet puts 500 W back, whatever it asks itself."""
    leaked = 0
    for step in range(10, 20):  # around the two settings
        assert killed_at(journals, step) == ""
        leaked += driver()[0] != (SITE_MW, 0)
        GpuControl(control(journals, **next_job), UUIDS[:1]).release()
        assert driver()[0] == (SITE_MW, 0), f"killed before step {step}"
    assert leaked >= 3


class TestSidecar:
    """The whole path: a sidecar sets, records and puts back."""

    @pytest.fixture
    def attempt(self, tmp_path):
        attempt = AttemptDir(tmp_path / "attempt-1", "0123456789ab", 1)
        attempt.path.mkdir()
        attempt.make_folders()
        return attempt

    def sidecar(self, tmp_path, **asked):
        asked = control(tmp_path / "journals", **asked)
        return Sidecar(Power(meter="nvml"), "n1", tmp_path / "spool", asked)

    def test_set_recorded_and_put_back(self, board, attempt, tmp_path):
        """The cap is in force when the sidecar is ready, is told in its word, and is gone when it has stopped."""
        with self.sidecar(tmp_path, power_limit_w=300) as sidecar:
            ready = sidecar.start(attempt)
            assert board() == [(300_000, 0)] * 2
            assert [told["uuid"] for told in ready["control"]] == UUIDS
            sidecar.stop()
        until(lambda: board() == [(SITE_MW, 0)] * 2)

    def test_a_killed_sidecar_comes_back_and_still_knows_the_prior_value(
        self, board, attempt, tmp_path
    ):
        """SIGKILL of the sidecar: its successor goes on under the cap, and puts 500 W back at the end."""
        with self.sidecar(tmp_path, power_limit_w=300) as sidecar:
            sidecar.start(attempt)
            os.kill(sidecar.pid, signal.SIGKILL)
            until(lambda: list((tmp_path / "spool").glob("*.1.arrow")))  # the successor records
            assert sidecar.restarts == 1
            assert board() == [(300_000, 0)] * 2
            sidecar.stop()
        until(lambda: board() == [(SITE_MW, 0)] * 2)

    def test_a_failed_run_puts_back(self, board, attempt, tmp_path):
        """A sidecar that is told to end by SIGTERM, as when its parent dies, puts the limit back first."""
        with self.sidecar(tmp_path, power_limit_w=300) as sidecar:
            sidecar.start(attempt)
            os.kill(sidecar.pid, signal.SIGTERM)
            until(lambda: board() == [(SITE_MW, 0)] * 2)

    def test_a_run_that_ends_without_a_stop_puts_back(self, board, attempt, tmp_path):
        """A run that fails, or is told to end, closes its sidecar at once: the limit returns, and no journal stays."""
        sidecar = self.sidecar(tmp_path, power_limit_w=300, sm_clock_mhz=1200)
        sidecar.start(attempt)
        assert board() == [(300_000, 1200)] * 2
        sidecar.close()
        assert board() == [(SITE_MW, 0)] * 2
        assert left(tmp_path / "journals") == []

    def test_the_next_sidecar_puts_back_what_a_killed_node_left(self, board, attempt, tmp_path):
        """After all processes of a job were killed, the next job, which asks for no cap, brings the limit back."""
        folder = tmp_path / "journals"
        folder.mkdir(mode=0o700)
        Journal(UUIDS[1], SITE_MW, 300_000, 1200).write(folder)
        (tmp_path / "board" / UUIDS[1]).write_text("300000 1200\n")
        with self.sidecar(tmp_path) as sidecar:
            sidecar.start(attempt)
            assert board() == [(SITE_MW, 0)] * 2
            sidecar.stop()
        assert left(folder) == []

    def test_a_gpu_that_is_not_the_jobs_stops_no_measurement(self, board, attempt, tmp_path):
        """A journal of a GPU that NVML does not show here stays, is warned of in the log, and the attempt goes on."""
        folder = tmp_path / "journals"
        folder.mkdir(mode=0o700)
        Journal(GONE, SITE_MW, 300_000, None).write(folder)
        with self.sidecar(tmp_path) as sidecar:
            sidecar.start(attempt)
            sidecar.stop()
        assert left(folder) == [f"{GONE}.json"]
        assert f"{GONE}: its prior limit" in attempt.sidecar_log_path("n1").read_text()

    def test_a_cap_needs_a_gpu(self, attempt, tmp_path):
        """With the simulated meter there is nothing to cap: the attempt does not start."""
        asked = control(tmp_path / "journals", power_limit_w=300)
        sidecar = Sidecar(Power(meter="simulated"), "n1", tmp_path / "spool", asked)
        with sidecar, pytest.raises(PowerError, match="limits and clocks are a GPU's"):
            sidecar.start(attempt)


def test_the_journal_outlives_a_power_loss(driver, journals, monkeypatch):
    """File and folder are flushed to disk before the first set."""
    order = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: (order.append("fsync"), fsync(d)))
    set_limit = "nvmlDeviceSetPowerManagementLimit"
    real = getattr(pynvml, set_limit)
    monkeypatch.setattr(pynvml, set_limit, lambda *a: (order.append(set_limit), real(*a))[1])
    GpuControl(control(journals, power_limit_w=300), UUIDS[:1]).release()
    first_set = order.index(set_limit)
    assert order[:first_set].count("fsync") == 2


def test_what_the_journal_holds(journals):
    """UUID, prior and requested value, who and when; for this user alone."""
    journals.mkdir(mode=0o700)
    Journal("GPU-a", SITE_MW, 300_000, None).write(journals)
    path = Path(journals / "GPU-a.json")
    told = json.loads(path.read_text())
    assert (told["uuid"], told["prior_mw"], told["limit_mw"]) == ("GPU-a", SITE_MW, 300_000)
    assert told["pid"] == os.getpid()
    assert path.stat().st_mode & 0o777 == 0o600
