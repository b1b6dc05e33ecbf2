"""The same joules by the site's own meters: a real Prometheus that scraped known watts, and sacct."""

import json
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_slurm import FakeSlurm
from site_monitoring import PUE, SCRAPE_S, Board, prometheus
from sweeps import START_NS, Gpu, Made, choices, constant, make_attempt, make_sweep

import wattflow
from wattflow.analysis.crosscheck import METRICS, crosscheck
from wattflow.analysis.prometheus import Prometheus, Series
from wattflow.cli.app import main
from wattflow.collect.collect import collect
from wattflow.report.page import report
from wattflow.store.columns import CROSSCHECK

WINDOW_S = 2.5
STEADY, RISING = "GPU-11111111-aaaa", "GPU-22222222-bbbb"


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["wattflow", "crosscheck", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site watched while one board drew 200 W, another 100 W rising by 20 W a second, and a sweep of that time.

    The rise begins at `zero`, the window of 2.5 s half a second later: 500 J, and (100 + 35) x 2.5 = 337.5 J.
    """
    began = time.time()
    zero = began + 3600.0

    def risen_s(now_s):
        return max(0.0, now_s - zero)

    boards = [
        Board(STEADY, "node1", lambda _: 200.0, lambda t: 200.0 * (t - began)),
        Board(
            RISING,
            "node2",
            lambda t: 100.0 + 20.0 * risen_s(t),
            lambda t: 100.0 * (t - began) + 10.0 * risen_s(t) ** 2,
        ),
    ]
    folder = tmp_path_factory.mktemp("site")
    with prometheus(folder, boards) as url:
        zero = time.time() + 0.3  # it has scraped by now
        time.sleep(zero + 0.5 + WINDOW_S + 0.9 - time.time())
        gpus = [
            Gpu(STEADY, constant(200.0)),
            Gpu(RISING, lambda s: 100.0 + 20.0 * np.maximum(0.0, s), node="node2"),
        ]
        point = choices(shards=2)
        sweep = make_sweep(folder / "s", [point])
        made = Made(
            gpus,
            batches=1,
            prefill_s=1.0,
            decode_s=WINDOW_S - 1.0,
            before_s=0.5,
            started_s=zero - START_NS / 1e9,
        )
        make_attempt(sweep, point, made)
        collect(sweep)
        yield url, wattflow.open_sweep(sweep.path)


def by_source(rows):
    return {row.source: row for row in rows}


@pytest.mark.prometheus
def test_each_exporter_tells_the_same_joules(site):
    """Counter, watts and milliwatts of both boards make our 837.5 J within 1 %; CEEMS' hold the site's PUE of 1.2."""
    url, sweep = site
    rows = by_source(crosscheck(sweep, Prometheus(url), sacct=False))
    assert set(rows) == {
        "dcgm-exporter DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
        "dcgm-exporter DCGM_FI_DEV_POWER_USAGE",
        "jobstats nvidia_gpu_power_usage_milliwatts",
        "CEEMS uuid:ceems_gpu_power_watts:pue",
    }
    for source, row in rows.items():
        ceems = source.startswith("CEEMS")
        assert row.why_not is None, source
        assert row.energy_j == pytest.approx(837.5, rel=1e-3)
        assert row.ratio == pytest.approx(PUE if ceems else 1.0, rel=0.01), source
        assert row.site_energy_u_j > 0
        assert row.samples == pytest.approx(2 * WINDOW_S / SCRAPE_S, abs=6)
        assert row.spacing_s == pytest.approx(SCRAPE_S, abs=0.1)
        assert (row.boundary, row.site_boundary) == ("gpu", "gpu")
        assert (row.remark is not None) == ceems


@pytest.mark.prometheus
def test_it_is_kept_and_shown(site, monkeypatch, capsys):
    """The command prints a row a metric with its ratio; results/ keeps them, and the report shows them."""
    url, sweep = site
    assert run(monkeypatch, sweep.directory.path, "--prometheus", url, "--no-sacct") == 0
    head, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 4
    assert float(rows[0][head.index("ratio")]) == pytest.approx(1.0, rel=0.01)
    kept = pq.read_table(sweep.directory.crosscheck_path)
    assert kept.schema.names == CROSSCHECK.names
    assert kept.num_rows == 4
    page = report(sweep).read_text()
    assert "<td>jobstats nvidia_gpu_power_usage_milliwatts</td>" in page
    assert "holds the PUE" in page


@pytest.mark.prometheus
def test_what_the_site_did_not_see(site, tmp_path):
    """A window from before the server was there, a board that it does not know, and a window of a few samples."""
    url, sweep = site
    began_s = sweep.attempts["started"][0].timestamp() - START_NS / 1e9
    cases = {
        "before": (STEADY, began_s - 100.0, {}, "before the window's start"),
        "unknown": ("GPU-33333333-cccc", began_s, {}, "no samples of its GPUs"),
        "short": (STEADY, began_s, {"prefill_s": 0.2, "decode_s": 0.2}, "shorter than 3"),
    }
    for name, (uuid, started_s, over, why) in cases.items():
        point = choices()
        directory = make_sweep(tmp_path / name, [point])
        made = Made([Gpu(uuid)], batches=1, before_s=0.5, started_s=started_s, **over)
        make_attempt(directory, point, made)
        collect(directory)
        rows = crosscheck(wattflow.open_sweep(directory.path), Prometheus(url), sacct=False)
        assert rows, name
        assert all(row.ratio is None for row in rows)
        reasons = {row.why_not for row in rows}
        assert any(why in text for text in reasons) or "at that time" in reasons.pop(), name


# --- readings that no board can give --------------------------------------------------------------


class Site:
    """In the place of a server: one GPU at 100 W, scraped each second, with some samples replaced."""

    def __init__(self, sweep, metric, faults):
        ((_, self._uuid, start_ns, end_ns),) = sweep.windows(sweep.attempts.to_dicts()[0])
        self._metric = metric
        self._time_ns = np.arange(start_ns - 10**10, end_ns + 10**10, 10**9)
        counted = 5e9 + 100_000 * np.arange(len(self._time_ns))
        self._values = counted if metric.unit == "mJ" else np.full(len(self._time_ns), 100.0)
        if metric.unit == "mW":
            self._values = self._values * 1e3
        for at, value in faults.items():
            self._values[at] = value if value is None or value >= 0 else self._values[at] + value

    def names(self, *_):
        return {self._metric.name}

    def samples(self, *_):
        labels = {self._metric.gpu_label: self._uuid}
        return [Series(labels, self._time_ns, self._values)]


@pytest.mark.parametrize(
    ("metric", "faults"),
    [
        (METRICS[0], {14: 0.0}),
        (METRICS[0], {13: 0.0, 14: 0.0}),
        (METRICS[0], {14: 9223372036854775794.0}),
        (METRICS[0], {14: np.nan}),
        (METRICS[0], {14: -2_000_000}),  # 20 s behind, as of the other of two servers
        (METRICS[0], {0: 0.0, 14: 6e9}),
        (METRICS[1], {14: 1e9}),
        (METRICS[1], {14: 2147483632.0}),
        (METRICS[1], {14: 0.0}),
        (METRICS[1], {14: np.inf}),
        (METRICS[3], {14: 4294967295.0}),
    ],
)
def test_a_sample_that_no_board_can_give_is_left_out(sweep, metric, faults):
    """100 W over 8.5 s are 850 J whatever one sample says."""
    (row,) = crosscheck(sweep, Site(sweep, metric, faults), sacct=False)
    assert row.site_energy_j == pytest.approx(850.0, rel=1e-6)
    assert row.ratio == pytest.approx(1.0, rel=1e-3)


def test_a_counter_that_was_reset_is_named(sweep):
    """From 0 on for good: its joules are not known, and the row says why."""
    site = Site(sweep, METRICS[0], {})
    site._values[14:] -= site._values[14]
    (row,) = crosscheck(sweep, site, sacct=False)
    assert (row.site_energy_j, row.ratio) == (None, None)
    assert "was reset in the window" in row.why_not


def test_joules_of_slurm_that_no_node_can_draw(fake, sweep):
    """Four gigajoules of a job of seconds are no reading."""
    fake.accounting("17|4000000000")
    (row,) = crosscheck(sweep, None)
    assert (row.site_energy_j, row.ratio) == (None, None)
    assert "more than its nodes can have drawn" in row.why_not


# --- Slurm ----------------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path, monkeypatch):
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def sweep(tmp_path):
    """One attempt of job 17: 3 s before a window of 8.5 s at 100 W are 1,150 J."""
    point = choices()
    directory = make_sweep(tmp_path / "s", [point])
    make_attempt(directory, point, Made([Gpu("GPU-a", constant(100.0))]))
    collect(directory)
    return wattflow.open_sweep(directory.path)


def test_slurms_joules_are_the_nodes(fake, sweep):
    """Steps each count the whole node: of 0, 2,300 and 2,100 J the job's are 2,300, twice ours, and labelled."""
    fake.accounting("17|", "17.batch|2300", "17.0|2100", "17.extern|0")
    (row,) = crosscheck(sweep, None)
    assert row.source == "sacct ConsumedEnergy"
    assert row.energy_j == pytest.approx(1150.0, rel=1e-3)
    assert (row.site_energy_j, row.ratio) == (2300.0, pytest.approx(2.0, rel=1e-3))
    assert row.site_boundary == "node without NVIDIA GPUs"
    assert "holds no NVIDIA GPU" in row.remark
    assert fake.calls("sacct") == ["-n -P -o JobID,ConsumedEnergyRaw -j 17"]


@pytest.mark.parametrize("lines", [[], ["17|0"], ["17|4294967294"], ["17|18446744073709551614"]])
def test_slurm_keeps_no_energy(fake, sweep, lines):
    """No line, 0 and Slurm's numbers for no value are null, with what to look at."""
    fake.accounting(*lines)
    (row,) = crosscheck(sweep, None)
    assert (row.site_energy_j, row.ratio) == (None, None)
    assert "AcctGatherEnergyType" in row.why_not


def test_simulated_joules_are_no_denominator(fake, tmp_path):
    """What the node drew over what was only computed is no ratio, and the row says so."""
    point = choices()
    directory = make_sweep(tmp_path / "s", [point])
    made = Made([Gpu("host-node1")], source="simulated", boundary="host", counter=False)
    make_attempt(directory, point, made)
    collect(directory)
    fake.accounting("17|2300")
    (row,) = crosscheck(wattflow.open_sweep(directory.path), None)
    assert (row.site_energy_j, row.ratio, row.simulated) == (2300.0, None, True)
    assert "simulated" in row.why_not


def test_one_simulated_attempt_of_a_job_takes_its_ratio(fake, tmp_path):
    """Of a job with a measured attempt and one that was simulated there is no ratio, whichever is the first."""
    points = [choices(repeat=0), choices(repeat=1)]
    directory = make_sweep(tmp_path / "s", points)
    make_attempt(directory, points[0], Made([Gpu("GPU-a")]))
    host = Made([Gpu("host-node1")], source="simulated", boundary="host", counter=False)
    make_attempt(directory, points[1], host)
    collect(directory)
    fake.accounting("17|2300")
    (row,) = crosscheck(wattflow.open_sweep(directory.path), None)
    assert (row.ratio, row.simulated) == (None, True)


def test_slurm_does_not_answer(sweep, monkeypatch, tmp_path):
    """Without sacct the row says so, and the others stand."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (row,) = crosscheck(sweep, None)
    assert "no sacct on the PATH" in row.why_not


def test_nothing_to_hold_against(tmp_path, monkeypatch, capsys):
    """Simulated joules are held against nobody's GPUs, and without a job there is no sacct."""
    point = choices()
    directory = make_sweep(tmp_path / "s", [point])
    gpu = Gpu("host-node1")
    attempt = make_attempt(directory, point, Made([gpu], source="simulated", boundary="host"))
    record = attempt.read_record()
    record["job"]["job_id"] = None
    attempt.write_record(record)
    collect(directory)
    assert run(monkeypatch, directory.path, "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    page = report(wattflow.open_sweep(directory.path)).read_text()
    assert "By the site's own meters" not in page  # no heading over nothing
