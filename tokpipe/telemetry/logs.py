"""Events of a job, as records of Python's logging: a name, a sentence for people, and fields.

A driver shows warnings above its progress display, and appends all events as lines of JSON to
``runtime.log_path``. Importing this module configures nothing.
"""

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TextIO

from tokpipe.errors import ConfigError
from tokpipe.telemetry.redact import redact_nested

LOGGER = logging.getLogger("tokpipe")
STDERR = "-"
"""Means standard error in place of a path."""
SAME_LINE_S = 5.0
"""Seconds between two warnings of the same event: one lost node can take hundreds of actors."""

EventName = Literal[
    "run_started", "cluster_unused", "output_claimed", "rejections_reopened", "pools_resized",
    "actor_up", "actor_refused", "actor_lost", "nodes_draining", "node_avoided", "lease_failed",
    "clip_retried", "clip_rejected", "shard_committed", "committed", "progress",
    "stop_requested", "claim_lost", "run_ended", "run_failed", "log",
]  # fmt: skip

EVENTS: Mapping[EventName, str] = {
    "run_started": "A driver starts: its settings, and how much earlier runs have finished.",
    "cluster_unused": "The run started a local Ray although one runs on its machine.",
    "output_claimed": "The driver owns the output from manifest entry `seq` on.",
    "rejections_reopened": "`--retry-rejected` has withdrawn `num_clips` rejections.",
    "pools_resized": "The number of actors wanted per stage, after the cluster or costs changed.",
    "actor_up": "An actor is set up and takes leases.",
    "actor_refused": "An actor could not be started or set up.",
    "actor_lost": "An actor died (with its node if `node_lost`) or was killed at a deadline.",
    "nodes_draining": "The cluster announced that nodes will be removed.",
    "node_avoided": "A stage starts no actors on a node for `rest_s`, or for the whole run.",
    "lease_failed": "A stage raised, or the inputs of a lease were lost (`kind`).",
    "clip_retried": "A clip failed, or its worker died with this clip alone; it is tried again.",
    "clip_rejected": "A rejection was committed. Once per rejected clip.",
    "shard_committed": "A shard was committed. Once per shard.",
    "committed": "Manifest entry `seq` was written; the store took `commit_s`.",
    "progress": "How far the job is, and what it waits for, every `runtime.progress_interval_s`.",
    "stop_requested": "A signal or a preemption notice stops the run cleanly.",
    "claim_lost": "Another driver claimed the output; this one stops.",
    "run_ended": "The run is over: `done`, or `stopped` with work left.",
    "run_failed": "The run failed with an error.",
    "log": "Any other record of the package, from the module `logger`.",
}


def log_event(
    event: EventName, message: str, *, level: int = logging.INFO, **fields: object
) -> None:
    """Log an event; cheap when nothing is listening."""
    if LOGGER.isEnabledFor(level):
        LOGGER.log(level, "%s", message, extra={"event": event, "fields": fields})


def events_are_logged() -> bool:
    """Return whether events are written, so that it is worth building one per clip."""
    return LOGGER.isEnabledFor(logging.INFO)


@contextmanager
def driver_log(
    path: str | None, say: Callable[[str], None], context: Mapping[str, object]
) -> Iterator[None]:
    """Within the block, send warnings to ``say`` and all events to ``path``.

    Args:
        path: a local file to append to, ``-`` for standard error, or None for no events.
        context: fields of every line.

    Raises:
        ConfigError: the file cannot be written.
    """
    with ExitStack() as stack:
        _attach(stack, _WarningLines(say))
        if path is not None:
            stream = sys.stderr if path == STDERR else stack.enter_context(_open(path))
            _attach(stack, _json_handler(stream, context))
            stack.callback(LOGGER.setLevel, LOGGER.level)
            LOGGER.setLevel(logging.INFO)
        yield


@dataclass(frozen=True, slots=True)
class WorkerLog:
    """How an actor logs. If the driver writes JSON, so does the actor, to its standard error,
    which Ray stores in a file. Otherwise only warnings appear, as by default in Python."""

    as_json: bool
    context: Mapping[str, object]

    def start(self) -> None:
        """Configure logging in this process, permanently."""
        if self.as_json:
            LOGGER.handlers = [_json_handler(sys.stderr, self.context)]
            LOGGER.setLevel(logging.INFO)


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON, with secrets masked."""

    def __init__(self, context: Mapping[str, object]) -> None:
        super().__init__()
        self.context = dict(context)

    def format(self, record: logging.LogRecord) -> str:
        event: EventName = getattr(record, "event", "log")
        fields = getattr(record, "fields", {"logger": record.name})
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": event,
            "message": record.getMessage(),
            **self.context,
            **fields,
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(redact_nested(line), default=str)


class _WarningLines(logging.Handler):
    """Shows warnings to a person, at most one per event every ``SAME_LINE_S``."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say
        self._quiet_until: dict[str, float] = {}
        self._held: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            return  # ends the run, which prints the error itself
        event, now = getattr(record, "event", record.name), time.monotonic()
        if now < self._quiet_until.get(event, 0.0):
            self._held[event] += 1
            return
        self._quiet_until[event] = now + SAME_LINE_S
        held = self._held.pop(event, 0)
        more = f" (and {held:,} similar ones before)" if held else ""
        self._say(f"warning: {record.getMessage()}{more}")


def _json_handler(stream: TextIO, context: Mapping[str, object]) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(context))
    return handler


def _attach(stack: ExitStack, handler: logging.Handler) -> None:
    LOGGER.addHandler(handler)
    stack.callback(LOGGER.removeHandler, handler)


def _open(path: str) -> TextIO:
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return Path(path).open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"runtime.log_path: {path} cannot be written ({error.strerror}), so the job would run "
            "without its log: use a path on a local disk, or - for standard error"
        ) from error
