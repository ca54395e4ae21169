"""The same jobs written by hand with Ray Data, as its guides say."""

from __future__ import annotations

import importlib.util
import logging
import time
from pathlib import Path
from typing import Any

MISSING = (
    None
    if importlib.util.find_spec("pandas")
    else "ray.data imports pandas, which is not installed here: pip install 'tokpipe[bench]'"
)
"""Why Ray Data cannot be used; None if it can."""

Batch = dict[str, Any]


class _Free:
    def __call__(self, batch: Batch) -> Batch:
        return batch


def free_clips_per_s(address: str, folder: Path, num_clips: int, batch_size: int) -> float:
    """Clips per second through two actor stages that do nothing and a Parquet sink."""
    import ray.data

    with ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR):
        _be_quiet()
        rows = ray.data.range(num_clips, override_num_blocks=max(1, num_clips // batch_size))
        stage: dict[str, Any] = {"batch_size": batch_size, "concurrency": 1, "num_cpus": 0.5}
        decoded = rows.map_batches(_Free, **stage)
        encoded = decoded.map_batches(_Free, **{**stage, "num_cpus": 0.6})  # else both are fused
        started = time.monotonic()
        encoded.write_parquet(str(folder / "out"))
        return num_clips / (time.monotonic() - started)


def _be_quiet() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
