"""Builds shards: Parquet files with one row per chunk, in the documented schema.

A shard is built in memory. Its bytes depend only on its clips, its metadata and library versions.
"""

import io
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

import tokpipe
from tokpipe.config.job import ChunkingConfig
from tokpipe.config.tokenizer import TokenizerConfig
from tokpipe.config.traits import CodesOfPosition, by_codebook
from tokpipe.formats.checks import damaged, explained, sha256, too_new
from tokpipe.formats.layout import shard_key, side_table_key
from tokpipe.formats.tables import required
from tokpipe.types import CodeDtype, Codes, EncodedClip, Flag, PerPosition, Receipt, Side, Sizes

SHARD_FORMAT = 1  # Goes up when an older reader could misread a newer shard, not for a new column
CODES_PER_ROW_GROUP = 2**20  # A reader must fetch a row group to read one row: 2 MB at K = 65,536

_PAGE_BYTES = 8 * 2**20
"""One page of codes per row group. Longer byte planes compress better: 13.02 to 13.08 bits a code,
against 13.17 with pages of 1 MiB (uniform codes, K = 8,192)."""

_CODES = "codes.list.element"
_METADATA_PREFIX = "tokpipe."
_Row = tuple[EncodedClip, int]  # A clip, and which of its chunks

_COLUMNS: dict[str, tuple[pa.DataType, Callable[[EncodedClip, int], Any]]] = {
    "clip_id": (pa.string(), lambda clip, i: clip.ref.clip_id),
    "chunk_index": (pa.int32(), lambda clip, i: clip.chunks[i].index),
    "n_chunks": (pa.int32(), lambda clip, i: len(clip.chunks)),
    "source_uri": (pa.string(), lambda clip, i: clip.ref.source_uri),
    "start_pts_s": (pa.float64(), lambda clip, i: clip.pts_s[clip.chunks[i].first_frame]),
    "end_pts_s": (
        pa.float64(),
        lambda clip, i: clip.pts_s[clip.chunks[i].first_frame + clip.chunks[i].num_frames - 1],
    ),
    "frame_start": (pa.int32(), lambda clip, i: clip.chunks[i].first_frame),
    "n_frames": (pa.int32(), lambda clip, i: clip.chunks[i].num_frames),
    "n_pad_frames": (pa.int32(), lambda clip, i: clip.chunks[i].num_pad_frames),
    "n_context_frames": (pa.int32(), lambda clip, i: clip.chunks[i].num_context_frames),
    "first_is_image": (pa.bool_(), lambda clip, i: clip.chunks[i].first_is_image),
    "fps": (pa.float32(), lambda clip, i: clip.fps),
    "t": (pa.int16(), lambda clip, i: clip.codes[i].shape[0]),
    "h": (pa.int16(), lambda clip, i: clip.codes[i].shape[1]),
    "w": (pa.int16(), lambda clip, i: clip.codes[i].shape[2]),
    "c": (pa.int16(), lambda clip, i: clip.codes[i].shape[3]),  # 1 where it is absent
    "codes_crc32": (pa.uint32(), lambda clip, i: codes_crc32(clip.codes[i])),
}
"""The columns of a shard except ``codes``, and where their values come from."""


def shard_schema(code_dtype: CodeDtype, codes_per_position: int = 1) -> pa.Schema:
    """Return the Arrow schema of a shard. Every column is required.

    Codes are lists: every engine tried reads them correctly, unlike binary and tensor columns.
    """
    code = pa.field("element", pa.type_for_alias(code_dtype), nullable=False)
    names = _COLUMNS if codes_per_position > 1 else [name for name in _COLUMNS if name != "c"]
    schema = required({name: _COLUMNS[name][0] for name in names})
    return schema.insert(len(schema) - 1, pa.field("codes", pa.list_(code), nullable=False))


_FromText = BeforeValidator(lambda one: json.loads(one) if isinstance(one, str) else one)


class TokenizerSpec(CodesOfPosition, BaseModel):
    """What codes mean, in every shard and job.json: their codebook and layout in time and space."""

    # A later version may have added keys.
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    name: str
    weights_hash: str  # Covers encoder and quantizer; names the seed of random weights
    licence: str = ""  # License of the weights; empty if not declared
    codebook_size: Annotated[int, Field(gt=0, le=2**63)]  # Codes are 0 <= code < codebook_size
    code_dtype: CodeDtype
    codes_per_position: PerPosition = 1  # c; with more than one, codes are (t, h, w, c)
    # In key-value metadata, all of which is text, a list is JSON.
    codebook_sizes: Annotated[Sizes, _FromText] = ()
    """Size of the codebook of each code of a position, if they differ."""
    shared_codebook: Flag = False  # All codes of a position are of one codebook
    bit_order: Literal["big", "little", ""] = ""
    """For codes made of one bit per channel: whether the first is the highest. Otherwise empty."""
    temporal_stride: Side  # Frames per latent frame, after a chunk's first
    first_frames: Side = 1  # Frames that a chunk's first latent frame covers
    spatial_stride: Side  # Pixels per latent row and column
    code_order: Literal["t,h,w", "t,h,w,c"] = "t,h,w"  # Axes of a row's codes, slowest first
    chunk_policy: str

    @classmethod
    def of(
        cls, tokenizer: TokenizerConfig, chunking: ChunkingConfig, weights_hash: str
    ) -> "TokenizerSpec":
        """Extract what a reader needs from a job."""
        traits = tokenizer.traits
        own = {
            "code_dtype": traits.code_dtype,
            "code_order": "t,h,w" if traits.codes_per_position == 1 else "t,h,w,c",
            "name": tokenizer.name,
            "weights_hash": weights_hash,
            "licence": getattr(tokenizer, "licence", traits.licence) or "",
            "bit_order": traits.bit_order or "",
            "chunk_policy": chunking.policy,
        }
        return cls.model_validate({**dict(traits), **own})  # which ignores the other traits


@dataclass(frozen=True, slots=True)
class ShardMetadata:
    """Key-value metadata shared by all shards of an output."""

    fingerprint: str
    tokenizer: TokenizerSpec


@dataclass(frozen=True, slots=True)
class ShardFooter:
    """The parsed key-value metadata of a shard."""

    metadata: ShardMetadata
    grid: tuple[int, int]
    num_rows: int
    num_codes: int
    encoders: dict[str, int] = field(default_factory=dict)  # Clips by encoder class

    def to_key_values(self) -> dict[str, str]:
        """Return key-value pairs that describe the codes to readers that have only the file."""
        tokenizer = self.metadata.tokenizer.model_dump(mode="json")
        values: dict[str, Any] = {
            "format_version": SHARD_FORMAT,
            "version": tokpipe.__version__,
            "fingerprint": self.metadata.fingerprint,
            **{f"tokenizer.{key}": value for key, value in tokenizer.items()},
            "grid": f"{self.grid[0]},{self.grid[1]}",
            "num_rows": self.num_rows,
            "num_codes": self.num_codes,
            **({"encoders": json.dumps(self.encoders)} if self.encoders else {}),
        }
        return {_METADATA_PREFIX + key: str(value) for key, value in values.items()}

    @classmethod
    def of_key_values(cls, uri: str, key_values: Mapping[bytes, bytes]) -> "ShardFooter":
        """Parse the key-value metadata of the file at ``uri``."""
        own = _METADATA_PREFIX.encode()
        try:
            values = {
                key.removeprefix(own).decode("utf-8"): value.decode("utf-8")
                for key, value in key_values.items()
                if key.startswith(own)
            }
            if (version := int(values["format_version"])) > SHARD_FORMAT:
                raise too_new(uri, version, SHARD_FORMAT)
            prefix = "tokenizer."
            # All values are text, so pydantic must parse numbers from strings.
            tokenizer = TokenizerSpec.model_validate_strings(
                {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
            )
            height, width = (int(side) for side in values["grid"].split(","))
            return cls(
                ShardMetadata(values["fingerprint"], tokenizer),
                grid=(height, width),
                num_rows=int(values["num_rows"]),
                num_codes=int(values["num_codes"]),
                encoders=dict(json.loads(values.get("encoders", "{}"))),
            )
        except KeyError as error:
            missing = f"{_METADATA_PREFIX}{error.args[0]}"
            raise damaged(uri, f"its footer lacks the key {missing}") from error
        except (RecursionError, TypeError, ValueError) as error:
            found = f"its footer does not describe a shard: {explained(error)}"
            raise damaged(uri, found) from error


def _encoders(clips: Sequence[EncodedClip]) -> dict[str, int]:
    return dict(sorted(Counter(clip.encoder for clip in clips if clip.encoder).items()))


def codes_crc32(codes: Codes) -> int:
    """Return the CRC-32 of a block's little-endian code bytes, t slowest."""
    little_endian = np.ascontiguousarray(codes, dtype=codes.dtype.newbyteorder("<"))
    return zlib.crc32(little_endian.data)


def estimated_bytes(num_codes: int, codebook_size: int) -> int:
    """Return an upper estimate of the bytes that ``num_codes`` codes take on disk.

    Measured on uniform codes, the worst case: 13.13 bits a code at K = 8,192, 16.07
    at 64,000 and 65,536, 18.59 at 262,144, so 1.033 log2 K or less. Skewed codes take less:
    11.9 bits at K = 8,192 with 9.36 bits of entropy (Zipf).
    """
    return math.ceil(num_codes * 1.033 * max(1.0, math.log2(codebook_size)) / 8)


def build_shard(clips: Sequence[EncodedClip], metadata: ShardMetadata) -> bytes:
    """Return a shard of whole clips, sorted by clip id and chunk index.

    ValueError if they contradict each other, the tokenizer or the schema.
    """
    clips = sorted(clips, key=lambda clip: clip.ref.clip_id)
    _check_clips(clips, metadata.tokenizer)
    schema = shard_schema(metadata.tokenizer.code_dtype, metadata.tokenizer.codes_per_position)
    groups = list(_row_groups(clips))
    options = _writer_options(schema, with_dictionary=_prefers_dictionary(groups[0], schema))
    footer = ShardFooter(
        metadata,
        grid=clips[0].grid,
        num_rows=sum(len(group) for group in groups),
        num_codes=sum(clip.num_codes for clip in clips),
        encoders=_encoders(clips),
    )
    sink = io.BytesIO()  # getvalue() does not copy, unlike an Arrow buffer
    with pq.ParquetWriter(sink, schema, **options) as writer:
        for group in groups:
            writer.write_table(_table(group, schema), row_group_size=len(group))
        writer.add_key_value_metadata(footer.to_key_values())
    return sink.getvalue()


def _check_clips(clips: Sequence[EncodedClip], tokenizer: TokenizerSpec) -> None:
    if not clips:
        raise ValueError("a shard needs at least one clip")
    seen: set[str] = set()
    for clip in clips:
        if clip.ref.clip_id in seen:
            raise ValueError(f"clip {clip.ref.clip_id} appears twice in one shard")
        seen.add(clip.ref.clip_id)
        if problem := _problem(clip, clips[0], tokenizer):
            raise ValueError(f"clip {clip.ref.clip_id} of {clip.ref.source_uri}: {problem}")


def _problem(clip: EncodedClip, first: EncodedClip, tokenizer: TokenizerSpec) -> str | None:
    if not clip.chunks or len(clip.chunks) != len(clip.codes):
        return f"{len(clip.chunks)} chunks with {len(clip.codes)} blocks of codes"
    next_frame = 0
    for index, (chunk, block) in enumerate(zip(clip.chunks, clip.codes, strict=True)):
        if chunk.index != index or chunk.first_frame != next_frame or chunk.num_frames < 1:
            return f"chunk {index} is {chunk}, but must start at frame {next_frame}"
        next_frame += chunk.num_frames
        if block.dtype != tokenizer.code_dtype:
            return f"chunk {index} has codes of {block.dtype}, not {tokenizer.code_dtype}"
        if block.ndim < 3 or block.shape[3:] != tokenizer.axes or block.size == 0:
            return f"chunk {index} has codes of shape {block.shape}, not {tokenizer.code_order}"
        if block.shape[1:3] != first.grid:
            return f"chunk {index} has a grid of {block.shape[1:3]} in a shard of {first.grid}"
        for part, size in by_codebook(block, tokenizer.sizes):
            if (largest := int(part.max())) >= size:
                return f"chunk {index} has code {largest} of a codebook of {size}"
    if next_frame != len(clip.pts_s):
        return f"its chunks cover {next_frame} of its {len(clip.pts_s)} frames"
    return None


def _row_groups(clips: Sequence[EncodedClip]) -> Iterator[list[_Row]]:
    rows: list[_Row] = []
    num_codes = 0
    for clip in clips:
        for index, block in enumerate(clip.codes):
            if rows and num_codes + block.size > CODES_PER_ROW_GROUP:
                yield rows
                rows, num_codes = [], 0
            rows.append((clip, index))
            num_codes += block.size
    yield rows


def _table(rows: Sequence[_Row], schema: pa.Schema) -> pa.Table:
    names = [name for name in schema.names if name in _COLUMNS]
    values = {name: [_COLUMNS[name][1](*row) for row in rows] for name in names}
    blocks = [clip.codes[index].ravel() for clip, index in rows]
    codes = pa.ListArray.from_arrays(
        pa.array(np.cumsum([0, *map(len, blocks)]), pa.int32()),  # raises on overflow
        pa.array(np.concatenate(blocks)),
        type=schema.field("codes").type,
    )
    return pa.table({**values, "codes": codes}, schema=schema)


def _prefers_dictionary(rows: Sequence[_Row], schema: pa.Schema) -> bool:
    """Write a row group both ways: byte planes win for uniform codes, a dictionary for skewed."""
    codes = _table(rows, schema).select(["codes"])

    def size(with_dictionary: bool) -> int:
        sink = io.BytesIO()
        pq.write_table(codes, sink, **_writer_options(codes.schema, with_dictionary))
        return sink.tell()

    return size(True) < size(False)


def _writer_options(schema: pa.Schema, with_dictionary: bool) -> dict[str, Any]:
    small = [name for name in schema.names if name != "codes"]
    # Booleans cannot have a dictionary, and values that never repeat gain nothing from one.
    plain = ("first_is_image", "start_pts_s", "end_pts_s", "codes_crc32")
    dictionary = [name for name in small if name not in plain]
    if with_dictionary:
        dictionary.append(_CODES)
    return {
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": dictionary,
        "dictionary_pagesize_limit": _PAGE_BYTES,
        # Parquet has no 16-bit integers: plain ones would take 4 bytes a code.
        "column_encoding": {} if with_dictionary else {_CODES: "BYTE_STREAM_SPLIT"},
        "data_page_size": _PAGE_BYTES,
        "write_statistics": small,
        "write_page_index": True,
        "write_page_checksum": True,
        "store_schema": False,  # Parquet's logical types are complete: it would serve only Arrow
    }


def receipt_of(name: str, clips: Sequence[EncodedClip], shard: bytes, side_table: bytes) -> Receipt:
    """Describe the shard called ``name`` and its side table, as the manifest lists them."""
    return Receipt(
        shard=shard_key(name),
        size_bytes=len(shard),
        sha256=sha256(shard),
        num_rows=sum(len(clip.chunks) for clip in clips),
        num_codes=sum(clip.num_codes for clip in clips),
        num_frames=sum(len(clip.pts_s) for clip in clips),
        grid=clips[0].grid,
        side_table=side_table_key(name),
        side_table_sha256=sha256(side_table),
        side_table_size_bytes=len(side_table),
        clips=tuple(clip.ref for clip in clips),
        encoders=_encoders(clips),
    )
