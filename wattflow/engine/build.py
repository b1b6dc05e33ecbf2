"""Choose an engine by its name. torch is imported only for engines that need it."""

from collections.abc import Callable, Collection

from wattflow.config.choices import Config
from wattflow.engine.installed import OF_ENGINE
from wattflow.engine.protocol import Engine
from wattflow.engine.ranks import Ranks
from wattflow.errors import RefusedError


def build(
    config: Config,
    ranks: Ranks,
    *,
    eos_ids: Collection[int],
    pad_id: int,
    pulse: Callable[[int, int], None] | None = None,
) -> Engine:
    """Return the engine that `config.engine.name` names, not yet loaded; the config must be resolved.

    `pulse` is called between the steps of an engine whose batches may take hours, with requests done and all of them.
    """
    for library in OF_ENGINE.get(config.engine.name, ()):
        library.require(f"engine={config.engine.name}")
    if config.engine.name == "paper":
        from wattflow.engine.paper import Paper  # noqa: PLC0415 - torch takes seconds to import

        return Paper(config, ranks, eos_ids=eos_ids, pad_id=pad_id)
    if config.engine.name == "fast":
        from wattflow.engine.fast import Fast  # noqa: PLC0415 - as above

        return Fast(config, ranks, eos_ids=eos_ids)
    if config.engine.name == "vllm":
        from wattflow.engine.vllm import Vllm  # noqa: PLC0415 - as above

        return Vllm(config, ranks, eos_ids=eos_ids, pulse=pulse)
    if config.engine.name == "transformers":
        from wattflow.engine.transformers import Transformers  # noqa: PLC0415 - as above

        return Transformers(config, ranks, eos_ids=eos_ids, pad_id=pad_id)
    if config.engine.name == "synthetic":
        from wattflow.engine.synthetic import Synthetic  # noqa: PLC0415 - as above, by symmetry

        return Synthetic(config, ranks, eos_ids=eos_ids)
    raise RefusedError(
        f"engine.name={config.engine.name}: not one of paper, fast, vllm, transformers, synthetic."
    )
