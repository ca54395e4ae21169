"""How many requests a job makes of its stores for each clip: every one of them costs money."""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.pipeline import decoder_of
from benchmarks.sample_job import SAMPLE, sample_job
from tokpipe.config.job import StoreOptions
from tokpipe.plan import PlanReader, StoredPlan
from tokpipe.runtime.commit import claim_output
from tokpipe.runtime.job import start_output
from tokpipe.stages.encode import EncodeStage
from tokpipe.stages.write import WriteStage
from tokpipe.storage import open_store
from tokpipe.storage.client import Client
from tokpipe.types import DecodedClip, EncodedClip
from tokpipe.weights.read import read_weights


def requests_of(num_clips: int) -> dict[str, float]:
    """Requests by what they are for, of a small job whose videos and output are remote.

    One shard of so many clips is made, by the stages themselves and without retries.
    """
    memory = open_store("memory://bench", StoreOptions())
    for number in range(num_clips):
        memory.put(f"videos/{number}.mp4", SAMPLE.read_bytes())
    with tempfile.TemporaryDirectory() as name, _counted() as counts:
        folder = Path(name)
        job = sample_job(
            folder,
            1,
            sources=[{"kind": "files", "uri": "memory://bench/videos/*.mp4"}],
            output={"uri": "memory://bench/out"},
            frames={"size": [32, 32]},
            sampling={"fps": 2, "max_clip_frames": 129},
        )
        store = open_store(job.output.uri, job.storage)
        weights = read_weights(job.tokenizer, job.storage)
        record = start_output(store, job, weights.hash, "bench", Console(quiet=True))
        committer = claim_output(store, record.num_rows, "bench")
        plan = StoredPlan.from_json(record.plan)
        items = PlanReader(store, plan).items(0)
        parts = {"start": counts.total()}

        decoder = decoder_of(job, folder)
        decoded = [one for one in decoder.process(items) if isinstance(one, DecodedClip)]
        decoder.close()
        parts["source"] = counts.total() - sum(parts.values())

        encode = EncodeStage(job.tokenizer, job.chunking, job.encode)
        encode.setup("cpu", weights.encoding)
        encoded = [one for one in encode.process(decoded) if isinstance(one, EncodedClip)]
        write = WriteStage(job.output, job.storage, record.tokenizer, record.fingerprint, plan)
        write.setup()
        receipt = write.process("bench-1-1", encoded)
        parts["shard"] = counts.total() - sum(parts.values())

        committer.commit([receipt], [])
        parts["commit"] = counts.total() - sum(parts.values())
    assert len(encoded) == num_clips
    return {**parts, "source": parts["source"] / num_clips}


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """Count every call to a remote file system by this process's clients."""
    counts: Counter[str] = Counter()
    lock = threading.Lock()
    original = Client._attempt

    def counting(self: Client, method: str, *args: Any) -> Any:
        with lock:
            counts[method] += not self.is_local
        return original(self, method, *args)

    Client._attempt = counting  # type: ignore[assignment, method-assign]
    try:
        yield counts
    finally:
        Client._attempt = original  # type: ignore[method-assign]
