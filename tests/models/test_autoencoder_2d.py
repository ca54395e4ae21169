import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.checks import difference
from tests.models.networks import small
from tokpipe.models import AttnBlock, Downsample, ResnetBlock, SpatialNorm, Upsample
from tokpipe.models.blocks import ResnetBlock3D
from tokpipe.models.networks_2d import Decoder, Encoder, MOVQDecoder


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("size", [(9, 15), (33, 12), (4, 5)])
def test_sizes_round_down_to_multiples_of_the_stride(stride: int, size: tuple[int, int]) -> None:
    for with_conv in (True, False):
        encoder, decoder = (
            small(cls, ch_mult=(1,) * stride.bit_length(), resamp_with_conv=with_conv)
            for cls in (Encoder, Decoder)
        )
        assert encoder.spatial_stride == decoder.spatial_stride == stride
        rows, columns = size[0] // stride, size[1] // stride
        with torch.no_grad():
            latent = encoder(torch.zeros(2, 3, *size))
            assert latent.shape == (2, 4, rows, columns)
            assert decoder(latent).shape == (2, 3, rows * stride, columns * stride)


def test_the_last_latent_sees_the_leftover_row() -> None:
    down, image = Downsample(32, with_conv=True), torch.randn(1, 32, 9, 8)
    edited = image.clone()
    edited[:, :, 8] += 1.0
    with torch.no_grad():
        same = (down(image) == down(edited)).all(dim=3).all(dim=1)
    assert same.tolist() == [[True, True, True, False]]


def test_images_too_small_for_one_latent_are_rejected() -> None:
    encoder = small(Encoder, ch_mult=(1, 1, 1))
    assert encoder(torch.zeros(1, 3, 4, 4)).shape == (1, 4, 1, 1)
    with pytest.raises(ValueError, match=r"frames of 3x8 are smaller .* covers 4x4"):
        encoder(torch.zeros(1, 3, 3, 8))


Shape = tuple[int, ...]
FINE, HALF = (32, 16, 12), (64, 8, 6)
MID = "mid_block_1 mid_attn_1 mid_block_2"
ENCODER_FEATURES = [
    ("conv_in down0_block0", FINE),
    ("down0_downsample", (32, 8, 6)),
    (f"down1_block0 down1_attn0 {MID} norm_out nonlinearity", HALF),
    ("conv_out", (4, 8, 6)),
]
DECODER_FEATURES = [
    (f"conv_in {MID} up_1_block_0 up_1_attn_0 up_1_block_1 up_1_attn_1", HALF),
    ("up_1_upsample", (64, 16, 12)),
    ("up_0_block_0 up_0_block_1 norm_out nonlinearity", FINE),
    ("conv_out", (3, 16, 12)),
]


@pytest.mark.parametrize(
    ("cls", "inputs", "published"),
    [
        (Encoder, [(2, 3, 16, 12)], ENCODER_FEATURES),
        (Decoder, [(2, 4, 8, 6)], DECODER_FEATURES),
        (MOVQDecoder, [(2, 4, 8, 6), (2, 4, 8, 6)], DECODER_FEATURES),
    ],
)
def test_features_have_their_published_names_and_end_in_the_output(
    cls: type[nn.Module], inputs: list[Shape], published: list[tuple[str, Shape]]
) -> None:
    shapes = {name: shape for names, shape in published for name in names.split()}
    module, given = small(cls), [torch.randn(shape) for shape in inputs]
    with torch.no_grad():
        plain = module(*given)
        found, features = module.forward_with_features_output(*given)
    assert torch.equal(found, plain)
    assert features["conv_out"] is found
    # In the order of the computation.
    assert [(name, (*h.shape[1:],)) for name, h in features.items()] == [*shapes.items()]
    assert torch.equal(features["nonlinearity"], F.silu(features["norm_out"]))
    assert torch.equal(module.conv_out(features["nonlinearity"]), plain)


def test_give_pre_end_stops_before_the_last_norm() -> None:
    decoder, z = small(Decoder), torch.randn(1, 4, 8, 6)
    with torch.no_grad():
        _, whole = decoder.forward_with_features_output(z)
        decoder.give_pre_end = True
        found, features = decoder.forward_with_features_output(z)
        assert torch.equal(decoder(z), whole["up_0_block_1"])
    assert torch.equal(found, whole["up_0_block_1"])
    assert list(features) == list(whole)[:-3]


def test_tanh_bounds_the_pixels_and_leaves_the_features_of_give_pre_end_alone() -> None:
    z = 100 * torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(small(Decoder, tanh_out=True)(z), small(Decoder)(z).tanh())
        early = small(Decoder, give_pre_end=True)(z)
        assert torch.equal(small(Decoder, give_pre_end=True, tanh_out=True)(z), early)


def test_activations_are_freed_after_their_last_use() -> None:
    encoder = small(Encoder, ch_mult=(1, 1, 1), num_res_blocks=2)
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


@pytest.mark.parametrize(("cls", "frames"), [(ResnetBlock, ()), (ResnetBlock3D, (3,))])
def test_a_block_adds_its_embedding_between_the_rounds(cls: Any, frames: tuple[int, ...]) -> None:
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
def test_the_shortcut_is_a_convolution_where_channels_change(
    cls: Any, inner: str, arguments: dict[str, Any], shortcut: str | None, size: int | None
) -> None:
    block = cls(in_channels=32, dropout=0.0, temb_channels=0, **arguments)
    state = block.state_dict()
    kept = [key for key in state if "cut" in key and "weight" in key]
    found = {key.split(".")[0]: len(state[key][0, 0, 0]) for key in kept}
    assert found == ({} if shortcut is None else {shortcut: size})
    assert not [key for key in state if "temb" in key]
    with torch.no_grad():
        state[f"conv2.{inner}weight"].zero_()
        state[f"conv2.{inner}bias"].zero_()
        x = torch.randn((1, 32, 3, 4, 4) if inner else (1, 32, 4, 4))
        wanted = x if shortcut is None else getattr(block, shortcut)(x)
        torch.testing.assert_close(block(x), wanted)


def test_dropout_only_acts_in_training() -> None:
    encoder, image = small(Encoder, dropout=0.5), torch.rand(1, 3, 8, 8)
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


def test_torch_compile_sees_one_graph() -> None:
    """On devices other than CPUs, where the code chooses kernels itself."""
    with torch.device("meta"):
        encoder: nn.Module = small(Encoder)
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1, 3, 16, 16, device="meta")).shape == (1, 4, 8, 8)


@pytest.mark.parametrize("add_conv", [False, True])
@pytest.mark.parametrize("size", [(3, 3), (6, 7), (9, 14), (5, 20)])
def test_a_spatial_norm_scales_and_shifts_by_the_resized_latent(
    add_conv: bool, size: tuple[int, int]
) -> None:
    norm = SpatialNorm(32, 3, add_conv=add_conv, num_groups=8, eps=1e-3)
    f, zq = torch.randn(2, 32, 6, 7), torch.randn(2, 3, *size)
    state = norm.state_dict()
    with torch.no_grad():
        found = norm(f, zq)
        zq = F.interpolate(zq, size=(6, 7), mode="nearest")
        if add_conv:
            zq = F.conv2d(zq, state["conv.weight"], state["conv.bias"], padding=1)
        scale = F.conv2d(zq, state["conv_y.weight"], state["conv_y.bias"])
        shift = F.conv2d(zq, state["conv_b.weight"], state["conv_b.bias"])
        torch.testing.assert_close(found, F.group_norm(f, 8, eps=1e-3) * scale + shift)


def test_freezing_the_norm_layer_leaves_only_its_parameters_out_of_training() -> None:
    norm = SpatialNorm(32, 3, freeze_norm_layer=True, num_groups=32)
    frozen = {name for name, p in norm.named_parameters() if not p.requires_grad}
    assert frozen == {"norm_layer.weight", "norm_layer.bias"}
    norm(torch.randn(1, 32, 4, 4), torch.randn(1, 3, 2, 2)).sum().backward()
    assert norm.conv_y.weight.grad is not None
    assert all(p.requires_grad for p in SpatialNorm(32, 3, num_groups=32).parameters())


def test_another_norm_layer_gets_its_arguments() -> None:
    def batch_norm(num_channels: int, momentum: float) -> nn.Module:
        return nn.BatchNorm2d(num_channels, momentum=momentum)

    norm = SpatialNorm(32, 3, batch_norm, momentum=0.5)
    assert isinstance(norm.norm_layer, nn.BatchNorm2d)
    assert norm.norm_layer.momentum == 0.5


def test_zq_ch_defaults_to_z_channels() -> None:
    state = small(MOVQDecoder).state_dict()
    assert {len(state[key][0]) for key in state if "conv_y.weight" in key} == {4}
    with torch.no_grad():
        shown = small(MOVQDecoder, zq_ch=6)(torch.randn(2, 4, 5, 7), torch.randn(2, 6, 5, 7))
    assert shown.shape == (2, 3, 10, 14)


Z = torch.zeros(1, 4, 4, 4)


@pytest.mark.parametrize(
    ("z", "zq", "problem"),
    [
        (Z, Z[:, 1:], r"zq is .*\(1, 3, 4, 4\).*\(B, 4, H"),
        (Z, Z[..., :0], r"zq is .* of \(1, 4, 4, 0\)"),
        (Z.expand(2, -1, -1, -1), Z, "z has 2 images and zq 1"),
        (Z, Z.half(), "zq is torch.float16"),
        (Z, None, "built with zq_ch, .* pass zq"),
    ],
)
@pytest.mark.parametrize("add_conv", [False, True])
def test_latents_that_do_not_fit_are_rejected(
    z: Tensor, zq: Tensor | None, problem: str, add_conv: bool
) -> None:
    with pytest.raises(ValueError, match=problem):
        small(MOVQDecoder, add_conv=add_conv)(z, zq)


class OwnBlock(ResnetBlock):
    def forward(
        self, x: Tensor, temb: Tensor | None = None, zq: Tensor | None = None, *stream: Any
    ) -> Tensor:
        assert temb is None
        assert not stream
        return 2 * super().forward(x, temb, zq)


class OwnConv(nn.Conv2d):
    def __init__(self, *args: Any, gain: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * super().forward(x)


class OwnParts(Decoder):
    def __init__(self, *, own: str, **kwargs: Any) -> None:
        self.own = own  # before the parts are made, which depend on it
        self.asked: list[tuple[int, str]] = []
        super().__init__(**kwargs)

    def _make_resblock(self) -> Callable[..., nn.Module]:
        return OwnBlock if self.own == "blocks" else super()._make_resblock()

    def _make_conv(self) -> Callable[..., nn.Module]:
        return partial(OwnConv, gain=3.0) if self.own == "conv" else super()._make_conv()

    def _make_attn(self) -> Callable[..., nn.Module]:
        def make(channels: int, *, attn_type: str) -> nn.Module:
            self.asked.append((channels, attn_type))
            return nn.Sequential(nn.Conv2d(channels, channels, 1))

        return make if self.own == "attention" else super()._make_attn()


def test_a_subclass_makes_every_residual_block() -> None:
    own, stock = small(OwnParts, own="blocks", num_res_blocks=2), small(Decoder, num_res_blocks=2)
    blocks = [own.mid.block_1, own.mid.block_2, *own.up[0].block, *own.up[1].block]
    assert [type(block) for block in blocks] == [OwnBlock] * 8
    assert not [module for module in own.modules() if type(module) is ResnetBlock]
    stock.load_state_dict(own.state_dict())
    with torch.no_grad():
        assert not torch.allclose(own(Z), stock(Z))


def test_a_subclass_makes_every_attention_and_gets_its_kind() -> None:
    own = small(OwnParts, own="attention", attn_type="linear")
    assert own.asked == [(64, "linear")] * 3  # the middle, and two blocks of the coarsest level
    assert {key for key in own.state_dict() if "attn" in key} == {
        f"{place}.0.{name}"
        for place in ("mid.attn_1", "up.1.attn.0", "up.1.attn.1")
        for name in ("weight", "bias")
    }
    with torch.no_grad():
        assert own(torch.randn(1, 4, 3, 5)).shape == (1, 3, 6, 10)


def test_a_subclass_makes_only_the_last_convolution_whose_gradient_balances_losses() -> None:
    own, stock = small(OwnParts, own="conv"), small(Decoder)
    assert [name for name, m in own.named_modules() if type(m) is OwnConv] == ["conv_out"]
    assert own.get_last_layer() is own.conv_out.weight
    stock.load_state_dict(own.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(own(Z), 3 * stock(Z))
    loss = own.train()(torch.randn(1, 4, 4, 4)).square().mean()
    (gradient,) = torch.autograd.grad(loss, own.get_last_layer())
    assert gradient.shape == (3, 32, 3, 3)
    assert gradient.norm() > 0


def test_a_seed_draws_the_weights_in_the_published_order() -> None:
    network = small(Encoder)  # with seed 0
    torch.manual_seed(0)
    nn.Conv2d(3, 32, 3)  # conv_in; the blocks of a level come next, then its resampler
    first = nn.Conv2d(32, 32, 3)
    assert torch.equal(network.down[0].block[0].conv1.weight, first.weight)
