"""Sections of docs/performance.md: what engine_vllm.py and engine_attention.py measured. engine_page.py joins them."""

GOALS = {
    "vllm": (1.03, 0.98),
    "vllm-fp8": (1.05, 0.95),
}  # tokens a second at least, joules a token at most
# a kernel's group by a part of its name, in this order
GROUPS = (
    ("attention", ("_attend", "_join", "flash", "Flash", "fmha", "reshape_and_cache")),
    (
        "products",
        ("nvjet", "gemm", "Gemm", "cutlass", "cublas", "splitK", "_gemv", "scaled_mm", "GEMM"),
    ),
)


def table(head, rows):
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)]) + "\n"


def with_interval(ratio, form=".3f"):
    """A ratio, and its interval where there is one."""
    if ratio is None:
        return ""
    middle = format(ratio["ratio"], form)
    if ratio["low"] is None:
        return f"{middle} (one block)"
    return f"{middle} ({ratio['low']:{form}} to {ratio['high']:{form}})"


def batches(turns):
    """The stages of batches by size, ascending."""
    found = {int(name.split()[1]): one for name, one in turns.items() if name.startswith("batch ")}
    return sorted((size, one) for size, one in found.items() if one.get("summary"))


def verdict(ratios, other):
    """Whether both goals against another engine were met, by the middle of the ratios."""
    speed, joules = ratios["tokens_per_s"], ratios["j_per_token"]
    if speed is None or joules is None:
        return ""
    quick, cheap = GOALS[other]
    faults = []
    if speed["ratio"] < quick:
        faults.append(f"tokens/s missed by {1 - speed['ratio'] / quick:.1%}")
    if joules["ratio"] > cheap:
        faults.append(f"joules missed by {joules['ratio'] / cheap - 1:.1%}")
    return "; ".join(faults) or "met"


def ratio_rows(turns):
    """A row for each batch and pair: both ratios and what became of the goals."""
    for size, found in batches(turns):
        for pair, ratios in found["ratios"].items():
            ours, other = pair.split(" / ")
            if other in GOALS:
                yield (
                    f"{size}, {'fp8' if 'fp8' in other else 'bf16'}{', products of one row by Triton' * (':' in ours)}",
                    with_interval(ratios["tokens_per_s"]),
                    with_interval(ratios["j_per_token"]),
                    f">= {GOALS[other][0]}, <= {GOALS[other][1]}",
                    verdict(ratios, other),
                )


def arm_rows(turns):
    """A row for each batch and arm: what it made and took."""
    for size, found in batches(turns):
        for name, row in found["summary"].items():
            if row["tokens_per_s"] is not None:
                clock = "" if row["sm_clock_mhz"] is None else f"{row['sm_clock_mhz']:.0f}"
                yield (
                    size,
                    name,
                    f"{row['tokens_per_s']:,.1f}",
                    f"{row['power_w']:.0f}",
                    f"{row['j_per_token']:.4f}",
                    clock,
                    row["windows"],
                )


def group_of(kernel):
    """Which group a kernel belongs to by its name."""
    return next((name for name, parts in GROUPS if any(p in kernel for p in parts)), "the rest")


def profile_rows(turns):
    """A row for each batch and arm that was profiled: microseconds of a step by group."""
    for size, found in batches(turns):
        for name, arm in found["arms"].items():
            kernels = (arm.get("profile") or {}).get("kernels") or []
            if name.startswith("vllm"):  # its steps there mixed prompts and rows
                continue
            sums = dict.fromkeys(("attention", "products", "the rest"), 0.0)
            for kernel, _, us in kernels:
                sums[group_of(kernel)] += us
            if sum(sums.values()) > 0:
                yield (size, name, *(f"{us:,.0f}" for us in sums.values()))


def beside(turns):
    """Both engines in turns: ratios first, then what they made, then where a step's time goes."""
    machine, settings = turns["machine"], turns["machine"]["settings"]
    parts = [
        "\n## Beside vLLM\n",
        (
            f"`fast` and vLLM {machine['vllm']} in turns on one {machine['device']} (copy "
            f"{machine['copy_bytes_per_s'] / 1e12:.2f} TB/s, product {machine['gemm_flops_per_s'] / 1e12:.0f} TF/s), "
            f"Llama-3.1-8B's shapes, weights of one law, {settings['prompt']} tokens in and {settings['new']} out, "
            "greedy, prefill included, vLLM with its graphs, compiled, without prefix cache. Each arm is a process; a "
            f"block is a window of {settings['window_s']:g} s or more of whole batches for each arm, in random order. "
            "Ratios are ours over vLLM's, means over blocks with 95 % intervals by Student's t, which two blocks "
            "make wide.\n"
        ),
        table(("batch", "tokens/s, ratio", "J a token, ratio", "goal", ""), ratio_rows(turns)),
        "\n### What each made\n",
        table(("batch", "arm", "tok/s", "W", "J a token", "SM MHz", "windows"), arm_rows(turns)),
    ]
    rows = list(profile_rows(turns))
    if rows:
        parts += [
            "\n### Where a step's time goes\n",
            (
                "Microseconds of a decode step of `fast` by the profiler, in the middle of a batch; kernels that are "
                "launched early count from their launch.\n"
            ),
            table(("batch", "arm", "attention", "products", "the rest"), rows),
        ]
    return parts


def alone(turns):
    """Batch 1 where vLLM was not beside."""
    words = "Batch 1 was measured without vLLM beside it, on another H200: no ratio, and no goal is said to be met.\n"
    return [
        words,
        table(("batch", "arm", "tok/s", "W", "J a token", "SM MHz", "windows"), arm_rows(turns)),
    ]


def before(turns):
    """What the engine gained against an older commit, in turns on one board."""
    rows = []
    for size, found in batches(turns):
        for pair, ratios in found["ratios"].items():
            ours, other = pair.split(" / ")
            if other == "before":
                cells = (with_interval(ratios[c]) for c in ("tokens_per_s", "j_per_token"))
                rows.append((size, ours, *cells))
    words = (
        "In turns with the engine of commit 5fb5009, which padded prompts and read each KV head once for every query "
        "head of its group:\n"
    )
    head = ("batch", "arm", "tokens/s, ratio", "J a token, ratio")
    return ["\n### Against the engine of before\n", words, table(head, rows)]


def attention(found, fa3):
    """One layer's attention over grouped heads, against what else there is."""
    rows = []
    for name, row in found["attention"].items():
        if not isinstance(row, dict) or name.endswith("again"):
            continue
        known = {k: v for k, v in row["us"].items() if not isinstance(v, str)}
        others = {k: v for k, v in known.items() if not k.startswith("ours")}
        ours = {k: v for k, v in known.items() if k.startswith("ours")}
        least, best = min(ours, key=ours.__getitem__), min(others, key=others.__getitem__)
        share = row["bytes"] / (row["as it is"] * 1e-6) / found["machine"]["copy_bytes_per_s"]
        theirs = fa3.get("us", {}).get(name)
        rows.append(
            (
                name,
                f"{row['bytes'] / 1e6:.1f}",
                f"{row['as it is']:.1f}",
                f"{share:.0%}",
                f"{ours[least]:.1f}, {least.removeprefix('ours ')}",
                f"{others[best]:.1f} ({best})",
                "" if theirs is None else f"{theirs:.1f}; {theirs / row['as it is']:.2f}x",
            )
        )
    words = (
        f"32 query heads over 8 KV heads of 128, one query a row, one layer, on {found['machine']['device']}: keys and "
        "values read once over the time, as a share of a copy. Ours also turns its queries, writes its key and takes "
        "rows of any length; torch's finds that done, and all rows equally long. The engine has since taken the best "
        "scan, (16, 1, 3) for caches of up to 512 tokens and (64, 2, 2) for longer ones: what is above ran with "
        "(64, 4, 2).\n"
    )
    if fa3:
        words += f"\nFA3: {fa3['source']}; goal: 1.3x below 2,048 tokens, and 85 % of copy from there on.\n"
    head = (
        *("rows x tokens", "MB", "us, as measured above", "share of copy"),
        *("best scan, us (keys, warps, blocks; splits)", "best of torch, us", "FA3, us; ours is"),
    )
    return ["\n### Attention of one layer\n", words, table(head, rows)]


def prefills(found):
    """Ragged prompts against equal ones."""
    words = (
        f"64 prompts of 2 to {found['longest']} tokens against 64 of 128, in turn, medians: {found['ragged']:,.0f} "
        f"against {found['equal']:,.0f} tokens/s, a ratio of {found['ragged / equal']:.3f} (goal: 0.92), by "
        f"{found['attention']}; with attention a prompt at a time {found['ragged, a prompt at a time']:,.0f}. A packed "
        "batch's hidden states are off each prompt's alone by "
        f"{found['off, packed against each alone']:.1e} of their norm in bf16, since products of other sizes add up in "
        "another order.\n"
    )
    return ["\n### Prompts of unequal lengths\n", words]


def products(found):
    """fp8 products of a layer against bf16's, as far as the stage came, and what limits them."""
    rows = []
    for name, row in found.items():
        if isinstance(row, dict) and isinstance(row.get("fp8"), float):
            ways = ("plain", "fp8", "fp8, one scale", "one row, fp8 weights")
            cells = (f"{row[way]:.1f}" if isinstance(row.get(way), float) else "" for way in ways)
            rows.append((name, *cells, f"{row['off, fp8']:.3f}" if "off, fp8" in row else ""))
    if not rows:
        return []
    words = (
        "Weights beyond the L2, activations quantised already. Off by: the norm of the difference over that of the "
        "exact product, of normal numbers. One scale: the same bytes without a scale a token and an output, whose "
        "numbers mean nothing.\n"
    )
    head = (
        *("product", "bf16, us", "fp8, us", "fp8 with one scale, us"),
        *("fp8 weights by Triton, us", "fp8 is off by"),
    )
    parts = ["\n### Products in fp8\n", words, table(head, rows)]
    slow = [row for name, row in found.items() if name.endswith(", 64 tokens") and row.get("fp8")]
    if slow:
        ratio = sum(row["fp8"] for row in slow) / sum(row["fp8, one scale"] for row in slow)
        parts.append(
            f"\nAt 64 tokens torch's product with a scale a token and an output takes {ratio:.2f} times as long as one "
            "with a single scale; the profile of a step at batch 64 shows one tile of 128 x 128 for all four products. "
            "This is what `fast` loses in fp8 at few rows. Products with one scale, and the scales in the kernels that "
            "follow, are not built; at one row `engine.kernels=triton` reads fp8 weights itself, and was timed in "
            "single products alone.\n"
        )
    return parts


def sections(results):
    """All of them, as far as there is what they need."""
    parts = beside(results["engine-vllm"]) if "engine-vllm" in results else []
    if "engine-alone" in results:
        parts += alone(results["engine-alone"])
    if "engine-before" in results:
        parts += before(results["engine-before"])
    measured = results.get("engine-attention", {})
    for name, maker in (
        ("attention", lambda _: attention(measured, results.get("engine-fa3", {}))),
        ("prefill", prefills),
        ("fp8", products),
    ):
        if measured.get(name) and (name == "fp8" or "error" not in measured[name]):
            parts += maker(measured[name])
    return parts
