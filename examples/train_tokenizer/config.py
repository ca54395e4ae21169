"""A training file: which tokenizer to train, on which videos, for how many steps."""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from tokpipe.config.base import Frozen, Uri
from tokpipe.config.explain import validate_settings
from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig, StoreOptions
from tokpipe.config.native_parts import FSQConfig
from tokpipe.config.sources import Source
from tokpipe.config.strict_yaml import read_mapping
from tokpipe.config.tokenizer import NativeConfig
from tokpipe.errors import ConfigError

Decay = Annotated[float, Field(ge=0, lt=1)]


class LossConfig(Frozen):
    """Weights of the loss terms. Pixels are in [-1, 1]."""

    l1: NonNegativeFloat = 1.0
    """Mean absolute error."""
    mse: NonNegativeFloat = 0.0
    """Mean squared error."""
    gradient: NonNegativeFloat = 0.0
    """Mean absolute error of the differences between neighbouring pixels: keeps edges sharp."""
    quantizer: NonNegativeFloat = 1.0
    """The quantizer's own loss, if it has one (VQ: codebook and commitment)."""
    guide: NonNegativeFloat = 0.0
    """Mean squared distance between the latent and a few cosine coefficients of its block of
    pixels. Use it for the first few hundred steps: without it, all channels first learn the mean
    colour of the block and can stay there for thousands of steps."""
    saturation: NonNegativeFloat = 0.0
    """FSQ only: mean square of how far latents exceed [-1.5, 1.5]. Squashing is so flat there that
    they would not return, and only the outermost levels would stay in use."""
    spread: NonNegativeFloat = 0.0
    """FSQ only: how far each channel is from using its levels equally often, and pairs of channels
    are from being uncorrelated. Without it, a short training leaves most codes unused."""
    rounding: NonNegativeFloat = 0.0
    """FSQ only: mean squared distance to the centre of the rounding level, in levels. Latents away
    from the edges between levels keep their code at lower precision."""


class BatchConfig(Frozen):
    """One shape of a batch."""

    frames: PositiveInt
    """1 + temporal stride x k."""
    clips: PositiveInt


class PhaseConfig(Frozen):
    """A number of steps on crops of one size. Phases run in order."""

    steps: PositiveInt
    size: PositiveInt
    """Rows and columns of the crops."""
    batches: Annotated[tuple[BatchConfig, ...], Field(min_length=1)]
    """Each step draws one of these. Longer clips in smaller batches cost the same."""
    learning_rate: tuple[NonNegativeFloat, NonNegativeFloat]
    """At the first step and after the last, with half a cosine in between."""
    loss: LossConfig | None = None
    """Replaces the loss weights of the run."""


class TrainConfig(Frozen):
    """One training file. Losses only depend on the file, the videos and the number of threads."""

    output: Uri
    """Folder for the checkpoint, the log and the trained tokenizer. A run that it holds is
    continued."""
    tokenizer: NativeConfig
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    """As in a job file: files, tables and tars of videos."""
    shares: tuple[PositiveFloat, ...] | None = None
    """How often each source is drawn, relative to the others; by default by its number of rows."""
    sampling: SamplingConfig = SamplingConfig()
    """As in a job file. Clips shorter than the longest batch are not used."""
    frames: FramesConfig
    """As in a job file: the size of decoded clips, from which crops are taken at random places and
    scales."""
    decode: DecodeConfig = DecodeConfig()
    storage: StoreOptions = StoreOptions()
    buffer_clips: PositiveInt = 32
    """Decoded clips held in memory, from which each step takes its crops."""
    fresh_clips: PositiveFloat = 1.0
    """Clips decoded per step, on average. Each replaces the oldest in the buffer, after
    ``buffer_clips / fresh_clips`` steps. Lower it if training waits for decoding."""
    phases: Annotated[tuple[PhaseConfig, ...], Field(min_length=1)]
    loss: LossConfig = LossConfig()
    seed: NonNegativeInt = 0
    """Decides initial weights, clips, crops and their order."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's, on weights with two or more dimensions."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW's."""
    clip_norm: PositiveFloat = 1.0
    """Gradients with a larger total norm are scaled down to it."""
    ema_decay: Decay = 0.999
    """Decay of the moving average of the weights, which becomes the trained tokenizer. It is lower
    at first, to forget the initial weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """``bfloat16``: with autocast; weights, quantizer and loss stay float32."""
    threads: NonNegativeInt = 0
    """CPU threads of torch; 0 leaves the choice to torch. The number of threads changes the last
    digits of losses."""
    data_threads: NonNegativeInt = 0
    """Threads that prepare batches ahead of their steps, each with a decoding process; 0 prepares
    each batch when its step needs it. The batches are the same."""
    checkpoint_every_s: PositiveFloat = 240.0
    log_every_steps: PositiveInt = 20
    weights_dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    """How the trained tokenizer is stored."""

    @field_validator("output")
    @classmethod
    def _is_local(cls, uri: str) -> str:
        if "://" in uri:
            raise ValueError("write a local folder: checkpoints are replaced in place")
        return uri

    @model_validator(mode="after")
    def _tokenizer_can_be_trained(self) -> Self:
        if self.tokenizer.decoder is None:
            raise ValueError("tokenizer.decoder is missing: reconstruction needs a decoder")
        if self.tokenizer.weights is not None:
            raise ValueError("tokenizer.weights: training starts from random weights; leave it out")
        if not isinstance(self.tokenizer.quantizer, FSQConfig):
            losses = [self.loss, *(phase.loss for phase in self.phases if phase.loss)]
            if any(loss.rounding or loss.saturation or loss.spread for loss in losses):
                raise ValueError("loss.rounding, saturation and spread are for fsq: leave them 0")
        return self

    @model_validator(mode="after")
    def _crops_fit(self) -> Self:
        traits = self.tokenizer.traits
        largest = min(min(size) for size in self.frames.sizes)
        for phase in self.phases:
            traits.check_size(phase.size, phase.size)
            if phase.size > largest:
                raise ValueError(
                    f"phases: crops of {phase.size}x{phase.size} do not fit into frames whose "
                    f"shorter side is {largest}: raise frames, or lower phases.size"
                )
            for batch in phase.batches:
                traits.check_num_frames(batch.frames, "phases: frames")
        if self.longest_batch > self.sampling.max_clip_frames:
            raise ValueError(
                f"phases: {self.longest_batch} frames are more than "
                f"sampling.max_clip_frames={self.sampling.max_clip_frames}: use fewer, or raise it"
            )
        if self.shares is not None and len(self.shares) != len(self.sources):
            raise ValueError(
                f"shares: {len(self.shares)} numbers for {len(self.sources)} sources: write one "
                "for each source, or leave shares out"
            )
        return self

    @property
    def num_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def longest_batch(self) -> int:
        """Frames per clip in the longest batch of any phase."""
        return max(batch.frames for phase in self.phases for batch in phase.batches)

    def phase_at(self, step: int) -> tuple[PhaseConfig, float]:
        """Return the phase and the learning rate of a step."""
        first = 0
        for phase in self.phases:
            if step < first + phase.steps:
                start, end = phase.learning_rate
                done = (step - first) / phase.steps
                return phase, end + (start - end) * (1 + math.cos(math.pi * done)) / 2
            first += phase.steps
        raise ValueError(f"step {step} is past the last of {self.num_steps}")


def load_training(path: Path) -> TrainConfig:
    """Read and check a training file. Relative paths in it start at the file's folder."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read as a training file: {error.strerror}") from error
    data = read_mapping(text, str(path))
    if "dataset" in data and "phases" not in data:
        raise ConfigError(
            f"{path}: this is a job file, not a training file: use tokpipe run {path}"
        )
    context = {"root": path.resolve().parent}
    config: TrainConfig = validate_settings(TrainConfig, data, name=str(path), context=context)
    return config
