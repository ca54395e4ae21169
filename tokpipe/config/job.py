"""One file under jobs/: what to tokenize, how, where to, and with what."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from tokpipe.config.base import Frozen, LogPath, Uri
from tokpipe.config.sources import Source
from tokpipe.config.tokenizer import AnyTokenizer
from tokpipe.telemetry.redact import redact, says_secret

MAX_CLIP_BYTES = 128 * 2**20
"""Most pixels of one clip, so that a stage holds clips by count and not by luck."""

Size = Annotated[tuple[PositiveInt, PositiveInt], Field(description="height, width")]


class OutputConfig(Frozen):
    """Where codes go, and in what pieces."""

    uri: Uri
    """Prefix that belongs to this job alone."""
    shard_bytes: Annotated[int, Field(ge=1024)] = 128 * 2**20
    """Shards are closed at about this size on disk."""
    shard_max_age_s: PositiveFloat = 300.0
    """... or when their oldest clip has waited this long: the most work that a kill can cost."""
    accept_unsafe_store: bool = False
    """Go on with a store that lets a second exclusive create through. Two drivers started on
    one output by mistake could then both commit."""


class SamplingConfig(Frozen):
    """Which frames of a video become clips."""

    fps: PositiveFloat | None = 8.0
    """Frames per second after resampling by true timestamps; null keeps every frame."""
    max_clip_frames: PositiveInt = 129
    """Longer sources are cut into clips of this many resampled frames. Under policy ``streaming``
    none is cut: this is then the most that is decoded at a time, and decides no code."""
    min_clip_frames: PositiveInt = 1
    """Shorter clips are rejected."""


class FramesConfig(Frozen):
    """What a frame looks like to the encoder."""

    size: Size | None = None
    """(height, width) of every frame."""
    buckets: tuple[Size, ...] | None = None
    """Or several sizes: each clip takes the one nearest in aspect ratio."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """Cover the size and cut the middle out, fit inside on black, or ignore the aspect."""

    @model_validator(mode="after")
    def _one_way_to_a_size(self) -> Self:
        if (self.size is None) == (not self.buckets):
            raise ValueError("give exactly one of size and buckets")
        return self

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        return self.buckets or (() if self.size is None else (self.size,))


class DecodeConfig(Frozen):
    """How videos are decoded, in a child process that can be killed."""

    backend: Literal["auto", "decord", "pyav", "torchcodec"] = "auto"
    """``auto``: decord where it was measured to be right and pays, and PyAV afresh on any
    complaint; a backend that is named here decodes every clip or rejects it."""
    on_damage: Literal["reject", "mark"] = "reject"
    """A video that is cut short or cannot be decoded to its end: reject its clips, or keep the
    intact frames up to the damage and mark the clip ``damaged`` in its side table. Only PyAV keeps
    frames (``auto`` comes to it); not for policy ``streaming``."""
    deadline_s: PositiveFloat = 120.0
    """Longest time that decoding one clip may take, per backend tried."""
    memory_bytes: Annotated[int, Field(ge=256 * 2**20)] = 8 * 2**30
    """Address space that the decoding child may use."""
    max_source_bytes: PositiveInt = 64 * 2**30
    """A larger source file is rejected, not copied to the node."""


class ChunkingConfig(Frozen):
    """How a clip is cut for the encoder."""

    policy: Literal["independent", "overlap", "streaming", "whole"] = "independent"
    """Chunks that know nothing of each other; chunks that see frames of the one before and give
    one gapless grid; chunks of which each goes on where the one before ended, whose codes are
    those of the whole clip, however long; or one chunk per clip."""
    chunk_frames: PositiveInt = 17
    """Frames of the first latent frame (mostly 1) + temporal stride x k; unused under ``whole``.
    Under ``streaming`` chunks after the first have ``temporal stride x k`` frames."""
    overlap_latents: NonNegativeInt = 1
    """Latent frames after the first that a chunk shares with the one before (``overlap``)."""


class EncodeConfig(Frozen):
    """How the encoder runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: GPUs when the cluster has any, else CPUs. Part of the fingerprint once known."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Compute type of the encoder's work; the quantizer is always float32, and so is, in the models
    of this package's own, what results are added to. ``float16``, for GPUs without bfloat16,
    overflows beyond 65,504: clips in which it does are rejected."""
    batch_chunks: PositiveInt = 4
    """Chunks per forward pass on a GPU; the last batch is filled up, so that shapes never change.
    CPUs encode chunk by chunk."""


class PoolConfig(Frozen):
    """Bounds of one stage's actors, and what one actor needs."""

    min_actors: PositiveInt = 1
    """Asked for even when they do not fit, which makes a cluster's autoscaler add nodes."""
    max_actors: PositiveInt = 10_000
    cpus: NonNegativeFloat = 1.0
    """CPUs that Ray sets aside for one actor. With 0 no number fits better than another: decoders
    and encoders then keep to ``min_actors``. Writers come one to 16 encoders anyway."""
    gpus: NonNegativeFloat = 0.0
    """GPUs, or a fraction of one, for one actor."""
    lease_deadline_s: PositiveFloat = 900.0
    """An actor that holds a lease for longer is killed, and the lease given again."""


class RuntimeConfig(Frozen):
    """How the job uses the cluster. None of it changes a code."""

    cluster: str = "auto"
    """``auto``: the cluster that this driver was submitted to, else a local one; ``local``;
    or an address."""
    decode: PoolConfig = PoolConfig()
    """With GPUs decoders take the CPUs that encoders leave. Without, CPUs are divided by how long
    clips were measured to take, and one decoder has no CPU of its own."""
    encode: PoolConfig = PoolConfig(lease_deadline_s=3600.0)
    """``gpus`` counts only when encoding on GPUs; 0 there means a whole one."""
    write: PoolConfig = PoolConfig(cpus=0.0, max_actors=4)
    clips_per_lease: PositiveInt = 64
    """Most clips that travel together. There are eight until it is known how long they take, and
    more if eight take less than a second; fewer when clips are large."""
    max_attempts: PositiveInt = 3
    """A clip that takes down its worker this often is rejected."""
    start_timeout_s: PositiveFloat = 300.0
    """An actor that is not ready by then is given up."""
    progress_interval_s: PositiveFloat = 10.0
    """Between progress lines when the output is no terminal, and between ``progress`` events."""
    log_path: LogPath = None
    """Local file of the driver's node to which each event adds a line of JSON, ``-`` for standard
    error; the actors' own lines are then JSON too. Nothing when null or empty, so that
    ``${TOKPIPE_LOG:-}`` leaves it to the environment. See [monitoring.md](monitoring.md)."""


class StoreOptions(Frozen):
    """How stores are reached. Credentials come from the environment, never from a job file."""

    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """fsspec options by protocol, such as ``{s3: {endpoint_url: "http://..."}}``."""
    deadline_s: PositiveFloat = 120.0
    """One request, all its retries included, takes at most this long."""

    @model_validator(mode="after")
    def _no_secrets(self) -> Self:
        if (place := _secret_place("storage.options", self.options)) is not None:
            raise ValueError(
                f"{place} looks like a credential: job files are copied into outputs; use the "
                "environment or an instance role"
            )
        return self


def _secret_place(place: str, value: Any) -> str | None:
    """Dotted key of the first value within ``value`` that is a secret, by its name or itself."""
    if isinstance(value, dict):
        items = [(f"{place}.{name}", name, inner) for name, inner in value.items()]
    elif isinstance(value, (list, tuple)):
        items = [(f"{place}[{index}]", "", inner) for index, inner in enumerate(value)]
    else:
        return place if isinstance(value, str) and redact(value) != value else None
    for where, name, inner in items:
        is_leaf = not isinstance(inner, (dict, list, tuple))
        if is_leaf and says_secret(name):
            return where
        if (found := _secret_place(where, inner)) is not None:
            return found
    return None


class JobConfig(Frozen):
    """A whole job."""

    dataset: Annotated[str, Field(min_length=1, pattern=r"^[\w.-]+$")]
    """Name of the dataset: part of every clip id."""
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    on_duplicate: Literal["refuse", "keep_first"] = "refuse"
    """Two rows for one clip: stop before any work, or keep the first and report the others."""
    output: OutputConfig
    sampling: SamplingConfig = SamplingConfig()
    frames: FramesConfig
    decode: DecodeConfig = DecodeConfig()
    tokenizer: AnyTokenizer
    chunking: ChunkingConfig = ChunkingConfig()
    encode: EncodeConfig = EncodeConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    storage: StoreOptions = StoreOptions()
    max_rejected_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """The job fails (exit code 4) when a larger share of the planned clips is rejected."""

    @model_validator(mode="after")
    def _sizes_fill_the_latent_grid(self) -> Self:
        for height, width in self.frames.sizes:
            try:
                self.tokenizer.traits.check_size(height, width)
            except ValueError as problem:
                raise ValueError(f"frames: {problem}") from None
        return self

    @model_validator(mode="after")
    def _chunks_fill_whole_latent_frames(self) -> Self:
        traits, chunking = self.tokenizer.traits, self.chunking
        traits.check_policy(chunking.policy)
        if chunking.policy == "whole":
            return self
        frames = chunking.chunk_frames
        traits.check_num_frames(frames, "chunking.chunk_frames")
        latents = traits.num_latent_frames(frames) - 1
        if chunking.policy == "overlap" and chunking.overlap_latents >= latents:
            raise ValueError(
                f"chunking.overlap_latents={chunking.overlap_latents} leaves nothing new in a "
                f"chunk of {latents} latent frames after the first: use fewer"
            )
        if chunking.policy == "streaming" and not latents:
            raise ValueError(
                f"chunking.chunk_frames={frames} leaves no frames for the chunks after the first: "
                f"use {traits.num_frames(2)} or more"
            )
        return self

    @model_validator(mode="after")
    def _streams_are_whole(self) -> Self:
        if self.chunking.policy == "streaming" and self.decode.on_damage == "mark":
            raise ValueError(
                "decode.on_damage=mark does not go with chunking.policy=streaming: a clip's later "
                "pieces go on from the damaged one. Use reject, or another policy"
            )
        return self

    @model_validator(mode="after")
    def _clips_stay_small(self) -> Self:
        height, width = max(self.frames.sizes, key=lambda size: size[0] * size[1])
        most = MAX_CLIP_BYTES // (height * width * 3)
        if self.sampling.max_clip_frames > most:
            raise ValueError(
                f"sampling.max_clip_frames={self.sampling.max_clip_frames} of {height}x{width} "
                f"pixels are more than {MAX_CLIP_BYTES >> 20} MiB: use {most} or fewer"
            )
        if self.chunking.policy == "streaming":
            if self.sampling.max_clip_frames < self.chunking.chunk_frames:
                raise ValueError(
                    f"sampling.max_clip_frames={self.sampling.max_clip_frames} does not hold a "
                    f"chunk of chunking.chunk_frames={self.chunking.chunk_frames}, and under "
                    "policy streaming clips are decoded by whole chunks: use as many or more"
                )
        elif self.sampling.min_clip_frames > self.sampling.max_clip_frames:
            raise ValueError("sampling.min_clip_frames exceeds sampling.max_clip_frames")
        return self
