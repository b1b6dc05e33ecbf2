"""docs/performance.md from what the engine's benchmarks measured: `python tests/benchmarks/engine_page.py FOLDER`.

FOLDER holds engine.json of engine.py, and where there are such engine-search.json and engine-search2.json of
engine_search.py, engine-shards.json of engine_shards.py, engine-load.json and engine-load-cpu.json of load.py,
engine-tune.json of `wattflow tune --json`, engine-row.json with columns of a row of results, engine-vllm.json and
engine-before.json of engine_vllm.py, engine-attention.json of engine_attention.py. No number is by hand.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import engine_vllm_page

KINDS = (
    *("engine", "engine-search", "engine-search2", "engine-shards"),
    *("engine-load", "engine-load-cpu", "engine-tune", "engine-row"),
    *(
        "engine-vllm",
        "engine-alone",
        "engine-before",
        "engine-attention",
        "engine-fa3",
        "engine-13b",
    ),
)


def cell(value, form):
    """A number in its form, or nothing."""
    return "" if value is None else format(value, form)


def table(head, rows):
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)]) + "\n"


def plus_minus(row, column, form):
    """A mean and half its 95 % interval."""
    half = row.get(f"{column}_half")
    return cell(row[column], form) + ("" if half is None else f" ± {half:.2g}")


def about(machine):
    """The machine of a run, and its ceilings."""
    return (
        f"{machine['device']}, torch {machine['torch']}, CUDA {machine['cuda']}, Triton {machine.get('triton')}; "
        f"a copy moved {machine['copy_bytes_per_s'] / 1e12:.3f} TB/s, a bf16 product made "
        f"{machine['gemm_flops_per_s'] / 1e12:.0f} TF/s."
    )


# --- goals ---


def verdict(value, goal, *, at_most=False):
    """Whether a goal was met, and by how much it was missed."""
    met = value <= goal if at_most else value >= goal
    return "met" if met else f"missed by {abs(value / goal - 1):.1%}"


def latest(results, stage, key):
    """The last run's value of a stage that has it."""
    for kind in ("engine-search2", "engine-search", "engine"):
        found = results.get(kind, {}).get(stage, {})
        if key in found:
            return found[key]
    return None


def best_of_frontier(results, kernels):
    """The last frontier's row of one kernel set."""
    rows = latest(results, "batch 1", "frontier") or []
    return next((row for row in rows if row["kernels"] == kernels), None)


def goals(results):
    """Each goal of the engine, what was reached, and whether that is it."""
    out = []
    quick, cheap = best_of_frontier(results, "triton"), best_of_frontier(results, "cublas")
    if quick:
        out.append(
            (
                "7B, one H100, batch 1, for speed",
                ">= 80 % of copy, 180 tok/s; stretch 86 %, 196",
                f"{quick['share_of_copy']:.1%}, {quick['tokens_per_s']:.1f} tok/s (triton)",
                verdict(quick["share_of_copy"], 0.86) + " (stretch)",
            )
        )
    first = results["engine"].get("batch 1, cublas", {})
    alone = first.get("alone", {}).get("j_per_step")
    if alone:
        ratio = first["j_per_token"] / alone
        out.append(
            (
                "the same, for energy",
                "<= 1.1x products, head and attention alone; >= 150 tok/s",
                f"{ratio:.3f}x, {first['tokens_per_s']:.1f} tok/s, {first['j_per_token']:.3f} J/token (cublas)"
                + (
                    f"; later {cheap['tokens_per_s']:.1f}, {cheap['energy_per_token_j']:.3f}"
                    if cheap
                    else ""
                ),
                verdict(ratio, 1.1, at_most=True),
            )
        )
    speed = latest(results, "against transformers", "speed_ratio")
    energy = latest(results, "against transformers", "energy_ratio")
    if speed:
        out.append(
            (
                "7B, batch 64, against transformers",
                ">= 1.3x tok/s, <= 0.8x J/token",
                f"{speed:.3f}x, {energy:.3f}x",
                f"{verdict(speed, 1.3)}; {verdict(energy, 0.8, at_most=True)}",
            )
        )
    long = results["engine"].get("context 512, batch 64", {})
    if "share_of_copy" in long:
        share = long["share_of_copy"]
        out.append(
            ("7B, batch 64, context 512", ">= 70 % of copy", f"{share:.1%}", verdict(share, 0.7))
        )
    prefill = results["engine"].get("prefill", {})
    if "share_of_gemm" in prefill:
        share = prefill["share_of_gemm"]
        out.append(
            (
                "7B, prefill of 8 x 2,048",
                ">= 60 % of the product",
                f"{share:.1%}",
                verdict(share, 0.6),
            )
        )
    out += goals_of_shards(
        results.get("engine-shards", {}), results.get("engine-13b", {"rows": []})["rows"]
    )
    load = results.get("engine-load")
    if load:
        rss = load["rss_anon_bytes"] / 2**30
        out.append(
            (
                f"load of {load['bytes'] / 1e9:.1f} GB safetensors, cold",
                ">= 80 % of dd; RssAnon <= 2 GiB with a GPU",
                f"{load['share_of_dd']:.1%}, {rss:.2f} GiB",
                f"{verdict(load['share_of_dd'], 0.8)}; {verdict(rss, 2.0, at_most=True)}",
            )
        )
    else:
        out.append(
            ("load of 7B safetensors, cold", ">= 80 % of dd", "", "not run on a GPU machine")
        )
    load = results.get("engine-load-cpu")
    if load:
        share = load["rss_anon_bytes"] / load["loads"][0]["weight_bytes"]
        out.append(
            (
                f"load of {load['bytes'] / 1e9:.1f} GB safetensors on a CPU",
                "RssAnon <= 1.2x the rank's share",
                f"{share:.2f}x; {load['share_of_dd']:.0%} of dd on a busy disk",
                verdict(share, 1.2, at_most=True),
            )
        )
    return table(("case", "goal", "reached", ""), out)


def goals_of_shards(shards, rows):
    """The goals of two GPUs, which name H200s; shown with the cards that were had."""
    out = []
    newer = ""
    by_shards = {row["shards"]: row["decode_steps"] / row["decode_s"] for row in rows}
    if 2 in by_shards:
        (row,) = (row for row in rows if row["shards"] == 2)
        newer = verdict(by_shards[2], 215)
        share = row["decode_bytes_per_s"] / row["copy_bytes_per_s"]
        reached = (
            f"{by_shards[2]:.1f} tok/s in decode by cublas ({row['tokens_per_s']:.1f} with prefill), {share:.1%} of "
            f"copy, {row['energy_per_token_j']:.2f} J/token; {by_shards[2] / by_shards[1]:.2f} of one shard"
        )
        card = f"13B, 2 shards, batch 1, 2x {row['gpu_name']}"
        out.append((card, ">= 215 tok/s", reached, f"{newer}; `triton` was not run there"))
    two, one = (shards.get(f"13B, {n}", {}) for n in ("2 shards", "1 shard"))
    if "triton, quicker" in two and "triton, quicker" in one:
        card = two["machine"][0]["device"]
        rate = two["triton, quicker"]["tokens_per_s"]
        ratio = rate / one["triton, quicker"]["tokens_per_s"]
        out.append(
            (
                "13B, 2 shards, batch 1",
                ">= 215 tok/s on 2x H200",
                (
                    f"{rate:.1f} tok/s on 2x {card}, {two['triton, quicker']['share_of_copy']:.1%} of copy; "
                    f"{ratio:.2f} of one shard"
                ),
                "see above" if newer else "not run on H200s",
            )
        )
    big = shards.get("65B, 2 shards", {}).get("cublas, quicker")
    if big:
        card = shards["65B, 2 shards"]["machine"][0]["device"]
        out.append(
            (
                "65B, 2 shards, batch 32",
                ">= 60 % of copy",
                (
                    f"{big['share_of_copy']:.1%} on 2x {card}, {big['tokens_per_s']:.0f} tok/s, "
                    f"{big['j_per_token']:.3f} J/token"
                ),
                verdict(big["share_of_copy"], 0.6),
            )
        )
    return out


# --- one GPU ---


LEAD = """How far `engine=fast` is from the hardware's limits.
`python tests/benchmarks/engine_page.py docs/measurements` writes this page from what engine.py, engine_search.py,
engine_vllm.py, engine_attention.py, engine_shards.py and load.py beside it measured on GPUs; each section is one run.
Joules are wattflow's own, by its sidecar, at the GPU, per generated token; decode alone unless said. LLaMA's shapes in
bf16, random weights and prompts, 128 tokens in and 256 out unless said. A copy: 4 GiB, the best of ten.
No ± here holds what a board's sensor may be off, 7 % of joules and watts (k = 2, [uncertainty](uncertainty.md)); ratios
on one board are free of its gain.
"""
EARLY = """A tile is outputs a program, inputs it takes at a time, and warps. Early: weights are loaded while the kernel
before still runs.
"""
OVERLAP = """A kernel that is launched early counts from its launch, so times of one step overlap and may add up to more
than it.
"""


def first_run(result):
    """The table of engine.py's stages."""
    rows = []
    for name, row in result.items():
        if "ms_per_step" in row:
            rows.append(
                (
                    f"{name} ({row['info']['kernels']})",
                    f"{row['tokens_per_s']:.1f}",
                    f"{row['ms_per_step']:.3f}",
                    cell(row["power_w"], ".0f"),
                    cell(row["j_per_token"], ".4f"),
                    cell(row["share_of_copy"], ".1%"),
                    cell(row["sm_clock_mhz"], ".0f"),
                )
            )
        if "alone" in row:
            alone = row["alone"]
            rows.append(
                (
                    f"{name}: products, head and attention alone",
                    "",
                    f"{alone['ms']:.3f}",
                    cell(alone["power_w"], ".0f"),
                    cell(alone.get("j_per_step"), ".4f") + " (a step)",
                    "",
                    cell(alone["sm_clock_mhz"], ".0f"),
                )
            )
        rows += [
            (f"{name}: {arm}", f"{row[f'{arm}_tokens_per_s']:.1f}", "", "",
             cell(row[f"{arm}_j_per_token"], ".4f"), "", "")
            for arm in ("fast", "transformers")
            if f"{arm}_tokens_per_s" in row
        ]  # fmt: skip
        if "share_of_gemm" in row:
            rows.append(
                (
                    name,
                    f"{row['tokens_per_s']:.0f}",
                    f"{row['seconds_each'] * 1e3:.1f} (a prefill)",
                    cell(row["power_w"], ".0f"),
                    cell(row.get("j_per_token"), ".4f"),
                    f"{row['share_of_gemm']:.1%} of the product",
                    cell(row["sm_clock_mhz"], ".0f"),
                )
            )
        if "error" in row:
            rows.append((name, row["error"].splitlines()[0][:80], "", "", "", "", ""))
    return table(("case", "tok/s", "ms a step", "W", "J a token", "share of copy", "SM MHz"), rows)


def frontier(rows):
    """Kernel sets or launches, quickest first, with their intervals."""
    return table(
        (
            *("kernels", "windows", "tok/s", "share of copy", "W", "J a token", "J s x 1000"),
            *("SM MHz", "degC", "under the cap"),
        ),
        [
            (
                row["kernels"],
                row["windows"],
                plus_minus(row, "tokens_per_s", ".1f"),
                f"{row['share_of_copy']:.1%}",
                plus_minus(row, "power_w", ".0f"),
                plus_minus(row, "energy_per_token_j", ".3f"),
                cell(None if row["edp_js"] is None else row["edp_js"] * 1e3, ".2f"),
                cell(row["sm_clock_mhz"], ".0f"),
                cell(row["temperature_c"], ".0f"),
                cell(row["under_cap"], ".0%"),
            )
            for row in rows
        ],
    )  # fmt: skip


def faster_not_cheaper(result):
    """The frontier at batch 1, in words and as a table."""
    rows = result["batch 1"]["frontier"]
    quick, cheap = rows[0], min(rows, key=lambda row: row["energy_per_token_j"])
    quicker = quick["tokens_per_s"] / cheap["tokens_per_s"] - 1
    dearer = quick["energy_per_token_j"] / cheap["energy_per_token_j"] - 1
    reached = "reached" if any(row["under_cap"] for row in rows) else "not reached"
    return (
        "Windows of 8 s or more in random order within blocks; ± is half a 95 % interval between windows. "
        f"`{quick['kernels']}` makes {quicker:.0%} more tokens a second than `{cheap['kernels']}` and takes "
        f"{dearer:.0%} more joules for each. The limit of {quick['power_limit_w']:.0f} W was {reached}.\n\n"
        + frontier(rows)
    )


def old_and_new(result):
    """Decode of batch 64 with the old and new kernels."""
    rows = [(name, row) for name, row in result["batch 64"].items() if isinstance(row, dict)]
    return table(
        ("batch 64, cublas", "ms a step", "share of copy", "J a token", "by the counter", "W"),
        [
            (
                name,
                f"{row['ms_per_step']:.3f}",
                cell(row["share_of_copy"], ".1%"),
                cell(row["j_per_token"], ".5f"),
                cell(row["counter_j_per_token"], ".5f"),
                ", ".join(f"{w['power_w']:.0f}" for w in row["windows"]),
            )
            for name, row in rows
        ],
    )


def products(search):
    """The best tile of each product, early and late."""
    rows = []
    for name in ("wqkv", "wo", "w13", "w2", "head"):
        results = search[name]
        best = str(tuple(results["best"]))
        early, late = results["early_again_us"].get(best), results["late_us"].get(best)
        before = results["late_us"].get("(1, 2048, 4)")
        rows.append(
            (
                name,
                f"{results['bytes'] / 1e6:.1f}",
                best,
                cell(early, ".1f"),
                cell(early and results["bytes"] / early / 1e6, ".2f"),
                cell(late, ".1f"),
                cell(before, ".1f"),
            )
        )
    head = ("product", "MB", "tile", "us, early", "TB/s", "us, late", "us, (1, 2048, 4) late")
    return table(head, rows)


def transformers(found):
    """The windows of both arms."""
    rows = [
        (
            arm,
            number + 1,
            f"{w['seconds']:.1f}",
            f"{w['tokens_per_s']:.0f}",
            cell(w["power_w"], ".0f"),
            cell(w["j_per_token"], ".4f"),
            cell(
                w["counter_energy_j"] and w["j_per_token"] * w["counter_energy_j"] / w["energy_j"],
                ".4f",
            ),
            cell(w["sm_clock_mhz"], ".0f"),
            cell(w["temperature_c"], ".0f"),
        )
        for arm, windows in found["arms"].items()
        for number, w in enumerate(windows)
    ]
    head = ("arm", "window", "s", "tok/s", "W", "J a token", "by the counter", "SM MHz", "degC")
    return table(head, rows)


def kernels(name, rows):
    """The kernels of a step."""
    parts = [f"\n### Kernels of a step: {name}\n"]
    return [
        *parts,
        table(("kernel", "calls", "us a step"), [(f"`{k}`", f"{n:g}", us) for k, n, us in rows]),
    ]


def correctness(right):
    """What was compared on the GPU, and found."""
    rows = [
        (f"graph replay against the same step run eagerly: {name}", json.dumps(seen))
        for name, seen in right.get("replay_equals_eager", {}).items()
    ]
    rows += [
        ("batches of 2 and 1 after 4, and EOS, in float32", json.dumps(right.get("endings"))),
        ("greedy float32 tokens equal `paper`", right.get("float32_tokens_equal_paper")),
    ]
    rows += [
        (f"bf16 logits against float64, {name}", f"{error:.1e}")
        for name, error in right.get("bf16_error_against_float64", {}).items()
    ]
    rows.append(("the same with a position off by one", right.get("control_position_off_by_one")))
    return table(("what", "found"), rows)


def later_correctness(right):
    """The same of a later run."""
    rows = [
        (name, json.dumps(seen) if isinstance(seen, dict) else seen)
        for name, seen in right.items()
        if name not in ("stage_s", "error")
    ]
    return table(("what", "found"), rows)


def search_sections(results):
    """What engine_search.py found, run by run."""
    out = []
    titles = {"engine-search": "Kernels searched", "engine-search2": "After the search"}
    for kind, title in titles.items():
        if kind in results:
            out += [f"\n## {title}\n", about(results[kind]["machine"]) + "\n"]
            out += [
                f"Stage {name}: {stage['error']}; what it had measured was not kept.\n"
                for name, stage in results[kind].items()
                if "error" in stage and "not begun" not in stage["error"]
            ]
            out += batch_1_sections(results[kind])
            out += other_sections(results[kind])
    return out


def batch_1_sections(result):
    """The frontier, the launches, and the kernels of a step."""
    batch = result.get("batch 1", {})
    if "frontier" not in batch:
        return []
    launched = batch["info of triton"]["attention"].rpartition(", ")[2]
    out = ["### Batch 1: the fastest is not the cheapest\n", faster_not_cheaper(result)]
    out.append(f"Kernels of this frontier were {launched}.\n")
    if batch.get("launches"):
        out += ["Launched early, and one after another, in turn:\n", frontier(batch["launches"])]
    for name in ("cublas", "triton"):
        if batch.get(f"kernels of {name}"):
            out += kernels(f"batch 1, {name}", batch[f"kernels of {name}"])
    return out


def other_sections(result):
    """Tiles, attention, transformers, memory, correctness: each where the run has it."""
    out = []
    if "wqkv" in result.get("search", {}):
        out += ["### Products of one row\n", EARLY, products(result["search"])]
    if "old scan" in result.get("batch 64", {}):
        out += ["### Attention at batch 64\n", old_and_new(result)]
    if "arms" in result.get("against transformers", {}):
        words = "Prefill and decode, windows in turn; compile time is not counted.\n"
        results = transformers(result["against transformers"])
        out += ["### Against transformers, batch 64\n", words, results]
    if "told" in result.get("out of memory", {}):
        out += ["### Out of memory, as it is said\n", f"> {result['out of memory']['told']}\n"]
    if result.get("correctness"):
        out += ["### Correctness\n", later_correctness(result["correctness"])]
    return out


def tune_section(result, results):
    """What `wattflow tune` printed on the machine of the second search."""
    copy = results["engine-search2"]["machine"]["copy_bytes_per_s"]
    rows = [{**row, "share_of_copy": row["bytes_per_s"] / copy} for row in result["frontier"]]
    again, late = result["again"], best_of_frontier(results, "triton")
    best = ", ".join(f"{goal} {name}" for goal, name in result["best"].items())
    words = (
        "Two windows of 4 s a set, on a GPU of the machine of the section before, launched early:\n"
    )
    out = ["\n## `wattflow tune`, 7B at batch 1\n", words, frontier(rows)]
    out.append(
        f"Best by {best}. In a fresh window `{again['kernels']}` made {again['tokens_per_s']:.1f} tok/s at "
        f"{again['energy_per_token_j']:.3f} J a token."
    )
    if late:
        out.append(
            f"Launched one after another, on another board, `triton` made {late['tokens_per_s']:.1f} tok/s (above): "
            "early launches shorten single products, and no whole step that could be seen."
        )
    return out


def where_the_joules_go(results):
    """Why batch 64 is no cheaper: the parts of its joules that were measured apart."""
    step, prefill = results["engine"].get("batch 64", {}), results["engine"].get("prefill", {})
    ours = latest(results, "against transformers", "fast_j_per_token")
    variants = results.get("engine-search", {}).get("batch 64", {})
    if not (step.get("alone") and prefill.get("j_per_token") and ours and "old scan" in variants):
        return []
    whole, alone = step["j_per_token"] * 64, step["alone"]["j_per_step"]
    of_prompt = prefill["j_per_token"] * 128 / 256
    old, new = variants["old scan, late"], variants["tensor cores"]
    shorter = 1 - new["ms_per_step"] / old["ms_per_step"]
    cheaper = 1 - new["j_per_token"] / old["j_per_token"]
    words = (
        f"Products, head and attention of a decode step, replayed alone, took {alone:.3f} J of the {whole:.3f} J of "
        f"the whole step ({alone / whole:.1%}, first run): what stands between them costs next to nothing. A prompt of "
        f"128 tokens adds {of_prompt:.4f} J to each of 256 new ones, {of_prompt / ours:.0%} of {ours:.4f}. Both arms "
        f"make the same products by cuBLAS. Tensor cores in attention took {shorter:.1%} off the time of a step and "
        f"{cheaper:.1%} off its joules, since watts rose. What is left to be saved against transformers lies in "
        "cheaper products and attention, not in a shorter step.\n"
    )
    return ["\n## Where the joules of batch 64 go\n", words]


def row_section(row, results):
    """One row of results, held to the copy of the second search, on whose machine it was made."""
    copy = results["engine-search2"]["machine"]["copy_bytes_per_s"]
    asked = f"{row['n_prompts']}, {row['batch_size']}, {row['max_gen_len']}"
    rate = f"{row['tokens_per_s']:.0f}, {row['energy_per_token_j']:.4f}, {row['power_w']:.0f}"
    prefill = f"{row['prefill_s']:.2f} s, {row['prefill_energy_j']:.0f} J"
    steps = f"{row['decode_s']:.2f} s, {row['decode_energy_j']:.0f} J, {row['decode_steps']} steps"
    cells = [
        ("prompts, batch, new tokens", asked),
        ("tok/s, J a token, W", rate),
        ("prefill", prefill),
        ("decode", steps),
        (
            "least of a step",
            f"{row['step_bytes'] / 1e9:.2f} GB, {row['step_flops'] / 1e12:.3f} TFLOP",
        ),
        ("reached in decode", f"{row['decode_bytes_per_s'] / 1e12:.3f} TB/s"),
        (f"share of a copy of {copy / 1e12:.3f} TB/s", f"{row['decode_bytes_per_s'] / copy:.1%}"),
        ("integral / counter", f"{row['counter_ratio']:.4f}"),
    ]
    words = (
        "Alpaca's prompts, as `wattflow submit` runs them, on the machine of the second search; the copy is the one "
        "that the search's script measured there.\n"
    )
    return ["\n## A row of results\n", words, table(("what", "found"), cells)]


# --- two GPUs ---


def cases_of_shards(shards):
    """The machine of a run over two GPUs, and a row for each case and way."""
    first = next(c for c in shards.values() if isinstance(c, dict) and "machine" in c)
    out = [f"2x {about(first['machine'][0])}\n"]
    rows = []
    for name, case in shards.items():
        rows += [
            (
                name,
                way.replace("quicker", case["info"]["allreduce"] or "one rank"),
                f"{row['tokens_per_s']:.1f}",
                f"{row['ms_per_step']:.3f}",
                f"{row['share_of_copy']:.1%}",
                cell(row["power_w"], ".0f"),
                cell(row["j_per_token"], ".4f"),
                f"{row['last_batch']['mean_length']:.0f}",
            )
            for way, row in (case.items() if isinstance(case, dict) else ())
            if isinstance(row, dict) and "ms_per_step" in row
        ]
    head = (
        "case",
        "kernels, all-reduce",
        "tok/s",
        "ms a step",
        "share of copy",
        "W",
        "J a token",
        "mean length",
    )
    return [
        *out,
        table(head, rows),
        "Watts and joules are of all GPUs of the case, decode alone.\n",
    ]


def shards_sections(shards):
    """What engine_shards.py found."""
    check = shards["check"]
    out = ["\n## Two GPUs\n", *cases_of_shards(shards)]
    out += ["### One all-reduce, from a graph, us\n"]
    rows = [
        (
            f"{width} x {n}",
            f"{results['kib'][n]:.0f}",
            cell((results.get("allreduce_nccl_us") or results["allreduce_us"])[n], ".1f"),
            cell(results["allreduce_us"][n] if "allreduce_nccl_us" in results else None, ".1f"),
        )
        for width, results in check["allreduce_us"].items()
        for n in results["kib"]
    ]
    out += [table(("width x rows", "KiB", "NCCL", "one-shot"), rows)]
    out += ["### Correctness over two shards\n"]
    rows = [
        (f"graph replay against eager: {name}", json.dumps(seen))
        for name, seen in check["replay"].items()
    ]
    rows.append(
        ("float32 tokens of each rank equal one rank's", check["float32_tokens_equal_one_rank"])
    )
    out += [table(("what", "found"), rows)]
    for name, way in (("13B, 2 shards", "triton, quicker"), ("65B, 2 shards", "cublas, quicker")):
        row = shards.get(name, {}).get(way, {})
        if row.get("kernels"):
            out += kernels(f"{name}, {way.partition(',')[0]}", row["kernels"][:8])
    out.append(OVERLAP)
    return out


def load_section(load):
    """What load.py found."""
    rows = [
        (n + 1, f"{load['bytes'] / dd / 1e9:.2f}", f"{load['bytes'] / one['seconds'] / 1e9:.2f}",
         f"{dd / one['seconds']:.0%}", f"{one['rss_anon_bytes'] / 2**30:.2f}")
        for n, (dd, one) in enumerate(zip(load["dd_s"], load["loads"], strict=True))
    ]  # fmt: skip
    return [
        (
            f"{load['bytes'] / 1e9:.2f} GB of safetensors to {load['loads'][0]['device']}, caches dropped by "
            f"{load['dropped_by']} before each, in turn with `dd bs=16M`.\n"
        ),
        table(("turn", "dd, GB/s", "load, GB/s", "share", "RssAnon, GiB"), rows),
    ]


def page(results):
    """All of it."""
    first = dict(results["engine"])
    withdrawn = first.pop("counter_withdrawn", None)
    parts = [
        "# Performance\n",
        LEAD,
        goals(results),
        *engine_vllm_page.sections(results),
        "\n## One GPU, all cases\n",
        about(first["machine"]) + " Kernels as they were before the search below.\n",
        first_run({k: v for k, v in first.items() if k not in ("machine", "correctness", "total")}),
        *([f"**Integral and counter.** {withdrawn}\n"] if withdrawn else []),
        *search_sections(results),
        *(tune_section(results["engine-tune"], results) if "engine-tune" in results else []),
        *where_the_joules_go(results),
        *(row_section(results["engine-row"], results) if "engine-row" in results else []),
        *(shards_sections(results["engine-shards"]) if "engine-shards" in results else []),
        *(["\n## Loading\n"] if "engine-load" in results or "engine-load-cpu" in results else []),
        *(load_section(results["engine-load"]) if "engine-load" in results else []),
        *(load_section(results["engine-load-cpu"]) if "engine-load-cpu" in results else []),
        "\n## Correctness, first run\n",
        correctness(first["correctness"]),
    ]
    for name, row in first.items():
        if row.get("kernels"):
            parts += kernels(f"{name}, before the search", row["kernels"])
    return "\n".join(part.rstrip("\n") + "\n" for part in parts).rstrip("\n")


def main():
    folder = Path(sys.argv[1])
    results = {
        kind: json.loads((folder / f"{kind}.json").read_text())
        for kind in KINDS
        if (folder / f"{kind}.json").is_file()
    }
    print(page(results))


if __name__ == "__main__":
    main()
