"""What a tokenizer declares about itself: all that planning, checking and reading codes need."""

import operator
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from tokpipe.config.base import Frozen
from tokpipe.types import CodeDtype, Flag, PerPosition, Sizes


class CodesOfPosition:
    """What follows from the fields on the codes of a position, for models that have them."""

    @property
    def sizes(self: Any) -> tuple[int, ...]:
        """Size of the codebook of each code of a position."""
        return tuple(self.codebook_sizes or [self.codebook_size] * self.codes_per_position)

    @property
    def axes(self: Any) -> tuple[int, ...]:
        """What follows (t, h, w) in the shape of codes: (c,) for several per position."""
        return () if self.codes_per_position == 1 else (self.codes_per_position,)


class TokenizerTraits(CodesOfPosition, Frozen):
    """A tokenizer's shapes, ranges and rules, known before any weights are read.

    A chunk of ``first_frames + temporal_stride * k`` frames becomes ``1 + k`` latent frames: the
    first covers ``first_frames`` frames, each later one ``temporal_stride``.
    """

    temporal_stride: PositiveInt
    """Frames per latent frame, after the first."""
    spatial_stride: PositiveInt
    """Pixels per latent row and column."""
    codebook_size: Annotated[int, Field(ge=1, le=2**63)]
    """Codes are 0 <= code < codebook_size."""
    codes_per_position: PerPosition = 1
    """Codes of each position of the latent: residual levels, codebooks, or all tokens of a frame
    that has a single position. With more than one, codes are (t, h, w, c)."""
    codebook_sizes: Sizes = ()
    """Sizes of the codebooks of a position, if they differ. ``codebook_size`` is the largest."""
    shared_codebook: Flag = False
    """All codes of a position are of one codebook, as the scales of VAR and the tokens of TiTok: a
    code means the same in each place, and is one token."""
    frame_size: tuple[PositiveInt, PositiveInt] | None = Field(
        default=None, exclude_if=operator.not_
    )
    """Height and width of frames, for a tokenizer that takes no others."""
    first_frames: PositiveInt = 1
    """Frames that a chunk's first latent frame covers: 1 for a causal tokenizer, whose first
    latent frame is an image; ``temporal_stride`` for one that groups from the start."""
    chunk_frames: PositiveInt | None = None
    """Frames of every chunk, for a tokenizer that accepts no other number."""
    size_multiple: PositiveInt | None = None
    """Heights and widths must be multiples of this; ``spatial_stride`` by default."""
    square_only: bool = False
    """Height and width must be equal."""
    value_range: Annotated[tuple[float, float], Field(description="lowest, highest")] = (-1.0, 1.0)
    """What pixel values 0 and 255 become."""
    layout: Literal["BCTHW", "BTCHW", "BCHW"] = "BCTHW"
    """Axes of the encoder's input and the decoder's output: B clips, C colours, T frames, H rows,
    W columns. ``BCHW`` takes frames one by one, folded into B."""
    bit_order: Literal["big", "little"] | None = None
    """For codes made of one bit per channel: whether the first channel is the highest bit."""
    licence: str | None = None
    """Licence of the weights, for people."""
    why_not_streamable: str | None = "it was not declared to be streamable"
    """Why encoding a clip in pieces produces other codes than whole; null if it does not."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.first_frames not in (1, self.temporal_stride):
            found = f"first_frames={self.first_frames} is neither 1 nor"
            raise ValueError(f"{found} temporal_stride={self.temporal_stride}: use one of the two")
        if self.size_multiple is not None and self.size_multiple % self.spatial_stride:
            found = f"size_multiple={self.size_multiple} is not a multiple of"
            raise ValueError(f"{found} spatial_stride={self.spatial_stride}: correct one of them")
        given = self.codes_per_position, self.codebook_size
        if (sizes := self.codebook_sizes) and (len(sizes), max(sizes)) != given:
            found = f"codebook_sizes has {len(sizes)} codebooks, the largest of {max(sizes)}"
            raise ValueError(f"{found}: codes_per_position and codebook_size must agree with them")
        if self.shared_codebook and self.codebook_sizes:
            raise ValueError("shared_codebook has one size: leave codebook_sizes out")
        low, high = self.value_range
        if not low < high:
            raise ValueError(f"value_range [{low:g}, {high:g}] is empty: write the lowest first")
        if self.layout == "BCHW" and self.temporal_stride != 1:
            raise ValueError("layout BCHW takes frames one by one: use temporal_stride 1")
        if self.chunk_frames is not None:
            self.check_num_frames(self.chunk_frames, "chunk_frames")
        return self

    @property
    def code_dtype(self) -> CodeDtype:
        """The smallest of these types that holds every code."""
        is_long = self.codebook_size > 2**32
        return "uint16" if self.codebook_size <= 2**16 else "uint64" if is_long else "uint32"

    def grid(self, height: int, width: int) -> tuple[int, ...]:
        """Return the (h, w) codes of a latent frame; (h, w, c) for several per position."""
        return (height // self.spatial_stride, width // self.spatial_stride, *self.axes)

    @property
    def side_multiple(self) -> int:
        """Heights and widths must be multiples of this."""
        return self.size_multiple or self.spatial_stride

    def num_latent_frames(self, num_frames: int) -> int:
        """Return the latent frames of a chunk of ``num_frames`` frames, a valid chunk length."""
        return 1 + (num_frames - self.first_frames) // self.temporal_stride

    def num_frames(self, num_latent_frames: int) -> int:
        """Return the frames of a chunk of so many latent frames."""
        return self.first_frames + self.temporal_stride * (num_latent_frames - 1)

    def check_num_frames(self, num_frames: int, name: str = "num_frames") -> None:
        """Raise ValueError if a chunk length would lose frames, or the tokenizer rejects it."""
        stride, exact = self.temporal_stride, self.chunk_frames
        if exact is not None and num_frames != exact:
            found = f"{name}={num_frames}, but this tokenizer encodes"
            raise ValueError(f"{found} {exact} frames at a time: use {exact}")
        if use := _other_than(num_frames, self.first_frames, stride):
            found = f"{name}={num_frames} does not fit temporal stride {stride}"
            raise ValueError(f"{found}: use {use}. Extra frames would be lost")

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError if a frame size would lose pixels at the edges, or is not accepted."""
        if self.frame_size and self.frame_size != (height, width):
            wanted = "{}x{}".format(*self.frame_size)
            raise ValueError(f"frames of {height}x{width}: this tokenizer accepts only {wanted}")
        multiple = self.side_multiple
        what = "size multiple" if multiple != self.spatial_stride else "spatial stride"
        for side, pixels in (("height", height), ("width", width)):
            if use := _other_than(pixels, multiple, multiple):
                found = f"{side} {pixels} is not a multiple of the encoder's {what} {multiple}"
                raise ValueError(f"{found}: use {use}. Extra pixels would be lost")
        if self.square_only and height != width:
            use = "{0}x{0}".format(min(height, width))
            raise ValueError(f"frames of {height}x{width} are not square: use {use}")

    def check_policy(self, policy: str) -> None:
        """Raise ValueError if the tokenizer cannot keep the promise of a chunk policy."""
        if policy == "streaming" and self.why_not_streamable is not None:
            found = "chunking.policy streaming promises the codes of encoding a clip whole, but"
            raise ValueError(f"{found} {self.why_not_streamable}: use another policy")
        if policy in ("whole", "overlap") and self.chunk_frames is not None:
            wanted = f"than the {self.chunk_frames} frames that this tokenizer accepts"
            found = f"chunking.policy {policy} makes chunks of other lengths"
            raise ValueError(f"{found} {wanted}: use independent")


def _other_than(number: int, least: int, step: int) -> str | None:
    """The closest of ``least``, ``least + step``, ... to a number that is none of them."""
    low = number - (number - least) % step
    if low == number >= least:
        return None
    return f"{low} or {low + step}" if low >= least else f"{least}"


def by_codebook(codes: Any, sizes: Sequence[int]) -> Iterator[tuple[Any, int]]:
    """(...) or (..., c) codes -> those of each codebook, and its size; all if sizes are equal."""
    if len({*sizes}) == 1:
        return iter([(codes, sizes[0])])
    return ((codes[..., i], size) for i, size in enumerate(sizes))
