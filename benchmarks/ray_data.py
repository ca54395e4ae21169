"""The same jobs written by hand with Ray Data, following its guides."""

import importlib.util
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.by_hand import (
    BATCH,
    PeerRun,
    frames_of,
    read_codes,
    row_of,
    small_tokenizer,
)
from benchmarks.sample_job import Row

MISSING = (
    None
    if importlib.util.find_spec("pandas")
    else "ray.data imports pandas, which is not installed here: pip install '.[bench]'"
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
        ids = [{"id": number} for number in range(num_clips)]
        rows = ray.data.from_items(ids, override_num_blocks=max(1, num_clips // batch_size))
        one = ray.data.ActorPoolStrategy(size=1)
        stage: dict[str, Any] = {"batch_size": batch_size, "compute": one, "num_cpus": 0.5}
        decoded = rows.map_batches(_Free, **stage)
        encoded = decoded.map_batches(_Free, **{**stage, "num_cpus": 0.6})  # else both are fused
        started = time.monotonic()
        # By default it would request whole CPUs, and wait for them silently for ever.
        encoded.write_parquet(str(folder / "out"), ray_remote_args={"num_cpus": 0.2})
        return num_clips / (time.monotonic() - started)


class _Encoder:
    def __init__(self) -> None:
        self.tokenizer = small_tokenizer()
        self.ready_at = time.time()

    def __call__(self, batch: Batch) -> Batch:
        import torch

        codes = self.tokenizer.encode(torch.from_numpy(np.stack(list(batch["pixels"])))).numpy()
        clips = zip(batch["path"], batch["start_s"], codes, strict=True)
        rows = [row_of(path, start_s, block) for path, start_s, block in clips]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        return {**columns, "id": batch["id"], "ready_at": [self.ready_at] * len(rows)}


def _decode(row: Batch) -> Batch:
    return {**row, "pixels": frames_of(row["path"], row["start_s"])}


class _Decoder:
    def __call__(self, row: Batch) -> Batch:
        return _decode(row)


def run_ray_data(
    address: str, folder: Path, spans: Sequence[Row], *, as_advised: bool = False
) -> PeerRun:
    """Decode in tasks, encode in two actors, write Parquet, all sharing two cores.
    ``as_advised``: with a checkpoint of its rows, and pools of actors for both stages.

    Ray Data fuses stages with equal resources into one process, which would decode and encode by
    turns. These fractions keep them apart, and let all of them run.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

    begun = time.time()
    out = folder / "ray_data"
    with ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR):
        _be_quiet()
        rows = [
            {"id": f"{number:09}", "path": path, "start_s": start}
            for number, (path, start, _) in enumerate(spans)
        ]
        num_blocks = max(1, len(rows) // BATCH)
        if as_advised:  # Rows must be read from files, and their ids be kept
            table = folder / "rows.parquet"
            pq.write_table(pa.Table.from_pylist(rows), table)
            checkpoint = CheckpointConfig(
                id_column="id", checkpoint_path=str(folder / "checkpoint")
            )
            ray.data.DataContext.get_current().checkpoint_config = checkpoint
            clips = ray.data.read_parquet(str(table), override_num_blocks=num_blocks)
            pool = ray.data.ActorPoolStrategy(min_size=1, max_size=2)
            pixels = clips.map(_Decoder, num_cpus=0.4, compute=pool)  # type: ignore[arg-type]
        else:
            clips = ray.data.from_items(rows, override_num_blocks=num_blocks)
            pixels = clips.map(_decode, num_cpus=0.4)
        codes = pixels.map_batches(
            _Encoder,
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(size=2),
            num_cpus=0.6,
        )
        codes.write_parquet(str(out), ray_remote_args={"num_cpus": 0.2})
        ended = time.time()
    files = [pq.read_table(path, columns=["ready_at"]) for path in out.rglob("*.parquet")]
    ready = min(min(table.column("ready_at").to_pylist()) for table in files)
    return PeerRun(ended - ready, ready - begun, read_codes(out))


def _be_quiet() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
