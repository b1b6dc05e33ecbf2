"""How often the truth lies within wattflow's uncertainty: seeded simulations, and traces with a meter beside them.

    WATTFLOW_DATA=FOLDER python tests/coverage_counts.py      writes docs/measurements/coverage.json and its tables in
                                                              docs/uncertainty.md: some minutes

Only U of the sampling is judged: gain and offset are in none of the simulated sensors, and are taken off the metered
ones. Counts, not rates, so that they can be compared.
"""

import csv
import json
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from waves import Steps, ns, sampled, wave

from wattflow.collect.reading import Device, DeviceKey, Spans
from wattflow.energy import curve
from wattflow.energy.counter import counter
from wattflow.store.schema import TRACE
from wattflow.store.sources import lag_ns, longest_spacing_ns, response_of, source_of

KEY = DeviceKey("n1", "GPU-1")
# periods in ms at which a sensor of 20 or 100 ms is locked to the load
LOCKED_MS = (5, 10, 20, 25, 40, 50, 60, 80, 100, 200, 500, 1000)
# a source of a GPU, how irregular its stamps are, how often it is polled
SENSORS = {
    "H100, buffer": ("nvml_buffer", "NVIDIA H100 80GB HBM3", 0.0),
    "H100, buffer, stamps up to 6 ms off": ("nvml_buffer", "NVIDIA H100 80GB HBM3", 0.006),
    "unknown GPU, buffer of instants": ("nvml_buffer", "NVIDIA Fake 80GB", 0.006),
    "A100, usage polled": ("nvml_usage", "NVIDIA A100-PCIE-40GB", 0.0),
    "V100, usage polled": ("nvml_usage", "Tesla V100-SXM2-16GB", 0.0),
}


@dataclass
class Count:
    """Of some rows: how many there are, carry may_alias, are within U, U / 2 and U without aliasing (none marked)."""

    rows: int = 0
    marked: int = 0
    within: int = 0
    within_half: int = 0
    within_without: int = 0
    marked_within: int = 0

    def add(self, error_j, u_j, aliasing_j, *, marked):
        """Count one row."""
        error_j, whole = abs(error_j), 2 * u_j
        without = 2 * np.sqrt(max(u_j**2 - aliasing_j**2, 0.0))
        self.rows += 1
        self.marked += int(marked)
        self.marked_within += int(marked and error_j <= whole)
        if not marked:
            self.within += int(error_j <= whole)
            self.within_half += int(error_j <= whole / 2)
            self.within_without += int(error_j <= without)

    @property
    def unmarked(self):
        """How many rows carry no remark."""
        return self.rows - self.marked


def device(power, response, phases, window, *, source="nvml_buffer"):
    """The device of a curve, whose spans are given as {phase: [(start_s, end_s), ...]}."""
    rows = sorted((start, end, name) for name, of in phases.items() for start, end in of)
    spans = Spans(
        measured=False,
        rank=0,
        device=KEY,
        phase=[name for _, _, name in rows],
        start_ns=ns([start for start, _, _ in rows]),
        end_ns=ns([end for _, end, _ in rows]),
        tokens={
            name: [None] * len(rows) for name in ("tokens_in", "tokens_kept", "tokens_computed")
        },
    )
    return Device(
        key=KEY,
        source=source,
        period_ms=response.period_ms,
        spans=spans,
        window=tuple(int(one) for one in ns(window)),
        readings=pa.table({name: pa.array([], TRACE.field(name).type) for name in TRACE.names}),
        power=power,
        counter=counter([], []),
        clock_stepped=False,
        response=response,
        periods_s=spans.periods_s(0),
    )


def locked(random, sensor, seconds, rows, count, *, period_s=None):
    """Square waves that a program reports as its spans, of given periods or of random ones from 5 to 1,000 ms."""
    source, name, stray_s = SENSORS[sensor]
    poll_s = 0.02 if "V100" in sensor else 0.05
    response = response_of(source, name, 20.0 if source == "nvml_buffer" else poll_s * 1e3)
    for _ in range(rows):
        every_s = period_s or float(np.exp(random.uniform(np.log(0.005), np.log(1.0))))
        duty = random.uniform(0.2, 0.8)
        load = wave(
            every_s,
            seconds,
            random.uniform(80, 300),
            random.uniform(400, 950),
            duty=duty,
            phase_s=random.uniform(0, every_s),
        )
        power = sampled(
            random, load, source, response, seconds, poll_s=poll_s, stray_s=stray_s, noise_w=2.0
        )
        starts = load.edges_s[::2]
        starts = starts[(starts > 0) & (starts + every_s < seconds)]
        phases = {
            "prefill": [(s, s + duty * every_s) for s in starts],
            "decode": [(s + duty * every_s, s + every_s) for s in starts],
        }
        window = float(starts[0]), float(starts[-1] + every_s)
        one = device(power, response, phases, window, source=source)
        found = one.energy().window
        truth_j = float(load.joules(window[1]) - load.joules(window[0]))
        count.add(found.energy_j - truth_j, found.u_j, found.aliasing_u_j, marked=one.may_alias)


# --- metered traces -------------------------------------------------------------------------------

FOLDER = Path(os.environ.get("WATTFLOW_DATA", "/nowhere")) / "sc24"
# a folder: the GPU, the source that its column is, the column, and where its gain and offset are from
METERED = {
    "A100-edge": ("A100-PCIE-40GB", "nvml_usage", "power.draw [W]", "A100-edge"),
    "A100-pulsed": ("A100-PCIE-40GB", "nvml_usage", "power.draw [W]", "A100-edge"),
    "A5000-edge": ("RTX A5000", "nvml_instant", "power.draw.instant [W]", "A5000-edge"),
    "3090-pulsed": ("RTX 3090", "nvml_instant", "power.draw.instant [W]", "3090-pulsed"),
    "K40m-edge": ("Tesla K40m", "nvml_usage", "power.draw [W]", "K40m-edge"),
}


@dataclass(frozen=True)
class Metered:
    """One trace: the meter's and the GPU's stamps (s since the load's first edge) and watts, and the load's edges."""

    meter_s: np.ndarray
    meter_w: np.ndarray
    gpu_s: np.ndarray
    gpu_w: np.ndarray
    edges_s: np.ndarray

    @classmethod
    def read(cls, name):
        """Read a folder by its README."""
        raw = np.fromfile(FOLDER / name / "PMD_data.bin", dtype="<u2").reshape(-1, 9)
        ticks = np.unwrap(raw[:, 0].astype(float), period=65536)
        parts = (raw[:, 1:] >> 4).astype(float)
        parts[parts >= 2048] = 0
        watts = 0.007568 * 0.0488 * (parts[:, ::2] * parts[:, 1::2]).sum(axis=1)
        start_s = float((FOLDER / name / "PMD_start_ts.txt").read_text()) / 1e6 - 0.05
        with (FOLDER / name / "gpudata.csv").open() as file:
            head, *rows = csv.reader(file, skipinitialspace=True)
        column = head.index(METERED[name][2])
        stamps = [
            datetime.strptime(row[0], "%Y/%m/%d %H:%M:%S.%f").replace(tzinfo=UTC) for row in rows
        ]
        edges = (FOLDER / name / "timestamps.csv").read_text().split()[1:]
        edges_s = np.unique([int(one) for one in edges]) / 1e6
        return cls(
            start_s + (ticks - ticks[0]) / 2933.5e3 - edges_s[0],
            watts,
            np.array([stamp.timestamp() - 3600 for stamp in stamps]) - edges_s[0],
            np.array([float(row[column]) for row in rows]),
            edges_s - edges_s[0],
        )

    def meter_j(self, at_s):
        """Joules by the meter until each instant."""
        steps = np.diff(self.meter_s) * (self.meter_w[1:] + self.meter_w[:-1]) / 2
        return np.interp(at_s, self.meter_s, np.append(0.0, np.cumsum(steps)))

    def line(self):
        """Gain and offset of the GPU's sensor, and the watts by which readings scatter about that line.

        By bins of 0.3 s that are 0.4 s or more after an edge, and by the whole load where edges come faster.
        """
        first = max(self.meter_s[0], self.gpu_s[0]) + 0.1
        last = min(self.meter_s[-1], self.gpu_s[-1]) - 0.3
        starts = np.arange(first, last, 0.3)
        far = np.array(
            [np.all((self.edges_s > s + 0.35) | (self.edges_s < s - 0.4)) for s in starts]
        )
        bins = [(s, s + 0.3) for s in starts[far]]
        if np.median(np.diff(self.edges_s)) < 0.4:
            bins.append((self.edges_s[0] + 1.0, self.edges_s[-1] - 0.5))
        true_w = [np.diff(self.meter_j(list(one)))[0] / (one[1] - one[0]) for one in bins]
        read_w = [self.gpu_w[(self.gpu_s >= a) & (self.gpu_s < b)].mean() for a, b in bins]
        gain, offset_w = np.polyfit(true_w, read_w, 1)
        left_w = (np.array(read_w) - gain * np.array(true_w) - offset_w) / gain
        return gain, offset_w, float(np.sqrt((left_w**2).sum() / max(len(bins) - 2, 1)))


def metered(random, name, rows, count):
    """Random windows of 1 to 6 s in a metered trace; what the line leaves of meter and sensor is the meter's doubt."""
    gpu, source, _, line_of = METERED[name]
    trace = Metered.read(name)
    gain, offset_w, left_w = Metered.read(line_of).line()
    period_ms = float(np.median(np.diff(trace.gpu_s))) * 1e3
    response = response_of(source, gpu, period_ms)
    power = curve.curve(
        ns(trace.gpu_s),
        (trace.gpu_w - offset_w) / gain,
        longest_ns=longest_spacing_ns(source, period_ms),
        lag_ns=lag_ns(source, period_ms),
        renewal_ns=source_of(source).renewal_ns,
    )
    first = max(trace.meter_s[0], trace.gpu_s[0]) + 0.1
    last = min(trace.meter_s[-1], trace.gpu_s[-1]) - 0.1
    if "pulsed" in name:
        first, last = trace.edges_s[0], trace.edges_s[-1]
    beats = {"prefill": list(zip(trace.edges_s[::2], trace.edges_s[1::2], strict=False))}
    for seconds in random.uniform(1.0, min(6.0, last - first), rows):
        start_s = random.uniform(first, last - seconds)
        window = start_s, start_s + seconds
        phases = {
            k: [p for p in v if p[0] >= window[0] and p[1] <= window[1]] for k, v in beats.items()
        }
        phases = {k: v for k, v in phases.items() if len(v) > 2}
        one = device(power, response, phases, window, source=source)
        found = one.energy().window
        truth_j = float(np.diff(trace.meter_j(list(window)))[0])
        u_j = float(np.hypot(found.u_j, left_w * seconds))
        count.add(found.energy_j - truth_j, u_j, found.aliasing_u_j, marked=one.may_alias)
    return {
        "gain": round(float(gain), 4),
        "offset_w": round(float(offset_w), 2),
        "left_w": round(left_w, 2),
    }


# --- phases ---------------------------------------------------------------------------------------

HOPPER = response_of("nvml_buffer", "NVIDIA H100 80GB HBM3", 20.0)
PATTERNS = {  # s of prefill, decode and pause; none: drawn
    "prefill 50 ms, pause 10 ms, decode 50 ms": (0.05, 0.05, 0.01),
    "prefill 50 ms, pause 10 ms, decode 0.5 s": (0.05, 0.5, 0.01),
    "prefill 50 ms, pause 10 ms, decode 0.94 s": (0.05, 0.94, 0.01),
    "prefill 50 to 300 ms, decode 0.1 to 2 s": None,
}


def batches(random, pattern):
    """30 to 60 batches whose lengths and levels vary, and which rise or fall within their phases; and their spans."""
    count = int(random.integers(30, 61))
    if pattern is None:
        logs = random.uniform(np.log((0.05, 0.1, 0.005)), np.log((0.3, 2.0, 0.05)))
        pattern = np.exp(logs)
    vary = random.choice([0.0, 0.01, 0.05])
    lengths_s = np.array(pattern) * (1 + vary * random.normal(size=(count, 3)))
    levels_w = random.uniform((500, 300, 120), (800, 500, 250))
    levels_w = levels_w * (1 + 0.03 * random.normal(size=(count, 3)))
    slopes = random.uniform(-0.2, 0.2), random.uniform(-0.15, 0.15), 0.0
    edges, watts = [1.0], [random.uniform(80, 140)]
    phases = {"prefill": [], "decode": []}
    for seconds, levels in zip(lengths_s, levels_w, strict=True):
        for k, name in enumerate(("prefill", "decode", "other")):
            start_s, parts = edges[-1], 1 if k == 2 else 6
            for part in np.linspace(-0.5, 0.5, parts) if parts > 1 else [0.0]:
                watts.append(levels[k] * (1 + slopes[k] * part))
                edges.append(edges[-1] + seconds[k] / parts)
            if name in phases:
                phases[name].append((start_s, edges[-1]))
    return Steps(np.array(edges[:-1]), np.array([*watts[:-1], random.uniform(80, 140)])), phases


def phases(random, pattern, rows):
    """Counts of prefill and decode, and those of whom no joules are known, by boards that differ as passports do."""
    counts = {"prefill": Count(), "decode": Count()}
    withheld, off = 0, {"prefill": [], "decode": []}
    for _ in range(rows):
        load, spans = batches(random, PATTERNS[pattern])
        true = replace(
            HOPPER,
            lag_ms=HOPPER.lag_ms + HOPPER.lag_u_ms * random.normal(),
            window_ms=HOPPER.window_ms + HOPPER.window_u_ms * random.normal(),
        )
        window = spans["prefill"][0][0], spans["decode"][-1][1]
        stray_s = random.choice([0.0, 0.006])
        power = sampled(
            random, load, "nvml_buffer", true, window[1] + 1, stray_s=stray_s, noise_w=2.0
        )
        one = device(power, HOPPER, spans, window)
        parts = one.energy().phases
        for name, count in counts.items():
            truth_j = sum(float(np.diff(load.joules(list(pair)))[0]) for pair in spans[name])
            found = parts[name]
            if found.energy_j is None:
                withheld += 1
                continue
            off[name].append(found.energy_j / truth_j - 1)
            count.add(found.energy_j - truth_j, found.u_j, 0.0, marked=False)
    return counts, withheld, {k: float(np.sqrt(np.mean(np.square(v)))) for k, v in off.items()}


# --- what is published ----------------------------------------------------------------------------

DOCS = Path(__file__).parent.parent / "docs"
RESULT, PAGE = DOCS / "measurements" / "coverage.json", DOCS / "uncertainty.md"
BEGIN, END = "<!-- coverage: begin -->", "<!-- coverage: end -->"
SEED = 15
EACH, ANY, WINDOWS, CASES = (
    10,
    200,
    200,
    150,
)  # waves a locked period, of any; windows a trace; cases a pattern


def counts(*, each=EACH, any_of=ANY, windows=WINDOWS, cases=CASES):
    """All counts, as JSON has them; those of metered traces only where there are such."""
    found = {"seed": SEED, "locked": {}, "any": {}, "metered": {}, "lines": {}, "phases": {}}
    for sensor in SENSORS:
        for seconds in (5.0, 30.0):
            name, random = f"{sensor}, {seconds:g} s", np.random.default_rng(SEED)
            of_locked, of_any = Count(), Count()
            for period_ms in LOCKED_MS:
                locked(random, sensor, seconds, each, of_locked, period_s=period_ms / 1e3)
            locked(random, sensor, seconds, any_of, of_any)
            found["locked"][name], found["any"][name] = vars(of_locked), vars(of_any)
    for name in METERED if FOLDER.is_dir() else ():
        count = Count()
        found["lines"][name] = metered(np.random.default_rng(SEED), name, windows, count)
        found["metered"][name] = vars(count)
    for pattern in PATTERNS:
        of_phases, withheld, off = phases(np.random.default_rng(SEED), pattern, cases)
        found["phases"][pattern] = {
            name: {**vars(count), "rms_pct": round(100 * off[name], 2)}
            for name, count in of_phases.items()
        }
        found["phases"][pattern]["withheld"] = withheld
    return found


def percent(part, whole):
    """A share in percent, of nothing a dash."""
    return f"{100 * part / whole:.1f}" if whole else "-"


def tables(found):
    """The tables of docs/uncertainty.md."""
    lines = [
        "| locked waves of 5 to 1,000 ms | rows | `may_alias` | the others inside U | inside U / 2 | without |",
        f"|{' --- |' * 6}",
    ]
    lines += [_line(name, of) for name, of in found["locked"].items()]
    lines += [
        "",
        "| waves of any period | rows | `may_alias` | the others inside U | inside U / 2 | without |",
    ]
    lines += [f"|{' --- |' * 6}", *(_line(name, of) for name, of in found["any"].items())]
    lines += [
        "",
        "| metered trace | windows | `may_alias` | the others inside U | inside U / 2 | without |",
    ]
    lines += [f"|{' --- |' * 6}", *(_line(name, of) for name, of in found["metered"].items())]
    lines += [
        "",
        "| batches, 30 to 60 | phase | cases | off, rms % | inside U, % | inside U / 2, % |",
    ]
    lines += [f"|{' --- |' * 6}"]
    for pattern, of in found["phases"].items():
        for phase in ("prefill", "decode"):
            one = of[phase]
            shares = percent(one["within"], one["rows"]), percent(one["within_half"], one["rows"])
            lines.append(
                f"| {pattern} | {phase} | {one['rows']} | {one['rms_pct']} | {' | '.join(shares)} |"
            )
    return "\n".join(lines)


def _line(name, of):
    unmarked = of["rows"] - of["marked"]
    shares = [percent(of[k], unmarked) for k in ("within", "within_half", "within_without")]
    return f"| {name} | {of['rows']} | {of['marked']} | {' | '.join(f'{s} %' for s in shares)} |"


def between_marks(text):
    """What stands between the marks of the page."""
    return text.split(BEGIN)[1].split(END)[0].strip()


def main():
    """Count all, and write the counts and their tables."""
    found = counts()
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    text = PAGE.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(found)}\n\n{END}{after}")


if __name__ == "__main__":
    main()
