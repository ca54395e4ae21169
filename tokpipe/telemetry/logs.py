"""Events of a job, as records of Python's logging: a name, a sentence for people, and fields.

A driver shows warnings above its progress display, and appends all events as lines of JSON to
``runtime.log_path``. Importing this module configures nothing.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

from tokpipe.errors import ConfigError, Fenced
from tokpipe.telemetry.redact import printable, redact_nested

LOGGER = logging.getLogger("tokpipe")
STDERR = "-"  # Means standard error in place of a path
SAME_LINE_S = 5.0  # Between two warnings of one event: a lost node can take hundreds of actors

EventName = Literal[  # docs/monitoring.md explains each
    "run_started", "cluster_unused", "head_silent", "output_claimed", "rejections_reopened",
    "pools_resized", "actor_up", "actor_refused", "actor_lost", "nodes_draining", "node_avoided",
    "encoder_class_joined", "encoder_path", "lease_failed", "clip_retried", "clip_rejected",
    "shard_committed", "committed", "progress", "stop_requested", "claim_lost", "run_ended",
    "run_failed", "log",
]  # fmt: skip


def log_event(
    event: EventName, message: str, *, level: int = logging.INFO, **fields: object
) -> None:
    """Log an event; cheap when nothing is listening."""
    LOGGER.log(level, "%s", message, extra={"event": event, "fields": fields})


@contextmanager
def driver_log(
    path: str | None, say: Callable[[str], None], context: Mapping[str, object]
) -> Iterator[None]:
    """Within the block, send warnings to ``say``, and all events, with ``context``, to ``path``: a
    local file to append to, ``-`` for standard error, or None for no events. An error that ends the
    block is the last event."""
    with ExitStack() as stack:
        handlers: list[logging.Handler] = [_WarningLines(say)]
        if path is not None:
            stream = sys.stderr if path == STDERR else stack.enter_context(_open(path))
            handlers.append(_JsonLines(stream, context))
            stack.callback(LOGGER.setLevel, LOGGER.level)
            LOGGER.setLevel(logging.INFO)
        for handler in handlers:
            LOGGER.addHandler(handler)
            stack.callback(LOGGER.removeHandler, handler)
        try:
            yield
        except Exception as error:  # signals raise none here
            event: EventName = "claim_lost" if isinstance(error, Fenced) else "run_failed"
            log_event(event, str(error), level=logging.ERROR, error=type(error).__name__)
            raise


def start_worker_log(context: Mapping[str, object], *, as_json: bool) -> None:
    """Configure logging in this process, permanently. If the driver writes JSON, so does an actor,
    to its standard error, which Ray stores in a file; else only warnings appear."""
    mask_others()
    if as_json:
        LOGGER.handlers = [_JsonLines(sys.stderr, context)]
        LOGGER.setLevel(logging.INFO)


class PlainFormatter(logging.Formatter):
    """Formats a record for people: in one line, except for a traceback, and without secrets."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return printable(super().formatException(ei), keep="\n")


def mask_others() -> None:
    """Do the same with what is logged where no handler is set, as by libraries."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PlainFormatter())


class _JsonLines(logging.StreamHandler[TextIO]):
    """Writes a record as one line of JSON, with secrets masked."""

    def __init__(self, stream: TextIO, context: Mapping[str, object]) -> None:
        super().__init__(stream)
        self._context = dict(context)

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "log"),
            "message": record.getMessage(),
            **self._context,
            **getattr(record, "fields", {"logger": record.name}),
        }
        if record.exc_info:
            line["traceback"] = logging.Formatter().formatException(record.exc_info)
        return printable(json.dumps(redact_nested(line), default=str))


class _WarningLines(logging.Handler):
    """Shows warnings to a person, at most one per event every ``SAME_LINE_S``."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say
        self._quiet_until: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            return  # ends the run, which prints the error itself
        event, now = getattr(record, "event", record.name), time.monotonic()
        if now >= self._quiet_until.get(event, 0.0):
            self._quiet_until[event] = now + SAME_LINE_S
            self._say(f"warning: {record.getMessage()}")


def _open(path: str) -> TextIO:
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return Path(path).open("a", encoding="utf-8")
    except OSError as error:
        found = f"{path} cannot be written ({error.strerror}), so the job would have no log"
        do = "use a path on a local disk, or - for standard error"
        raise ConfigError(f"runtime.log_path: {found}: {do}") from error
