"""What a tokenizer declares about itself: all that planning, checking and reading codes need."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from tokpipe.config.base import Frozen

Layout = Literal["BCTHW", "BTCHW", "BCHW"]


class TokenizerTraits(Frozen):
    """A tokenizer's shapes, ranges and rules, known before any weights are read.

    A chunk has ``first_frames + temporal_stride * k`` frames and gives ``1 + k`` latent frames: the
    first stands for ``first_frames`` frames, each later one for ``temporal_stride``.
    """

    temporal_stride: PositiveInt
    """Frames per latent frame, after the first."""
    spatial_stride: PositiveInt
    """Pixels per latent row and column."""
    codebook_size: Annotated[int, Field(ge=1, le=2**32)]
    """Codes are 0 <= code < codebook_size."""
    first_frames: PositiveInt = 1
    """Frames that a chunk's first latent frame stands for: 1 for a causal tokenizer, whose first
    latent frame is an image; ``temporal_stride`` for one that groups from the start."""
    chunk_frames: PositiveInt | None = None
    """Frames of every chunk, for a tokenizer that takes no other number."""
    size_multiple: PositiveInt | None = None
    """Heights and widths are multiples of this; of ``spatial_stride`` when left out."""
    square_only: bool = False
    """Height and width must be equal."""
    value_range: Annotated[tuple[float, float], Field(description="lowest, highest")] = (-1.0, 1.0)
    """What pixel values 0 and 255 become."""
    layout: Layout = "BCTHW"
    """Axes of the encoder's input and the decoder's output: B clips, C colours, T frames, H rows,
    W columns. ``BCHW`` takes frames one by one, folded into B."""
    bit_order: Literal["big", "little"] | None = None
    """For codes made of bits, one per channel: whether the first channel is the highest bit."""
    licence: str | None = None
    """Licence of the weights, for people."""
    why_not_streamable: str | None = "it was not declared to be streamable"
    """Why a long clip cannot be encoded piece by piece to the codes that it has whole; null if
    it can."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.first_frames not in (1, self.temporal_stride):
            raise ValueError(
                f"first_frames={self.first_frames} is neither 1 nor temporal_stride="
                f"{self.temporal_stride}: a first latent frame stands for one frame or for a whole "
                "group, so use one of the two"
            )
        if self.size_multiple is not None and self.size_multiple % self.spatial_stride:
            raise ValueError(
                f"size_multiple={self.size_multiple} is no multiple of spatial_stride="
                f"{self.spatial_stride}, so latents would not cover the frame: correct one of them"
            )
        low, high = self.value_range
        if not low < high:
            raise ValueError(
                f"value_range [{low:g}, {high:g}] is empty: give what 0 and 255 become, in this "
                "order"
            )
        if self.layout == "BCHW" and self.temporal_stride != 1:
            raise ValueError(
                f"layout BCHW takes frames one by one, which temporal_stride="
                f"{self.temporal_stride} contradicts: use 1, or a layout with T"
            )
        if self.chunk_frames is not None:
            self.check_num_frames(self.chunk_frames, "chunk_frames")
        return self

    @property
    def code_dtype(self) -> Literal["uint16", "uint32"]:
        """Smallest type that Parquet readers agree on and that holds every code."""
        return "uint16" if self.codebook_size <= 65_536 else "uint32"

    @property
    def side_multiple(self) -> int:
        """What heights and widths are multiples of."""
        return self.size_multiple or self.spatial_stride

    def num_latent_frames(self, num_frames: int) -> int:
        """Latent frames of a chunk of ``num_frames`` frames, which must keep the temporal rule."""
        return 1 + (num_frames - self.first_frames) // self.temporal_stride

    def num_frames(self, num_latent_frames: int) -> int:
        """Frames of a chunk of so many latent frames: the inverse of ``num_latent_frames``."""
        return self.first_frames + self.temporal_stride * (num_latent_frames - 1)

    def check_num_frames(self, num_frames: int, name: str = "num_frames") -> None:
        """Refuse a chunk length that would lose frames, or that the tokenizer does not take.

        Raises:
            ValueError: naming the nearest lengths that are right; ``name`` is what it calls this.
        """
        first, stride = self.first_frames, self.temporal_stride
        exact = self.chunk_frames
        if exact is not None and num_frames != exact:
            raise ValueError(
                f"{name}={num_frames}, but this tokenizer takes {exact} frames at a time: with "
                f"others its codes differ from its authors', or are refused. Use {exact}"
            )
        extra = (num_frames - first) % stride
        if extra or num_frames < first:
            low = num_frames - extra
            use = f"{low} or {low + stride}" if low >= first else f"{first}"
            rule = f"{first} + {stride} k" if first != stride else f"a multiple of {stride}"
            raise ValueError(
                f"{name}={num_frames} does not fit temporal stride {stride}: use {use}. Chunks "
                f"have {rule} frames, and others would be lost"
            )

    def check_size(self, height: int, width: int) -> None:
        """Refuse a frame size whose edges would be lost.

        Raises:
            ValueError: naming the side and the nearest sizes that are right.
        """
        multiple = self.side_multiple
        what = "size multiple" if multiple != self.spatial_stride else "spatial stride"
        for side, pixels in (("height", height), ("width", width)):
            extra = pixels % multiple
            if extra or pixels < multiple:
                low = pixels - extra
                use = f"{low} or {low + multiple}" if low >= multiple else f"{multiple}"
                raise ValueError(
                    f"{side} {pixels} is no multiple of the encoder's {what} {multiple}: use "
                    f"{use}. What exceeds a multiple would be lost"
                )
        if self.square_only and height != width:
            raise ValueError(
                f"frames of {height}x{width} are not square, and this tokenizer takes only "
                f"squares: use {min(height, width)}x{min(height, width)}"
            )

    def check_policy(self, policy: str) -> None:
        """Refuse a chunk policy that the tokenizer cannot keep the promise of.

        Raises:
            ValueError: naming the policies that are left.
        """
        if policy == "streaming" and self.why_not_streamable is not None:
            raise ValueError(
                f"chunking.policy streaming promises the codes that a clip has whole, but "
                f"{self.why_not_streamable}: use independent"
                + ("" if self.chunk_frames else ", overlap or whole")
            )
        if policy in ("whole", "overlap") and self.chunk_frames is not None:
            raise ValueError(
                f"chunking.policy {policy} makes chunks of other lengths than the "
                f"{self.chunk_frames} frames that this tokenizer takes: use independent"
            )
