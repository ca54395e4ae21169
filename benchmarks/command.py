"""Run benchmarks, print each figure as it comes, keep them as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.catalogue import BENCHMARKS, load
from benchmarks.machine import describe
from tokpipe.errors import ConfigError


def run_benchmarks(
    names: Sequence[str], *, quick: bool, folder: Path | None, say: Callable[[str], None]
) -> bool:
    """Run the named benchmarks, or all; return whether every target was reached.

    Each benchmark's results are kept as ``folder/NAME.json`` as soon as it is done.

    Raises:
        ConfigError: there is no benchmark of such a name.
    """
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        raise ConfigError(
            f"bench: there is no benchmark {', '.join(unknown)}. There are: {', '.join(BENCHMARKS)}"
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
