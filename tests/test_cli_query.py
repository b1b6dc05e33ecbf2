"""`wattflow query`: SQL over one sweep or several, as a table, JSON, CSV and Parquet."""

import json
import shutil

import polars as pl
import pyarrow.parquet as pq
import pytest
from commands import call
from sweeps import Gpu, Made, choices, constant, make_attempt, make_sweep

import wattflow
from wattflow.collect.collect import collect
from wattflow.errors import RefusedError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sweeps a and b of one point each, at 100 and 300 W, collected, beside a folder that is none."""
    place = tmp_path_factory.mktemp("query")
    for name, watts, started_s in (("a", 100.0, 0.0), ("b", 300.0, 60.0)):
        point = choices()
        made = make_sweep(place / name, [point])
        make_attempt(made, point, Made([Gpu("GPU-1", constant(watts))], started_s=started_s))
        collect(made)
    (place / "none").mkdir()
    return place


POWER = "select sweep, round(power_w) w from points order by w"


def test_a_pattern_names_several_sweeps(folder, tmp_path):
    """Each row begins with its sweep; what is no sweep is not matched."""
    done = call("query", POWER, f"{folder}/*", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [(row["sweep"], row["w"]) for row in json.loads(done.stdout)]
    assert rows == [(str(folder / "a"), 100.0), (str(folder / "b"), 300.0)]


def test_a_copy_of_a_sweep_is_there_once(folder, tmp_path):
    """The rows of `cp -r a c` are those of a, in every table, and a line says so; alone, the copy has its rows."""
    (tmp_path / "here").mkdir()
    copy = shutil.copytree(folder / "a", tmp_path / "c")
    one = "select (select count(*) from {0}) rows, (select sum(power_w) from {0}) watts"
    for table in ("points", "attempts", "phases", "traces"):
        paths = [str(folder / "a"), str(copy)]
        single, both = (
            call("query", one.format(table), *some, "--json", cwd=tmp_path / "here")
            for some in (paths[:1], paths)
        )
        assert json.loads(both.stdout) == json.loads(single.stdout)
        assert f"{copy}: 1 attempts are those of {folder / 'a'}: a copy" in both.stderr
        assert single.stderr == ""
    alone = call("query", one.format("points"), str(copy), "--json", cwd=tmp_path / "here")
    assert json.loads(alone.stdout)[0]["rows"] == 1


def test_readings_of_one_sweep(folder, tmp_path):
    """The table traces has every reading of a sweep's devices."""
    statement = "select min(power_w), max(power_w) from traces"
    done = call("query", statement, str(folder / "b"), cwd=tmp_path)
    assert done.stdout.splitlines()[1] == "300.0\t300.0", done.stderr


@pytest.mark.parametrize("name", ["out.csv", "out.json", "out.parquet"])
def test_files_hold_what_was_found(name, folder, tmp_path):
    """Each format, read back; lists are JSON in CSV."""
    statement = "select power_w, node_names from points"
    done = call("query", statement, str(folder / "a"), "--out", name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{name}\n"
    path = tmp_path / name
    read = {".csv": pl.read_csv, ".json": pl.read_json, ".parquet": pl.read_parquet}[path.suffix]
    row = read(path).row(0, named=True)
    assert row["power_w"] == pytest.approx(100.0)
    nodes = wattflow.open_sweep(folder / "a").points["node_names"].to_list()[0]
    names = json.loads(row["node_names"]) if path.suffix == ".csv" else row["node_names"]
    assert names == nodes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{a}", "--out", "x.xls"], "a name that ends in .csv, .json, .parquet"),
        (["{a}", "--out", "none/x.csv"], "none is no folder"),
        (["{a}", "{a}"], "named twice"),
        (["{folder}/c*"], "no sweep matches"),
        (["{folder}/none"], "none"),
    ],
)
def test_what_cannot_be_asked_is_refused(words, said, folder, tmp_path):
    """Exit code 2 and one line."""
    named = [word.format(a=folder / "a", folder=folder) for word in words]
    done = call("query", "select 1", *named, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_json_has_null_for_what_is_no_number(folder, tmp_path):
    """JSON has neither NaN nor an endless number."""
    statement = "select 'nan'::double n, 'inf'::double i, 1.5::double x"
    done = call("query", statement, str(folder / "a"), "--json", cwd=tmp_path)
    assert json.loads(done.stdout) == [{"n": None, "i": None, "x": 1.5}]


def test_several_sweeps_in_python(folder):
    """One call opens them; a sweep that stands twice would count twice."""
    both = wattflow.open_sweep([folder / "a", folder / "b"])
    assert both.points["power_w"].to_list() == pytest.approx([100.0, 300.0])
    assert both.points.columns[0] == both.traces().collect_schema().names()[0] == "sweep"
    assert both.sql("select count(*) n from attempts")["n"].to_list() == [2]
    with pytest.raises(RefusedError, match="named twice"):
        wattflow.open_sweep([folder / "a", folder / "." / "a"])
    with pytest.raises(RefusedError, match="name one or more"):
        wattflow.open_sweep([])


def test_older_results_lack_columns(folder, tmp_path):
    """A column that one sweep's results do not have is null there."""
    old = tmp_path / "old"
    shutil.copytree(folder / "a", old)
    path = old / "results" / "points.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["power_w"]), path)
    both = wattflow.open_sweep([folder / "b", old])
    assert both.points["power_w"].to_list() == [pytest.approx(300.0), None]
