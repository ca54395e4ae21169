"""A training file: what to train, on what, for how long."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from tokpipe.config.base import Frozen, Uri
from tokpipe.config.native_parts import FSQConfig
from tokpipe.config.strict_yaml import StrictLoader
from tokpipe.config.tokenizer import NativeConfig
from tokpipe.errors import ConfigError

Share = Annotated[float, Field(gt=0)]
Size = Annotated[tuple[PositiveInt, PositiveInt], Field(description="height, width")]


class FilmConfig(Frozen):
    """Frames of one video file, from which crops of any place, scale and speed are taken."""

    path: Uri
    size: Size
    """(height, width) at which the film is read, and kept in memory: its own size is best."""
    first_frame: NonNegativeInt = 0
    last_frame: PositiveInt | None = None
    """The first frame that is not used; null for all there are."""
    share: Share = 1.0
    """How many of the clips are of this film, relative to the other sources."""


class ScenesConfig(Frozen):
    """Scenes drawn by the program: moving textures, shapes and text."""

    textures: PositiveInt = 400
    """How many textures scenes choose from; each takes 0.8 MB."""
    shapes: PositiveInt = 200
    share: Share = 1.0
    """How many of the clips are such scenes, relative to the other sources."""


class LossConfig(Frozen):
    """Weights of what is made small. Pixels are in [-1, 1]."""

    l1: NonNegativeFloat = 1.0
    """Mean absolute difference."""
    mse: NonNegativeFloat = 0.0
    """Mean squared difference."""
    gradient: NonNegativeFloat = 0.0
    """Mean absolute difference of neighbouring pixels' differences: keeps edges sharp."""
    quantizer: NonNegativeFloat = 1.0
    """The quantizer's own loss (VQ: codebook and commitment), where it has one."""
    guide: NonNegativeFloat = 0.0
    """Mean squared distance of the latent from a few cosine coefficients of its block of pixels.
    For some hundred steps early on: left alone, all channels learn the block's mean colour first,
    and stay with it for thousands of steps."""
    saturation: NonNegativeFloat = 0.0
    """FSQ: mean square of what latents have beyond -1.5 and 1.5, where squashing is so flat that
    they would stay for good, and all but the outermost levels fall out of use."""
    rounding: NonNegativeFloat = 0.0
    """FSQ: mean squared distance to the middle of the rounding level, in levels. Latents that stay
    off the edges between levels give the same codes at lower precision."""


class BatchConfig(Frozen):
    """One shape of a batch."""

    frames: PositiveInt
    """1 + temporal stride x k."""
    clips: PositiveInt


class PhaseConfig(Frozen):
    """Some steps on clips of one size. Phases follow each other."""

    steps: PositiveInt
    size: PositiveInt
    """Rows and columns of the crops."""
    batches: Annotated[tuple[BatchConfig, ...], Field(min_length=1)]
    """Every step draws one of these. Longer clips in smaller batches cost the same."""
    learning_rate: tuple[NonNegativeFloat, NonNegativeFloat]
    """At the phase's first step and after its last one; half a cosine between."""
    loss: LossConfig | None = None
    """Other weights than those of the run."""


class TrainConfig(Frozen):
    """One training file. The same file and number of threads give the same losses."""

    output: Uri
    """Folder of the checkpoint, the log and the trained tokenizer; continued if it has some."""
    tokenizer: NativeConfig
    films: tuple[FilmConfig, ...] = ()
    scenes: ScenesConfig | None = ScenesConfig()
    phases: Annotated[tuple[PhaseConfig, ...], Field(min_length=1)]
    loss: LossConfig = LossConfig()
    seed: NonNegativeInt = 0
    """Decides initial weights, scenes, crops and their order."""
    weight_decay: NonNegativeFloat = 0.0
    """Of AdamW, on weights of two dimensions or more."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.95,
    )
    clip_norm: PositiveFloat = 1.0
    """Largest norm of all gradients together; longer ones are scaled down."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Of the average of the weights, which is what is kept. Starts lower, to forget the start."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """``bfloat16``: by autocast; weights, quantizer and loss stay float32."""
    threads: NonNegativeInt = 0
    """Of the CPU; 0 leaves the choice to torch. Losses differ in the last digits between numbers
    of threads."""
    data_threads: NonNegativeInt = 0
    """Threads that make batches ahead of their steps, for GPUs; 0 makes each at its step. Changes
    no batch."""
    checkpoint_every_s: PositiveFloat = 240.0
    log_every_steps: PositiveInt = 20
    weights_dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    """How the trained tokenizer is stored."""

    @model_validator(mode="after")
    def _can_be_trained(self) -> Self:
        if not self.films and self.scenes is None:
            raise ValueError("there is nothing to train on: give films, scenes or both")
        if self.tokenizer.decoder is None:
            raise ValueError("tokenizer.decoder is missing: reconstruction needs a decoder")
        if self.tokenizer.weights is not None:
            raise ValueError("tokenizer.weights: training starts from random weights; leave it out")
        traits = self.tokenizer.traits
        for phase in self.phases:
            loss = phase.loss or self.loss
            is_fsq = isinstance(self.tokenizer.quantizer, FSQConfig)
            if (loss.rounding or loss.saturation) and not is_fsq:
                raise ValueError("loss.rounding and loss.saturation are for fsq only: leave them 0")
            traits.check_size(phase.size, phase.size)
            for batch in phase.batches:
                traits.check_num_frames(batch.frames, "phases: frames")
        return self

    @property
    def num_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> tuple[PhaseConfig, float]:
        """The phase of a step, and the learning rate there."""
        first = 0
        for phase in self.phases:
            if step < first + phase.steps:
                start, end = phase.learning_rate
                done = (step - first) / phase.steps
                return phase, end + (start - end) * (1 + math.cos(math.pi * done)) / 2
            first += phase.steps
        raise ValueError(f"step {step} is past the last of {self.num_steps}")


def load_training(path: Path) -> TrainConfig:
    """Read and check a training file. Paths in it start at the file's folder.

    Raises:
        ConfigError: naming the file, the key and what was found.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=StrictLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as a training file: {error}") from error
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path}: holds {type(data).__name__}, not a mapping of settings")
    return parse_training(dict(data), name=str(path), root=path.resolve().parent)


def parse_training(data: dict[str, Any], *, name: str, root: Path) -> TrainConfig:
    """Check the settings of a training file; ``name`` stands in messages.

    Raises:
        ConfigError: naming the key and what was found.
    """
    try:
        # By way of JSON, because strictness there still lets a list be a tuple.
        return TrainConfig.model_validate_json(json.dumps(data), context={"root": root})
    except ValidationError as error:
        problems = []
        for detail in error.errors(include_url=False, include_input=False):
            where = ".".join(str(part) for part in detail["loc"])
            message = detail["msg"].removeprefix("Value error, ")
            problems.append(f"{where}: {message}" if where else message)
        raise ConfigError(f"{name}: {'; '.join(problems)}") from error
