"""``python -m benchmarks.gpu --json FILE --page FILE``: on one GPU, in eight minutes.

Sections run one after the other in another process. If one of them hangs or breaks the GPU's
context, that process is ended, and a new one continues with the next section. Results are written
as they are found.
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from benchmarks.gpu.record import Part, Record
from benchmarks.gpu.sections import SECTIONS, TOTAL_S, Section

Message = tuple[str, Any]
"""Its kind and value."""

START_S = 60.0
"""For the process to start: Python, torch and a CUDA context."""
GRACE_S = 10.0
"""Beyond its budget, for a section to end itself after its last finding."""


class Runner:
    """Runs sections and keeps the record."""

    def __init__(
        self,
        sections: Sequence[Section],
        *,
        is_dry: bool,
        write: Callable[[Record], None],
        command: Sequence[str] = (sys.executable, "-m", "benchmarks.gpu.child"),
    ) -> None:
        self.record = Record(is_dry, [Part(one.name, one.title) for one in sections])
        self._parts = {one.name: one for one in self.record.parts}
        self._waiting = list(sections)
        self._values: dict[str, float] = {}
        self._write = write
        self._command = command
        self._end = time.monotonic() + TOTAL_S

    def run(self) -> None:
        self._write(self.record)
        while self._waiting:
            before = len(self._waiting)
            problem = self._one_process()
            if problem and len(self._waiting) == before:  # it did not even begin a section
                self._give_up(problem)
            elif time.monotonic() > self._end - GRACE_S:
                self._give_up(f"the {TOTAL_S:.0f} s of the whole run are used up")
        self._write(self.record)

    def _give_up(self, why: str) -> None:
        for section in self._waiting:
            self._parts[section.name].state = why
        self._waiting.clear()

    def _one_process(self) -> str:
        """Run sections in one process until it ends; return why it ended early, or ""."""
        order = {
            "sections": [one.name for one in self._waiting],
            "dry_run": self.record.is_dry,
            "values": self._values,
        }
        environment = {**os.environ, **({"TRITON_INTERPRET": "1"} if self.record.is_dry else {})}
        with tempfile.TemporaryFile("w+") as errors:
            child = subprocess.Popen(
                [*self._command, json.dumps(order)],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
                start_new_session=True,
            )
            messages: queue.Queue[Message | None] = queue.Queue()
            reader = threading.Thread(target=_read, args=(child.stdout, messages))
            reader.start()
            try:
                return self._follow(child, messages, errors)
            finally:
                _end(child)
                reader.join()

    def _follow(
        self,
        child: "subprocess.Popen[str]",
        messages: "queue.Queue[Message | None]",
        errors: IO[str],
    ) -> str:
        part: Part | None = None
        began = time.monotonic()
        limit = began + START_S
        while True:
            try:
                wait = min(limit, self._end) - time.monotonic()
                message = messages.get(timeout=max(0.1, wait))
            except queue.Empty:
                took = round(time.monotonic() - began, 1)
                problem = f"its process was ended after {took:.0f} s"
                if part is not None:
                    part.state, part.seconds = problem, took
                    self._write(self.record)
                return problem
            if message is None:
                if part is None and not self._waiting:
                    return ""
                errors.seek(0)
                last = " ".join(errors.read()[-1500:].split())[-500:]
                problem = f"its process ended with {child.wait()}: {last}"
                if part is not None:
                    part.state = problem
                    self._write(self.record)
                return problem
            kind, value = message
            if kind == "begin":
                section = self._waiting.pop(0)
                assert section.name == value
                part, began = self._parts[section.name], time.monotonic()
                part.state = "running"
                limit = began + section.budget_s + GRACE_S
            elif kind == "value":
                self._values.update(value)
            elif kind == "end":
                assert part is not None
                part.state, part.seconds = value["state"], value["seconds"]
                part, began = None, time.monotonic()
                limit = began + START_S
            else:
                assert part is not None
                part.add(kind, value)
            if kind != "value":
                self._write(self.record)


def _read(source: IO[str], messages: "queue.Queue[Message | None]") -> None:
    with source:
        for line in source:
            with suppress(ValueError):  # a library may print, too
                kind, value = json.loads(line)
                messages.put((kind, value))
    messages.put(None)


def _end(child: "subprocess.Popen[str]") -> None:
    """End the process and those that it started."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run sections; return 0, or 1 if a section was not finished or a claim does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Measure what only a GPU can show, in eight minutes.",
        epilog="example: python -m benchmarks.gpu --json gpu.json --page gpu.md",
    )
    parser.add_argument("names", nargs="*", metavar="SECTION", help="which to run (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings as JSON")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write them as a Markdown page")
    parser.add_argument("--dry-run", action="store_true", help="run on a CPU, on tiny shapes")
    parsed = parser.parse_args(arguments)
    known = {one.name: one for one in SECTIONS}
    if unknown := sorted(set(parsed.names) - set(known)):
        parser.error(f"no section {', '.join(unknown)}. Choose from: {', '.join(known)}")
    chosen = [one for one in SECTIONS if not parsed.names or one.name in parsed.names]
    said: dict[str, str] = {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and end the other process

    def write(record: Record) -> None:
        record.write(parsed.json, parsed.page)
        for part in record.parts:
            if said.get(part.name, "not started") != part.state:
                said[part.name] = part.state
                print(f"{part.name}: {part.state}", flush=True)

    runner = Runner(chosen, is_dry=parsed.dry_run, write=write)
    runner.run()
    claims: list[dict[str, Any]] = [one for part in runner.record.parts for one in part.claims]
    for claim in claims:
        verdict = {True: "yes", False: "NO", None: "not measured"}[claim["holds"]]
        print(f"{verdict:>12}  {claim['text']}: {claim['found']}")
    is_whole = all(part.state == "done" for part in runner.record.parts)
    return 0 if is_whole and all(claim["holds"] is not False for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
