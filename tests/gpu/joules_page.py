"""The tables of docs/measurement.md that joules.py measured, from docs/measurements/joules-*.json.

python tests/gpu/joules_page.py            replaces what stands between the marks in docs/measurement.md
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

DOCS = Path(__file__).resolve().parents[2] / "docs"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
USUAL = "normal, greedy"  # what a sweep of dummy weights does
STUDENT_T = {2: 12.71, 3: 4.30, 4: 3.18}  # 95 %, by the number of values


def page() -> str:
    """All runs' tables, as Markdown."""
    paths = sorted((DOCS / "measurements").glob("joules-*.json"))
    return "\n".join(line for path in paths for line in of_run(json.loads(path.read_text())))


def of_run(told: dict[str, Any]) -> Iterator[str]:
    """The tables of one run."""
    if "cost" in told:
        yield cost_line(told["cost"])
    if "agreement" not in told:
        return
    agreement, about = told["agreement"], told["about"]
    count = len(agreement["gpus"])
    yield (
        f"### {count} x {agreement['gpus'][0]}\n\nDriver {agreement['driver']}, commit `{about['commit'][:7]}`, "
        f"seed of the windows {about['seed']}, LLaMA-7B's shapes, bf16, `engine=fast`, decode after GSM8K questions.\n"
    )
    for k, (uuid, joules) in enumerate(agreement["joules"].items()):
        yield from agreement_table(
            k, joules, agreement["compared"][uuid], agreement["steps_per_s"][k]
        )
    memory = agreement.get("sidecar_memory_mib")
    yield f"The sidecar took {agreement['sidecar_core_pct_per_gpu']:.2f} % of a core per GPU" + (
        f", {memory['RssAnon']:.0f} MiB of its own and {memory['RssFile']:.0f} MiB of mapped files.\n"
        if memory
        else f" and at most {agreement['sidecar_peak_mib']:.0f} MiB.\n"
    )
    if "overhead" in told:
        other = told["overhead"]
        yield (
            f"**What sampling costs.** In {other['pairs']} pairs of neighbouring seconds, the sidecar running in one "
            f"and held back in the other, steps of {other['step_ms']:.2f} ms took {other['slower_pct']:+.3f} % longer; "
            f"95 % interval {other['low_pct']:+.3f} to {other['high_pct']:+.3f} %.\n"
        )
    if "restart" in told:
        other = told["restart"]
        lost = ", ".join(f"{ms:.0f}" for ms in other["lost_ms"])
        yield (
            f"**A sidecar that was killed** {other['kills']} times under this load was started again "
            f"{other['restarts']} times. Lost of the trace each time: {lost} ms.\n"
        )
    if "pulsed" in told:
        yield from pulsed_table(told["pulsed"])
    for batch, arms in told.get("weights", {}).get("batches", {}).items():
        yield from weight_table(batch, arms)


def cost_line(told: dict[str, Any]) -> str:
    """What the sidecar of one attempt took."""
    without, beside = (np.mean(told["idle_w"][name]) for name in ("without", "with"))
    share, between = told["core_pct_per_gpu"], told["core_pct_per_gpu_between_edges"]
    return (
        f"**What the sidecar of an attempt takes**, on {len(told['gpus'])} x {told['gpus'][0]}: {share:.2f} % of a "
        f"core per GPU over {told['seconds']:.0f} s of decode with both edges of a window, {between:.2f} % between "
        f"them, {told['memory_mib']['RssAnon']:.0f} MiB of its own. An idle GPU drew {without:.1f} W without it and "
        f"{beside:.1f} W with it.\n"
    )


def agreement_table(
    k: int, joules: dict[str, list[float]], compared: dict[str, Any], steps_per_s: float
) -> Iterator[str]:
    """All windows of one GPU: the integral, the counter, and the others' greatest difference from the integral."""
    methods = [m for m in joules if m.startswith("instant")] + ["zeus"]
    methods = [m for m in methods if m in joules]
    yield (
        f"GPU {k}: {steps_per_s:.1f} steps/s at {compared['mean_power_w']:.0f} W. Integral and counter differ by at "
        f"most {compared['worst_pct']:.2f} %, within 0.5 % in {compared['within_half_pct']} of {compared['windows']} "
        "windows; integral, counter, instant power polled at four periods and Zeus all lie within "
        f"{max(compared['spread_pct']):.2f} %. Consistency, not accuracy.\n"
    )
    heads = ["window, s", "integral, J", "counter, J", "integral / counter - 1"]
    yield "| " + " | ".join([*heads, *(f"{m}, J" for m in methods)]) + " |"
    yield "| --- " * (len(heads) + len(methods)) + "|"
    for i, seconds in enumerate(joules["seconds"]):
        cells = [
            f"{seconds:.2f}",
            f"{joules['buffer'][i]:.1f} ± {joules['buffer_U'][i]:.1f}",
            f"{joules['counter'][i]:.1f} ± {joules['counter_U'][i]:.1f}",
            f"{compared['buffer_over_counter_pct'][i]:+.2f} %",
            *(f"{joules[m][i]:.1f}" for m in methods),
        ]
        yield "| " + " | ".join(cells) + " |"
    yield ""


def pulsed_table(told: dict[str, Any]) -> Iterator[str]:
    """The worst window of each method under the pulsed load."""
    for compared in told["compared"].values():
        yield (
            f"**A load that pulses** each {told['period_s'] * 1e3:.1f} ms, half of it on: the worst of "
            f"{compared['windows']} windows of 10 to 14 s, against the integral, which is no truth either:\n"
        )
        yield "| method | furthest from the integral |\n| --- | --- |"
        for method, pct in compared["worst_by_method_pct"].items():
            if method != "buffer":
                yield f"| {method} | {pct:.2f} % |"
        yield (
            "\nUnder such a load the integral's own U is 1.7 to 1.9 %: samples of 20 ms meet the pulses at random. "
            "Integral and counter differ by less than both U in each window.\n"
        )


def weight_table(batch: str, arms: dict[str, dict[str, list[float]]]) -> Iterator[str]:
    """J/token by weights and tokens, and the difference to dummy weights as they are."""
    yield f"**Do dummy weights lie?** Batch {batch}; difference to `{USUAL}` of the same repeat:\n"
    yield "| weights, tokens fed | J/token | W | difference, 95 % interval |\n| --- | --- | --- | --- |"
    found = differences(arms)
    for arm, of_arm in arms.items():
        told = "" if arm == USUAL else "{:+.2f} ± {:.2f} %".format(*found[arm])
        mean_j, mean_w = np.mean(of_arm["energy_per_token_j"]), np.mean(of_arm["power_w"])
        yield f"| {arm} | {mean_j:.4g} | {mean_w:.0f} | {told} |"
    yield ""


def differences(arms: dict[str, dict[str, list[float]]]) -> dict[str, tuple[float, float]]:
    """Each arm's J/token against the usual arm's of the same repeat: the mean in percent, half its 95 % interval."""
    base = dict(zip(arms[USUAL]["repeat"], arms[USUAL]["energy_per_token_j"], strict=True))
    found = {}
    for arm, of_arm in arms.items():
        pairs = zip(of_arm["repeat"], of_arm["energy_per_token_j"], strict=True)
        pct = np.array([(j / base[repeat] - 1) * 100 for repeat, j in pairs if repeat in base])
        half = STUDENT_T[len(pct)] * pct.std(ddof=1) / len(pct) ** 0.5
        found[arm] = float(pct.mean()), float(half)
    return found


def main() -> int:
    """Write the tables into docs/measurement.md."""
    path = DOCS / "measurement.md"
    before, rest = path.read_text().split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{page()}\n{END}{rest.split(END)[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
