"""The sample job as one would write it without tokpipe: workers that decode, an encoder, a file.

The workers are those of a DataLoader or of a pool, and decode with PyAV or torchcodec. No resume,
no checks, no deadline: the comparison shows what they cost.
"""

import importlib.util
import itertools
import multiprocessing
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from benchmarks.sample_job import CLIP_FRAMES, FPS, SIZE, Row, sample_job
from tokpipe.media.framing import Framing, Painter
from tokpipe.media.geometry import Orientation
from tokpipe.models.tokenizers import build_tokenizer
from tokpipe.weights.read import read_weights

Codes = dict[tuple[str, float], NDArray[np.uint16]]
"""By the name of their video, and the first second."""
BATCH = 4
CLIPS_PER_FILE = 64


@dataclass(frozen=True)
class PeerRun:
    """One run of the sample job."""

    seconds: float
    """From its encoder being ready to its last file being closed."""
    start_s: float
    """Before that."""
    codes: Codes


def frames_of(path: str, start_s: float) -> NDArray[np.uint8]:
    """(T, H, W, 3): the frames on screen every 1/8 s, scaled to cover the size, centre cropped.

    Scaled by tokpipe's own function, or the codes could not be compared.
    """
    wanted = [start_s + k / FPS + 1e-4 for k in range(CLIP_FRAMES)]
    out = np.zeros((CLIP_FRAMES, SIZE, SIZE, 3), np.uint8)
    painter = Painter(Framing((SIZE, SIZE), "crop", Fraction(1), Orientation()))
    slot = 0
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        container.seek(int(start_s / stream.time_base), stream=stream)
        shown: Any = None
        for frame in container.decode(stream):
            assert frame.time is not None
            while slot < CLIP_FRAMES and shown is not None and frame.time > wanted[slot]:
                painter.paint(shown, out[slot])
                slot += 1
            shown = frame
            if slot == CLIP_FRAMES:
                break
        while slot < CLIP_FRAMES:
            painter.paint(shown, out[slot])
            slot += 1
    return out


class Clips(Dataset[tuple[int, NDArray[np.uint8]]]):
    """Pixels by the number of a span."""

    def __init__(self, spans: Sequence[Row]) -> None:
        self.spans = spans

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> tuple[int, NDArray[np.uint8]]:
        path, start_s, _ = self.spans[index]
        return index, frames_of(path, start_s)


def small_tokenizer() -> Any:
    """The encoder of the sample job."""
    with TemporaryDirectory() as folder:
        job = sample_job(Path(folder), 1)
    return build_tokenizer(job.tokenizer, read_weights(job.tokenizer, job.storage).encoding)


def run_loop(folder: Path, spans: Sequence[Row], num_workers: int) -> PeerRun:
    """Decode in the workers of a DataLoader."""
    begun = time.monotonic()
    tokenizer = small_tokenizer()
    loader = DataLoader(Clips(spans), batch_size=BATCH, num_workers=num_workers)
    batches = ((indices.tolist(), pixels) for indices, pixels in loader)
    return _encode(tokenizer, batches, folder, spans, begun)


def run_pool(
    folder: Path, spans: Sequence[Row], num_workers: int, *, by_torchcodec: bool = False
) -> PeerRun:
    """Decode in the processes of a pool."""
    begun = time.monotonic()
    tokenizer = small_tokenizer()
    decode = _frames_by_torchcodec if by_torchcodec else _frames_by_pyav
    with multiprocessing.get_context("forkserver").Pool(num_workers) as pool:
        batches = _batched(pool.imap(decode, spans, chunksize=BATCH))
        return _encode(tokenizer, batches, folder, spans, begun)


def _frames_by_pyav(span: Row) -> NDArray[np.uint8]:
    return frames_of(*span[:2])


def _frames_by_torchcodec(span: Row) -> NDArray[np.uint8]:
    """Scaled by torch, as its guide does it, so some codes differ."""
    from torchcodec.decoders import VideoDecoder

    path, start_s, _ = span
    decoder = VideoDecoder(path, num_ffmpeg_threads=1, seek_mode="approximate")
    found = decoder.get_frames_played_at([start_s + k / FPS + 1e-4 for k in range(CLIP_FRAMES)])
    height, width = found.data.shape[2:]
    size = [round(SIZE * side / min(height, width)) for side in (height, width)]
    scaled = torch.nn.functional.interpolate(
        found.data.float(), size, mode="bilinear", antialias=True
    )
    top, left = ((side - SIZE) // 2 for side in size)
    cropped = scaled[:, :, top : top + SIZE, left : left + SIZE]
    return cropped.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def lacks_torchcodec() -> str | None:
    """Why torchcodec cannot be used; None if it can."""
    if importlib.util.find_spec("torchcodec") is None:
        return "torchcodec is not installed here"
    try:
        from torchcodec.decoders import VideoDecoder  # noqa: F401
    except (OSError, RuntimeError) as error:
        return f"torchcodec does not load: {str(error).splitlines()[0]}"
    return None


def _batched(clips: Iterable[NDArray[np.uint8]]) -> Iterable[tuple[list[int], torch.Tensor]]:
    numbered = enumerate(clips)
    while batch := list(itertools.islice(numbered, BATCH)):
        yield [index for index, _ in batch], torch.from_numpy(np.stack([one for _, one in batch]))


def _encode(
    tokenizer: Any,
    batches: Iterable[tuple[list[int], torch.Tensor]],
    folder: Path,
    spans: Sequence[Row],
    begun: float,
) -> PeerRun:
    """Encode in this process, and write a file every 64 clips."""
    rows: list[dict[str, Any]] = []
    num_files = 0
    ready = time.monotonic()
    for indices, pixels in batches:
        codes = tokenizer.encode(pixels)
        for index, block in zip(indices, codes.numpy(), strict=True):
            path, start_s, _ = spans[index]
            rows.append(row_of(path, start_s, block))
        if len(rows) >= CLIPS_PER_FILE or len(rows) + num_files * CLIPS_PER_FILE >= len(spans):
            table = pa.Table.from_pylist(rows)
            pq.write_table(table, folder / f"{num_files:05d}.parquet", compression="zstd")
            rows, num_files = [], num_files + 1
    return PeerRun(time.monotonic() - ready, ready - begun, read_codes(folder))


def row_of(path: str, start_s: float, codes: NDArray[Any]) -> dict[str, Any]:
    t, h, w = codes.shape
    narrow = codes.astype(np.uint16).ravel()
    return {"path": path, "start_s": start_s, "t": t, "h": h, "w": w, "codes": narrow}


def read_codes(folder: Path) -> Codes:
    """The codes that one of these scripts wrote."""
    found: Codes = {}
    for path in sorted(folder.rglob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            key = Path(row["path"]).name, row["start_s"]
            assert key not in found
            found[key] = np.asarray(row["codes"], np.uint16)
    return found
