"""SBER-MoVQGAN: a 2D tokenizer, for images or the frames of a video one by one."""

from torch import Tensor

from tokpipe.config.tokenizer import MoVQGANConfig
from tokpipe.models.networks_2d import Encoder, MOVQDecoder
from tokpipe.models.operations import Conv2d
from tokpipe.models.quantizers import VectorQuantizer
from tokpipe.models.tokenizers.base import VideoTokenizer, codes_or_not_finite


class MoVQGANTokenizer(VideoTokenizer):
    """2D encoder, 1x1 convolution, codebook, 1x1 convolution, 2D MoVQ decoder.

    Keys of the state_dict are the published ones: ``encoder.*``, ``quant_conv.*``,
    ``quantize.embedding.weight``, ``post_quant_conv.*``, ``decoder.*``. Published code adds the
    latent's norm to every distance, so it may round to another code vector as near.
    Source: github.com/ai-forever/MoVQGAN, ``movqgan.models.vqgan.MOVQ``.
    """

    def __init__(self, config: MoVQGANConfig, *, with_decoder: bool) -> None:
        super().__init__(config.traits)
        shape = config.model_dump(
            include={"ch", "ch_mult", "num_res_blocks", "attn_resolutions", "resolution"}
        )
        self.encoder = Encoder(**shape, in_channels=3, z_channels=config.z_channels, double_z=False)
        self.quant_conv = Conv2d(config.z_channels, config.embed_dim, 1)
        self.quantize = VectorQuantizer(config.codebook_size, config.embed_dim)
        self.post_quant_conv: Conv2d | None = None
        self.decoder: MOVQDecoder | None = None
        if with_decoder:
            self.post_quant_conv = Conv2d(config.embed_dim, config.z_channels, 1)
            self.decoder = MOVQDecoder(
                **shape, out_ch=3, z_channels=config.z_channels, zq_ch=config.embed_dim
            )

    def _encode(self, x: Tensor) -> Tensor:
        return codes_or_not_finite(self.quantize, self.quant_conv(self.encoder(x)))

    def _decode(self, codes: Tensor) -> Tensor:
        vectors = self.quantize.vectors_of(codes).to(self.dtype)
        z = self._needed(self.post_quant_conv)(vectors)
        return self._needed(self.decoder)(z, vectors)
