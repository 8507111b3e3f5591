"""The one error hierarchy. Every message a user sees states what was found, what is allowed and what to do.

Raise the narrowest class. Users' mistakes are also ``ValueError``; a broken invariant of ours is an ``assert``.
"""

from __future__ import annotations

USER_ERROR = 2
"""Exit code of a process, rank or not, that ends with an ``ArchonError`` or was called with wrong options."""


class ArchonError(Exception):
    """Root of all errors that Archon raises on purpose; the command line prints them without a traceback.

    Attributes:
        is_relayed: whether the error happened on another rank and was sent to this one (``ranks.failing_together``).
    """

    is_relayed = False


class PluginError(ArchonError):
    """A plugin could not be loaded, is incompatible, or clashes with another one."""


class UnknownNameError(ArchonError, ValueError):
    """A name that no registered spec of its kind provides."""


class LayoutError(ArchonError, ValueError):
    """A layout string that is malformed, or that the model or the engine cannot run."""


class ConfigError(ArchonError, ValueError):
    """A configuration that is malformed, or that contains unknown or contradicting options."""


class WeightsError(ArchonError, ValueError):
    """A checkpoint whose keys or shapes do not fit the model, or whose files are damaged."""


class DamagedError(WeightsError):
    """A checkpoint with a damaged file."""


class ModelError(ArchonError, ValueError):
    """A model configuration that the model package cannot express."""


class DataError(ArchonError, ValueError):
    """A dataset record or a batch that does not suit the task."""


class RewardError(ArchonError):
    """A reward function that failed, or returned something other than a finite number."""


class TrainingError(ArchonError):
    """A run that cannot go on."""


class ServerError(ArchonError):
    """An inference server that failed, refused a call, or answered something invalid; or a failed transport to it."""


class UnreachableError(ServerError):
    """A server that accepts no connection, so the call was not made."""


class NoDescriptorError(ServerError):
    """A call that was not made because this process has no file descriptor left; it says nothing about the server."""


class UncertainCallError(ServerError):
    """A call to a server that got no answer in time. The server may still execute it; query its state first."""


class TransferError(ServerError):
    """Bytes that did not arrive. The update goes on: the sender may send them again in another way."""


class RefusedRequestError(ServerError):
    """A request that a server refused because of its content. No other server would accept it."""


def did_you_mean(name: str, known: list[str] | tuple[str, ...]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of ``known``, or an empty string when none is close."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
