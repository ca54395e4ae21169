"""All errors that tokpipe raises. Messages say where, what was found, why it matters, what to do.

Code checks types and attributes, never the text of a message.
"""

from collections.abc import Iterable, Iterator, Mapping


class TokpipeError(Exception):
    """Base class. ``exit_code`` is the exit code of the command line."""

    exit_code = 1


class ConfigError(TokpipeError):
    """Edit the job file: it or a whole source (a table without the named column) is wrong."""

    exit_code = 2


class WeightsMismatch(ConfigError):
    """Weights do not fit the model, so none were loaded. Change the settings, or rename keys.

    The message lists some keys, the attributes all: ``missing`` keys of the model, ``unexpected``
    keys of the weights and, in ``misfits``, what is wrong with a value, by key of the model.
    """

    # Only the message is positional, so that the error can be pickled.
    def __init__(
        self,
        message: str,
        *,
        missing: Iterable[str] = (),
        unexpected: Iterable[str] = (),
        misfits: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.misfits = dict(misfits or {})


class IncompleteOutput(ConfigError):
    """An output to train on or export does not have every row of its plan."""


class PlanMismatch(TokpipeError):
    """The output was started with other sources or settings: use a new prefix, or the old job."""

    exit_code = 3


class StorageError(TokpipeError):
    """A store kept failing until the retry deadline."""

    exit_code = 5


class NotFound(StorageError):
    """The object does not exist. Not retried."""

    exit_code = 2  # nothing failed: the user named something that is not there


class AccessDenied(StorageError):
    """The store is reachable, but denies access to this object. Not retried."""


class Changed(StorageError):
    """The object was replaced, cut short or deleted while it was read in ranges. Not retried."""


class UnsafeStore(StorageError):
    """A second exclusive create succeeded, so two drivers could both commit. Use another store."""


class Fenced(TokpipeError):
    """Another driver has committed to the output since this one started; this one stops."""

    exit_code = 6


class RuntimeFault(TokpipeError):
    """The job cannot make progress: no capacity for a stage, or its actors do not start."""

    exit_code = 7


class HeadLost(RuntimeFault):
    """The head of the Ray cluster does not answer, so nothing more can be asked of Ray."""


class NodeTrouble(RuntimeFault):
    """A worker cannot work because of its node, such as one with a full or failing disk."""


class UnfitNode(ConfigError, NodeTrouble):
    """A node has other packages than the job, or does not see its output. Waiting does not help."""


class CorruptOutput(TokpipeError):
    """An object of the output fails its checksum or contradicts the manifest."""

    exit_code = 8


class SourceError(TokpipeError):
    """One clip cannot be tokenized, because of its video. It is rejected, and the job continues.

    ``reason`` is a short, stable word to group by, such as ``"no_video"``. Decoders add the backend
    that decided, how many segments the row has, and the name of an exception or a signal.
    """

    exit_code = 2

    def __init__(
        self,
        reason: str,
        message: str,
        backend: str | None = None,
        num_segments: int | None = None,
        error: str | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.backend = backend
        self.num_segments = num_segments
        self.error = error


def chain_of(error: BaseException | None, *, contexts: bool = False) -> Iterator[BaseException]:
    """Yield an error and its causes; with ``contexts`` also what was handled when it was raised."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (error.__context__ if contexts else None)
