"""Clips, receipts and a store that crashes on purpose, for tests of formats and the reader."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from numpy.typing import NDArray

from tokpipe.errors import NotFound
from tokpipe.formats.job_record import JobRecord
from tokpipe.formats.manifest import load_state
from tokpipe.formats.shard import ShardMetadata, TokenizerSpec
from tokpipe.runtime.commit import Committer
from tokpipe.storage import Store, StoredObject
from tokpipe.types import ChunkSpan, ClipRef, EncodedClip

Codes: TypeAlias = "NDArray[np.uint16] | NDArray[np.uint32]"


class Crash(BaseException):
    """The process is gone: nothing in it may catch this."""


class DictStore(Store):
    """A store in memory that can crash at a chosen write, before or after its effect."""

    def __init__(self) -> None:
        self.uri = "mem://out"
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.unlisted: set[str] = set()
        """Objects that listings lack, as those of some stores lack the newest."""
        self.writes_to_crash: int | None = None
        self.crash: Literal["before", "after"] = "before"

    def uri_of(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def get(self, key: str) -> bytes:
        self.requests.append(f"get {key}")
        if key not in self.objects:
            raise NotFound(f"{self.uri_of(key)} does not exist")
        return self.objects[key]

    def get_range(self, key: str, start: int, end: int) -> bytes:
        return self.get(key)[start:end]

    def put(self, key: str, data: bytes) -> None:
        self._set(key, data)

    def create(self, key: str, data: bytes) -> bool:
        if key in self.objects:
            return self.objects[key] == data
        self._set(key, data)
        return True

    def size(self, key: str) -> int | None:
        self.requests.append(f"size {key}")
        return len(self.objects[key]) if key in self.objects else None

    def list(self, prefix: str) -> Iterator[StoredObject]:
        self.requests.append(f"list {prefix}")
        for key in [key for key in self.objects if key.startswith(prefix)]:
            if key not in self.unlisted:
                yield StoredObject(key, len(self.objects[key]), 0.0)

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    def _set(self, key: str, data: bytes) -> None:
        self.requests.append(f"write {key}")
        if self.writes_to_crash is not None:
            self.writes_to_crash -= 1
            if self.writes_to_crash < 0:
                if self.crash == "after":
                    self.objects[key] = data
                raise Crash(key)
        self.objects[key] = data


def claimed(store: Store, num_rows: int, writer: str) -> Committer:
    """Claim an output of so many plan rows."""
    committer = Committer(store, load_state(store, num_rows), writer)
    committer.claim()
    return committer


def tokenizer_spec(codebook_size: int = 8192) -> TokenizerSpec:
    return TokenizerSpec(
        name="test",
        weights_hash="random, seed 0",
        codebook_size=codebook_size,
        code_dtype="uint16" if codebook_size <= 65_536 else "uint32",
        temporal_stride=4,
        spatial_stride=8,
        chunk_policy="independent",
    )


def shard_metadata(codebook_size: int = 8192) -> ShardMetadata:
    return ShardMetadata("f" * 32, tokenizer_spec(codebook_size))


def record(writer: str = "driver-1", codebook_size: int = 8192, **fields: Any) -> JobRecord:
    values: dict[str, Any] = {
        "tokpipe_version": "0.1.0",
        "created_at": "2026-01-02T03:04:05+00:00",
        "dataset": "demo",
        "fingerprint": "f" * 32,
        "settings": {"sampling": {"fps": 8.0}},
        "num_rows": 3,
        "plan": {"plan_id": "p", "num_rows": 3},
        "libraries": {"torch": "2.13"},
        "job": {"dataset": "demo"},
    }
    values["tokenizer"] = tokenizer_spec(codebook_size)
    return JobRecord(writer=writer, **{**values, **fields})


def clip_ref(row: int, segment: int = 0, num_segments: int = 1) -> ClipRef:
    return ClipRef(f"{row:030x}{segment:02x}", row, segment, num_segments, f"s3://videos/{row}.mp4")


def encoded_clip(
    row: int = 0,
    frames: Sequence[int] = (17, 17, 5),
    grid: tuple[int, int] = (2, 3),
    codebook_size: int = 8192,
    seed: int = 0,
) -> EncodedClip:
    """A clip of chunks of so many frames each, at temporal stride 4, with random codes."""
    rng = np.random.default_rng([row, seed])
    dtype = np.dtype(tokenizer_spec(codebook_size).code_dtype)
    chunks: list[ChunkSpan] = []
    codes: list[Codes] = []
    first = 0
    for index, num_frames in enumerate(frames):
        num_pad = -(num_frames - 1) % 4
        t = 1 + (num_frames + num_pad - 1) // 4
        chunks.append(ChunkSpan(index, first, num_frames, num_pad, 0, 0, True))
        block: Any = rng.integers(0, codebook_size, (t, *grid)).astype(dtype)
        codes.append(block)
        first += num_frames
    pts_s, encoder = np.arange(first) / 8 + 0.25, ("cpu AVX2", "cpu AVX512")[row % 2]
    return EncodedClip(
        clip_ref(row), tuple(chunks), tuple(codes), pts_s, 8.0, "pyav", encoder=encoder
    )


def zipf(codebook_size: int, rng: np.random.Generator, num: int) -> Any:
    """Return codes whose frequencies follow Zipf's law."""
    weights = 1 / np.arange(1, codebook_size + 1)
    ranks = rng.choice(codebook_size, num, p=weights / weights.sum())
    return rng.permutation(codebook_size)[ranks]


@st.composite
def encoded_clips(draw: DrawFn, codebook_size: int = 8192) -> list[EncodedClip]:
    """Clips for one shard: any numbers of chunks and frames, hostile names, one grid."""
    grid = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    ids = draw(st.lists(text.filter(bool), min_size=1, max_size=5, unique=True))
    clips = []
    for row, clip_id in enumerate(ids):
        frames = draw(st.lists(st.integers(1, 17), min_size=1, max_size=4))
        clip = encoded_clip(row, frames, grid, codebook_size)
        uri, fps = draw(text), draw(st.floats(0.125, 1000, width=32))
        segment = draw(st.integers(0, 3))
        ref = ClipRef(clip_id, row, segment, segment + draw(st.integers(1, 3)), uri)
        clips.append(
            EncodedClip(ref, clip.chunks, clip.codes, clip.pts_s, fps, draw(st.sampled_from("ab")))
        )
    return clips


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def flipped(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)
