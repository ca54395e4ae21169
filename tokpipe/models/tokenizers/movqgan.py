"""Published tokenizers with a MoVQ decoder: SBER-MoVQGAN, and Emu3's from transformers."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tokpipe.config.tokenizer import Emu3Config, MoVQGANConfig
from tokpipe.errors import ConfigError
from tokpipe.models import VectorQuantizer
from tokpipe.models.networks_2d import Encoder, MOVQDecoder
from tokpipe.models.operations import Conv2d, Conv3d
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


_TO_TRANSFORMERS = {
    # Attention of 1x1 convolutions became linear layers, with their norm beside them.
    r"\.mid\.attn_1\.norm\.": ".mid.attn_norm.",
    r"\.attn\.(\d+)\.norm\.": r".attn_norms.\1.",
    r"\.(q|k|v)\.(weight|bias)$": r".\1_proj.\2",
    r"\.proj_out\.(weight|bias)$": r".out_proj.\1",
    r"^(encoder)\.down\.": r"\1.down_block.down.",
    r"^(decoder)\.up\.": r"\1.up_block.up.",
    r"^(encoder|decoder)\.mid\.": r"\1.middle_block.",
}
"""From the keys of BAAI/Emu3-VisionTokenizer to those of transformers."""


class Emu3Tokenizer(VideoTokenizer):
    """Four frames to one latent frame: 2D encoder, convolutions over time, codebook.

    Model and state_dict keys are those of transformers' ``Emu3VQVAE``. The codebook is searched
    here, in float32: transformers searches in the type of the weights, which in bfloat16 names
    other code vectors. Source: arXiv:2409.18869; transformers,
    ``models/emu3/modeling_emu3.py``.
    """

    def __init__(self, config: Emu3Config, *, with_decoder: bool) -> None:
        super().__init__(config.traits)
        model = _published_model(config)
        self.encoder: nn.Module = model.encoder
        self.quant_conv: nn.Module = model.quant_conv
        self.quantize = VectorQuantizer(config.codebook_size, config.embed_dim)
        self.decoder: nn.Module | None = model.decoder if with_decoder else None
        self.post_quant_conv: nn.Module | None = model.post_quant_conv if with_decoder else None
        # Torch's convolutions become this project's, which round alike in any batch.
        own: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: Conv2d, nn.Conv3d: Conv3d}
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Conv3d) and type(part) in own:
                assert (part.groups, part.padding_mode) == (1, "zeros")
                part.__class__ = own[type(part)]  # type: ignore[assignment] # only forward differs

    @staticmethod
    def renamed(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Rename the keys of BAAI/Emu3-VisionTokenizer; leave keys of transformers unchanged."""
        renamed = {}
        for key, value in state.items():
            new = key
            for pattern, replacement in _TO_TRANSFORMERS.items():
                new = re.sub(pattern, replacement, new)
            if new.endswith("_proj.weight") and value.ndim == 4 and value.shape[2:] == (1, 1):
                value = value.flatten(1)
            renamed[new] = value
        return renamed

    def _encode(self, x: Tensor) -> Tensor:
        latent: Tensor = self.encoder(x)  # (B, t, C, h, w)
        return codes_or_not_finite(self.quantize, self.quant_conv(latent.transpose(1, 2)))

    def _decode(self, codes: Tensor) -> Tensor:
        vectors = self.quantize.vectors_of(codes).to(self.dtype)
        post = self._needed(self.post_quant_conv)(vectors)
        frames: Tensor = self._needed(self.decoder)(post.transpose(1, 2), vectors.transpose(1, 2))
        num_frames = self.traits.num_frames(codes.shape[1])
        return frames.view(len(codes), num_frames, *frames.shape[1:])


def _published_model(config: Emu3Config) -> Any:
    try:
        from transformers import Emu3VQVAE, Emu3VQVAEConfig
    except ImportError as error:
        raise ConfigError(
            f"tokenizer.kind emu3 needs the package transformers, 4.48 or newer ({error}): install "
            "tokpipe[emu3] on every node that encodes"
        ) from error
    return Emu3VQVAE(
        Emu3VQVAEConfig(
            codebook_size=config.codebook_size,
            embed_dim=config.embed_dim,
            latent_channels=config.embed_dim,
            base_channels=config.base_channels,
            channel_multiplier=list(config.channel_multiplier),
            num_res_blocks=config.num_res_blocks,
            attn_resolutions=list(config.attn_resolutions),
            # The width of attention, which transformers sets for the published settings only.
            hidden_size=config.base_channels * config.channel_multiplier[-1],
            temporal_downsample_factor=config.traits.temporal_stride,
        )
    )
