"""The errors that a person may meet. Each message says what, with its values, where to look, and what to do next.

The command line prints the message alone and exits with `exit_code`: 2 for what was refused before anything was
sent, 1 for what failed while it worked.
"""


class WattflowError(Exception):
    """The root of all errors that wattflow raises on purpose."""

    exit_code = 1


class RefusedError(WattflowError, ValueError):
    """A wrong key, type or value, a missing file or a bad header: nothing was sent and nothing was written."""

    exit_code = 2


class CommandError(WattflowError):
    """A command that was not started: exit code 127 for not found, 126 for may not be run, 128 + n after a signal."""

    def __init__(self, text: str, exit_code: int) -> None:
        """With the code by which the command line then ends."""
        super().__init__(text)
        self.exit_code = exit_code


class PowerError(WattflowError, RuntimeError):
    """A meter or the sidecar could not do its work, so the energy is unknown."""


class EngineError(WattflowError, RuntimeError):
    """The engine could not load the weights or generate text."""


class SlurmError(WattflowError, RuntimeError):
    """A Slurm command failed or did not answer."""


class SiteError(WattflowError, RuntimeError):
    """A site's Prometheus did not answer, or not as one does."""


class DamagedError(WattflowError, ValueError):
    """A file of a sweep cannot be read as what it should be."""


def printable(text: str, keep: str = "") -> str:
    """Return a text of anybody's for a person: `?` for each control, bidi, invisible or undecoded character.

    `keep` are those that may stay, such as a newline.
    """
    if text.isascii() and text.isprintable():
        return text  # nearly all are: pages hold megabytes of them
    return "".join(
        c if c in keep or (c.isprintable() and c not in _INVISIBLE) else "?" for c in text
    )


# letters and marks that show nothing, or only change what stands before them: two names that differ look alike
_INVISIBLE = frozenset(
    map(chr, (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0))
) | {
    chr(c)
    for first, last in ((0x180B, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
    for c in range(first, last + 1)
}
