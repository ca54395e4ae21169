from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tokpipe.models import (
    AutoencoderDecoder,
    AutoencoderEncoder,
    Decoder,
    Encoder,
    ResnetBlock,
)

SMALL: dict[str, Any] = {
    "ch": 32,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (8,),
    "in_channels": 3,
    "out_ch": 3,
    "resolution": 16,
    "z_channels": 4,
}


def encoder(**changes: Any) -> Any:
    torch.manual_seed(0)
    return AutoencoderEncoder(**(SMALL | changes)).eval()


def decoder(cls: type[AutoencoderDecoder] = AutoencoderDecoder, **changes: Any) -> Any:
    torch.manual_seed(0)
    return cls(**(SMALL | changes)).eval()


@pytest.mark.parametrize(
    ("ch_mult", "blocks", "resamp_with_conv"),
    [((1,), 1, True), ((1, 2), 2, False), ((2, 1, 1), 1, True)],
)
def test_with_vanilla_attention_it_equals_the_vqvae(
    ch_mult: tuple[int, ...], blocks: int, resamp_with_conv: bool
) -> None:
    changes: dict[str, Any] = {
        "resamp_with_conv": resamp_with_conv,
        "ch_mult": ch_mult,
        "num_res_blocks": blocks,
        "attn_resolutions": (16, 4),
    }
    ours, plain = encoder(**changes), Encoder(**(SMALL | changes)).eval()
    plain.load_state_dict(ours.state_dict())
    image, latent = torch.rand(2, 3, 12, 20), torch.rand(2, 4, 3, 5)
    with torch.no_grad():
        assert torch.equal(ours(image), plain(image))
        back, plain_back = decoder(**changes), Decoder(**(SMALL | changes)).eval()
        plain_back.load_state_dict(back.state_dict())
        assert torch.equal(back(latent), plain_back(latent))


def test_tanh_bounds_the_pixels_and_give_pre_end_stops_before_the_last_norm() -> None:
    z = 100 * torch.randn(1, 4, 4, 4)
    plain, bounded, early = decoder(), decoder(tanh_out=True), decoder(give_pre_end=True)
    with torch.no_grad():
        torch.testing.assert_close(bounded(z), plain(z).tanh())
        h = early(z)
        assert h.shape == (1, 32, 8, 8)
        rest = plain.conv_out(nn.functional.silu(plain.norm_out(h)))
        torch.testing.assert_close(rest, plain(z))


class ShoutingBlock(ResnetBlock):
    """A residual block whose result is doubled."""

    def forward(self, x: Tensor, temb: Tensor | None = None, zq: Tensor | None = None) -> Tensor:
        assert temb is None
        return 2 * super().forward(x, temb, zq)


class ScaledConv(nn.Conv2d):
    """A convolution with a gain, which a subclass of the decoder may ask for."""

    def __init__(self, *args: Any, gain: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * super().forward(x)


def tagged_attention(channels: int, *, attn_type: str) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, channels, 1), nn.Dropout(0.0 if attn_type else 1.0))


class OwnBlocks(AutoencoderDecoder):
    def _make_resblock(self) -> Callable[..., nn.Module]:
        return ShoutingBlock


class OwnAttention(AutoencoderDecoder):
    def _make_attn(self) -> Callable[..., nn.Module]:
        return tagged_attention


class OwnConv(AutoencoderDecoder):
    def __init__(self, *, gain: float = 3.0, **kwargs: Any) -> None:
        self.gain = gain  # before the blocks are made, which read it
        super().__init__(**kwargs)

    def _make_conv(self) -> Callable[..., nn.Module]:
        return partial(ScaledConv, gain=self.gain)


def test_a_subclass_makes_every_residual_block() -> None:
    own, stock = decoder(OwnBlocks, num_res_blocks=2), decoder(num_res_blocks=2)
    blocks = [own.mid.block_1, own.mid.block_2, *own.up[0].block, *own.up[1].block]
    assert [type(block) for block in blocks] == [ShoutingBlock] * 8
    assert not [module for module in own.modules() if type(module) is ResnetBlock]
    stock.load_state_dict(own.state_dict())
    z = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        assert not torch.allclose(own(z), stock(z))


def test_a_subclass_makes_every_attention_and_gets_its_kind() -> None:
    asked: list[tuple[int, str]] = []

    class Recording(OwnAttention):
        def _make_attn(self) -> Callable[..., nn.Module]:
            def make(channels: int, *, attn_type: str) -> nn.Module:
                asked.append((channels, attn_type))
                return tagged_attention(channels, attn_type=attn_type)

            return make

    own = decoder(Recording, attn_type="linear")
    assert asked == [(64, "linear")] * 3  # the middle, and two blocks of the coarsest level
    assert {key for key in own.state_dict() if "attn" in key} == {
        f"{place}.0.{name}"
        for place in ("mid.attn_1", "up.1.attn.0", "up.1.attn.1")
        for name in ("weight", "bias")
    }
    with torch.no_grad():
        assert own(torch.randn(1, 4, 3, 5)).shape == (1, 3, 6, 10)


def test_a_subclass_makes_the_last_convolution_and_no_other() -> None:
    own, stock = decoder(OwnConv, gain=3.0), decoder()
    assert [name for name, m in own.named_modules() if type(m) is ScaledConv] == ["conv_out"]
    assert own.get_last_layer() is own.conv_out.weight
    stock.load_state_dict(own.state_dict())
    z = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(own(z), 3 * stock(z))


def test_the_gradient_at_the_last_layer_can_balance_losses() -> None:
    network = decoder().train()
    loss = network(torch.randn(1, 4, 4, 4)).square().mean()
    (gradient,) = torch.autograd.grad(loss, network.get_last_layer())
    assert gradient.shape == (3, 32, 3, 3)
    assert gradient.norm() > 0
