"""What other programs read: JSON by its schema, OpenMetrics by the parser of Prometheus' own client and by promtool."""

import getpass
import json
import platform
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from site_monitoring import promtool
from sweeps import Gpu, Made, choices, constant, demo, make_attempt, make_sweep

import wattflow
from wattflow.cli.app import main
from wattflow.collect.collect import collect
from wattflow.errors import RefusedError
from wattflow.report.export import attempts, export, json_schema, openmetrics
from wattflow.store.columns import POINT

COST = {
    "cluster__cost__carbon_g_per_kwh": 400.0,
    "cluster__cost__carbon_source": "the grid's mean",
}


def collected(path, *made, point=None):
    point = point or choices(**COST)
    sweep = make_sweep(path, [point])
    for one in made:
        make_attempt(sweep, point, one)
    collect(sweep)
    return wattflow.open_sweep(sweep.path)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A failed attempt and a good one: 360 W for 3 s before and 8.5 s within the window, on two GPUs of 180 W."""
    gpus = [Gpu("GPU-a", constant(180.0)), Gpu("GPU-b", constant(180.0))]
    return collected(
        tmp_path_factory.mktemp("sweeps") / "s",
        Made(gpus, status="failed"),
        Made(gpus, started_s=60.0),
        point=choices(shards=2, **COST),
    )


def parsed(text):
    """Each sample by name: a list of labels and value; the parser refuses what is no OpenMetrics."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_the_schema_comes_along_and_tells_units(sweep, tmp_path):
    """Beside the documents lies what the code holds them to, with unit and meaning of each figure."""
    export(sweep, tmp_path)
    schema = json.loads((tmp_path / "attempt.schema.json").read_text())
    assert schema == json_schema()
    figure = schema["properties"]["figures"]["properties"]["energy_per_token_j"]
    assert figure["description"] == "energy_j / tokens_kept. [J/token]"
    assert figure["type"] == ["number", "null"]


def test_documents_hold_to_the_schema(sweep, tmp_path_factory):
    """Attempts that are good, failed and simulated are valid; a field too many or one that lacks is not."""
    simulated = demo(tmp_path_factory.mktemp("sweeps") / "demo")
    collect(simulated)
    documents = attempts(sweep) + attempts(wattflow.open_sweep(simulated.path))
    jsonschema.Draft202012Validator.check_schema(json_schema())
    check = jsonschema.Draft202012Validator(json_schema())
    assert len(documents) == 2 + 9
    for one in documents:
        check.validate(one)
    assert not check.is_valid({**documents[0], "host": "node1"})
    documents[0]["figures"].pop("energy_j")
    assert not check.is_valid(documents[0])


def test_a_document_has_the_figures(sweep):
    """360 W x 8.5 s = 3,060 J in the window, 1,080 J before it; a phase is over both devices; null is null."""
    failed, good = attempts(sweep)
    assert good["figures"]["energy_j"] == pytest.approx(3060.0, rel=1e-3)
    phases = {phase["phase"]: phase for phase in good["phases"]}
    assert phases["load"]["energy_j"] == pytest.approx(360.0, rel=1e-3)
    assert phases["decode"]["seconds"] == pytest.approx(6.0)
    kwh = (3060 + 1080) / 3.6e6
    assert good["cost"]["carbon_g"] == pytest.approx(kwh * 400, rel=1e-3)
    assert good["cost"]["carbon_source"] == "the grid's mean"
    assert good["choices"]["shards"] == 2
    assert (good["status"], good["counts"], good["job_id"]) == ("finished", True, "17")
    assert (failed["figures"]["energy_j"], failed["phases"]) == (None, [])
    assert failed["figures"]["unfinished_energy_j"] == pytest.approx(360 * 11.8, rel=2e-3)


def test_the_text_is_openmetrics(sweep):
    """The parser of Prometheus' client takes it; joules by phase add up to the job's, failures have their own."""
    text = openmetrics(attempts(sweep))
    assert text.endswith("# EOF\n")
    assert "# UNIT wattflow_energy_joules joules\n" in text
    found = parsed(text)
    by_phase = {}
    for labels, value in found["wattflow_energy_joules_total"]:
        assert (labels["boundary"], labels["source"]) == ("gpu", "nvml_buffer")
        by_phase[labels["attempt"], labels["phase"]] = value
    good = sum(value for (attempt, _), value in by_phase.items() if attempt == "2")
    assert good == pytest.approx(3060 + 1080, rel=1e-3)
    assert by_phase["1", "unfinished"] == pytest.approx(360 * 11.8, rel=2e-3)
    assert [value for _, value in found["wattflow_window_seconds"]] == [8.5]
    assert [value for _, value in found["wattflow_power_watts"]] == pytest.approx([360.0], rel=1e-3)
    kept = [value for labels, value in found["wattflow_tokens_total"] if labels["kind"] == "kept"]
    assert kept == [200]
    assert [value for _, value in found["wattflow_gpu_seconds_total"]] == [120.0, 120.0]
    (info, _), _ = found["wattflow_attempt_info"]
    assert (info["model"], info["shards"], info["status"]) == ("tiny", "2", "failed")
    assert "wattflow_price_total" not in found  # no price is declared


def test_simulated_joules_are_a_family_of_their_own(tmp_path):
    """No sum over wattflow_energy_joules_total holds a joule that was not measured."""
    simulated = demo(tmp_path / "demo")
    collect(simulated)
    found = parsed(openmetrics(attempts(wattflow.open_sweep(simulated.path))))
    assert "wattflow_energy_joules_total" not in found
    assert len(found["wattflow_simulated_energy_joules_total"]) > 8
    assert all(labels["simulated"] == "true" for labels, _ in found["wattflow_power_watts"])


def test_hostile_names_stay_labels(tmp_path):
    """Quotes, a backslash and a new line in a model's name come back as they were."""
    name = 'a"b\\c\nd'
    made = Made([Gpu("GPU-a")])
    found = parsed(
        openmetrics(attempts(collected(tmp_path / "s", made, point=choices(model__name=name))))
    )
    ((labels, _),) = found["wattflow_attempt_info"]
    assert labels["model"] == name


@pytest.mark.prometheus
def test_the_older_text_format_takes_it(sweep):
    """promtool reads it as node_exporter's textfile collector does, and finds fault with help texts alone."""
    done = subprocess.run(
        [promtool(), "check", "metrics"],
        input=openmetrics(attempts(sweep)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "error" not in done.stderr
    assert all(line.endswith("no help text") for line in done.stderr.splitlines())


@pytest.mark.prometheus
def test_promtool_backfills_it(sweep, tmp_path):
    """With times it becomes blocks of a Prometheus' data base; an attempt's stamp is its end, 60 s after its start."""
    export(sweep, tmp_path / "out", timestamps=True)
    text = tmp_path / "out" / "openmetrics.txt"
    assert '"} 8.5 1760000120.000\n' in text.read_text()
    done = subprocess.run(
        [promtool(), "tsdb", "create-blocks-from", "openmetrics", text, tmp_path / "data"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "data").glob("*/chunks/*"))) >= 1


def test_nothing_names_people_or_machines(tmp_path):
    """Users, hosts, nodes, paths, accounts, commands and errors are in no file."""
    point = choices(
        model__path="/projects/secret/llama",
        cluster__account="p_secret",
        cluster__partition="secret-gpu",
        cluster__setup=["source /projects/secret/venv"],
    )
    made = Made([Gpu("GPU-a", node="secret-node")])
    failed = Made([Gpu("GPU-a", node="secret-node")], status="failed")
    sweep = collected(tmp_path / "s", failed, made, point=point)
    paths = export(sweep, tmp_path / "out")
    assert len(paths) == 4
    for path in paths:
        text = path.read_text()
        for word in ("secret", "GPU-a", str(tmp_path), "checkpoint ends early"):
            assert word not in text, (path.name, word)
        for name in (getpass.getuser(), platform.node()):
            assert f'"{name}"' not in text


def test_the_command_writes_them(sweep, tmp_path, monkeypatch, capsys):
    """A JSON an attempt and the text lie in results/export, or where --out says; the text's path is printed."""
    monkeypatch.setattr("sys.argv", ["wattflow", "export", str(sweep.directory.path)])
    with pytest.raises(SystemExit):
        main()
    path = Path(capsys.readouterr().out.strip())
    assert path == sweep.directory.results / "export" / "openmetrics.txt"
    names = sorted(p.name for p in (path.parent / "attempts").iterdir())
    (point_id,) = sweep.points["point_id"]
    assert names == [f"{point_id}-1.json", f"{point_id}-2.json"]
    assert json.loads((path.parent / "attempts" / names[0]).read_text())["attempt"] == 1
    shutil.rmtree(path.parent)


def test_a_folder_that_cannot_be_made_is_told(sweep, tmp_path):
    """Where a file is in the way, the message names the folder and the option."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RefusedError, match="Name another folder by --out"):
        export(sweep, tmp_path / "file")


def test_each_measured_column_is_in_it(sweep):
    """All columns of joules, watts, seconds and tokens are figures: a new one is in the next export."""
    figures = attempts(sweep)[0]["figures"]
    ends = ("_j", "_w", "_s", "tokens", "_kept", "_pct")
    choice_like = (
        *("control_", "cluster_", "power_", "model_", "engine_", "dataset_", "workload_"),
    )
    for name in POINT.names:
        if name.endswith(ends) and not name.startswith(choice_like):
            assert name in figures, name
