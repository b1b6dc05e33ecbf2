"""Write docs/first-measurements.md from docs/measurements/: the JSON that the scripts brought home, and timelines.

    python tests/gpu/page.py                 # the page alone
    python tests/gpu/page.py FOLDER          # first take in FOLDER, what h100.sh or h200x2.sh left in $OUT

A number on the page stands in one of those files; tests/test_first_measurements.py holds the two together.
"""

import json
import statistics
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
PAGE = "first-measurements.md"
Row = dict[str, Any]
Column = tuple[str, Callable[[Row], object]]

NOT_SHOWN = """\
## What is not shown

- No V100 and no A100 was at hand, the paper's GPUs: the driver's sample buffer, its counter and the polled fallbacks
  were seen on Hopper alone.
- No DCGM, no RAPL, no node meter: every joule here is the GPU board's by the driver. Host, network and cooling are not
  in it, and nothing here was held against an external meter; integral and counter are two readings of one driver.
- No site's Slurm: the cluster is a real one, of two nodes on one host, whose ranks talk over the loopback interface.
  Two shards over nodes are therefore slower than over NVLink, as they would be on a slow network.
- No LLaMA weights: the shapes are LLaMA's, the values random. Answers are checked with real weights of a small model of
  the same architecture, on the CPU.
"""


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, never in exponents; `-` for null."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    before_point = len(str(int(abs(value))).lstrip("0"))
    return f"{value:.{max(digits - before_point, 0)}f}"


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def code(text: str) -> str:
    """A block of what a command printed."""
    return f"```\n{text.rstrip()}\n```\n"


MEASURED: tuple[Column, ...] = (
    ("tokens/s", lambda row: number(row["tokens_per_s"])),
    ("W", lambda row: number(row["power_w"])),
    ("J/token", lambda row: number(row["energy_per_token_j"])),
    ("J/response", lambda row: number(row["energy_per_response_j"])),
    ("integral / counter", lambda row: number(row["counter_ratio"], 4)),
    ("coverage, %", lambda row: number(percent(row["coverage"]), 4)),
    ("window, s", lambda row: number(row["duration_s"])),
)
PHASES: tuple[Column, ...] = (
    ("idle, W", lambda row: number(row["idle_power_w"])),
    ("load, s", lambda row: number(row["load_s"])),
    ("warm-up, s", lambda row: number(row["warmup_s"])),
    ("prefill, s / J", lambda row: pair(row["prefill_s"], row["prefill_energy_j"])),
    ("decode, s / J", lambda row: pair(row["decode_s"], row["decode_energy_j"])),
    ("all phases, J", lambda row: number(row["job_energy_j"])),
    ("J per computed token", lambda row: number(row["energy_per_computed_token_j"])),
    ("SM clock, MHz", lambda row: number(row["sm_clock_mhz"], 4)),
    ("memory used, GiB", lambda row: number(gib(row["memory_used_bytes"]))),
)


def measured(document: Row) -> Sequence[Column]:
    """The columns of a measured row; where the counter was withdrawn as a check, its heading says so."""
    if "counter_withdrawn" not in document:
        return MEASURED
    name = "integral / counter"
    return [(f"{name} (withdrawn)" if head == name else head, get) for head, get in MEASURED]


def percent(share: float | None) -> float | None:
    """A share of 1 in percent."""
    return None if share is None else 100.0 * share


def gib(size: int | None) -> float | None:
    """Bytes as GiB."""
    return None if size is None else size / 2**30


def pair(seconds: float | None, joules: float | None) -> str:
    """A phase's seconds and joules."""
    return f"{number(seconds)} / {number(joules)}"


def by_columns(about: Sequence[Column], columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A table of rows by columns, those that say which row it is first."""
    both = [*about, *columns]
    return table([name for name, _ in both], [[get(row) for _, get in both] for row in rows])


def counting(rows: Sequence[Row]) -> list[Row]:
    """The rows whose numbers count, by shards and repeat."""
    return sorted((r for r in rows if r["counts"]), key=lambda r: (r["shards"], r["repeat"]))


def spread(rows: Sequence[Row], key: str) -> str:
    """Mean and standard deviation of a column over repeats."""
    values = [row[key] for row in rows]
    return f"{number(statistics.mean(values))} ± {number(statistics.stdev(values), 2)}"


def image_name(script: str, sweep: str, row: Row) -> str:
    """The timeline's file for a point."""
    return f"{script}-{sweep}-shards{row['shards']}.png"


def images(folder: Path, script: str, sweep: str, rows: Sequence[Row]) -> str:
    """The timelines that are there of a sweep's first repeats."""
    out = ""
    for row in counting(rows):
        name = image_name(script, sweep, row)
        if row["repeat"] == 0 and (folder / name).is_file() and name not in out:
            about = f"power of {row['model']} on {row['gpus']} GPU(s) over time, phases shaded"
            out += f"![{about}](measurements/{name})\n\n"
    return out


def about_machine(results: dict[str, Any]) -> str:
    """What ran: GPUs and driver as the rows have them, software, commit and commands."""
    rows = [row for rows in results["sweeps"].values() for row in rows if row["gpu_name"]]
    machine = results["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    lines = [
        ("GPU", ", ".join(sorted({row["gpu_name"] for row in rows}))),
        ("driver", ", ".join(sorted({row["driver"] for row in rows}))),
        ("sensor", ", ".join(sorted({row["power_source"] for row in rows}))),
        ("host", f"{machine['cpu']}, {machine['cores']} cores"),
        ("software", f"Python {machine['python']}, {versions}"),
        ("script, commit", f"`{results['script']}`, {results['commit']}"),
    ]
    withdrawn = results.get("counter_withdrawn")
    return (
        table(["", ""], lines)
        + "\n"
        + code("\n".join(results["commands"]))
        + "\n"
        + (f"**Integral and counter.** {withdrawn}\n\n" if withdrawn else "")
    )


def one_gpu(folder: Path, results: dict[str, Any]) -> str:
    """The section of h100.sh."""
    rows = counting(results["sweeps"]["h100"])
    row = rows[0]
    text = (
        f"## One GPU: {row['model']}\n\n{row['n_prompts']} of GSM8K's test questions, batch {row['batch_size']}, "
        f"{row['max_gen_len']} new tokens each, {row['precision']}, {row['weights']} weights, "
        f"engine `{row['engine']}`.\n\n"
    )
    text += about_machine(results)
    repeat: Column = ("repeat", lambda row: row["repeat"])
    text += by_columns([repeat], measured(results), rows) + "\n"
    if len(rows) > 1:
        text += (
            f"Over {len(rows)} repeats, mean ± standard deviation: {spread(rows, 'tokens_per_s')} tokens/s, "
            f"{spread(rows, 'power_w')} W, {spread(rows, 'energy_per_token_j')} J per output token.\n\n"
        )
    text += by_columns([repeat], PHASES, rows) + "\n"
    text += images(folder, "h100", "h100", rows)
    return text + ordinary_user(results)


def ordinary_user(results: dict[str, Any]) -> str:
    """What root and an ordinary user are answered by the same GPU, and the latter's own measurement."""
    root, user = results["doctor"].get("root"), results["doctor"].get("user")
    text = "### As an ordinary user\n\n"
    if user is None:
        return text + "The machine let no process become an ordinary user.\n\n"
    theirs = {finding["check"]: finding for finding in user}
    rows = [
        [f["check"], f["status"], f["detail"], theirs.get(f["check"], {}).get("status", "-")]
        for f in root
        if f["check"].startswith("cuda:") or f["check"] in ("NVML", "meter", "RAPL")
    ]
    text += "`wattflow doctor` as root, and as uid 65534 without root's rights:\n\n"
    text += table(["check", "root", "what it says", "ordinary user"], rows) + "\n"
    own = counting(results["sweeps"].get("user", []))
    if own:
        text += "The same point with fewer prompts, measured by that user:\n\n"
        text += (
            by_columns([("prompts", lambda row: row["n_prompts"])], measured(results), own) + "\n"
        )
    return text


def two_gpus(folder: Path, results: dict[str, Any]) -> str:
    """The section of h200x2.sh: Slurm's part, then the local one."""
    shards: Column = ("shards", lambda row: row["shards"])
    attempts: Sequence[Column] = (
        shards,
        ("prompts from", lambda row: row["dataset"]),
        ("attempt", lambda row: row["attempt"] or "-"),
        ("nodes", lambda row: ", ".join(row["node_names"]) or "-"),
        ("status", lambda row: row["status"]),
    )
    slurm, local = results["sweeps"].get("twonodes", []), results["sweeps"].get("local", [])
    text = "## Two GPUs\n\n" + about_machine(results)
    text += (
        "### The whole system under Slurm\n\nA real Slurm of two nodes with one GPU each: held arrays, a sidecar on "
        "each node, ranks over NCCL, a collector by `afterany`. The third point's prompts were moved away before it "
        "started.\n\n"
    )
    if "devices" in results["told"]:
        text += code(results["told"]["devices"]) + "\n"
    text += by_columns(attempts, measured(results), slurm) + "\n"
    for name, about in (
        ("failed", "`wattflow status` after the failure:"),
        (
            "resumed",
            "and after the file was put back and `wattflow resume` had run that point alone:",
        ),
    ):
        if name in results["told"]:
            text += f"{about}\n\n{code(results['told'][name])}\n"
    text += images(folder, "h200x2", "twonodes", slurm)
    rows = counting(local)
    if rows:
        text += f"### {rows[0]['model']} on one GPU and on two, without Slurm\n\n"
        text += by_columns([shards], measured(results), rows) + "\n"
        text += by_columns([shards], PHASES, rows) + "\n"
        text += table(
            ["shards", "GPU", "J in the window", "W", "share of tokens/s, per GPU"],
            [
                [
                    row["shards"],
                    device["gpu"],
                    number(device["energy_j"]),
                    number(device["energy_j"] / row["duration_s"]),
                    number(row["tokens_per_s"] / row["shards"]),
                ]
                for row in rows
                for device in row["devices"]
            ],
        )
        text += "\n" + images(folder, "h200x2", "local", rows)
    return text


def on_the_cpu(results: dict[str, Any]) -> str:
    """The section of here.py: real weights and real prompts."""
    text = "## Real weights\n\n"
    text += (
        f"{results['weights']['model']} through the Hugging Face loader on the CPU in float32: "
        f"{results['weights']['prompts']} prompts with its chat template, at most "
        f"{results['weights']['new_tokens']} greedy tokens, held against "
        f"transformers {results['machine']['versions'].get('transformers')}.\n\n"
    )
    text += table(
        ["shards", "tokens", "prompts that part", "top-2 logit gap there"],
        [
            [run["shards"], run["tokens"], run["parted"], ", ".join(map(str, run["gaps"])) or "-"]
            for run in results["weights"]["runs"]
        ],
    )
    text += "\nThree answers:\n\n"
    for answer in results["weights"]["answers"]:
        text += f"> **{' '.join(answer['prompt'].split())}** {' '.join(answer['text'].split())}\n\n"
    text += "Again: `tests/fetch_smollm2.sh FOLDER`, then "
    text += "`WATTFLOW_SMOLLM2=FOLDER python -m pytest tests/test_real_weights.py`.\n\n"
    text += "## Real prompts\n\nTokens by LLaMA's own tokenizer, template `default`:\n\n"
    keys = (
        "count",
        "skipped",
        "truncated",
        "tokens_min",
        "tokens_mean",
        "tokens_p50",
        "tokens_p95",
        "tokens_max",
    )
    text += table(
        ["", *(key.removeprefix("tokens_") for key in keys)],
        [
            [name, *(number(info[key], 4) for key in keys)]
            for name, info in results["prompts"].items()
        ],
    )
    return text + "\n"


def page(folder: Path) -> str:
    """The page's text, from the files of docs/measurements."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    text = (
        "# First measurements\n\nThe main job on real GPUs and real weights. Every number below stands in a file of "
        "[measurements/](measurements/) that a script wrote; `python tests/gpu/page.py` makes this page from them, and "
        "`docs/results.md` says what each number means. *integral / counter* holds two readings of one board against "
        "each other: consistency, not accuracy, as each board's sensor has a gain and "
        "an offset of its own: 7 % of each joule and watt below (k = 2, [uncertainty](uncertainty.md)).\n\n"
    )
    sections: tuple[tuple[str, Callable[[Any], str]], ...] = (
        ("h100", lambda one: one_gpu(folder, one)),
        ("h200x2", lambda one: two_gpus(folder, one)),
        ("here", on_the_cpu),
    )
    text += "".join(write(results[name]) for name, write in sections if name in results)
    mended = folder / "mended.md"
    if mended.is_file():
        text += f"## What broke, and how it was mended\n\n{mended.read_text().strip()}\n\n"
    return text + NOT_SHOWN


def take_in(brought: Path, folder: Path) -> None:
    """Copy a script's JSON to docs/measurements and draw the timelines of its sweeps."""
    for path in sorted(brought.glob("*.json")):
        folder.mkdir(exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
        with (
            tempfile.TemporaryDirectory() as unpacked,
            tarfile.open(brought / f"{path.stem}-sweeps.tar.gz") as packed,
        ):
            packed.extractall(unpacked, filter="data")
            for sweep in sorted(Path(unpacked).glob("**/sweeps/*")):
                draw(path.stem, sweep, folder)


def draw(script: str, path: Path, folder: Path) -> None:
    """The timeline of the first repeat of each point that counts, as PNG."""
    import polars as pl
    import vl_convert

    from wattflow import open_sweep
    from wattflow.analysis import figures

    sweep = open_sweep(path)
    place = (
        pl.when(pl.col("node").str.contains(r"^node\d+$")).then("node").otherwise(pl.lit("host"))
    )
    for row in counting(sweep.points.to_dicts()):
        name = folder / image_name(script, path.name, row)
        if row["repeat"] == 0 and row["dataset"] != "lost":
            power, spans = (
                frame.with_columns(node=place)
                for frame in (sweep.power(row["point_id"]), sweep.spans(row["point_id"]))
            )
            chart = figures.timeline(power, spans, row).to_dict()
            chart["config"]["background"] = "white"
            name.write_bytes(vl_convert.vegalite_to_png(chart, scale=1.5))


def main(brought: Sequence[str]) -> None:
    """Take in what is named, then write the page."""
    for folder in brought:
        take_in(Path(folder), DOCS / "measurements")
    (DOCS / PAGE).write_text(page(DOCS / "measurements"))


if __name__ == "__main__":
    main(sys.argv[1:])
