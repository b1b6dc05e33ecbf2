"""The JSON that a calibration writes: `record.json` of what was done, and `passport-<uuid>.json` of what follows."""

from typing import NotRequired, TypedDict

from wattflow.energy.response import Shape
from wattflow.power.calibration_steps import StepRecord
from wattflow.store.schema import Device, Reference

PASSPORT_VERSION = 1

Series = list[list[float]]  # pairs of x and y


class CalibrationRecord(TypedDict):
    """record.json."""

    schema_version: int
    made: str  # UTC
    minutes: float
    versions: dict[str, str]
    driver: str | None
    load: str | None
    gpus: list[Device]
    steps: list[StepRecord]
    failed: dict[str, dict[str, int]]  # by UUID and source: reads that failed
    others: dict[str, list[int]]  # by UUID: processes of others at the end


class Spread(TypedDict):
    """Percentiles of some values (energy.response.Spread)."""

    n: int
    least: float
    p5: float
    median: float
    p95: float
    most: float


class Fit(TypedDict):
    """A sensor's answer to a step as one shape (energy.response.Fit)."""

    shape: Shape
    lag_ms: float
    window_ms: float
    rms: float
    samples: int


class Answer(Fit):
    """The better shape's fit to all edges, then to those on and off alone, and both shapes' fits."""

    load: str  # the step whose edges it was fitted to
    edges: int
    on: Fit | None
    off: Fit | None
    box: Fit | None
    exponential: Fit | None


class Histogram(TypedDict):
    """Counts in bins of equal width, from 0."""

    width: float
    counts: list[int]


class History(TypedDict):
    """How far back the driver's buffer goes."""

    samples: int
    seconds: float


class Sensor(TypedDict):
    """What one sensor shows."""

    unit: str
    stamped_by: str
    period_ms: Spread | None  # between new values
    beat_ms: float | None  # the steady period, where there is one
    spacings_ms: Histogram | None
    answer: Answer | None
    answer_reason: str | None  # why there is no answer
    history: NotRequired[History | None]  # of the buffer
    shown_after_ms: NotRequired[
        Spread | None
    ]  # of the buffer: from a sample's stamp to its first read


class Levels(TypedDict):
    """Power of the load's plateaus, W."""

    off_w: float
    on_w: float


class IdlePower(TypedDict):
    """Mean power of an idle GPU: overall, and in each step by the buffer and by the counter, W."""

    power_w: float
    buffer: list[float]
    counter: list[float]


class Aliasing(TypedDict):
    """Joules of one load period by each source, in one long window and in windows of 1 s."""

    period_ms: float
    seconds: float | None  # length of the long window
    energy_j: dict[str, float]
    ratio: dict[str, float | None]  # to the counter's joules
    windows_1s: dict[str, list[float] | None]  # least and most, over their mean
    on_share: float | None
    levels_j: float | None  # the plateaus' joules for that share


class TraceFigure(TypedDict):
    """The first seconds of one load: (s, W) by source, and the load's edges."""

    lines: dict[str, Series]
    edges_s: list[float]


class Figures(TypedDict):
    """What the page draws beside its tables."""

    traces: dict[str, TraceFigure]  # by load
    answers: dict[str, Series]  # by source: ms since the edge, share of the step


class BoardReference(Reference):
    """Gain and offset of the board by an external meter, and how they were found."""

    shift_s: float  # of the meter's clock against the node's
    match: float  # the correlation of both traces there
    bins: int  # stretches of even power
    low_w: float
    high_w: float
    meter_u: float  # the meter's own, relative (k = 1)
    meter_offset_u_w: float


class Passport(TypedDict):
    """passport-<uuid>.json."""

    schema: str
    schema_version: int
    made: str
    minutes: float
    wattflow: str
    driver: str | None
    load: str | None
    gpu: Device
    others_on_the_gpu: list[int]
    failed_reads: dict[str, int]
    sources: dict[str, Sensor]
    costs_ms: dict[str, dict[str, Spread]]  # of a call, by source and by idle or busy GPU
    idle_w: dict[str, IdlePower | None]  # by state
    levels_w: Levels | None
    aliasing: list[Aliasing]
    figures: Figures
    reference: NotRequired[BoardReference]  # where an external meter was beside the board
