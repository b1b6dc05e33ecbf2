"""The methods paragraphs of a paper, in words, made from what a sweep's records and results say and nothing else."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wattflow.store.columns import CHOICE_KEYS, REASONS
from wattflow.store.schema import SCHEMA_VERSION
from wattflow.store.sources import source_of

Row = dict[str, Any]

_BOUNDARIES = {
    "gpu": "the GPU boards that the job used, each counted once; CPUs, memory, fans, power supplies and cooling are "
    "outside",
    "host": "the host as one device, shared by all ranks on it",
}


def paragraphs(rows: Sequence[Row], records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was measured and how; `rows` are those of results/points.parquet, `records` of the attempts."""
    counting = [row for row in rows if row["counts"]]
    if not counting:
        return ["No point of this sweep counts, so there is no figure to describe."]
    measured = counting[0]["command"] is not None
    told = [
        _what(counting, records) if not measured else _what_command(counting),
        _power(counting, records, measured=measured),
        _uncertainty(counting),
        _left_out(rows),
        _software(counting, records),
    ]
    if any(row["simulated"] for row in counting):
        told.insert(
            0,
            "SIMULATED: no sensor was there. Watts and joules, marked ~, are arithmetic and say nothing about any "
            "machine.",
        )
    return told


_FIRST = ("model", "dataset", "engine", "precision", "shards", "batch_size", "max_gen_len")


def varying(rows: Sequence[Row]) -> list[str]:
    """The choices that tell rows apart, repeats and what names a site aside; none that follows from those before it."""
    axes: list[str] = []
    told = 1
    for column in (*_FIRST, *(column for column in CHOICE_KEYS if column not in _FIRST)):
        if column.startswith(("power_", "cluster")) or column == "repeat":
            continue
        count = len({tuple(row.get(axis) for axis in (*axes, column)) for row in rows})
        if count > told:
            axes.append(column)
            told = count
    return axes


def _what(rows: Sequence[Row], records: Sequence[Mapping[str, Any]]) -> str:
    prompts = [record["prompts"] for record in records if "prompts" in record]
    lengths = (
        f", of {_range(p.get('tokens_mean') for p in prompts)} tokens in the mean"
        if prompts
        else ""
    )
    axes = varying(rows)
    settings = {tuple(row[axis] for axis in axes) for row in rows}
    repeats = [sum(tuple(row[a] for a in axes) == one for row in rows) for one in settings]
    differ = f", which differ in {_and(axis.replace('_', ' ') for axis in axes)}" if axes else ""
    weights = {
        "dummy": 'random ("dummy") weights of the true shapes, whose text means nothing',
        "meta": "weights from Meta's files",
        "hf": "weights from Hugging Face's files",
    }
    of_weights = _and(weights[w] for w in _distinct(rows, "weights"))
    stop = {
        "length": "each answer made all of its tokens",
        "eos": "answers ended at the end-of-sequence token or at that length",
    }
    return (
        f"We measured the energy of LLM inference on {_devices(rows)}. {_count(len(settings), 'setting')}{differ}, ran "
        f"{_times(repeats)}. Model: {_join(rows, 'model')} in {_join(rows, 'precision')}, with "
        f"{of_weights}, tensor-parallel shards: {_join(rows, 'shards')}; engine: {_join(rows, 'engine')}. A run "
        f"answered {_join(rows, 'n_prompts')} prompts of {_join(rows, 'dataset')}{lengths}, in batches of "
        f"{_join(rows, 'batch_size')} with up to {_join(rows, 'max_gen_len')} new tokens each; "
        f"{_and(stop[s] for s in _distinct(rows, 'stop'))}. Sampling: temperature {_join(rows, 'temperature')}, top-p "
        f"{_join(rows, 'top_p')}, seed {_join(rows, 'seed')}."
    )


def _what_command(rows: Sequence[Row]) -> str:
    tokens = [row["tokens_kept"] for row in rows if row["tokens_kept"]]
    made = f" It told {_range(tokens)} output tokens." if tokens else ""
    return (
        f"We measured the energy of a command on {_devices(rows)}, {_count(len(rows), 'run')} of it.{made} The command "
        "itself is not part of this bundle."
    )


def _devices(rows: Sequence[Row]) -> str:
    drivers = _distinct(rows, "driver")
    driver = f" (driver {_and(drivers)})" if drivers else ""
    return (
        f"{_range(row['gpus'] for row in rows)} x {_join(rows, 'gpu_name')}{driver}, nodes: "
        f"{_range(row['nodes_seen'] for row in rows)}"
    )


def _power(rows: Sequence[Row], records: Sequence[Mapping[str, Any]], *, measured: bool) -> str:
    periods = [info["period_ms"] for record in records for info in record.get("nodes", [])]
    sensors = {name for row in rows for name in row["power_source"].split(" + ")}
    window = (
        "from the first prefill's start to the last decode's end, with the devices synchronised at each edge and the "
        "time between batches included; loading, one warm-up batch of the same shape and the idle windows are outside"
    )
    if measured:
        window = (
            "from the start of the first span that the command told to the end of the last one, or over the whole "
            "command where it told none"
        )
    limits = [row["power_limit_w"] for row in rows if row["power_limit_w"] is not None]
    clocks = [row["sm_clock_mhz"] for row in rows if row["sm_clock_mhz"] is not None]
    state = f" Power limit in force: {_range(limits)} W a GPU" if limits else ""
    state += f"; mean SM clock {_range(clocks)} MHz" if state and clocks else ""
    boundaries = _and(_BOUNDARIES.get(b, b) for b in _distinct(rows, "boundary"))
    return (
        f"Power came from {_and(source_of(name).description for name in sorted(sensors))}, a sample each "
        f"{_range(periods)} ms. It was integrated, piecewise linear between samples at their own time stamps, over the "
        f"measured window: {window}. Joules are gross, idle power included, summed over devices. The boundary: "
        f"{boundaries}. Joules per token divide by the output tokens that were kept; input tokens are in no "
        f"denominator.{state}{'.' if state else ''}"
    )


def _uncertainty(rows: Sequence[Row]) -> str:
    relative = [row["energy_u_j"] / row["energy_j"] for row in rows if row["energy_j"]]
    coverage = min((row["coverage"] for row in rows), default=0.0)
    text = (
        f"Of each window at least {100 * coverage:.2f} % was covered by samples. The standard uncertainty of the "
        f"joules by sampling (k = 1) is {100 * max(relative, default=0.0):.2g} % at most."
    )
    gains = [row["board_gain_u_j"] / row["energy_j"] for row in rows if row["board_gain_u_j"]]
    if gains:
        text += (
            f" Apart from it stands that of the boards' sensors, whose gain is off by up to 5 % at random from board "
            f"to board (arXiv 2312.02741): {100 * max(gains):.2g} % of the joules (k = 1), the same in all runs on the "
            "same boards."
        )
    dummy = [row["dummy_data_u_j"] / row["energy_j"] for row in rows if row["dummy_data_u_j"]]
    if dummy:
        text += f" Taking random weights for real ones adds {100 * max(dummy):.2g} % (k = 1)."
    ratios = [row["counter_ratio"] for row in rows if row["counter_ratio"] is not None]
    if ratios:
        text += (
            f" The integral was {_range(ratios)} of the boards' hardware energy counters, which is consistency and not "
            "accuracy."
        )
    return text


def _left_out(rows: Sequence[Row]) -> str:
    tried = [row for row in rows if row["attempt"] is not None]
    out = [row for row in tried if not row["counts"]]
    text = f"{_count(len(tried) - len(out), 'attempt')} of {len(tried)} count"
    if out:
        reasons = sorted(
            {code for row in out for code in row["reasons"] if REASONS.get(code, (True,))[0]}
        )
        text += f"; the others do not: {', '.join(reasons) or 'a newer attempt at the same point counts'}"
    never = sum(row["attempt"] is None for row in rows)
    return text + (f". {_count(never, 'point')} never ran." if never else ".")


def _software(rows: Sequence[Row], records: Sequence[Mapping[str, Any]]) -> str:
    versions: dict[str, set[str]] = {}
    for record in records:
        for name, version in record.get("versions", {}).items():
            versions.setdefault(name, set()).add(version)
    told = ", ".join(f"{name} {' / '.join(sorted(some))}" for name, some in versions.items())
    hashes = sorted({row["prompts_sha256"] for row in rows if row["prompts_sha256"]})
    prompts = f" Sha256 of the prompts as sent: {', '.join(hashes)}." if hashes else ""
    return f"Software: {told or 'not told'}; records of schema {SCHEMA_VERSION}.{prompts}"


# --- the table ------------------------------------------------------------------------------------

_NUMBERS = ("tokens_per_s", "power_w", "energy_per_token_j", "energy_per_response_j", "energy_j")


def table(rows: Sequence[Row]) -> list[list[str]]:
    """A heading, then a row a setting: its choices, how many repeats count, mean and standard deviation of figures.

    Joules of another boundary, and those that were simulated, are a row of their own.
    """
    counting = [row for row in rows if row["counts"]]
    axes = varying(counting) or ["model"]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in counting:
        key = (*(row[axis] for axis in axes), row["boundary"], row["simulated"])
        groups.setdefault(key, []).append(row)
    out = [[*axes, "n", *_NUMBERS]]
    for (*chosen, _, simulated), of_one in groups.items():
        mark = "~" if simulated else ""
        cells = [_plain(value) for value in chosen]
        for column in _NUMBERS:
            values = [row[column] for row in of_one if row[column] is not None]
            cells.append(_mean_sd(values, mark if "energy" in column or "power" in column else ""))
        out.append([*cells[: len(axes)], str(len(of_one)), *cells[len(axes) :]])
    return out


def table_lines(rows: Sequence[Row]) -> list[str]:
    """The same as lines of Markdown."""
    heading, *lines = table(rows)
    cells = [heading, ["---"] * len(heading), *lines]
    return [f"| {' | '.join(line)} |" for line in cells]


def _mean_sd(values: Sequence[float], mark: str) -> str:
    if not values:
        return "-"
    mean = f"{mark}{statistics.mean(values):.5g}"
    if len(values) < 2:
        return mean
    sd = statistics.stdev(values)
    return f"{mean} ± {f'{sd:.0f}' if sd >= 10 else f'{sd:.2g}'}"


def joules(rows: Sequence[Row]) -> str:
    """The joules that count, those of each boundary and what was simulated apart: they make no sum."""
    sums: dict[tuple[str, bool], float] = {}
    for row in (row for row in rows if row["counts"]):
        kind = (row["boundary"], row["simulated"])
        sums[kind] = sums.get(kind, 0.0) + (row["energy_j"] or 0.0)
    told = [
        (f"{'~' if simulated else ''}{energy_j:,.1f} J", boundary)
        for (boundary, simulated), energy_j in sums.items()
    ]
    if len(told) < 2:
        return told[0][0] if told else "0.0 J"
    return ", ".join(f"{amount} ({boundary})" for amount, boundary in told)


# --- words ----------------------------------------------------------------------------------------


def _plain(value: Any) -> str:
    return "-" if value is None else str(value)


def _distinct(rows: Sequence[Row], column: str) -> list[Any]:
    return sorted(
        {row[column] for row in rows if row[column] is not None}, key=lambda v: (str(type(v)), v)
    )


def _join(rows: Sequence[Row], column: str) -> str:
    """The distinct values of a column in words."""
    return _and(map(str, _distinct(rows, column))) or "unknown"


def _and(names: Iterable[str]) -> str:
    *most, last = list(names) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def _range(values: Iterable[float | None]) -> str:
    known = sorted({value for value in values if value is not None})
    if not known:
        return "an unknown number of"
    low, high = f"{known[0]:.5g}", f"{known[-1]:.5g}"
    return low if low == high else f"{low} to {high}"


def _times(counts: Sequence[int]) -> str:
    return "once" if set(counts) == {1} else f"{_range(counts)} times each"


def _count(n: int, name: str) -> str:
    return f"{n} {name}{'' if n == 1 else 's'}"


def lock(records: Sequence[Mapping[str, Any]]) -> str:
    """The exact versions of what measured and computed, as lines that pip reads, a comment for each set of them."""
    sets: dict[str, int] = {}
    for record in records:
        told = {"git": record.get("git"), **record.get("versions", {})}
        sets[json.dumps(told, sort_keys=True)] = sets.get(json.dumps(told, sort_keys=True), 0) + 1
    lines = []
    for i, (text, attempts) in enumerate(sorted(sets.items(), key=lambda pair: -pair[1])):
        told = json.loads(text)
        commit, python = told.pop("git", None), told.pop("python", "unknown")
        own = told.pop("wattflow", "unknown")
        lines.append(
            f"# {_count(attempts, 'attempt')}: python {python}, wattflow {own}, commit {commit or 'unknown'}"
        )
        mark = "# " if i else ""
        lines += [f"{mark}{name}=={version}" for name, version in sorted(told.items())]
    return "".join(f"{line}\n" for line in lines)
