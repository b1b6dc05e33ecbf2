"""Verbs where a machine is not as usual: each runs, or ends in one clear line, and never in a traceback.

A locale of ASCII alone (Python's UTF-8 mode off, as in EUC or Latin-1), one that is not installed, no HOME or one that
is not there or may not be written, a TMPDIR that is not there, umask 0 and 077, a user without an entry, bytes
that are no text in names and in the environment.
"""

import os
import stat
import subprocess

import pytest
from commands import WATTFLOW
from sweeps import Gpu, Made, choices, make_attempt, make_sweep

from wattflow.collect.collect import collect

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
PLACES = {
    "ascii": ASCII,
    "a locale that is not there": {"LC_ALL": "xx_YY.KOI8-R", "LANG": "tlh"},
    "no home": {"HOME": None, "XDG_CACHE_HOME": None},
    "a home that is not there": {"HOME": "/no/such/home"},
    "no folder for temporary files": {"TMPDIR": "/no/such/tmp"},
    "bytes in the environment": {
        "USER": os.fsdecode(b"f\xfcr"),
        "SLURM_CONF": os.fsdecode(b"/\xff"),
    },
}
VERBS = {
    "--help": ([], 0),
    "keys": ([], 0),
    "plan": (["model=tiny", "n_prompts=4", "sweep.repeats=1"], 0),
    "status": (["SWEEP"], 3),
    "logs": (["SWEEP"], 0),
    "list": (["."], 0),
    "compare": (["SWEEP", "--by", "batch_size"], 0),
    "cost": (["SWEEP"], 0),
    "usage": (["."], 0),
    "export": (["SWEEP", "--out", "out"], 0),
    "verify": (["SWEEP"], 0),
    "bundle": (["SWEEP", "-n"], 0),
    "collect": (["SWEEP"], 0),
    "measure": (["--out", "m", "--set", "power.meter=simulated", "--", "true"], 0),
    "doctor": ([], 0),
    "status of none": (["no-such-sweep"], 2),
}
# with every place, in the default run; the others are slow
QUICK = {"plan", "status", "list", "bundle"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a sweep of an odd name whose model, node and error hold letters of other languages."""
    home = tmp_path_factory.mktemp("surroundings")
    home.chmod(0o1777)
    points = [choices(model__name="Übung-模型", batch_size=size) for size in (4, 8)]
    bad = choices(model__name="Übung-模型", batch_size=16)
    sweep = make_sweep(home / os.fsdecode(b"sw\xfceep"), [*points, bad])
    for number, point in enumerate(points):
        make_attempt(
            sweep, point, Made([Gpu("GPU-a", node="kn\u00f6ten")], started_s=60.0 * number)
        )
    failed = make_attempt(sweep, bad, Made([Gpu("GPU-a")], status="failed"))
    failed.write_record({**failed.read_record(), "error": "kein Speicher für das 模型 ± 3 GiB"})
    failed.logs.mkdir(exist_ok=True)
    (failed.logs / "rank0.log").write_bytes(b"f\xfcr nichts \xff\n")
    collect(sweep)
    return home


def call(folder, name, environment, *before, umask=-1):
    verb, *words = [name.partition(" ")[0], *VERBS[name][0]]
    sweep = next(path for path in folder.iterdir() if os.fsencode(path.name).startswith(b"sw"))
    words = [str(sweep) if word == "SWEEP" else word for word in words]
    given = {**os.environ, **environment}
    return subprocess.run(
        [*before, *WATTFLOW, verb, *words],
        cwd=folder,
        capture_output=True,
        env={name: value for name, value in given.items() if value is not None},
        check=False,
        timeout=600,
        umask=umask,
    )


def assert_clear(done, name):
    """The exit code that the verb has anywhere, or a refusal in one line."""
    err = done.stderr.decode(errors="replace")
    assert "Traceback" not in err
    assert done.returncode in (VERBS[name][1], 2), err
    if done.returncode == 2:
        assert err.startswith("wattflow: "), err
        assert err.count("\n") == 1


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in VERBS],
)
def test_a_verb_in_odd_surroundings(name, place, folder):
    """With a sweep of an odd name; all but `measure` and `submit`, which need room for files, give what they give."""
    assert_clear(call(folder, name, PLACES[place]), name)


def test_what_a_locale_lacks_is_a_question_mark(folder):
    """The table of `status` in ASCII: letters are replaced, the rest of the line stands."""
    done = call(folder, "status", ASCII)
    assert b"kein Speicher f?r das ?? ? 3 GiB" in done.stdout


@pytest.mark.parametrize("umask", [0, 0o77])
def test_no_umask_opens_what_is_written(umask, folder, tmp_path, monkeypatch):
    """What `export` writes is the owner's alone."""
    monkeypatch.setitem(VERBS, "export", (["SWEEP", "--out", str(tmp_path / "out")], 0))
    done = call(folder, "export", {}, umask=umask)
    assert done.returncode == 0, done.stderr
    written = [*(tmp_path / "out").rglob("*")]
    assert len(written) == 6
    for path in written:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.skipif(os.getuid() != 0, reason="changes the user")
@pytest.mark.parametrize("name", ["plan", "list", "doctor"])
def test_a_user_without_an_entry_and_without_a_home(name, folder):
    """Numbers stand for names; a cache is optional."""
    capable = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    user = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", *capable]
    nobodys = {"HOME": None, "XDG_CACHE_HOME": None, "USER": None, "LOGNAME": None}
    assert_clear(call(folder, name, nobodys, *user), name)
