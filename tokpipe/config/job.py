"""One file under jobs/: what to tokenize, how, and where the codes go."""

import operator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from tokpipe.config.base import Frozen, LogPath, Uri, leaves
from tokpipe.config.sources import Source
from tokpipe.config.tokenizer import AnyTokenizer
from tokpipe.telemetry.redact import redact, says_secret

MAX_CLIP_BYTES = 128 * 2**20
"""Limit on the pixels of one clip, so that stages can bound their memory by counting clips."""

LISTED_WITHIN_S = 3600.0
"""After the lease of a shard began. ``tokpipe clean`` keeps everything younger. A shard is put
before its lease ends, may wait for one commit, and is listed by the next. A driver that is later,
because it was frozen or its clock jumped, lists none of them."""

_COLOURS = {"black": "#000000", "gray": "#808080", "white": "#ffffff"}

_LABEL = "[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_SELECTOR = rf"^!?({_LABEL}|in\({_LABEL}(, ?{_LABEL})*\))$"
LabelSelector = Annotated[str, Field(pattern=_SELECTOR, examples=["cpu", "'!spot'", "in(a,b)"])]

Size = Annotated[tuple[PositiveInt, PositiveInt], Field(description="height, width")]


class OutputConfig(Frozen):
    """Where codes go, and how they are divided into shards."""

    uri: Uri
    """Prefix that no other job writes to."""
    shard_bytes: Annotated[int, Field(ge=1024)] = 128 * 2**20
    """A shard is closed at about this size on disk."""
    shard_max_age_s: PositiveFloat = 300.0
    """A shard is also closed at this age of its oldest clip: the most work that a kill can lose."""
    accept_unsafe_store: bool = False
    """Use stores without exclusive creates: two drivers started by mistake could both commit."""

    @model_validator(mode="after")
    def _store_can_commit(self) -> Self:
        if self.uri.lower().startswith("hf://"):
            raise ValueError(
                "the Hugging Face Hub has no exclusive create, so two drivers could both commit to "
                "output.uri. Write to a disk or to S3, and copy it with `hf upload` at the end"
            )
        return self


class SamplingConfig(Frozen):
    """Which frames of a video become clips."""

    fps: PositiveFloat | None = 8.0
    """Frames per second after resampling by true timestamps; null keeps every frame."""
    max_clip_frames: PositiveInt = 129
    """Longer sources are cut into clips of this many resampled frames. Policy ``streaming`` does
    not cut them: it decodes this many frames at a time, and codes do not depend on it."""
    min_clip_frames: PositiveInt = 1
    """Shorter clips are rejected."""


class FramesConfig(Frozen):
    """The size of the frames that the encoder sees. Set either ``size`` or ``buckets``."""

    size: Size | None = None
    """(height, width) of every frame."""
    buckets: tuple[Size, ...] | None = None
    """Several sizes; each clip gets the one closest to its aspect ratio."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """``crop`` covers the size and keeps the middle, ``pad`` fits inside it with margins,
    ``stretch`` ignores the aspect ratio."""
    background: Annotated[str, Field(pattern=r"^(black|gray|white|#[0-9a-fA-F]{6})$")] = "black"
    """Colour of margins and of what is transparent: ``black``, ``gray``, ``white``, ``#rrggbb``."""
    matrix: Literal["auto", "bt601", "bt709", "bt2020"] = "auto"
    """Colour matrix of YUV videos. ``auto`` is what a video is tagged with, and for untagged ones
    BT.709 from 720 coded rows on, else BT.601. Any other value replaces the tags of all videos."""
    hdr: Literal["tonemap", "mark", "reject"] = "tonemap"
    """Videos in PQ or HLG: ``tonemap`` turns them into BT.709 with reference white (203 cd/m2) at
    255, and marks their clips ``tonemapped``; ``mark`` keeps the samples as they are, which look
    washed out, and marks the clips ``hdr``; ``reject`` rejects them."""
    deinterlace: bool = False
    """Show only the upper field of interlaced frames, half of their rows, and not two times in
    one frame. Clips of interlaced videos are marked ``interlaced`` either way."""

    @property
    def background_rgb(self) -> tuple[int, int, int]:
        red, green, blue = bytes.fromhex(_COLOURS.get(self.background, self.background)[1:])
        return red, green, blue

    @model_validator(mode="after")
    def _one_way_to_a_size(self) -> Self:
        if (self.size is None) == (not self.buckets):
            raise ValueError("set exactly one of size and buckets")
        return self

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        return self.buckets or (() if self.size is None else (self.size,))


class DecodeConfig(Frozen):
    """How videos are decoded, in a child process that can be killed."""

    backend: Literal["auto", "decord", "pyav"] = "auto"
    """``auto`` is PyAV, for every file. ``decord`` (the package decord or decord2) decodes the
    files that it reads correctly; PyAV decodes the others, and those that decord reports anything
    about. Each clip's side table names its decoder."""
    on_damage: Literal["reject", "mark"] = "reject"
    """If a video is truncated, has a hole or cannot be decoded: ``reject`` its clips, or keep the
    frames before and ``mark`` the clip ``damaged`` in its side table (not under ``streaming``)."""
    deadline_s: PositiveFloat = 120.0
    """Time limit for decoding one clip, for each backend that is tried."""
    memory_bytes: Annotated[int, Field(ge=256 * 2**20)] = 8 * 2**30
    """Address space that the decoding child may use."""
    max_source_bytes: PositiveInt = 64 * 2**30
    """Larger source files are rejected before they are copied to the node."""

    @property
    def backends(self) -> tuple[str, ...]:
        """The decoders to try, in order. No node's packages have a say in this."""
        return ("decord", "pyav") if self.backend == "decord" else ("pyav",)


class ChunkingConfig(Frozen):
    """How a clip is divided into chunks for the encoder."""

    policy: Literal["independent", "overlap", "streaming", "whole"] = "independent"
    """``independent`` encodes each chunk separately. ``overlap`` also shows each chunk frames of
    the one before, and latents form one grid without gaps. ``streaming`` continues from the state
    of the chunk before, with the codes of the whole clip. ``whole`` makes one chunk per clip."""
    chunk_frames: PositiveInt = 17
    """Frames of the first latent frame (usually 1) plus a multiple of the temporal stride. Under
    ``streaming``, later chunks have the multiple alone. Unused under ``whole``."""
    overlap_latents: NonNegativeInt = 1
    """Under ``overlap``, latent frames after the first that a chunk shares with the one before."""


class EncodeConfig(Frozen):
    """How the encoder runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` uses GPUs if the cluster has any, else CPUs. The choice is in the fingerprint."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type that the encoder computes in. The quantizer always uses float32, and tokpipe's own
    models accumulate in float32. ``float16`` is for GPUs without bfloat16; it overflows above
    65,504, and clips in which that happens are rejected."""
    batch_chunks: PositiveInt | Literal["auto"] = "auto"
    """Chunks per forward pass on a GPU. The last batch is padded, so shapes never change. ``auto``
    is 8, or as many as the smallest GPU has memory for (4, 2 or 1), or 4 where that is unknown. It
    is decided when the output is started. CPUs encode one chunk at a time."""
    hardware: Literal["any", "same"] = "any"
    """Codes may differ between models of GPUs and generations of CPUs. ``any`` warns when a second
    class of hardware joins the output. ``same`` uses only nodes of one class: that of the output,
    else of the first encoder. See [clusters.md](clusters.md#one-kind-of-hardware)."""

    @property
    def batch_rows(self) -> int:
        """``batch_chunks``, and while that is not decided what it is where memory is unknown."""
        return 4 if self.batch_chunks == "auto" else self.batch_chunks


class PoolConfig(Frozen):
    """How many actors a stage has, and what each needs."""

    min_actors: PositiveInt = 1
    """Requested even if they do not fit, so that a cluster's autoscaler adds nodes."""
    max_actors: PositiveInt = 10_000
    """Never more than this, however large the cluster."""
    cpus: NonNegativeFloat = 1.0
    """CPUs that Ray reserves for one actor. With 0, decoders and encoders stay at ``min_actors``,
    because any number would fit. Writers follow the measured time per clip."""
    gpus: NonNegativeFloat = 0.0
    """GPUs, or a fraction of one, for one actor."""
    accelerator_type: str | None = Field(default=None, pattern=r"^\S+$", examples=["H100"])
    """Use only nodes with this kind of GPU, by Ray's name for it, such as ``H100``."""
    resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Custom resources of Ray that one actor takes, such as ``{decoding: 1}``."""
    labels: dict[str, LabelSelector] = Field(default_factory=dict)
    """Only nodes with these Ray labels: ``{key: value}``, ``!value``, ``in(a,b)``, ``!in(a,b)``."""
    lease_deadline_s: PositiveFloat = 900.0
    """An actor that holds a lease for longer is killed, and the lease goes to another actor."""

    @model_validator(mode="after")
    def _placement_is_not_rays_own(self) -> Self:
        own = {"CPU", "GPU", "memory", "object_store_memory", "ray.io/node-id"}
        if found := own & {*self.resources, *self.labels}:
            do = "use cpus and gpus, or other names"
            raise ValueError(f"{', '.join(sorted(found))} cannot be set here: {do}")
        return self


class RuntimeConfig(Frozen):
    """How the job uses the cluster. Codes do not depend on any of it."""

    cluster: str = "auto"
    """``auto`` (the cluster the driver was submitted to, else local), ``local``, or an address."""
    decode: PoolConfig = PoolConfig()
    """With GPUs, decoders take the CPUs that encoders leave. Without GPUs, CPUs are divided by
    the measured time per clip, and one decoder requests no CPU."""
    encode: PoolConfig = PoolConfig(lease_deadline_s=3600.0)
    """``gpus`` only applies when encoding on GPUs; 0 then means a whole one."""
    write: PoolConfig = PoolConfig(cpus=0.0, max_actors=100)
    """Writers build shards and put them into the store. At first there is one per 16 encoders, up
    to four, then as many as encoders keep half busy, by the measured time per clip."""
    clips_per_lease: PositiveInt = 64
    """Most clips in a lease: 8 at first, more if 8 take less than a second, fewer large ones."""
    max_attempts: PositiveInt = 3
    """A clip that takes down its worker this many times is rejected."""
    start_timeout_s: PositiveFloat = 300.0
    """An actor that is not ready after this time is abandoned."""
    progress_interval_s: PositiveFloat = 10.0
    """Seconds between ``progress`` events, and progress lines when output is not a terminal."""
    log_path: LogPath = None
    """File on the driver's node that every event is appended to as a line of JSON, or ``-`` for
    standard error. Actors then log JSON too. Null or empty for no log, so ``${TOKPIPE_LOG:-}``
    leaves the choice to the environment. See [monitoring.md](monitoring.md)."""


class StoreOptions(Frozen):
    """How stores are accessed. Credentials come from the environment, never from a job file."""

    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """fsspec options by protocol, such as ``{s3: {endpoint_url: "http://..."}}``. Those of a
    prefix, such as ``{"s3://public-bucket": {anon: true}}``, replace those of its protocol."""
    deadline_s: PositiveFloat = 120.0
    """Time limit for one request, including all its retries."""

    def options_of(self, uri: str) -> dict[str, Any]:
        prefixes = [key for key in self.options if f"{uri}/".startswith(f"{key.rstrip('/')}/")]
        protocol = uri.partition("://")[0].lower()
        return self.options.get(max(prefixes, key=len, default=protocol), {})

    @model_validator(mode="after")
    def _no_secrets(self) -> Self:
        for place, name, value in leaves("storage.options", self.options):
            if value in (True, False, "anon", "cloud", "google_default"):
                continue  # gcsfs's option ``token`` says where credentials come from
            if says_secret(name) or (isinstance(value, str) and redact(value) != value):
                raise ValueError(
                    f"{place} looks like a credential, and job files are copied into outputs; use "
                    "the environment or an instance role"
                )
        return self


class PartConfig(Frozen):
    """Which rows of the sources a job takes: those whose id, a hash, falls into this part."""

    index: NonNegativeInt
    """The part that this job takes, below ``of``."""
    of: PositiveInt
    """Number of parts that the sources are divided into."""

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        if self.index >= self.of:
            raise ValueError(f"part.index={self.index}: {self.of} parts are numbered from 0")
        return self


class JobConfig(Frozen):
    """A whole job."""

    dataset: Annotated[str, Field(min_length=1, pattern=r"^[\w.-]+$", examples=["webvid"])]
    """Name of the dataset; part of every clip id."""
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    """Where clips come from: one or more sections of the kinds below."""
    on_duplicate: Literal["refuse", "keep_first"] = "refuse"
    """If two rows name the same clip: ``refuse`` stops before any work, ``keep_first`` keeps the
    first and reports the others."""
    part: Annotated[PartConfig | None, Field(exclude_if=lambda part: part is None)] = None
    """The part of the rows that this job takes; null takes all. Each part has its own
    ``output.uri``."""
    output: OutputConfig
    reuse: Annotated[tuple[Uri, ...], Field(exclude_if=operator.not_)] = ()
    """Other outputs. Clips that would get the same codes from files with the same bytes, whatever
    their names, are taken from them and not encoded again. See
    [data.md](data.md#clips-that-another-output-has)."""
    reuse_trusts_etags: Annotated[bool, Field(exclude_if=operator.not_)] = False
    """Whether S3 objects of the same ETag and size have the same bytes, and need no reading."""
    sampling: SamplingConfig = SamplingConfig()
    frames: FramesConfig
    decode: DecodeConfig = DecodeConfig()
    tokenizer: AnyTokenizer
    chunking: ChunkingConfig = ChunkingConfig()
    encode: EncodeConfig = EncodeConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    storage: StoreOptions = StoreOptions()
    max_rejected_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """If more of the plan's clips are rejected, the job fails (exit code 4), early if it can."""

    @property
    def has_pictures(self) -> bool:
        return any(source.media != "video" for source in self.sources)

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
            found = f"chunking.overlap_latents={chunking.overlap_latents} leaves nothing new in a"
            raise ValueError(f"{found} chunk: use less than {latents}")
        if chunking.policy == "streaming" and not latents:
            found = f"chunking.chunk_frames={frames} leaves no frames for chunks after the first"
            raise ValueError(f"{found}: use {traits.num_frames(2)} or more")
        if chunking.policy == "streaming" and self.decode.on_damage == "mark":
            found = "decode.on_damage=mark does not work with chunking.policy=streaming"
            raise ValueError(f"{found}: use reject, or another policy")
        return self

    @model_validator(mode="after")
    def _shards_are_listed_in_time(self) -> Self:
        deadline_s, lease_s = self.storage.deadline_s, self.runtime.write.lease_deadline_s
        if lease_s + 2 * deadline_s > LISTED_WITHIN_S:
            raise ValueError(
                f"storage.deadline_s={deadline_s:g} and runtime.write.lease_deadline_s={lease_s:g} "
                f"are too long: a lease and two requests may take at most {LISTED_WITHIN_S:g} s, "
                "because `tokpipe clean` may remove older shards that are not listed yet"
            )
        return self

    @model_validator(mode="after")
    def _clips_stay_small(self) -> Self:
        sampling, streams = self.sampling, self.chunking.policy == "streaming"
        height, width = max(self.frames.sizes, key=lambda size: size[0] * size[1])
        most = MAX_CLIP_BYTES // (height * width * 3)
        if sampling.max_clip_frames > most:
            raise ValueError(
                f"sampling.max_clip_frames={sampling.max_clip_frames} at {height}x{width} pixels "
                f"takes more than {MAX_CLIP_BYTES >> 20} MiB: use {most} or fewer"
            )
        if streams and self.reuse:
            raise ValueError("reuse does not work with chunking.policy=streaming: leave it out")
        if streams and sampling.max_clip_frames < (least := self.chunking.chunk_frames):
            found = f"sampling.max_clip_frames={sampling.max_clip_frames} is less than"
            raise ValueError(f"{found} chunking.chunk_frames={least}: use {least} or more")
        if not streams and sampling.min_clip_frames > sampling.max_clip_frames:
            raise ValueError("sampling.min_clip_frames exceeds sampling.max_clip_frames")
        return self
