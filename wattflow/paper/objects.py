"""The figures and tables of arXiv 2310.03003: what each shows, over what, and which grid makes its analogue.

Elsewhere the shape is kept and not the numbers: the least of our shards stands beside the least of the paper's, the
smallest of our models beside its 7B, the highest of our caps beside its 250 W. What stands beside each other is an
analogue; another GPU's number is no reproduction.
"""

from dataclasses import dataclass

from wattflow.errors import RefusedError

SIZE = "size"  # an axis: models by their number of parameters


@dataclass(frozen=True)
class Axis:
    """A choice that an object varies: a results column, and the paper's values in the order in which ours follow."""

    column: str
    paper: tuple[str, ...]
    falling: bool = False  # ours follow from the highest down

    @property
    def title(self) -> str:
        """The axis for a person."""
        return {
            SIZE: "model",
            "max_gen_len": "new tokens",
            "control_power_limit_w": "cap, W",
        }.get(self.column, self.column.replace("_", " "))


@dataclass(frozen=True)
class Metric:
    """What an object shows: a results column, or a figure that is made of some, with its unit."""

    column: str
    title: str
    unit: str
    watts: bool = False  # made of joules, which a simulated meter makes up


@dataclass(frozen=True)
class Object:
    """One figure or table of the paper."""

    name: str
    title: str
    grid: str  # in conf/grid/
    gpus: tuple[str, ...]  # on which the paper measured it
    metrics: tuple[Metric, ...]
    x: Axis
    series: Axis | None = None
    by_dataset: bool = True  # else it is the mean over datasets
    at: tuple[Axis, int] | None = None  # the one value of another axis that it is of
    kind: str = "means"  # means | caps | memory


_SIZES = Axis(SIZE, ("7B", "13B", "65B"))
_SHARDS = Axis("shards", ("8", "16", "32"))
_BATCHES = Axis("batch_size", ("64", "128", "256", "512"))
_LENGTHS = Axis("max_gen_len", ("512", "1024"))
_CAPS = Axis("control_power_limit_w", ("250", "175", "150"), falling=True)
POWER = Metric("power_w", "mean power", "W", watts=True)
PER_TOKEN = Metric("energy_per_token_j", "energy per output token", "J/token", watts=True)
PER_RESPONSE = Metric("energy_per_response_j", "energy per response", "J/response", watts=True)
_RATES = (
    Metric("words_per_s", "words a second", "words/s"),
    Metric("tokens_per_s", "output tokens a second", "tokens/s"),
    Metric("responses_per_s", "responses a second", "responses/s"),
)
_CHANGES = (
    Metric("time", "change of time", "%"),
    Metric("energy", "change of energy", "%", watts=True),
    Metric("rate", "change of the token rate", "%"),
)
# The paper's two columns are shares of time. How full memory is is another thing, which it does not print.
_USE = (
    Metric("gpu_activity_pct", "time in which any kernel ran (the paper's SM util)", "%"),
    Metric("memory_activity_pct", "time in which memory was accessed (its memory util)", "%"),
    Metric("memory_occupancy_pct", "memory in use, of what a GPU has", "%"),
)
_FIT = (
    Metric("least_gpus", "least GPUs by the memory model", "GPUs"),
    Metric("largest_batch", "largest batch by the memory model", "prompts"),
)


def _scaling(number: int, what: str, metric: Metric, length: int) -> Object:
    """Return one of Figures 4 to 9."""
    return Object(
        f"fig{number}",
        f"Figure {number}: {what} over shards and batch, {_LENGTHS.paper[length]} new tokens",
        "paper-scaling",
        ("V100",),
        (metric,),
        _SHARDS,
        _BATCHES,
        at=(_LENGTHS, length),
    )


OBJECTS = {
    one.name: one
    for one in (
        Object(
            "fig2",
            "Figure 2: throughput of three model sizes on the least hardware",
            "paper-baseline",
            ("V100", "A100"),
            _RATES,
            _SIZES,
        ),
        Object(
            "fig3",
            "Figure 3: power of three model sizes on the least hardware",
            "paper-baseline",
            ("V100", "A100"),
            (POWER,),
            _SIZES,
        ),
        _scaling(4, "power", POWER, 0),
        _scaling(5, "power", POWER, 1),
        _scaling(6, "energy per token", PER_TOKEN, 0),
        _scaling(7, "energy per token", PER_TOKEN, 1),
        _scaling(8, "energy per response", PER_RESPONSE, 0),
        _scaling(9, "energy per response", PER_RESPONSE, 1),
        Object(
            "table2",
            "Table II: least hardware and largest batch",
            "paper-baseline",
            ("V100", "A100"),
            _FIT,
            _SIZES,
            by_dataset=False,
            kind="memory",
        ),
        Object(
            "table3",
            "Table III: what power caps change",
            "paper-caps",
            ("A100",),
            _CHANGES,
            Axis("max_gen_len", ("256", "512", "1024")),
            _CAPS,
            by_dataset=False,
            kind="caps",
        ),
        Object(
            "table4",
            "Table IV: how busy GPUs are, over generation lengths",
            "paper-lengths",
            ("A100",),
            _USE,
            Axis("max_gen_len", ("256", "512", "1024", "2048")),
            by_dataset=False,
        ),
        Object(
            "table5",
            "Table V: how busy GPUs are, over shards",
            "paper-shards",
            ("V100",),
            _USE,
            _SHARDS,
            by_dataset=False,
        ),
    )
}


def chosen(names: list[str] | None) -> list[Object]:
    """Return the objects of these names, all without any; RefusedError for a name that is none."""
    unknown = [name for name in names or () if name not in OBJECTS]
    if unknown:
        raise RefusedError(f"--only {unknown[0]}: not one of {', '.join(OBJECTS)}.")
    return [one for one in OBJECTS.values() if not names or one.name in names]
