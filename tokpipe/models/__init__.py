"""Encoders and quantizers of the CogVideo VQ-VAE/MoVQ family. Needs torch, and no job."""

from tokpipe.models.blocks import AttnBlock2D, DownSample3D, ResnetBlock3D, Upsample3D
from tokpipe.models.causal_conv import CausalConv3d
from tokpipe.models.encoder_3d import Encoder3D
from tokpipe.models.movq_3d import MOVQDecoder3D
from tokpipe.models.norm_3d import SpatialNorm3D
from tokpipe.models.published import load_published
from tokpipe.models.quantizers import (
    FSQ,
    LFQ,
    CodeUsage,
    EMAVectorQuantizer,
    GumbelQuantizer,
    Quantized,
    Quantizer,
    VectorQuantizer,
    VectorQuantizer2,
)
from tokpipe.models.streaming import StreamState
from tokpipe.models.tokenizers import VideoTokenizer, build_tokenizer

__all__ = [
    "FSQ",
    "LFQ",
    "AttnBlock2D",
    "CausalConv3d",
    "CodeUsage",
    "DownSample3D",
    "EMAVectorQuantizer",
    "Encoder3D",
    "GumbelQuantizer",
    "MOVQDecoder3D",
    "Quantized",
    "Quantizer",
    "ResnetBlock3D",
    "SpatialNorm3D",
    "StreamState",
    "Upsample3D",
    "VectorQuantizer",
    "VectorQuantizer2",
    "VideoTokenizer",
    "build_tokenizer",
    "load_published",
]
