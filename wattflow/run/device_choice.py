"""Whether ranks compute where the point's joules are measured."""

from wattflow.config.checks import why_not_metered
from wattflow.config.choices import Config
from wattflow.engine.ranks import Ranks
from wattflow.errors import EngineError, PowerError


def refuse_fallback(config: Config, ranks: Ranks) -> None:
    """Raise EngineError where engine.device=auto came to the CPU beside GPUs, which would then be billed for nothing.

    PowerError where the CPU was asked for together with a meter of GPUs.
    """
    unmetered = why_not_metered(config)
    if unmetered is not None:
        raise PowerError(f"{unmetered}.")
    if ranks.why_cpu is None or config.engine.name == "synthetic":
        return
    # pynvml is loaded only where it is wanted
    from wattflow.power.gpus import gpus_in_words  # noqa: PLC0415 - see above

    gpus = gpus_in_words()
    if gpus is not None:
        raise EngineError(
            f"engine.device=auto: rank {ranks.rank} on {ranks.node} would compute on the CPU beside {gpus}, since "
            f"{ranks.why_cpu}. Install a torch for CUDA that fits the driver (`wattflow doctor` in the job checks it), "
            "or set engine.device=cpu, which measures the host."
        )
