"""How many requests a job sends to its stores for each clip. Stores charge for requests."""

import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.sample_job import SAMPLE, sample_job
from tokpipe.config.job import StoreOptions
from tokpipe.runtime.assemble import JobOutput, Run
from tokpipe.storage import Store
from tokpipe.storage.client import Client
from tokpipe.types import DecodedClip, EncodedClip


def requests_of(num_clips: int) -> dict[str, float]:
    """Requests by purpose, of a small job whose videos and output are remote.

    The stages write one shard of ``num_clips`` clips, without retries.
    """
    memory = Store("memory://bench", StoreOptions())
    for number in range(num_clips):
        memory.put(f"videos/{number}.mp4", SAMPLE.read_bytes())
    with tempfile.TemporaryDirectory() as name, counted() as counts:
        folder = Path(name)
        job = sample_job(
            folder,
            1,
            sources=[{"kind": "files", "uri": "memory://bench/videos/*.mp4"}],
            output={"uri": "memory://bench/out"},
            frames={"size": [32, 32]},
            sampling={"fps": 2, "max_clip_frames": 129},
        )
        output, console = JobOutput(job), Console(quiet=True)
        output.start(console)
        run = Run(output, console)
        items = run.feed.fetch(num_clips).items
        parts = {"start": counts.total()}

        decode, encode, write = run.decode, run.encode(), run.write
        decode.setup()
        decoded = [one for one in decode.process(list(items)) if isinstance(one, DecodedClip)]
        decode.close()
        parts["source"] = counts.total() - sum(parts.values())

        encode.setup("cpu", run.weights)
        encoded = [one for one in encode.process(decoded) if isinstance(one, EncodedClip)]
        write.setup()
        receipt = write.process("bench-1-1", encoded)
        parts["shard"] = counts.total() - sum(parts.values())

        run.committer.commit([receipt], [])
        parts["commit"] = counts.total() - sum(parts.values())
    assert len(encoded) == num_clips
    return {**parts, "source": parts["source"] / num_clips}


@contextmanager
def counted(below: str | None = None) -> Iterator[Counter[str]]:
    """Count this process's calls to remote file systems, or to any one ``below`` a URI."""
    counts: Counter[str] = Counter()
    lock = threading.Lock()
    original = Client.call

    def counting(self: Client, doing: str, uri: str, ask: Any, *args: Any, **kwargs: Any) -> Any:
        with lock:
            counts[getattr(ask, "__name__", ask)] += (
                uri.startswith(below) if below else not self.is_local
            )
        return original(self, doing, uri, ask, *args, **kwargs)

    Client.call = counting  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        Client.call = original  # type: ignore[method-assign]
