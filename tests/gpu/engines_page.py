"""What engines.sh measured, as tables of docs/engines.md.

python tests/gpu/engines_page.py RESULTS...   takes in engines-PART.json of a run, then writes the tables
python tests/gpu/engines_page.py              writes them anew of what is kept
python tests/gpu/engines_page.py --check      1 where the page is not what is kept
"""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "engines.md"
KEPT = ROOT / "docs" / "measurements" / "engines-h200.json"
BEGIN, END = "<!-- engines: begin -->", "<!-- engines: end -->"

COLUMNS = (
    *(
        "status",
        "counts",
        "reasons",
        "error",
        "model",
        "engine",
        "precision",
        "batch_size",
        "repeat",
    ),
    *(
        "n_prompts",
        "max_gen_len",
        "tokens_in",
        "tokens_kept",
        "tokens_per_s",
        "power_w",
        "energy_j",
    ),
    *("energy_per_token_j", "energy_per_token_u_j", "energy_expanded_u_j", "counter_ratio"),
    *("duration_s", "boards", "gpu_name", "driver", "engine_version", "attention_backend"),
    *("cuda_graphs", "quantization", "engine_info", "started"),
)
STUDENT_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}  # by the number of values
AGAIN = "-again"  # a sweep of the same points, run later

Row = dict[str, Any]


def take_in(files: list[Path]) -> None:
    """Keep the columns that the page or a reader needs, of each part."""
    kept: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    for file in files:
        found = json.loads(file.read_text())
        kept[file.stem.removeprefix("engines-")] = {
            "script": found["script"],
            "commit": found["commit"],
            "machine": found["machine"],
            "commands": found["commands"],
            "sweeps": {
                name: [{key: row.get(key) for key in COLUMNS} for row in rows]
                for name, rows in found["sweeps"].items()
            },
        }
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")


def sweeps(kept: dict[str, Any]) -> dict[str, list[Row]]:
    """The rows that count of each sweep, of all parts; of transformers, whose blocks are two sweeps, all in one."""
    found = {
        name: [row for row in rows if row["counts"]]
        for part in kept.values()
        for name, rows in part["sweeps"].items()
    }
    return {**found, "transformers": found["transformers"] + found.pop("transformers" + AGAIN, [])}


def by_batch(rows: list[Row]) -> dict[int, list[Row]]:
    """Rows of one sweep by batch size."""
    out: dict[int, list[Row]] = {}
    for row in sorted(rows, key=lambda one: one["batch_size"]):
        out.setdefault(row["batch_size"], []).append(row)
    return out


def joules(rows: list[Row]) -> tuple[float, float]:
    """J/token of some repeats and its U at 95 %: Student's of their spread, with sampling's of each."""
    values = [row["energy_per_token_j"] for row in rows]
    sampling = 2 * mean(row["energy_per_token_u_j"] for row in rows)
    if len(values) == 1:
        return values[0], sampling
    spread = STUDENT_95[len(values)] * stdev(values) / math.sqrt(len(values))
    return mean(values), math.hypot(spread, sampling)


def number(value: float, u: float) -> str:
    """A value and its U to two digits of the U."""
    digits = max(0, 1 - math.floor(math.log10(u)))
    return f"{value:.{digits}f} ± {u:.{digits}f}"


def about(rows: list[Row], key: str) -> float:
    """The mean of a column."""
    return mean(row[key] for row in rows)


def main_table(found: dict[str, list[Row]]) -> Iterator[str]:
    """Tokens a second, watts and J/token of Llama-3.1-8B's shapes, by engine and batch."""
    names = {
        "vllm-bf16": "`vllm`, bf16",
        "vllm-fp8": "`vllm`, fp8 while loading",
        "fast-bf16": "`fast`, bf16",
        "transformers": "`transformers`, bf16",
        "paper": "`paper`, bf16, 64 tokens out",
    }
    yield "| Llama-3.1-8B | batch | tokens/s | W | J/token, U at 95 % | repeats |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for sweep, name in names.items():
        yield from lines(name, found.get(sweep, []))


def lines(name: str, rows: list[Row]) -> Iterator[str]:
    """Rows of a table, one a batch size; the first one bears the name."""
    for place, (batch, some) in enumerate(by_batch(rows).items()):
        yield line("" if place else name, batch, some)


def line(name: str, batch: int, rows: list[Row]) -> str:
    """One row of a table."""
    speed, power = about(rows, "tokens_per_s"), about(rows, "power_w")
    shown = f"{speed:,.0f}" if speed >= 100 else f"{speed:.1f}"
    return f"| {name} | {batch} | {shown} | {power:.0f} | {number(*joules(rows))} | {len(rows)} |"


def ratios(found: dict[str, list[Row]]) -> Iterator[str]:
    """J/token over vLLM's in bf16, by batch."""
    base = by_batch(found["vllm-bf16"])
    yield "| J/token over `vllm` bf16's | " + " | ".join(f"batch {size}" for size in base) + " |"
    yield "| --- |" + " --- |" * len(base)
    for sweep, name in (
        ("vllm-fp8", "`vllm` fp8"),
        ("fast-bf16", "`fast` bf16"),
        ("transformers", "`transformers` bf16"),
        ("vllm-bf16" + AGAIN, "`vllm` bf16, second run"),
    ):
        rows = by_batch(found.get(sweep, []))
        cells = [ratio(rows[size], base[size]) if size in rows else "" for size in base]
        yield f"| {name} | " + " | ".join(cells) + " |"


def ratio(rows: list[Row], base: list[Row]) -> str:
    """A quotient of two J/token with its U; one run has its sampling's alone."""
    (one, u), (other, other_u) = joules(rows), joules(base)
    return number(one / other, one / other * math.hypot(u / one, other_u / other))


def models_table(found: dict[str, list[Row]]) -> Iterator[str]:
    """The larger models by vLLM in bf16."""
    yield "| `vllm`, bf16 | batch | tokens/s | W | J/token, U at 95 % | repeats |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for sweep, name in (
        ("qwen3-32b", "Qwen3-32B"),
        ("qwen3-30b-a3b", "Qwen3-30B-A3B, random gates"),
    ):
        yield from lines(name, found.get(sweep, []))


def ran(found: dict[str, list[Row]]) -> Iterator[str]:
    """What really ran, as the rows say it."""
    for sweep in ("vllm-bf16", "vllm-fp8", "fast-bf16", "transformers", "qwen3-30b-a3b"):
        for row in found.get(sweep, [])[:1]:
            info = json.loads(row["engine_info"])
            facts = {
                "version": row["engine_version"],
                "attention": row["attention_backend"],
                "graphs": row["cuda_graphs"],
                "quantisation": row["quantization"],
                "bytes of weights": info.get("weight_bytes"),
                "bytes of cache a token": info.get("kv_bytes_per_token"),
                "most tokens of an iteration": info.get("max_num_batched_tokens"),
            }
            words = [
                f"{name} {value:,.0f}" if isinstance(value, int | float) else f"{name} {value}"
                for name, value in facts.items()
                if value is not None
            ]
            yield f"- {sweep}: {'; '.join(words)}."


def wrapped(text: str) -> str:
    """A paragraph in lines of at most 120 characters."""
    lines, line_ = [], ""
    for word in text.split():
        if len(line_) + 1 + len(word) > 120:
            lines.append(line_)
            line_ = word
        else:
            line_ = f"{line_} {word}".strip()
    return "\n".join([*lines, line_])


def page(kept: dict[str, Any]) -> str:
    """All that stands between the marks."""
    found = sweeps(kept)
    rows = [row for some in found.values() for row in some]
    tried = [row for part in kept.values() for some in part["sweeps"].values() for row in some]
    checks = [row["counter_ratio"] for row in rows]
    boards = {board for row in rows for board in row["boards"]}
    u = [row["energy_expanded_u_j"] / row["energy_j"] for row in rows if row["energy_expanded_u_j"]]
    gpu, driver = rows[0]["gpu_name"], rows[0]["driver"]
    torch = next(iter(kept.values()))["machine"]["versions"]["torch"]
    lasted = [row["duration_s"] for row in rows]
    where = "one board" if len(boards) == 1 else f"{len(boards)} boards"
    about_all = (
        f"{gpu}, driver {driver}, torch {torch}, {where}; dummy weights, 128 tokens in and 256 out, greedy static "
        f"batches, prefix cache off. {len(rows)} of {len(tried)} attempts count; the others ran into the time limit. "
        f"Windows last {min(lasted):.1f} to {max(lasted):.0f} s; the integral over the board's energy counter is "
        f"{min(checks):.3f} to {max(checks):.3f}. U is Student's of the repeats, which are shuffled blocks under one "
        "start of an engine, with sampling's; with two repeats it is wide, with one it is sampling's alone. What the "
        f"board's own sensor may be off, {100 * min(u):.0f} % to {100 * max(u):.0f} % of the joules, is not in it, and "
        "cancels in ratios of one board."
    )
    parts = [
        wrapped(about_all),
        "\n".join(main_table(found)),
        "\n".join(ratios(found)),
        "\n".join(models_table(found)),
        "What ran:",
        "\n".join(map(wrapped, ran(found))),
    ]
    return "\n\n".join(parts)


def main(words: list[str]) -> int:
    """Take in results, write or check the page; 1 where it differs."""
    files = [Path(word) for word in words if word != "--check"]
    if files:
        take_in(files)
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = f"{before}{BEGIN}\n\n{page(json.loads(KEPT.read_text()))}\n\n{END}{after}"
    if "--check" in words:
        return int(made != text)
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
