from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.checks import difference
from tokpipe.models.blocks import ResnetBlock3D
from tokpipe.models.blocks_2d import AttnBlock, Downsample, ResnetBlock, Upsample
from tokpipe.models.convolution import Conv2d
from tokpipe.models.movq_2d import MOVQDecoder
from tokpipe.models.vqvae_2d import Decoder, Encoder

SMALL: dict[str, Any] = {
    "ch": 32,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (8,),
    "resolution": 16,
    "z_channels": 4,
}


def small_encoder(**changes: Any) -> Encoder:
    """Two levels, attention at the coarser; random weights from the current seed."""
    return Encoder(**(SMALL | {"in_channels": 3, "double_z": False} | changes)).eval()


def small_decoder(**changes: Any) -> Decoder:
    return Decoder(**(SMALL | {"out_ch": 3} | changes)).eval()


def small_movq(**changes: Any) -> MOVQDecoder:
    return MOVQDecoder(**(SMALL | {"out_ch": 3} | changes)).eval()


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("size", [(8, 8), (9, 15), (33, 12), (4, 5)])
def test_sizes_are_rounded_down_to_multiples_of_the_stride(
    stride: int, size: tuple[int, int]
) -> None:
    ch_mult = (1,) * (stride.bit_length())
    for with_conv in (True, False):
        changes = {"ch_mult": ch_mult, "resamp_with_conv": with_conv}
        encoder, decoder = small_encoder(**changes), small_decoder(**changes)
        assert encoder.spatial_stride == decoder.spatial_stride == stride
        rows, columns = size[0] // stride, size[1] // stride
        with torch.no_grad():
            latent = encoder(torch.zeros(2, 3, *size))
            assert latent.shape == (2, 4, rows, columns)
            assert decoder(latent).shape == (2, 3, rows * stride, columns * stride)


def test_the_last_latent_sees_the_row_left_over() -> None:
    torch.manual_seed(0)
    down, image = Downsample(32, with_conv=True), torch.randn(1, 32, 9, 8)
    edited = image.clone()
    edited[:, :, 8] += 1.0
    with torch.no_grad():
        same = (down(image) == down(edited)).all(dim=3).all(dim=1)
    assert same.tolist() == [[True, True, True, False]]


def test_images_too_small_for_one_latent_are_rejected() -> None:
    encoder = small_encoder(ch_mult=(1, 1, 1))
    assert encoder(torch.zeros(1, 3, 4, 4)).shape == (1, 4, 1, 1)
    with pytest.raises(ValueError, match=r"images of 3x8 are halved .* at least 4 rows"):
        encoder(torch.zeros(1, 3, 3, 8))


FINE, HALF = (32, 16, 12), (64, 8, 6)
MID = dict.fromkeys(("mid_block_1", "mid_attn_1", "mid_block_2"), HALF)
ENCODER_FEATURES = {
    "conv_in": FINE,
    "down0_block0": FINE,
    "down0_downsample": (32, 8, 6),
    "down1_block0": HALF,
    "down1_attn0": HALF,
    **MID,
    "norm_out": HALF,
    "nonlinearity": HALF,
    "conv_out": (4, 8, 6),
}
DECODER_FEATURES = {
    "conv_in": HALF,
    **MID,
    "up_1_block_0": HALF,
    "up_1_attn_0": HALF,
    "up_1_block_1": HALF,
    "up_1_attn_1": HALF,
    "up_1_upsample": (64, 16, 12),
    "up_0_block_0": FINE,
    "up_0_block_1": FINE,
    "norm_out": FINE,
    "nonlinearity": FINE,
    "conv_out": (3, 16, 12),
}


@pytest.mark.parametrize(
    ("module", "inputs", "shapes"),
    [
        (small_encoder(), [(2, 3, 16, 12)], ENCODER_FEATURES),
        (small_decoder(), [(2, 4, 8, 6)], DECODER_FEATURES),
        (small_movq(), [(2, 4, 8, 6), (2, 4, 8, 6)], DECODER_FEATURES),
    ],
)
def test_features_have_their_published_names_and_end_in_the_output(
    module: Any, inputs: list[tuple[int, ...]], shapes: dict[str, tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    given = [torch.randn(shape) for shape in inputs]
    with torch.no_grad():
        plain = module(*given)
        found, features = module.forward_with_features_output(*given)
    assert torch.equal(found, plain)
    assert features["conv_out"] is found
    assert {name: tuple(h.shape[1:]) for name, h in features.items()} == shapes
    assert list(features) == list(shapes)  # in the order of the computation
    assert torch.equal(features["nonlinearity"], F.silu(features["norm_out"]))
    assert torch.equal(module.conv_out(features["nonlinearity"]), plain)


def test_give_pre_end_stops_before_the_last_norm() -> None:
    torch.manual_seed(0)
    decoder, z = small_decoder(), torch.randn(1, 4, 8, 6)
    with torch.no_grad():
        _, whole = decoder.forward_with_features_output(z)
        decoder.give_pre_end = True
        found, features = decoder.forward_with_features_output(z)
        assert torch.equal(decoder(z), whole["up_0_block_1"])
    assert torch.equal(found, whole["up_0_block_1"])
    assert list(features) == list(whole)[:-3]


def test_activations_are_freed_once_they_were_read() -> None:
    encoder = small_encoder(ch_mult=(1, 1, 1), num_res_blocks=2)
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def after(_module: nn.Module, _args: Any, output: Tensor) -> None:
        made.append(weakref.ref(output))
        alive.append(sum(ref() is not None for ref in made))

    for module in encoder.modules():
        if isinstance(module, (ResnetBlock, AttnBlock, Downsample)):
            module.register_forward_hook(after)
    with torch.no_grad():
        encoder(torch.zeros(1, 3, 16, 16))
    # What a block read and what it made; in the middle, whose blocks are the smallest, also what
    # went into the middle. The published encoder ends with all 13.
    assert alive == [1, *[2] * 10, 3, 3]


def test_gradients_agree_with_finite_differences() -> None:
    torch.manual_seed(0)
    block = ResnetBlock(in_channels=32, dropout=0.0, temb_channels=3).double()
    attention = AttnBlock(32).double()
    x = torch.randn(1, 32, 2, 3, dtype=torch.float64, requires_grad=True)
    temb = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, temb: attention(block(x, temb)), (x, temb), fast_mode=True
    )


@pytest.mark.parametrize("zq_ch", [None, 4])
def test_attention_in_float16_never_computes_unscaled_products(zq_ch: int | None) -> None:
    """They would reach 160,000, and float16 ends at 65,504."""
    torch.manual_seed(0)
    block, x = AttnBlock(64, zq_ch), torch.randn(1, 64, 3, 3)
    arguments = [x] if zq_ch is None else [x, torch.randn(1, 4, 3, 3)]
    with torch.no_grad():
        for conv in (block.q, block.k):
            conv.weight.zero_()
            conv.bias.fill_(50.0)  # type: ignore[union-attr]
        assert torch.finfo(torch.float16).max < 64 * 50.0**2
        wide = block(*arguments)
        narrow = block.half()(*[argument.half() for argument in arguments])
    assert difference(narrow, wide) < 0.01


def test_attention_weights_the_values_of_all_positions() -> None:
    torch.manual_seed(0)
    block, x = AttnBlock(32).double(), torch.randn(2, 32, 3, 5, dtype=torch.float64)
    with torch.no_grad():
        found = block(x)
        h = F.group_norm(x, 32, block.norm.weight, block.norm.bias, 1e-6)  # type: ignore[arg-type]
        q, k, v = (conv(h).flatten(2) for conv in (block.q, block.k, block.v))
        weights = torch.einsum("bci,bcj->bij", q, k).mul(32**-0.5).softmax(dim=2)
        mixed = torch.einsum("bij,bcj->bci", weights, v).view_as(x)
        torch.testing.assert_close(found, x + block.proj_out(mixed))


@pytest.mark.parametrize(("cls", "frames"), [(ResnetBlock, ()), (ResnetBlock3D, (3,))])
def test_a_block_adds_its_embedding_between_the_rounds(cls: Any, frames: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    block = cls(in_channels=32, out_channels=64, dropout=0.0, temb_channels=16)
    x, temb = torch.randn(2, 32, *frames, 4, 4), torch.randn(2, 16)
    with torch.no_grad():
        h = block.conv1(F.silu(block.norm1(x)))
        h = h + block.temb_proj(F.silu(temb)).view(2, 64, *(1 for _ in x.shape[2:]))
        h = block.conv2(F.silu(block.norm2(h)))
        torch.testing.assert_close(block(x, temb), block.nin_shortcut(x) + h)
        assert not torch.allclose(block(x), block(x, temb))


@pytest.mark.parametrize(("cls", "inner"), [(ResnetBlock, ""), (ResnetBlock3D, "conv.")])
@pytest.mark.parametrize(
    ("arguments", "shortcut", "size"),
    [
        ({"out_channels": 64}, "nin_shortcut", 1),
        ({"out_channels": 64, "conv_shortcut": True}, "conv_shortcut", 3),
        ({"out_channels": 32, "conv_shortcut": True}, None, None),
        ({}, None, None),
    ],
)
def test_the_shortcut_convolves_where_channels_change(
    cls: Any, inner: str, arguments: dict[str, Any], shortcut: str | None, size: int | None
) -> None:
    torch.manual_seed(0)
    block = cls(in_channels=32, dropout=0.0, temb_channels=0, **arguments)
    state = block.state_dict()
    found = {
        key.split(".")[0]: len(state[key][0, 0, 0])
        for key in state
        if "cut" in key and "weight" in key
    }
    assert found == ({} if shortcut is None else {shortcut: size})
    assert not [key for key in state if "temb" in key]
    with torch.no_grad():
        state[f"conv2.{inner}weight"].zero_()
        state[f"conv2.{inner}bias"].zero_()
        x = torch.randn((1, 32, 3, 4, 4) if inner else (1, 32, 4, 4))
        wanted = x if shortcut is None else getattr(block, shortcut)(x)
        torch.testing.assert_close(block(x), wanted)


def test_dropout_only_acts_in_training() -> None:
    torch.manual_seed(0)
    encoder, image = small_encoder(dropout=0.5), torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(encoder(image), encoder(image))
        encoder.train()
        assert not torch.equal(encoder(image), encoder(image))


def test_upsampling_repeats_and_downsampling_averages() -> None:
    x = torch.arange(2 * 4 * 6, dtype=torch.float32).view(1, 2, 4, 6)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.equal(Upsample(2, with_conv=False)(x), repeated)
    averaged = x.unflatten(2, (2, 2)).unflatten(4, (3, 2)).mean(dim=(3, 5))
    assert torch.equal(Downsample(2, with_conv=False)(x), averaged)
    assert not Upsample(2, False).state_dict() | Downsample(2, False).state_dict()


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"padding": 1}, {"dilation": 2}])
def test_conv2d_agrees_with_pytorch(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conv, x = Conv2d(3, 5, 3, **options), torch.randn(2, 3, 9, 8)
    wanted = F.conv2d(x, conv.weight, conv.bias, **options)
    torch.testing.assert_close(conv(x), wanted)
    assert conv(x).is_contiguous(memory_format=torch.channels_last)


def test_torch_compile_sees_one_graph() -> None:
    """On devices other than CPUs, where the code chooses kernels itself."""
    with torch.device("meta"):
        encoder = small_encoder()
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1, 3, 16, 16, device="meta")).shape == (1, 4, 8, 8)
