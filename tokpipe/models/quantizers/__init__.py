"""Quantizers: latents to codes, and codes back to the vectors they name.

All compute in float32 whatever the input: rounding latents to bfloat16 before a codebook search
changes about one code in a hundred. Latents and vectors are (B, dim, ...), codes (B, ...).
"""

from tokpipe.models.quantizers.base import Quantized, Quantizer
from tokpipe.models.quantizers.codebook import (
    EMAVectorQuantizer,
    GumbelQuantizer,
    VectorQuantizer,
    VectorQuantizer2,
)
from tokpipe.models.quantizers.scalar import FSQ, LFQ

__all__ = [
    "FSQ", "LFQ", "EMAVectorQuantizer", "GumbelQuantizer", "Quantized", "Quantizer",
    "VectorQuantizer", "VectorQuantizer2",
]  # fmt: skip
