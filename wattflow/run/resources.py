"""What the points of one task share on one of its ranks: where it runs, weights on its device, its node's sidecar."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wattflow.config.choices import Config, Control, Power, controls_itself
from wattflow.engine.protocol import Engine
from wattflow.engine.ranks import Ranks
from wattflow.errors import PowerError
from wattflow.power.open import settings_of
from wattflow.power.sidecar_client import Sidecar
from wattflow.run.place import Place, PointReport
from wattflow.run.signals import Signals
from wattflow.store.layout import AttemptDir, SweepDir
from wattflow.store.schema import EnergySoFar, MeterInfo, NodeInfo
from wattflow.workload import vllm_fit

_CLOSE_FAILED_S = 3.0  # Slurm kills 30 s after its signal, and a rank that outlives rank 0 within 5


class SharedWeights:
    """Weights that lie on this rank's device for several points."""

    def __init__(self) -> None:
        self._key: object = None
        self._weights: Any = None
        self._points_left = 0

    def take(self, config: Config, engine: Engine, begins: Callable[[], None]) -> Any:
        """Return the weights that a point shares with others; unless they lie there, call `begins` and load them."""
        key = _key(config)
        if self._key != key or self._points_left == 0:
            begins()
            self.drop()  # before the next ones take its memory
            self._weights = engine.load_weights()
            self._key, self._points_left = key, config.sweep.load_shared_by
        self._points_left -= 1
        return self._weights

    def drop(self) -> None:
        """Give the memory back; the next point loads anew."""
        if hasattr(self._weights, "close"):
            self._weights.close()
        self._key = self._weights = None


def _key(config: Config) -> object:
    """What the weights of a rank depend on; with vLLM they are a started engine, made for requests of a length."""
    engine: tuple[object, ...] = config.engine.name, config.engine.device
    if config.engine.name == "vllm":
        most = vllm_fit.most_requests(config)
        engine += config.engine.vllm, most, config.max_seq_len, config.seed
    split = config.shards, config.pipeline, config.nodes
    return config.model, config.weights, config.precision, split, engine


class NodeSidecar:
    """This node's sidecar, which serves one point after another; on ranks other than local rank 0 it does nothing."""

    def __init__(self, place: Place) -> None:
        self.spool = Path(place.spool) / "sidecar"
        self._place = place
        self._sidecar: Sidecar | None = None
        self._settings: tuple[Power, Control | None] | None = None
        self._recording = False

    def start(self, config: Config, attempt: AttemptDir) -> MeterInfo | None:
        """Start recording into an attempt, by the process of the point before where it has the same settings."""
        if self._place.local_rank != 0:
            return None
        control = config.control if controls_itself(config) else None
        settings = settings_of(config), control
        if self._sidecar is None or self._settings != settings:
            self.close()
            self._sidecar = Sidecar(
                settings[0], self._place.node, self.spool, control, common=self._place.common
            )
            self._settings = settings
        ready = self._sidecar.start(attempt)
        self._recording = True
        return ready

    def mark(self) -> None:
        """Have the energy counters read densely now, at an edge of the measured window."""
        if self._sidecar is not None:
            self._sidecar.mark()

    def so_far(self) -> EnergySoFar | None:
        """This node's energy since the attempt's first sample; null before the sidecar reports any."""
        return self._sidecar.so_far() if self._sidecar is not None and self._recording else None

    def info(self, ready: MeterInfo) -> NodeInfo:
        """A node as it stands in the record of an attempt that was interrupted; its restarts are known here alone."""
        own = self._sidecar is not None and ready["node"] == self._place.node
        restarts = self._sidecar.restarts if own and self._sidecar is not None else 0
        return {**ready, "sidecar_restarts": restarts, "energy_j": None, "beside": None}

    def stop(self) -> NodeInfo | None:
        """Close the traces in the attempt and keep the process; PowerError where the energy is unknown."""
        if self._sidecar is None:
            return None
        self._recording = False
        return self._sidecar.stop(keep=True)

    def close_failed(self) -> None:
        """Close the traces of an attempt that failed, within seconds: its joules are on somebody's bill too."""
        if self._sidecar is not None and self._recording:
            self._recording = False
            with contextlib.suppress(PowerError):
                self._sidecar.stop(_CLOSE_FAILED_S)

    def close(self) -> None:
        """End the process, if one is left."""
        if self._sidecar is not None:
            self._sidecar.close()
            self._sidecar = None


@dataclass
class Task:
    """One rank of a task, and what its points share there."""

    sweep: SweepDir
    ranks: Ranks
    place: Place
    report: PointReport
    signals: Signals
    sidecar: NodeSidecar
    weights: SharedWeights = field(default_factory=SharedWeights)

    def spool_of(self, attempt: AttemptDir) -> Path:
        """Where the ranks of this node write the spans of an attempt until it is closed."""
        return Path(self.place.spool) / f"{attempt.point_id}-{attempt.number}"
