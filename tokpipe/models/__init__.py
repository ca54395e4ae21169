"""Encoders, decoders and quantizers of the CogVideo VQ-VAE and MoVQ family. Needs torch alone.
Arguments and inputs that do not fit raise ValueError."""

from tokpipe.models.autoencoder_3d import Encoder3D, MOVQDecoder3D
from tokpipe.models.blocks import (
    AttnBlock,
    AttnBlock2D,
    Downsample,
    DownSample3D,
    LinearAttention,
    ResnetBlock,
    ResnetBlock3D,
    Upsample,
    Upsample3D,
    make_attn,
)
from tokpipe.models.causal_conv import CausalConv3d
from tokpipe.models.networks_2d import Decoder, Encoder, MOVQDecoder, UNet, get_timestep_embedding
from tokpipe.models.published import as_published, load_published
from tokpipe.models.quantizers.base import Quantized, Quantizer
from tokpipe.models.quantizers.codebook import EMAVectorQuantizer, GumbelQuantizer, VectorQuantizer
from tokpipe.models.quantizers.scalar import FSQ, LFQ
from tokpipe.models.spatial_norm import SpatialNorm, SpatialNorm3D
from tokpipe.models.streaming import StreamState

__all__ = [
    "FSQ", "LFQ", "AttnBlock", "AttnBlock2D", "AutoencoderDecoder", "AutoencoderEncoder",
    "CausalConv3d", "Decoder", "DownSample3D", "Downsample", "EMAVectorQuantizer",
    "Encoder", "Encoder3D", "GumbelQuantize", "GumbelQuantizer", "LinearAttention", "MOVQDecoder",
    "MOVQDecoder3D", "Model", "NewDecoder3D", "Quantized", "Quantizer",
    "ResnetBlock", "ResnetBlock3D", "SpatialNorm", "SpatialNorm3D", "StreamState", "UNet",
    "Upsample", "Upsample3D", "VectorQuantizer", "VectorQuantizer2", "as_published",
    "get_timestep_embedding", "load_published", "make_attn",
]  # fmt: skip

# Other published names of the same classes.
AutoencoderDecoder = Decoder
AutoencoderEncoder = Encoder
GumbelQuantize = GumbelQuantizer
Model = UNet
NewDecoder3D = MOVQDecoder3D
VectorQuantizer2 = VectorQuantizer
