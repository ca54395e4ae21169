"""Clips that other outputs have: found by the bytes of their sources, whatever the names."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tokpipe.config.job import JobConfig
from tokpipe.errors import ConfigError, CorruptOutput
from tokpipe.formats.job_record import differences
from tokpipe.identity import clip_id, fingerprint_settings, row_digests, span_bytes
from tokpipe.media.decoder import Probe
from tokpipe.reader.output import Output
from tokpipe.reader.values import ClipIndex
from tokpipe.stages.chunks import num_kept_latents, plan_chunks
from tokpipe.stages.effects import EFFECTS, LAID_OUT, always, effect_of, size_by_grid
from tokpipe.storage import Store
from tokpipe.storage.client import split_protocol
from tokpipe.storage.fetch import extension_of
from tokpipe.storage.read_ahead import read_ahead
from tokpipe.types import EncodedClip, WorkItem

_SHARDS_AHEAD = 8
_UNSURE = {"damaged", "small_batch"}
"""Marks of clips that are made again: a damage is told with names, and the codes of small batches
may be rounded differently."""


def reused_outputs(
    job: JobConfig, settings: Mapping[str, Any] | None = None
) -> list[tuple[Output, set[str]]]:
    """Open the outputs that a job reuses; return each with the ``EFFECTS`` in which it differs.

    ``settings``: those of the job's fingerprint, if what it loads is known.

    Raises:
        ConfigError: no clip of one can have this job's codes, or it is the job's own.
        NotFound: there is no output at a URI.
    """
    found = []
    for output in (Output(Store(uri, job.storage)) for uri in job.reuse):
        uri, old = output.store.uri, output.record.settings
        if uri == Store(job.output.uri, job.storage).uri:
            raise ConfigError(f"reuse: {uri} is the job's own output: remove it from the list")
        settled = output.record.settled(job)
        same = {"weights_hash": old["weights"], "decoders": old["decode"]["libraries"]}
        loaded = fingerprint_settings(settled, device=settled.encode.device, **same)
        new = settings or {**loaded, "libraries": old["libraries"]}
        changed = {text: effect_of(text) for text in differences(old, new, "->")}
        if others := [text for text, effect in changed.items() if EFFECTS[effect][0] is always]:
            what = f"{uri} has other codes than this job would make, because settings differ"
            do = "Use those of that output, or remove it from the list"
            raise ConfigError(f"reuse: {what} ({'; '.join(others)}). {do}")
        found.append((output, {*changed.values()}))
    return found


class ReusedOutput:
    """The clips of an output as it is now, by the SHA-256 of their sources.

    The index takes 12 bytes per clip, in arrays that the processes of a node share, and 12 more
    under ``reuse_trusts_etags``.
    """

    def __init__(self, job: JobConfig, output: Output, effects: set[str]) -> None:
        self._job, self.output, record = job, output, output.record
        self._before = record.settled(record.recorded_job(output.store.uri))
        self._is_laid_out_anew = not effects.isdisjoint(LAID_OUT)
        self._concerns = [EFFECTS[one][0] for one in effects.difference(LAID_OUT)]
        self._sizes = size_by_grid(self._before)
        growth = output.state.growth
        sources = growth[-1].sources if growth else record.job.get("sources", [])
        self._media = {(one.get("media"), one.get("animation_as_picture")) for one in sources}
        columns = ["source_uri", "source_version"] if job.reuse_trusts_etags else []
        read = partial(output.side_table, columns=["source_sha256", *columns])
        tables = read_ahead(read, output.shards, _SHARDS_AHEAD)
        self._index = ClipIndex(_contents(*(c.to_pylist() for c in one.columns)) for one in tables)

    def find(self, item: WorkItem, sha256: str, probe: Callable[[], Probe]) -> EncodedClip | None:
        """Return an item's clip, under its name there, if its source has this SHA-256.

        None if there is any doubt that decoding and encoding would make the same. ``probe`` reads
        the source's container, if clips may be cut or resized differently than there.
        """
        return self._find(item, "source_sha256", sha256, probe)

    def find_unread(self, item: WorkItem) -> EncodedClip | None:
        """Return the clip of an S3 object that was not read, by its size and ETag in the plan."""
        is_sure = _is_on_s3(item.source_uri) and not (item.member or item.follows)
        if not self._job.reuse_trusts_etags or self._is_laid_out_anew or not is_sure:
            return None
        return self._find(item, "source_version", item.version, None)

    def _find(
        self, item: WorkItem, column: str, value: object, probe: Callable[[], Probe] | None
    ) -> EncodedClip | None:
        shards = set(self._index.shards_of(str(value))) if value else ()
        if not shards or self._media != {item.media}:  # it decides what is decoded
            return None
        laid_out = probe() if probe and self._is_laid_out_anew else None
        first_frame = item.segment * self._job.sampling.max_clip_frames
        segment, rest = divmod(first_frame, self._before.sampling.max_clip_frames)
        for number in shards if not rest else ():
            try:
                _, table = self.output.kept_open(number)
                found = table.column("segment").to_numpy() == segment
                found &= np.array(table.column(column).to_pylist(), object) == value
                for record in table.take(np.flatnonzero(found)).to_pylist():
                    record["size"] = self._sizes.get(self.output.shards[number].grid)
                    is_sure = column != "source_version" or _is_on_s3(record["source_uri"])
                    if is_sure and self._is_same(record, item, laid_out):
                        clip = self.output.clip_in(number, record["clip_id"])
                        if clip and self._has_all(encoded := clip.encoded()):
                            total = laid_out.num_segments if laid_out else clip.num_segments
                            return replace(encoded, ref=replace(encoded.ref, num_segments=total))
            except CorruptOutput as error:
                logging.getLogger(__name__).warning("not reused: %s", error)
        return None

    def _is_same(self, record: Mapping[str, Any], item: WorkItem, probe: Probe | None) -> bool:
        """Whether the clip of a row of a side table has an item's span, frames and size."""
        uri, total, before = record["source_uri"], record["n_segments"], self._before.sampling
        span, segment = span_bytes(item.start_s, item.end_s), record["segment"]
        (row_id,) = row_digests(self.output.record.dataset, [uri.encode()], [span])
        name = clip_id(row_id.hex(), segment, total, before.max_clip_frames, before.fps)
        if probe:
            total, sampling = probe.num_segments, self._job.sampling
            left = probe.num_frames - item.segment * sampling.max_clip_frames
            least = 1 if probe.is_picture else sampling.min_clip_frames
            has_same_frames = record["n_frames"] == min(left, sampling.max_clip_frames) >= least
            if not has_same_frames or record["size"] != probe.size:
                return False
        return (
            name == record["clip_id"]  # It holds the span
            and item.num_segments in (None, total)
            # FFmpeg may take a file for one of another format by its name.
            and extension_of(uri).lower() == extension_of(item.source_uri).lower()
            and _UNSURE.isdisjoint(record["marks"])
            and not any(concerns(record, self._before, self._job) for concerns in self._concerns)
        )

    def _has_all(self, clip: EncodedClip) -> bool:
        """Whether a clip has the chunks that this job would make."""
        traits = self._job.tokenizer.traits
        wanted = plan_chunks(len(clip.pts_s), self._job.chunking, traits)
        found = zip(clip.chunks, map(len, clip.codes), strict=True)
        return [(one.first_frame, one.num_frames, num) for one, num in found] == [
            (one.first_frame, one.num_frames, num_kept_latents(one, traits)) for one in wanted
        ]


def _contents(
    hashes: Sequence[str], uris: Sequence[str] = (), versions: Sequence[int | None] = ()
) -> list[str]:
    """What identifies the bytes of clips' sources: hashes, and in S3 size and ETag."""
    listed = zip(uris, versions, strict=True)
    return [*hashes, *(str(version) for uri, version in listed if version and _is_on_s3(uri))]


def _is_on_s3(uri: str) -> bool:
    """Whether an ETag is a digest of the bytes."""
    return split_protocol(uri)[0] == "s3"
