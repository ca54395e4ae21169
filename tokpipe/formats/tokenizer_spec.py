"""What a reader must know about a tokenizer to use its codes: in every shard and job.json."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tokpipe.config.job import ChunkingConfig
from tokpipe.config.tokenizer import TokenizerConfig
from tokpipe.types import Side


class TokenizerSpec(BaseModel):
    """What codes mean: their codebook, and their layout over time and space."""

    # A later version may have added keys.
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    name: str
    weights_hash: str  # Covers encoder and quantizer; names the seed of random weights
    licence: str = ""  # License of the weights; empty if not declared
    codebook_size: Annotated[int, Field(gt=0, le=2**32)]  # Codes are 0 <= code < codebook_size
    code_dtype: Literal["uint16", "uint32"]
    bit_order: Literal["big", "little", ""] = ""
    """For codes made of one bit per channel: whether the first is the highest. Otherwise empty."""
    temporal_stride: Side  # Frames per latent frame, after a chunk's first
    first_frames: Side = 1  # Frames that a chunk's first latent frame covers
    spatial_stride: Side  # Pixels per latent row and column
    code_order: Literal["t,h,w"] = "t,h,w"
    """Axes of a row's flat codes, slowest first."""
    chunk_policy: str

    @classmethod
    def of(
        cls, tokenizer: TokenizerConfig, chunking: ChunkingConfig, weights_hash: str
    ) -> "TokenizerSpec":
        """Extract what a reader needs from a job."""
        traits = tokenizer.traits
        same = "codebook_size", "code_dtype", "temporal_stride", "first_frames", "spatial_stride"
        return cls(
            name=tokenizer.name,
            weights_hash=weights_hash,
            licence=getattr(tokenizer, "licence", traits.licence) or "",
            bit_order=traits.bit_order or "",
            chunk_policy=chunking.policy,
            **{name: getattr(traits, name) for name in same},
        )
