"""The pages say what is so: commands parse, keys and defaults match, links lead somewhere, snippets run."""

import functools
import json
import re
import shlex
import subprocess
import zipfile
from pathlib import Path
from typing import get_args

import pytest
import yaml
from click import UsageError
from sweeps import demo

import wattflow
from wattflow.cli.app import VERBS as ALL_VERBS
from wattflow.cli.app import command as command_of
from wattflow.collect.collect import collect
from wattflow.collect.dummy import CONTROLS
from wattflow.config.choices import Config, with_leaves
from wattflow.config.identity import DEFAULTS, hashed
from wattflow.plan import grid
from wattflow.store.columns import PHASE, POINT
from wattflow.store.sources import of_kind
from wattflow.submit import status

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *sorted(DOCS.glob("*.md")),
    ROOT / "slurm" / "testcluster" / "README.md",
]
VERBS = {verb.name: command_of(verb) for verb in ALL_VERBS.values()}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def fences(page):
    """The fenced blocks of a page as (language, text)."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def prose(page):
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def rows(text):
    """The cells of each row of all tables in a text."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def section(page, heading):
    """The text under a heading, up to the next one of its rank or above."""
    rank = heading.partition(" ")[0]
    _, found, after = page.read_text().partition(f"\n{heading}\n")
    assert found, f"{page.name} has no heading {heading!r}"
    return re.split(rf"^#{{1,{len(rank)}}} ", after, maxsplit=1, flags=re.MULTILINE)[0]


def commands(page):
    """The words after `wattflow` of each command line in a page's shell blocks and indented code."""
    lines = [
        line for language, text in fences(page) if language == "bash" for line in text.splitlines()
    ]
    lines += [line.strip() for line in prose(page).splitlines() if line.startswith("    wattflow ")]
    for line in lines:
        words = shlex.split(line, comments=True)
        if "wattflow" in words:
            own = words[words.index("wattflow") + 1 :]
            yield own[: own.index("|")] if "|" in own else own


@pages
def test_every_command_line_parses(page):
    """Each command in a page names a verb that exists, with options and arguments that it takes."""
    for words in commands(page):
        try:
            VERBS[words[0]].make_context(words[0], list(words[1:]))
        except (KeyError, UsageError) as error:
            pytest.fail(f"wattflow {shlex.join(words)}: {error}")


@pages
def test_every_command_in_a_sentence_exists(page):
    """Each `wattflow VERB --option` between backticks names a verb and options that exist."""
    for span in re.findall(r"`wattflow ([^`]+)`", prose(page)):
        verb, *words = span.split()
        if verb.startswith("-"):
            continue  # --help and its like belong to the whole
        for part in verb.split("|"):
            assert part in {*VERBS, "VERB"}, span
        known = {
            opt for command in VERBS.values() for param in command.params for opt in param.opts
        }
        if verb in VERBS:
            known = {opt for param in VERBS[verb].params for opt in param.opts}
        assert {word for word in words if word.startswith("-")} <= known | {"--help", "-h"}, span


@functools.cache
def expanded(words):
    """The points of some words, by the conf/ of the current folder."""
    return grid.expand(words)[1]


@pytest.mark.parametrize(
    "name",
    ["README.md", "docs/tutorial.md", "docs/commands.md", "docs/sites.md", "docs/datasets.md"],
)
def test_the_words_of_plans_and_submits_make_points(name, tmp_path, monkeypatch):
    """Each plan and submit, with the configs of its page, has a point that can run; point_ids shown are theirs."""
    page = ROOT / name
    for language, text in fences(page):
        path = re.match(r"(?:# @package _global_\n)?# (conf/\w+/\w+\.yaml)\n", text)
        if language == "yaml" and path:
            (tmp_path / path[1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path[1]).write_text(text)
        if text.startswith("{"):  # the tutorial's own prompts
            (tmp_path / "letters.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)
    expanded.cache_clear()
    made = set()
    for words in commands(page):
        if words[0] in ("plan", "submit"):
            points = expanded(tuple(word for word in words[1:] if not word.startswith("-")))
            assert any(point.reason is None for point in points), shlex.join(words)
            made |= {point.point_id for point in points}
    assert made
    shown = set(re.findall(r"\b[0-9a-f]{12}\b", page.read_text()))
    assert shown <= made


def test_commands_md_has_every_verb_and_its_options_and_no_others():
    """Each verb has its section, in whose table stand all of its options and none that it does not take."""
    page = DOCS / "commands.md"
    headings = re.findall(r"^### ([\w-]+)$", section(page, "## Verbs"), re.MULTILINE)
    assert set(headings) == set(VERBS)
    for verb, command in VERBS.items():
        told = set()
        for row in rows(section(page, f"### {verb}")):
            told |= set(re.findall(r"`(--?[\w-]+)`", row[0]))
        options = {
            opt
            for param in command.params
            for opt in param.opts
            if opt.startswith("-") and param.name != "help"
        }
        assert told == options, verb


def test_commands_md_has_every_state():
    """The table of states has those of `status`."""
    told = [row[0] for row in rows(section(DOCS / "commands.md", "### status"))]
    states = {state for cell in told for state in re.findall(r"`([a-z]+)`", cell)}
    assert states == set(get_args(status.State))


def key_rows():
    """The rows of the tables of keys: key -> (default, unit, meaning, whether it is in the id)."""
    found = {}
    for cells in rows(section(DOCS / "commands.md", "## Keys")):
        key = re.fullmatch(r"`([a-z_.]+)`", cells[0])
        if key:
            default, unit, meaning, in_id = cells[1:]
            found[key[1]] = (yaml.safe_load(default), unit, meaning, in_id.strip(" |"))
    return found


def test_commands_md_has_every_key_with_its_default():
    """The tables of keys have each key of the config once, with the default that the code has."""
    told = key_rows()
    assert list(told) == list(dict.fromkeys(told))
    assert set(told) == set(DEFAULTS)
    assert {key: row[0] for key, row in told.items()} == DEFAULTS
    assert all(row[2] for row in told.values())


def test_commands_md_says_what_makes_the_point_id():
    """A key is marked as part of the id if and only if another value of it is hashed."""
    for key, (_, _, _, in_id) in key_rows().items():
        choices = with_leaves(Config(), {key: "another"})
        assert (in_id == "yes") == (key in hashed(choices)), key


def test_commands_md_names_the_files_of_each_group():
    """The table of groups has each file that lies in conf/, and no other."""
    told = {
        row[0]: set(row[1].rstrip(" |").split(", "))
        for row in rows(section(DOCS / "commands.md", "## Overrides"))
    }
    for group in (ROOT / "conf").iterdir():
        if group.is_dir():
            assert told[group.name] == {path.stem for path in group.glob("*.yaml")}, group.name


def test_sites_md_names_the_example_profiles():
    """Each profile that is shipped as an example is named where a site's person looks."""
    text = (DOCS / "sites.md").read_text()
    for path in (ROOT / "conf" / "cluster").glob("example-*.yaml"):
        assert f"conf/cluster/{path.name}" in text


def test_results_md_is_what_the_columns_make(monkeypatch):
    """Each table of columns and of reasons stands there as `make docs` writes it, and each is there."""
    monkeypatch.syspath_prepend(DOCS)
    import make_results

    page = make_results.PAGE.read_text()
    assert make_results.filled(page) == page
    tables = {
        "points",
        "served",
        "phases",
        "cost",
        "crosscheck",
        "trace",
        "spans",
        "iterations",
        "requests",
        "grid",
    }
    begun = re.findall(r"^<!-- (\w+): begin -->$", page, re.MULTILINE)
    assert sorted(begun) == sorted({*tables, "reads", "choices", "reasons"})


def test_measurement_md_has_the_sources_of_power():
    """The table of sources names all sensors of power that this version knows."""
    told = [
        row[0].strip("`")
        for row in rows(section(DOCS / "measurement.md", "## The sources, in order"))[2:]
    ]
    assert set(told) == set(of_kind("power"))


def slug(heading):
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pages
def test_every_link_leads_somewhere(page):
    """Each relative link in a page names a file that exists, and a heading in it if it has an anchor."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in {
                slug(h) for h in re.findall(r"^#+ (.+)$", prose(there), re.MULTILINE)
            }, target


@pages
def test_python_snippets_compile_and_name_columns_that_exist(page):
    """Each Python block is Python, and what it takes by pl.col or groups by is a column."""
    for language, text in fences(page):
        if language == "python":
            compile(text, page.name, "exec")
            grouped = " ".join(re.findall(r"group_by\(([^)]*)\)", text))
            named = re.findall(r'pl\.col\("(\w+)"\)', text) + re.findall(r'"(\w+)"', grouped)
            assert set(named) <= {*POINT.names, *PHASE.names}


@pytest.mark.parametrize(
    ("name", "sweep"), [("README.md", "shards"), ("docs/tutorial.md", "letters")]
)
def test_the_first_query_of_a_page_runs(name, sweep, tmp_path, monkeypatch):
    """The first Python block of a page runs on a collected sweep of the name that it opens."""
    (tmp_path / "sweeps").mkdir()
    collect(demo(tmp_path / "sweeps" / sweep))
    monkeypatch.chdir(tmp_path)
    first = next(text for language, text in fences(ROOT / name) if language == "python")
    seen = {}
    exec(first, seen)
    assert len(seen["s"].points) > 0


@pages
def test_make_targets_exist(page):
    """Each `make TARGET` in a page is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = "\n".join(text for language, text in fences(page) if language == "bash")
    code += "\n" + "\n".join(re.findall(r"`(make [^`]+)`", prose(page)))
    assert set(re.findall(r"^make ([a-z]+)", code, re.MULTILINE)) <= targets


def test_the_readme_has_a_line_for_each_thing_at_the_top():
    """Each file and folder at the top of the repository stands in the README's table, and what stands there exists."""
    told = re.findall(
        r"^\| `([^`]+)` \|", section(ROOT / "README.md", "## Where things are"), re.MULTILINE
    )
    for name in told:
        assert (ROOT / name).exists(), name
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: git is asked which files are the project's")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    top = {name.partition("/")[0] + "/" * ("/" in name) for name in listed.splitlines()}
    assert top - {"README.md"} <= set(told)


def test_the_readme_leads_to_every_page():
    """Each page in docs/ is linked from the README."""
    text = (ROOT / "README.md").read_text()
    for path in [*DOCS.glob("*.md"), *DOCS.glob("*.ipynb")]:
        assert f"(docs/{path.name})" in text


NOT_OUR_WORDS = {
    "timestep": r"time[ -]?steps?\b",
    "run id": r"\brun[ _-]?ids?\b",
    "trial": r"\btrials?\b",
    "experiment": r"\bexperiments?\b",
    "data point": r"\bdata ?points?\b",
    "hyperparameter": r"\bhyper-?parameters?\b",
    "world size": r"\bworld[ _-]sizes?\b",
}


@pages
def test_pages_use_the_words_of_the_glossary(page):
    """No page says with another word what the glossary has one for."""
    for word, pattern in NOT_OUR_WORDS.items():
        assert not re.search(pattern, page.read_text(), re.IGNORECASE), word


def test_the_glossary_has_each_word_once():
    """One word, one meaning."""
    words = re.findall(r"^\| \*\*(.+?)\*\*", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    assert len(words) > 20
    assert len(words) == len(set(words))


@pages
def test_pages_name_no_machine(page):
    """No page holds a path or host of a machine on which it was written."""
    text = page.read_text()
    assert not re.search(r"/(work|root|home)/", text)
    hosts = set(re.findall(r"https?://([\w.-]+)", text))
    assert hosts <= {"arxiv.org", "hydra.cc", "keepachangelog.com", "semver.org"}


def test_the_changelog_has_the_current_version():
    """The version of the package has its section."""
    assert re.search(
        rf"^## {re.escape(wattflow.__version__)}\b",
        (DOCS / "changelog.md").read_text(),
        re.MULTILINE,
    )


def test_calibrate_md_has_the_tables_of_its_passports(monkeypatch):
    """What stands between the marks is what passports.py makes of docs/passports/*.json, which name no whole UUID."""
    monkeypatch.syspath_prepend(DOCS.parent / "tests" / "gpu")
    import passports

    told = (DOCS / "calibrate.md").read_text().split(passports.BEGIN)[1]
    assert told.split(passports.END)[0].strip() == passports.page().strip()
    for path in (DOCS / "passports").glob("*.json"):
        assert passports.shown(path.read_text()) == path.read_text()


def test_measurement_md_has_the_tables_of_its_json(monkeypatch):
    """What stands between the marks is what joules_page.py makes of docs/measurements/joules-*.json."""
    monkeypatch.syspath_prepend(DOCS.parent / "tests" / "gpu")
    import joules_page

    told = (DOCS / "measurement.md").read_text().split(joules_page.BEGIN)[1]
    assert told.split(joules_page.END)[0].strip() == joules_page.page().strip()


def test_dummy_rows_carry_the_widest_difference_that_was_measured(monkeypatch):
    """Over all weights, tokens and batches: the mean difference and half its interval, 1.67 %, rounded up to 1.7 %."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "gpu")
    import joules_page

    told = json.loads((DOCS / "measurements" / "joules-h100.json").read_text())
    found = [joules_page.differences(arms) for arms in told["weights"]["batches"].values()]
    widest = max(abs(mean) + half for of_batch in found for mean, half in of_batch.values())
    assert widest == pytest.approx(1.67, abs=0.01)
    bound = CONTROLS["llama", "bf16"].share
    assert widest / 100 <= bound < widest / 100 + 0.0005


def test_the_figures_of_the_readme_are_the_bundles():
    """The README's table of one real run has the means of the shipped bundle, which `verify` vouches for."""
    with zipfile.ZipFile(DOCS / "bundles" / "llama-7b-h100.zip") as bundle:
        methods = bundle.read("METHODS.md").decode()
    for engine in ("paper", "fast"):
        row = re.search(rf"^\| {engine} \| 2 \| (.+)$", methods, re.MULTILINE)
        means = [cell.split(" ± ") for cell in row[1].split(" | ")][:3]
        told = re.search(
            rf"^\| `{engine}`[^|]*\| (.+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE
        )
        figures = [cell.replace(",", "").split(" ± ") for cell in told[1].split(" | ")]
        for (mean, sd), (exact_mean, exact_sd) in zip(figures, means, strict=True):
            digits = len(mean.partition(".")[2])
            assert mean == f"{float(exact_mean):.{digits}f}"
            assert float(sd) == float(exact_sd)
