"""Runs benchmarks, prints each figure as soon as it is measured, and stores them as JSON."""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from benchmarks.figures import Result
from benchmarks.machine import describe
from tokpipe.errors import ConfigError

Benchmark = Callable[[bool], Iterator[Result]]
"""Yields results one by one. Called with True, it runs on less and smaller data, which shows that
the benchmark works but is too short to quote."""

BENCHMARKS: dict[str, str] = {
    "encoder": "the encode path against eager float32, and against FLOPs and bandwidth",
    "decode": "frames per second of each decoder against ffmpeg, by codec and size",
    "spans": "few frames of H.264 with B-frames, and spans, against ffmpeg decoding all",
    "ranged": "bytes fetched of long videos in a store for a few spans, and for many",
    "pipeline": "a whole job against its slowest stage alone; how busy the accelerator is",
    "control": "clips per second of dispatcher and Ray with stages that do nothing",
    "plan": "10 million clips planned from Parquet: seconds and memory",
    "resume": "an output of 10 million committed clips resumed: seconds and memory",
    "extend": "10 million committed clips extended by 1 %: seconds, memory, requests",
    "audit": "the manifest of 10 million clips audited: seconds and memory",
    "storage": "bits per code against the entropy of the codes",
    "reader": "codes per second against raw arrays, first and second epoch",
    "nodes": "bytes fetched and memory of 1, 2 and 8 nodes that read an epoch",
    "startup": "imports, seconds to the first clip and memory by process, against an empty Ray job",
    "peers": "the same jobs by a DataLoader loop, a pool of processes and hand-written Ray Data",
}
"""What each measures, by name."""


def load(name: str) -> Benchmark:
    """Import one benchmark: a function of ``benchmarks.scale``, or ``run`` of its module."""
    if name in ("plan", "resume", "extend", "audit"):
        return cast("Benchmark", getattr(importlib.import_module("benchmarks.scale"), name))
    return cast("Benchmark", importlib.import_module(f"benchmarks.{name}").run)


def run_benchmarks(
    names: Sequence[str], *, quick: bool, folder: Path | None, say: Callable[[str], None]
) -> bool:
    """Run the named benchmarks, or all; return whether every target was reached.

    Each benchmark's results are written to ``folder/NAME.json`` as soon as it is done.

    Raises:
        ConfigError: an unknown name.
    """
    if unknown := sorted(set(names) - set(BENCHMARKS)):
        raise ConfigError(
            f"no benchmark {', '.join(unknown)}. Choose from: {', '.join(BENCHMARKS)}"
        )
    all_passed = True
    for name in names or BENCHMARKS:
        say(f"{name}: {BENCHMARKS[name]}")
        machine, started = describe(), time.monotonic()
        results: list[dict[str, Any]] = []
        for result in load(name)(quick):
            say(f"  {result.line()}")
            results.append(result.to_json())
            all_passed &= results[-1].get("passed") is not False
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            record = {
                "benchmark": name,
                "quick": quick,
                "seconds": round(time.monotonic() - started, 1),
                "machine": machine,
                "results": results,
            }
            (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return all_passed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run benchmarks; return 0, or 2 for an unknown name."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Run benchmarks, and print each figure next to its limit or target.",
        epilog="example: python -m benchmarks encoder storage --json benchmarks/results",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which to run (default: all)")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and exit")
    parser.add_argument("--quick", action="store_true", help="use little data, as a test")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="write FOLDER/NAME.json")
    parsed = parser.parse_args(arguments)
    if parsed.list:
        print("\n".join(f"{name}: {measures}" for name, measures in BENCHMARKS.items()))
        return 0
    try:
        run_benchmarks(parsed.names, quick=parsed.quick, folder=parsed.json, say=print)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
