"""The encode stage: turns the pixels of clips into codes, on one device."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokpipe.config.job import ChunkingConfig, EncodeConfig
from tokpipe.config.tokenizer import CustomConfig, TokenizerConfig
from tokpipe.config.traits import by_codebook
from tokpipe.errors import ConfigError, NodeTrouble, RuntimeFault
from tokpipe.models.graphs import CudaGraphs, GraphedCall
from tokpipe.models.group_norm import GroupNorm, working_kernels
from tokpipe.models.process import computes, encoder_class, keep_freed_memory, make_repeatable
from tokpipe.models.streaming import StreamState
from tokpipe.models.tokenizers import NOT_FINITE, build_tokenizer
from tokpipe.models.tokenizers.native import NativeTokenizer
from tokpipe.models.tokenizers.probe import Parity, probe
from tokpipe.stages.chunks import plan_chunks
from tokpipe.stages.device import Device, blaming_device, free_frames, trouble_of
from tokpipe.types import ChunkSpan, Codes, DecodedClip, EncodedClip, EncoderPath, Failed, Rejected

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Chunk:
    """A chunk to encode, and what came of it."""

    clip: DecodedClip
    span: ChunkSpan
    codes: NDArray[np.int64] | Failed | None = None  # (t, h, w)
    is_small: bool = False  # Encoded in a smaller batch than usual

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, H, W, 3) of the pixels to encode."""
        return self.span.num_input_frames, *self.clip.frames.shape[1:]


@dataclass
class EncodeStage:
    """Turns clips into codes, chunk by chunk.

    A clip's codes do not depend on the other clips of the call. Chunks of one shape are encoded in
    batches of a fixed size, the last one filled up with zeros. Streamed clips are encoded one chunk
    at a time, so shapes do not depend on the length of pieces. Any call can be repeated after a
    crash; but once a GPU runs out of memory, later batches are half as large.

    A batch that fails is split in halves until the failing chunks are alone. Their clips come back
    as ``Failed``; the other clips get their usual codes.
    """

    tokenizer_config: TokenizerConfig
    chunking: ChunkingConfig
    encode_config: EncodeConfig
    largest: tuple[int, int, int] | None = None  # (T, H, W) of the job's largest chunks, if known
    hardware: str = field(default="", init=False)  # The encoder class, once the stage is set up

    def setup(self, device: str, weights: bytes | None) -> None:
        """Build the tokenizer on ``device``, such as ``"cuda"``. Runs once, inside the actor.

        Also changes settings of the whole process, for repeatable results and less memory. Raises
        NodeTrouble if the device cannot be used, or its codes differ from those of float32.
        """
        with blaming_device(device, "broken", "memory"):
            keep_freed_memory()
            self.device = torch.device(device)
            self._on_device = Device(self.device)
            self.hardware = encoder_class(self.device)
            self.tokenizer = build_tokenizer(self.tokenizer_config, weights)
            make_repeatable()  # whatever the tokenizer's package has set
            self.batch_rows = self.encode_config.batch_rows
            dtype = getattr(torch, self.encode_config.dtype)
            is_reference = self.device.type == "cpu" and dtype == torch.float32
            parity = None if is_reference else Parity(self.tokenizer, dtype)
            self.tokenizer.to(self.device)
            if parity is not None:
                self._check_one(partial(parity.check_float32, self.tokenizer), [self.largest, None])
            self.tokenizer.compute_in(dtype)
            if parity is not None:
                rows = 1 if self.chunking.policy == "streaming" else self.batch_rows
                halves = [rows >> n for n in range(rows.bit_length())]
                self._check_one(partial(parity.check, self.tokenizer), halves)
            # Only this package's models are known to be safe to capture in a CUDA graph.
            self._graphed: GraphedCall | None = None
            if self.device.type == "cuda" and isinstance(self.tokenizer, NativeTokenizer):
                self._graphed = GraphedCall(self.tokenizer.encode, CudaGraphs(self.device))

    def _check_one(self, check: Callable[[torch.device, Any], None], sizes: Sequence[Any]) -> None:
        """Run a check with the first of these sizes for which there is memory."""
        for size in sizes:
            try:
                check(self.device, size)
                return
            except Exception as error:
                if trouble_of(error) != "memory":
                    raise
                free_frames(error)
                self._make_room("the start check leaves out the job's largest batch")

    @property
    def path(self) -> EncoderPath | None:
        """How it computes now; None on CPUs."""
        if self.device.type != "cuda":
            return None
        config, slow = self.encode_config, []
        ours = (one for one in self.tokenizer.modules() if isinstance(one, GroupNorm))
        norms = next((working_kernels(one.weight.device)[1] for one in ours), "other")
        graphs = "off: only for native tokenizers"
        if self._graphed is not None:
            graphs = self._graphed.state.partition(" (")[0]
            if self._graphed.trouble:
                slow.append(f"CUDA graphs are off: {self._graphed.trouble}")
        if norms.startswith("torch"):
            slow.append(f"norms by {norms}")
        if self.batch_rows < config.batch_rows:
            slow.append(
                f"batches of {self.batch_rows} instead of {config.batch_rows} chunks, because "
                "memory ran out: use smaller frames, or lower encode.batch_chunks"
            )
        facts = norms, graphs, self.batch_rows, str(torch.backends.cudnn.version())
        return EncoderPath(config.dtype, *facts, tuple(slow))

    def process(self, clips: Sequence[DecodedClip]) -> list[EncodedClip | Rejected | Failed]:
        """Return the codes of each clip, or why it has none, in order.

        An error that is raised means that the device has stopped working or computes wrong codes.
        """
        if self.chunking.policy == "streaming":
            return [self.process_piece(clip, None)[0] for clip in clips]
        plans = [self._chunks_of(clip) for clip in clips]
        self._encode([chunk for plan in plans if isinstance(plan, list) for chunk in plan])
        return [self._result(plan) if isinstance(plan, list) else plan for plan in plans]

    def process_piece(
        self, piece: DecodedClip, state: StreamState | None
    ) -> tuple[EncodedClip | Rejected | Failed, StreamState | None]:
        """Encode the next piece of a streamed clip, from the state returned with the previous one.

        Returns its codes, or why the clip has none; and the state, on the CPU, for the next piece.
        """
        if isinstance(chunks := self._chunks_of(piece), Rejected):
            return chunks, None
        if (state is None) != (piece.piece.index == 0):
            has = "no state" if state is None else "a state"
            found = f"encode: piece {piece.piece.index} of clip {piece.ref.clip_id} came with {has}"
            do = "Pass the state that was returned for the previous piece"
            raise ValueError(f"{found}, but its codes depend on the pieces before it. {do}")
        if state is not None:
            state = state.to(self.device)
        for chunk in chunks:
            with blaming_device(self.device, "broken"):
                block, state = self.tokenizer.encode_piece(self._pixels([chunk], num_rows=1), state)
                chunk.codes = block[0].cpu().numpy()
            self._check_settings()
        result = self._result(chunks)
        if state is None or piece.piece.is_last or isinstance(result, Rejected):
            return result, None
        return result, state.to("cpu")

    def _chunks_of(self, clip: DecodedClip) -> list[_Chunk] | Rejected:
        traits, first_frame = self.tokenizer_config.traits, clip.piece.first_frame
        frames, height, width, _ = clip.frames.shape
        if frames == 0:
            return _rejected(clip, "no_frames", "it has no frames to encode; check its span")
        try:
            traits.check_size(height, width)
        except ValueError as error:
            problem = f"its frames are {height}x{width} pixels: {error}. See frames.size"
            return _rejected(clip, "frame_size", problem)
        plan = plan_chunks(frames, self.chunking, traits, first_frame=first_frame)
        return [_Chunk(clip, span) for span in plan]

    def _encode(self, chunks: Sequence[_Chunk]) -> None:
        """Set the codes of all chunks, in batches of one shape.

        A GPU computes in the background, so the next batch is assembled and copied before the
        codes of the previous one are read.
        """
        groups: dict[tuple[int, ...], list[_Chunk]] = {}
        for chunk in chunks:
            groups.setdefault(chunk.shape, []).append(chunk)
        before: Iterator[None] = iter(())
        for batch in chain.from_iterable(map(self._cut, groups.values())):
            steps = self._steps(batch)
            next(steps, None)
            next(before, None)
            before = steps
        next(before, None)

    def _cut(self, chunks: list[_Chunk], at_most: int = sys.maxsize) -> Iterator[list[_Chunk]]:
        while chunks:
            size = min(at_most, self.batch_rows)  # may shrink between two batches
            yield chunks[:size]
            chunks = chunks[size:]

    def _steps(self, batch: list[_Chunk]) -> Iterator[None]:
        """Set the codes of a batch: first it is launched, then its codes are awaited.

        If either fails, it is encoded again at once, in smaller parts.
        """
        num_rows = self.batch_rows
        try:
            wait = self._launch(batch, num_rows)
            yield
            blocks = wait()
        except Exception as error:
            free_frames(error)
            if not (at_most := self._smaller(error, batch, num_rows)):
                batch[0].codes = _failed(batch[0].clip, error)
                return
        else:
            self._check_settings()
            for chunk, block in zip(batch, blocks, strict=True):
                chunk.codes, chunk.is_small = block, num_rows < self.encode_config.batch_rows
            return
        for part in self._cut(batch, at_most=at_most):
            list(self._steps(part))

    def _launch(self, batch: list[_Chunk], num_rows: int) -> Callable[[], NDArray[np.int64]]:
        encode = self._graphed or self.tokenizer.encode
        codes = encode(self._pixels(batch, num_rows=num_rows))
        return self._on_device.read_back(codes[: len(batch)])

    def _check_settings(self) -> None:
        if make_repeatable():
            raise ConfigError(
                f"tokenizer {self.tokenizer_config.name}: its code lets float32 products be "
                "rounded (TF32), or cuDNN choose kernels by timing, while it encodes. Codes would "
                "differ from those of other machines: remove such switches from it"
            )

    def _smaller(self, error: Exception, batch: list[_Chunk], num_rows: int) -> int:
        """How many chunks of a failed batch to try together, 0 if it is one that fails alone.

        Raises what is no chunk's fault. Short memory is taken from graphs first, then from batches.
        """
        trouble = trouble_of(error)
        if trouble == "broken":
            raise NodeTrouble(f"encode: {self.device} is broken: {error}") from error
        if trouble == "other" and not computes(self.device):
            raise error
        if trouble == "memory":
            if self._graphed is not None and self._graphed.drop("their memory was needed"):
                self._make_room("graphs are not used any more")
                return len(batch)
            if num_rows > 1:
                self.batch_rows = min(self.batch_rows, num_rows // 2)
                self._make_room(f"batches are {self.batch_rows} now")
                return self.batch_rows
        return -(-len(batch) // 2) if len(batch) > 1 else 0

    def _make_room(self, consequence: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        _log.warning("out of memory on %s: %s", self.device, consequence)

    def _pixels(self, batch: list[_Chunk], *, num_rows: int) -> torch.Tensor:
        """(num_rows, T, H, W, 3) uint8 on the device: chunks of one shape, filled up with zeros."""
        pixels = self._on_device.empty((num_rows, *batch[0].shape))
        rows = pixels.numpy()  # numpy copies from read-only frames, which torch warns about
        for row, chunk in zip(rows, batch, strict=False):
            clip, span = chunk.clip, chunk.span
            first = span.first_frame - span.num_context_frames - clip.piece.first_frame
            last = first + span.num_context_frames + span.num_frames
            row[: last - first] = clip.frames[first:last]
            row[last - first :] = clip.frames[last - 1]
        rows[len(batch) :] = 0
        return self._on_device.upload(pixels)

    def _result(self, chunks: list[_Chunk]) -> EncodedClip | Rejected | Failed:
        clip, codes = chunks[0].clip, []
        for chunk in chunks:
            if isinstance(chunk.codes, Failed):
                return chunk.codes
            assert chunk.codes is not None
            codes.append(chunk.codes[chunk.span.num_dropped_latents :])
        if any((block == NOT_FINITE).any() for block in codes):
            found = f"the encoder produced NaN or infinity in {self.encode_config.dtype}"
            do = "if this rejects many clips, check the weights or use float32"
            return _rejected(clip, "non_finite", f"{found}, which has no code; {do}")
        # Kernels are chosen by shape, so codes of small batches may be rounded differently.
        marks = ("small_batch",) if any(chunk.is_small for chunk in chunks) else ()
        return EncodedClip(
            ref=clip.ref,
            chunks=tuple(chunk.span for chunk in chunks),
            codes=tuple(self._narrowed(clip, block) for block in codes),
            pts_s=clip.pts_s,
            fps=clip.fps,
            backend=clip.backend,
            marks=clip.marks + marks,
            damage=clip.damage,
            encoder=self.hardware,
            source_sha256=clip.source_sha256,
            version=clip.version,
        )

    def _narrowed(self, clip: DecodedClip, block: NDArray[np.int64]) -> Codes:
        """Return codes in the output's dtype, checked first because it would wrap silently."""
        traits = self.tokenizer_config.traits
        for part, size in by_codebook(block, traits.sizes):
            low, high = int(part.min()), int(part.max())
            if low < 0 or high >= size:
                found = f"encode: clip {clip.ref.clip_id} got codes from {low} to {high}"
                why = f"The tokenizer or the device {self.device} is at fault, not the clip"
                do = "check the device's memory, then run again"
                raise RuntimeFault(f"{found}, but the codebook has 0 to {size - 1}. {why}: {do}")
        return block.astype(traits.code_dtype)


def _rejected(clip: DecodedClip, reason: str, problem: str) -> Rejected:
    message = f"{clip.ref.source_uri}: {problem}"
    return Rejected(clip.ref, "encode", reason, message, backend=clip.backend)


def _failed(clip: DecodedClip, error: Exception) -> Failed:
    name, lines = type(error).__name__, str(error).strip().splitlines() or [""]
    is_memory = trouble_of(error) == "memory"
    hint = "use smaller frames or chunks" if is_memory else "see the tokenizer"
    problem = f"encoding one of its chunks by itself raised {name}: {lines[0]}; {hint}"
    message = f"{clip.ref.source_uri}: {problem}"
    return Failed(
        clip.ref, "out_of_memory" if is_memory else "encode_error", message, name, clip.backend
    )


def try_tokenizer(
    tokenizer: TokenizerConfig,
    chunking: ChunkingConfig,
    encode: EncodeConfig,
    weights: bytes | None,
) -> str:
    """Build a tokenizer as an encoder would, encode small clips of noise, and check the codes.

    Without a GPU, a job for GPUs is tried on the CPU in float32, like every device before its
    first clip. Returns the device it was tried on: ``cuda`` or ``cpu``.
    """
    device = "cuda" if encode.device != "cpu" and torch.cuda.is_available() else "cpu"
    is_stand_in = device == "cpu" and encode.device == "cuda"
    dtype = getattr(torch, encode.dtype)
    if is_stand_in:
        encode = encode.model_copy(update={"dtype": "float32"})
    stage = EncodeStage(tokenizer, chunking, encode)
    stage.setup(device, weights)
    if not isinstance(tokenizer, CustomConfig):  # those are probed whenever they are built
        name = f"tokenizer {tokenizer.name}"
        probe(stage.tokenizer, name, with_decoder=False, device=stage.device)
    if is_stand_in:
        stage.tokenizer.compute_in(dtype)
    return device
