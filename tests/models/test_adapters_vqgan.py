"""The VQGAN family on random weights, against transformers, diffusers and plain arithmetic."""

import re
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from tests.models import golden_fixtures as golden
from tests.models.adapter_helpers import file_of, noise, randomize
from tokpipe.config.published import presets_of
from tokpipe.config.tokenizer import VQGANConfig
from tokpipe.models.tokenizers import build_tokenizer
from tokpipe.models.tokenizers.vqgan import VQGANTokenizer

SHAPES: list[dict[str, Any]] = [
    {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (128,)},
    {"ch": 32, "ch_mult": (1, 1, 2), "num_res_blocks": 2, "attn_resolutions": (64,)},
    {"ch": 64, "ch_mult": (1, 2, 1, 2), "num_res_blocks": 1, "attn_resolutions": (32,)},
]
"""Each with attention at the coarsest level, as LlamaGen and Janus have it."""


def vqgan(**settings: Any) -> VQGANConfig:
    return VQGANConfig.model_validate({"kind": "vqgan", "weights": "s3://models/w", **settings})


def random_state(config: VQGANConfig, seed: int = 0) -> dict[str, Tensor]:
    model = VQGANTokenizer(config, with_decoder=True)
    randomize(model, seed)
    if config.quantizer == "gumbel":
        torch.nn.init.normal_(model.get_parameter("quantize.embed.weight"))
    return dict(model.state_dict())


def images_of(pixels: Tensor) -> Tensor:
    """(B, T, H, W, 3) uint8 -> (B T, 3, H, W) in [-1, 1]."""
    return pixels.flatten(0, 1).permute(0, 3, 1, 2) / 127.5 - 1


def close(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


PARAMETERS = {
    "taming-f16-16384": 76.1, "taming-gumbel-f8": 69.0, "llamagen-vq16": 71.9, "llamagen-vq8": 70.1,
    "ibq-16384": 111.0, "emu3.5": 455.3, "open-magvit2-256": 115.1, "open-magvit2-video": 370.5,
    "movqgan-67m": 67.8, "movqgan-102m": 101.6, "movqgan-270m": 270.7,
}  # fmt: skip
"""In millions; where authors state a size, it is this one: LlamaGen 72M and 70M, Emu3.5 455M."""


@pytest.mark.parametrize("preset", PARAMETERS)
def test_presets_have_the_published_sizes(preset: str) -> None:
    config = vqgan(preset=preset)
    with torch.device("meta"):
        model = VQGANTokenizer(config, with_decoder=True)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert millions == pytest.approx(PARAMETERS[preset], abs=0.1)
    assert config.name in (preset, "sber-movqgan")


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("chameleon", transformers.ChameleonVQVAEConfig()),
        ("janus", transformers.JanusVQVAEConfig()),
        ("llamagen-vq16", transformers.JanusVQVAEConfig()),
    ],
)
def test_presets_have_the_settings_of_transformers(preset: str, published: Any) -> None:
    config = vqgan(preset=preset)
    found = [config.ch, config.ch_mult, config.num_res_blocks, config.z_channels, config.embed_dim]
    assert [*found, config.codebook_size] == [
        published.base_channels, tuple(published.channel_multiplier), published.num_res_blocks,
        published.latent_channels, published.embed_dim, published.num_embeddings,
    ]  # fmt: skip
    coarsest = (256 >> (len(config.ch_mult) - 1),)
    assert config.attn_resolutions == (() if preset == "chameleon" else coarsest)


def settings_of(shape: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A shape by the names of transformers."""
    return {
        "base_channels": shape["ch"],
        "channel_multiplier": list(shape["ch_mult"]),
        "num_res_blocks": shape["num_res_blocks"],
        "num_embeddings": 300,
        **more,
    }


@pytest.mark.parametrize("number", range(3))
def test_codes_are_those_of_transformers_chameleon(number: int) -> None:
    shape = SHAPES[number]
    own = settings_of(shape, embed_dim=8, latent_channels=16, resolution=256)
    published = transformers.ChameleonVQVAEConfig(
        **own, attn_resolutions=list(shape["attn_resolutions"])
    )
    reference: Any = transformers.ChameleonVQVAE(published)
    reference.eval()
    randomize(reference, seed=number)
    sizes = {"z_channels": 16, "embed_dim": 8, "codebook_size": 300}
    state = {k: v for k, v in reference.state_dict().items() if not k.startswith("post_")}
    tokenizer = build_tokenizer(vqgan(quantizer="vq", **shape, **sizes), file_of(state))
    pixels = noise(2, 2, 24, 32, 3, seed=number)
    with torch.no_grad():
        found = reference.encode(images_of(pixels)).image_tokens
    codes = tokenizer.encode(pixels)
    assert codes.unique().numel() > 3
    assert torch.equal(codes.flatten(), found)


@pytest.mark.parametrize("number", range(3))
def test_codes_and_pixels_are_those_of_transformers_janus(number: int) -> None:
    """Its ``encode`` searches by distance: equal to cosines for the unit vectors of LlamaGen."""
    shape = SHAPES[number]
    own = settings_of(shape, embed_dim=8, latent_channels=16, num_patches=4)
    reference: Any = transformers.JanusVQVAE(transformers.JanusVQVAEConfig(**own))
    reference.eval()
    randomize(reference, seed=number)
    codebook = reference.quantize.embedding.weight.data
    codebook.copy_(F.normalize(codebook, dim=1))
    sizes = {"z_channels": 16, "embed_dim": 8, "codebook_size": 300}
    config = vqgan(quantizer="vq_cosine", **shape, **sizes)
    tokenizer: Any = build_tokenizer(config, file_of(reference.state_dict()), with_decoder=True)
    pixels = noise(2, 2, *[4 * config.traits.spatial_stride] * 2, 3, seed=number)
    with torch.no_grad():
        found = reference.encode(images_of(pixels)).image_tokens
        codes = tokenizer.encode(pixels)
        assert codes.unique().numel() > 3
        assert torch.equal(codes.flatten(), found)
        close(tokenizer._decode(codes.flatten(0, 1)), reference.decode(found.view(4, 16)))


def in_diffusers_layout(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """MoVQGAN's weights by the keys of diffusers' VQModel."""
    renamed = {}
    for key, value in state.items():
        new = re.sub(r"\.mid\.block_(\d)", lambda m: f".mid_block.resnets.{int(m[1]) - 1}", key)
        new = re.sub(r"\.mid\.attn_1\.", ".mid_block.attentions.0.", new)
        new = re.sub(r"^encoder\.down\.(\d)", r"encoder.down_blocks.\1", new)
        up = r"^decoder\.up\.(\d)"
        new = re.sub(up, lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}", new)
        new = re.sub(r"\.block\.(\d)", r".resnets.\1", new)
        new = re.sub(r"\.attn\.(\d)", r".attentions.\1", new)
        new = re.sub(r"\.(up|down)sample\.", r".\1samplers.0.", new)
        new = new.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")
        if ".attentions." in new:
            norm = ".spatial_norm." if new.startswith("decoder") else ".group_norm."
            new = new.replace(".norm.", norm).replace(".proj_out.", ".to_out.0.")
            new = re.sub(r"\.(q|k|v)\.(weight|bias)$", r".to_\1.\2", new)
            is_linear = re.search(r"\.to_(q|k|v|out\.0)\.weight$", new)
            value = value.flatten(1) if is_linear else value
        renamed[new] = value
    return renamed


@pytest.mark.parametrize("number", range(3))
def test_codes_and_pixels_of_movqgan_are_those_of_diffusers(number: int) -> None:
    shape = SHAPES[number]
    widths = [shape["ch"] * multiple for multiple in shape["ch_mult"]]
    plain = len(widths) - 1
    reference = diffusers.VQModel(
        block_out_channels=widths, layers_per_block=shape["num_res_blocks"], latent_channels=4,
        num_vq_embeddings=300, vq_embed_dim=4, norm_type="spatial",
        down_block_types=[*["DownEncoderBlock2D"] * plain, "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * plain],
    ).eval()  # fmt: skip
    config = vqgan(preset="movqgan-67m", codebook_size=300, **shape)
    state = random_state(config, seed=number)
    reference.load_state_dict(in_diffusers_layout(state, len(widths)))
    tokenizer: Any = build_tokenizer(config, file_of(state), with_decoder=True)
    pixels = noise(2, 2, 24, 32, 3, seed=number)
    with torch.no_grad():
        latent = reference.encode(images_of(pixels)).latents
        _, _, (_, _, found) = reference.quantize(latent)
        codes = tokenizer.encode(pixels)
        assert codes.unique().numel() > 3
        assert torch.equal(codes.flatten(), found)
        close(tokenizer._decode(codes.flatten(0, 1)), reference.decode(latent).sample)


def in_llamagen_layout(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    renamed = {"quantize.codebook_used": torch.zeros(65_536)}
    for key, value in state.items():
        new = re.sub(r"^encoder\.down\.", "encoder.conv_blocks.", key)
        up = r"^decoder\.up\.(\d)"
        new = re.sub(up, lambda m: f"decoder.conv_blocks.{levels - 1 - int(m[1])}", new)
        new = re.sub(r"\.block\.(\d)", r".res.\1", new)
        middle = {".mid.block_1.": ".mid.0.", ".mid.attn_1.": ".mid.1.", ".mid.block_2.": ".mid.2."}
        for own, published in middle.items():
            new = new.replace(own, published)
        renamed[new] = value
    return renamed


def published_state(config: VQGANConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random weights with the keys that the published ones of these settings have."""
    state = random_state(config, seed)
    is_llamagen = config.quantizer == "vq_cosine"
    return in_llamagen_layout(state, len(config.ch_mult)) if is_llamagen else state


SMALL: dict[str, Any] = {**SHAPES[1], "z_channels": 16, "embed_dim": 16, "codebook_size": 300}
LFQ: dict[str, Any] = {
    **SHAPES[1], "quantizer": "lfq", "attn_resolutions": (), "z_channels": 10, "embed_dim": 10,
    "codebook_size": 1024,
}  # fmt: skip


def by_dot_product(latent: Tensor, codebook: Tensor) -> Tensor:
    return torch.einsum("bdhw,nd->bnhw", latent, codebook).softmax(1).argmax(1)


def by_cosine(latent: Tensor, codebook: Tensor) -> Tensor:
    return by_dot_product(F.normalize(latent, dim=1), F.normalize(codebook, dim=1))


def by_distance(latent: Tensor, codebook: Tensor) -> Tensor:
    return torch.cdist(latent.movedim(1, -1).double(), codebook.double()).argmin(-1)


@pytest.mark.parametrize(
    ("quantizer", "search"),
    [("vq", by_distance), ("ibq", by_dot_product), ("vq_cosine", by_cosine)],
)
def test_codebooks_are_searched_as_published(
    quantizer: str, search: Callable[[Tensor, Tensor], Tensor]
) -> None:
    config = vqgan(quantizer=quantizer, **SMALL)
    tokenizer: Any = build_tokenizer(config, file_of(published_state(config)), with_decoder=True)
    codebook = tokenizer.quantize.embedding.weight
    codebook.mul_(torch.linspace(0.5, 2, 300).unsqueeze(1))  # lengths differ: each way finds others
    pixels = noise(1, 3, 32, 32, 3)
    latent = tokenizer.quant_conv(tokenizer.encoder(images_of(pixels)))
    found = {way: way(latent, codebook) for way in (by_distance, by_dot_product, by_cosine)}
    codes = tokenizer.encode(pixels).flatten(0, 1)
    assert [way for way, wanted in found.items() if torch.equal(codes, wanted)] == [search]
    vectors = codebook[codes[0]].permute(2, 0, 1).unsqueeze(0)
    if quantizer == "vq_cosine":
        vectors = F.normalize(vectors, dim=1)
    wanted = tokenizer.decoder(tokenizer.post_quant_conv(vectors))
    close(tokenizer._decode(codes[:1]), wanted)


def test_gumbel_takes_the_greatest_logit_without_noise() -> None:
    config = vqgan(quantizer="gumbel", **SMALL)
    state = random_state(config)
    tokenizer: Any = build_tokenizer(config, file_of(state), with_decoder=True)
    pixels = noise(1, 2, 32, 32, 3)
    latent = tokenizer.quant_conv(tokenizer.encoder(images_of(pixels)))
    wanted = F.conv2d(latent, state["quantize.proj.weight"], state["quantize.proj.bias"]).argmax(1)
    codes = tokenizer.encode(pixels)
    assert torch.equal(codes.flatten(0, 1), wanted)
    assert torch.equal(tokenizer.encode(pixels), codes)
    vectors = state["quantize.embed.weight"][wanted].permute(0, 3, 1, 2)
    close(tokenizer._decode(wanted), tokenizer.decoder(tokenizer.post_quant_conv(vectors)))


class OpenMAGVIT2:
    """Open-MAGVIT2's networks as plain arithmetic on its state_dict."""

    def __init__(self, state: dict[str, Tensor], levels: int, blocks: int) -> None:
        self.state, self.levels, self.blocks = state, levels, blocks

    def conv(self, key: str, x: Tensor, **how: Any) -> Tensor:
        weight = self.state[f"{key}.weight"]
        how = {"padding": weight.shape[-1] // 2, **how}
        return F.conv2d(x, weight, self.state.get(f"{key}.bias"), **how)

    def silu_norm(self, key: str, x: Tensor) -> Tensor:
        weight, bias = self.state[f"{key}.weight"], self.state[f"{key}.bias"]
        return F.silu(F.group_norm(x, 32, weight, bias, 1e-6))

    def block(self, key: str, x: Tensor) -> Tensor:
        h = self.conv(f"{key}.conv1", self.silu_norm(f"{key}.norm1", x))
        h = self.conv(f"{key}.conv2", self.silu_norm(f"{key}.norm2", h))
        return h + (x if h.shape == x.shape else self.conv(f"{key}.nin_shortcut", x))

    def end(self, part: str, h: Tensor) -> Tensor:
        return self.conv(f"{part}.conv_out", self.silu_norm(f"{part}.norm_out", h))

    def bits(self, x: Tensor) -> Tensor:
        h = self.conv("encoder.conv_in", x)
        for level in range(self.levels):
            for number in range(self.blocks):
                h = self.block(f"encoder.down.{level}.block.{number}", h)
            if level < self.levels - 1:
                h = self.conv(f"encoder.down.{level}.downsample", h, stride=2)
        for number in range(self.blocks):
            h = self.block(f"encoder.mid_block.{number}", h)
        return self.end("encoder", h) > 0

    def pixels(self, bits: Tensor) -> Tensor:
        z = bits * 2.0 - 1
        h = self.conv("decoder.conv_in", z)
        for number in range(self.blocks):
            h = self.block(f"decoder.mid_block.{number}", h)
        for level in reversed(range(self.levels)):
            spread, mean = (z.var((2, 3)) + 1e-6).sqrt(), z.mean((2, 3))
            gamma, beta = (
                F.linear(given, *(self.state[f"decoder.adaptive.{level}.{name}.{part}"]
                                  for part in ("weight", "bias")))[..., None, None]
                for name, given in (("gamma", spread), ("beta", mean))
            )  # fmt: skip
            h = gamma * F.group_norm(h, 32, eps=1e-6) + beta
            for number in range(self.blocks):
                h = self.block(f"decoder.up.{level}.block.{number}", h)
            if level:
                h = self.conv(f"decoder.up.{level}.upsample.conv1", h)
                count, channels, height, width = h.shape
                h = h.view(count, 2, 2, channels // 4, height, width).permute(0, 3, 4, 1, 5, 2)
                h = h.reshape(count, channels // 4, 2 * height, 2 * width)
        return self.end("decoder", h)


@pytest.mark.parametrize("blocks", [1, 2])
def test_open_magvit2_is_its_published_arithmetic(blocks: int) -> None:
    config = vqgan(**{**LFQ, "num_res_blocks": blocks})
    state = random_state(config)
    assert not [key for key in state if key.startswith("quant") or (key.endswith("conv1.bias")
                and "upsample" not in key)]  # fmt: skip
    tokenizer: Any = build_tokenizer(config, file_of(state), with_decoder=True)
    reference = OpenMAGVIT2(state, len(config.ch_mult), blocks)
    pixels = noise(2, 2, 24, 32, 3)
    bits = reference.bits(images_of(pixels))
    codes = tokenizer.encode(pixels).flatten(0, 1)
    assert codes.unique().numel() > 3
    assert torch.equal(codes, (bits * (2 ** torch.arange(10))[:, None, None]).sum(1))
    close(tokenizer._decode(codes), reference.pixels(bits))


VIDEO: dict[str, Any] = {**LFQ, "convolutions": "causal_3d", "ch_mult": (1, 2, 2)}


def in_video_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the keys of Open-MAGVIT2's video tokenizer."""
    ours = {".downsample.1.": ".downsample.conv_1.", ".conv.": ".conv_1."}
    return {
        re.sub("|".join(map(re.escape, ours)), lambda part: ours[part[0]], key): value
        for key, value in state.items()
    }


def test_codes_and_pixels_of_open_magvit2_video_are_those_of_the_published_code() -> None:
    case = "open_magvit2_video"
    state, wanted = golden.weights(case), golden.outputs(case)
    config = vqgan(**golden.spec(case)["kwargs"])
    assert in_video_layout(random_state(config)).keys() == state.keys()
    tokenizer: Any = build_tokenizer(config, file_of(state), with_decoder=True)
    pixels = golden.pixels(case)
    assert torch.equal(tokenizer.encode(pixels), wanted["codes"])
    with torch.no_grad():
        golden.assert_agree(
            tokenizer.encoder((pixels / 127.5 - 1).permute(0, 4, 1, 2, 3)), wanted["latent"]
        )
        golden.assert_agree(tokenizer._decode(wanted["codes"]), wanted["decoded"])


def test_norms_of_open_magvit2_video_see_later_frames() -> None:
    config = vqgan(**VIDEO)
    tokenizer: Any = build_tokenizer(config, file_of(random_state(config)), with_decoder=True)
    pixels = noise(1, 5, 16, 24, 3)
    codes = tokenizer.encode(pixels)
    assert codes.shape == (1, 3, 4, 6)
    assert tokenizer.decode(codes).shape == pixels.shape
    assert not torch.equal(tokenizer.encode(pixels[:, :3]), codes[:, :2])
    for part in [*tokenizer.encoder.modules()]:  # nothing else sees later frames
        for name in {"norm1", "norm2", "norm_out"} & {*dict(part.named_children())}:
            setattr(part, name, nn.Identity())
    assert torch.equal(tokenizer.encode(pixels[:, :3]), tokenizer.encode(pixels)[:, :2])
    with pytest.raises(ValueError, match="norms span all frames of a chunk"):
        tokenizer.encode_piece(pixels, None)


def test_weights_with_the_keys_of_llamagen_load() -> None:
    config = vqgan(quantizer="vq_cosine", **SMALL)
    state = random_state(config)
    wanted = VQGANTokenizer(config, with_decoder=True)
    wanted.load_state_dict(state)
    published = in_llamagen_layout(state, 3)
    assert {
        "encoder.conv_blocks.1.downsample.conv.weight", "encoder.conv_blocks.2.res.0.conv1.bias",
        "encoder.conv_blocks.2.attn.1.proj_out.weight", "encoder.mid.1.q.weight",
        "decoder.mid.2.norm1.weight", "decoder.conv_blocks.0.attn.2.k.bias",
        "decoder.conv_blocks.0.upsample.conv.weight", "decoder.conv_blocks.2.res.2.conv2.weight",
    } <= published.keys()  # fmt: skip
    assert VQGANTokenizer.renamed(published).keys() == state.keys()
    pixels = noise(1, 2, 16, 24, 3)
    loaded = build_tokenizer(config, file_of(published), with_decoder=True)
    codes = loaded.encode(pixels)
    assert torch.equal(codes, wanted.encode(pixels))
    assert torch.equal(loaded.decode(codes), wanted.decode(codes))
    assert torch.equal(build_tokenizer(config, file_of(published)).encode(pixels), codes)


@pytest.mark.parametrize("preset", [one for one in presets_of("vqgan") if "video" not in one])
def test_every_preset_encodes_frame_by_frame_and_can_be_streamed(preset: str) -> None:
    traits = vqgan(preset=preset).traits
    assert (traits.temporal_stride, traits.layout, traits.why_not_streamable) == (1, "BCHW", None)
    assert traits.bit_order == ("little" if "magvit2" in preset else None)
