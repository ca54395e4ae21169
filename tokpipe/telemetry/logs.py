"""What happens in a job, as records of the standard library's logging: one name per event, a
sentence for people, and fields for programs.

A driver shows warnings as lines above its progress, and writes all events as lines of JSON where
``runtime.log_path`` says. Nothing is set up by importing this.
"""

from __future__ import annotations

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
from typing import Literal, TextIO, get_args

from tokpipe.errors import ConfigError
from tokpipe.telemetry.redact import redact_nested

LOGGER = logging.getLogger("tokpipe")
STDERR = "-"
"""In place of a path."""
SAME_LINE_S = 5.0
"""Warnings of one event are shown so often at most: a node takes hundreds of actors with it."""

EventName = Literal[
    "run_started",
    "output_claimed",
    "rejections_reopened",
    "pools_resized",
    "actor_up",
    "actor_refused",
    "actor_lost",
    "nodes_draining",
    "node_avoided",
    "lease_failed",
    "clip_retried",
    "clip_rejected",
    "shard_committed",
    "committed",
    "progress",
    "stop_requested",
    "claim_lost",
    "run_ended",
    "run_failed",
    "log",
]

EVENTS: Mapping[EventName, str] = {
    "run_started": "A driver begins: what it is, and how much was settled before.",
    "output_claimed": "It is the output's only driver from manifest entry `seq` on.",
    "rejections_reopened": "`--retry-rejected` has withdrawn `num_clips` rejections.",
    "pools_resized": "The cluster or what clips cost has changed: actors wanted by stage.",
    "actor_up": "An actor is set up and takes leases.",
    "actor_refused": "An actor could not be started or set up.",
    "actor_lost": "An actor died, with its node if `node_lost`, or was killed at a deadline.",
    "nodes_draining": "The cluster has said that nodes are about to go.",
    "node_avoided": "A node with trouble of its own gets no new actors for `rest_s`.",
    "lease_failed": "A stage raised, or the inputs of a lease are lost (`kind`).",
    "clip_retried": "A clip failed, or was alone with a worker that did, and is tried again.",
    "clip_rejected": "A rejection stands in the manifest. Once for each rejected clip.",
    "shard_committed": "A shard stands in the manifest. Once for each.",
    "committed": "Manifest entry `seq` stands; `commit_s` is how long the store took.",
    "progress": "How far the job is, every `runtime.progress_interval_s`.",
    "stop_requested": "A signal or a notice of preemption ends the run in good order.",
    "claim_lost": "Another driver has claimed the output; this one stops.",
    "run_ended": "The run is over: `done`, or `stopped` with work left.",
    "run_failed": "The run ends with an error.",
    "log": "Any other record of the package, of the module `logger`.",
}


def log_event(
    event: EventName, message: str, *, level: int = logging.INFO, **fields: object
) -> None:
    """Record that something happened; costs next to nothing where nobody listens."""
    if LOGGER.isEnabledFor(level):
        LOGGER.log(level, "%s", message, extra={"event": event, "fields": fields})


def events_are_logged() -> bool:
    """Whether it is worth while to look at each clip for an event."""
    return LOGGER.isEnabledFor(logging.INFO)


@contextmanager
def driver_log(
    path: str | None, say: Callable[[str], None], context: Mapping[str, object]
) -> Iterator[None]:
    """Within the block, warnings go to ``say``, and all events to ``path`` if it is given.

    Args:
        path: of a local file, to which lines are added; ``-`` is standard error.
        context: fields of every line.

    Raises:
        ConfigError: the file cannot be written.
    """
    with ExitStack() as stack:
        _attach(stack, _WarningLines(say))
        if path is not None:
            stream = sys.stderr if path == STDERR else stack.enter_context(_opened(path))
            _attach(stack, _json_handler(stream, context))
            before = LOGGER.level
            stack.callback(LOGGER.setLevel, before)
            LOGGER.setLevel(logging.INFO)
        yield


@dataclass(frozen=True, slots=True)
class WorkerLog:
    """How an actor logs: as JSON to its standard error, which Ray keeps in a file, if the driver
    writes JSON too; else as Python does by default, warnings alone."""

    as_json: bool
    context: Mapping[str, object]

    def start(self) -> None:
        """Set up logging in this process, for good."""
        if self.as_json:
            LOGGER.handlers = [_json_handler(sys.stderr, self.context)]
            LOGGER.setLevel(logging.INFO)


class JsonFormatter(logging.Formatter):
    """One line of JSON per record, without secrets."""

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
    """Shows warnings to a person, and not the same one over and over."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say
        self._quiet_until: dict[str, float] = {}
        self._held: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            return  # ends the run, which says so itself
        event, now = getattr(record, "event", record.name), time.monotonic()
        if now < self._quiet_until.get(event, 0.0):
            self._held[event] += 1
            return
        self._quiet_until[event] = now + SAME_LINE_S
        held = self._held.pop(event, 0)
        more = f" (and {held:,} more like it before)" if held else ""
        self._say(f"warning: {record.getMessage()}{more}")


def _json_handler(stream: TextIO, context: Mapping[str, object]) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(context))
    return handler


def _attach(stack: ExitStack, handler: logging.Handler) -> None:
    LOGGER.addHandler(handler)
    stack.callback(LOGGER.removeHandler, handler)


def _opened(path: str) -> TextIO:
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return Path(path).open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"runtime.log_path: {path} cannot be written ({error.strerror}), and a job whose log "
            "is wanted should not run without. Give a path on a local disk, or - for standard "
            "error."
        ) from error


def events_table() -> str:
    """The events, as a table in Markdown."""
    rows = [f"| `{name}` | {EVENTS[name]} |" for name in get_args(EventName)]
    return "\n".join(["| event | |", "|---|---|", *rows, ""])


if __name__ == "__main__":
    print(events_table(), end="")
