"""Clips that other outputs have: found by the bytes of their sources, whatever the names."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from tokpipe.config.job import JobConfig
from tokpipe.errors import ConfigError, CorruptOutput
from tokpipe.formats.job_record import differences
from tokpipe.identity import clip_id, digest, row_digests, span_bytes
from tokpipe.reader.output import Output
from tokpipe.reader.values import ClipIndex
from tokpipe.stages.chunks import num_kept_latents, plan_chunks
from tokpipe.storage import Store
from tokpipe.storage.fetch import extension_of
from tokpipe.storage.read_ahead import read_ahead
from tokpipe.types import EncodedClip, WorkItem

_SHARDS_AHEAD = 8
_UNSURE = {"damaged", "small_batch"}
"""Marks of clips that are made again: a damage is told with names, and the codes of small batches
may be rounded differently."""


def reused_outputs(job: JobConfig, settings: Mapping[str, Any] | None = None) -> list[Output]:
    """Open the outputs that a job reuses. ``settings``: those of its fingerprint, if known.

    Raises:
        ConfigError: the settings of one are others, or it is the job's own.
        NotFound: there is no output at a URI.
    """
    outputs = [Output(Store(uri, job.storage)) for uri in job.reuse]
    for output in outputs:
        uri = output.store.uri
        if uri == Store(job.output.uri, job.storage).uri:
            raise ConfigError(f"reuse: {uri} is the job's own output: remove it from the list")
        if settings is not None and output.fingerprint != digest(settings):
            changed = "; ".join(differences(output.record.settings, settings, "->"))
            found = f"{uri} has other codes than this job would make, because settings differ"
            do = "Use those of that output, or remove it from the list"
            raise ConfigError(f"reuse: {found} ({changed}). {do}")
    return outputs


class ReusedOutput:
    """The clips of an output as it is now, by the SHA-256 of their sources.

    The index takes 12 bytes per clip, in arrays that the processes of a node share.
    """

    def __init__(self, job: JobConfig, output: Output) -> None:
        self._job, self.output = job, output
        growth = output.state.growth
        sources = growth[-1].sources if growth else output.record.job.get("sources", [])
        self._media = {(one.get("media"), one.get("animation_as_picture")) for one in sources}
        read = partial(output.side_table, columns=["source_sha256"])
        tables = read_ahead(read, output.shards, _SHARDS_AHEAD)
        self._index = ClipIndex(table.column(0).to_pylist() for table in tables)

    def find(self, item: WorkItem, sha256: str) -> EncodedClip | None:
        """Return an item's clip, under its name there, if its source has this SHA-256.

        None if there is any doubt that decoding and encoding would make the same.
        """
        if not sha256 or self._media != {item.media}:  # it decides what is decoded
            return None
        for number in set(self._index.shards_of(sha256)):
            try:
                _, table = self.output.kept_open(number)
                hashes, segments = table.column("source_sha256"), table.column("segment")
                found = (hashes.to_numpy() == sha256) & (segments.to_numpy() == item.segment)
                for record in table.take(np.flatnonzero(found)).to_pylist():
                    if self._is_same(record, item):
                        clip = self.output.clip_in(number, record["clip_id"])
                        if clip and self._has_all(encoded := clip.encoded()):
                            return encoded
            except CorruptOutput as error:
                logging.getLogger(__name__).warning("not reused: %s", error)
        return None

    def _is_same(self, record: Mapping[str, Any], item: WorkItem) -> bool:
        """Whether the clip of a row of a side table has an item's span."""
        uri, total, sampling = record["source_uri"], record["n_segments"], self._job.sampling
        span = span_bytes(item.start_s, item.end_s)
        (row_id,) = row_digests(self.output.record.dataset, [uri.encode()], [span])
        name = clip_id(row_id.hex(), item.segment, total, sampling.max_clip_frames, sampling.fps)
        return (
            name == record["clip_id"]  # It holds the span
            and item.num_segments in (None, total)
            # FFmpeg may take a file for one of another format by its name.
            and extension_of(uri).lower() == extension_of(item.source_uri).lower()
            and _UNSURE.isdisjoint(record["marks"])
        )

    def _has_all(self, clip: EncodedClip) -> bool:
        """Whether a clip has the chunks that this job would make."""
        traits = self._job.tokenizer.traits
        wanted = plan_chunks(len(clip.pts_s), self._job.chunking, traits)
        found = zip(clip.chunks, map(len, clip.codes), strict=True)
        return [(one.first_frame, one.num_frames, num) for one, num in found] == [
            (one.first_frame, one.num_frames, num_kept_latents(one, traits)) for one in wanted
        ]
