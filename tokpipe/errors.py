"""Every error that tokpipe raises on purpose, and who acts on it.

TokpipeError
  ConfigError      the job file is wrong             its author edits it
    WeightsMismatch  weights are of another model  other settings, or keys renamed
  PlanMismatch     the output has another plan       new output prefix, or the old job file
  SourceError      one video is unusable             recorded as rejected, the job goes on
  StorageError     the store kept failing            retried inside storage, then the job stops
    NotFound       the object is not there           the caller decides what that means
    AccessDenied   the store refuses this object     the caller decides what that means
    UnsafeStore    exclusive create does not hold    another store, or accept the risk by name
  Fenced           another driver owns the output    this driver stops, the other goes on
  CorruptOutput    an output object is damaged       restore it, or tokenize its clips again
  RuntimeFault     no progress is possible           fix the cluster or the weights, run again
    NodeTrouble    one node cannot work              the runtime keeps away from that node

A message says where, what was found, why it matters and what to do. Code decides by type and
attribute, never by an exception's text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class TokpipeError(Exception):
    """Base of every error raised on purpose. ``exit_code`` is what the command line exits with."""

    exit_code = 1


class ConfigError(TokpipeError):
    """The job file, or a source it names as a whole (a table without its column), is wrong."""

    exit_code = 2


class WeightsMismatch(ConfigError):
    """Weights do not fit the model that they are for, none of which were loaded.

    ``missing`` are the model's keys without a value, ``unexpected`` the keys that the model has
    no place for, as they were given, and ``misfits`` says by key of the model what is wrong with
    its value. All are complete, while the message names some of each.
    """

    # Only the message is positional, so that the error survives being sent between processes.
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


class PlanMismatch(TokpipeError):
    """The output was started with other sources or settings than the job has now."""

    exit_code = 3


class StorageError(TokpipeError):
    """A store kept failing until the retry deadline."""

    exit_code = 5


class NotFound(StorageError):
    """The object does not exist. Never retried."""


class AccessDenied(StorageError):
    """The store is reachable and refuses this object to these credentials. Never retried."""


class UnsafeStore(StorageError):
    """The store let a second exclusive create through: two drivers could both commit."""


class Fenced(TokpipeError):
    """Another driver has committed to this output since this one started."""

    exit_code = 6


class RuntimeFault(TokpipeError):
    """The job cannot make progress: no room for a stage, or its actors do not start."""

    exit_code = 7


class NodeTrouble(RuntimeFault):
    """A worker cannot work because of the node that it is on: its disk is full, or failing."""


class CorruptOutput(TokpipeError):
    """An object of an output fails its checksum, or contradicts the manifest."""

    exit_code = 8


class SourceError(TokpipeError):
    """One clip cannot be turned into codes, through its own fault.

    ``reason`` is a short stable word that the summary groups by, such as ``"no_video"``;
    the message is for a person.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
