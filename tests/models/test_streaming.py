"""Pieces of a clip agree with the whole, and no frame sees a later one."""

import pickle
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.models import golden_fixtures as golden
from tests.models.checks import assert_same_bits, changed_frames
from tests.models.networks import small
from tokpipe.models.autoencoder_3d import Encoder3D, MOVQDecoder3D
from tokpipe.models.blocks import AttnBlock2D, DownSample3D, ResnetBlock3D, Upsample3D
from tokpipe.models.causal_conv import CausalConv3d, PadMode
from tokpipe.models.group_norm import FrameGroupNorm
from tokpipe.models.streaming import Stream, StreamState

CAUSAL: list[PadMode] = ["first", "constant"]


Network3D = Encoder3D | MOVQDecoder3D


def streamable(cls: type[Network3D], **changes: Any) -> Any:
    """Three levels, r = 4, s = 4, causal unless changed; the same weights every time."""
    network = small(cls, **({"norm": "frame"} | changes)).requires_grad_(False)
    golden.fill(network)
    return network


encoder, decoder = partial(streamable, Encoder3D), partial(streamable, MOVQDecoder3D)
RESNET = partial(ResnetBlock3D, in_channels=32, dropout=0.0, norm="frame")
NETWORKS: dict[str, Callable[..., Any]] = {"encoder": encoder, "decoder": decoder}


def clip_for(network: Network3D, steps: int, batch: int = 1) -> Tensor:
    """Random frames for ``steps`` latent frames, 8 x 12 in pixels; or that many latent frames."""
    torch.manual_seed(steps)
    if isinstance(network, MOVQDecoder3D):
        return torch.rand(batch, 4, steps, 2, 3) * 2 - 1
    return torch.rand(batch, 3, 1 + network.temporal_stride * (steps - 1), 8, 12) * 2 - 1


def cut(network: Network3D, x: Tensor, steps: list[int]) -> list[Tensor]:
    """Cut ``x`` into pieces of ``steps`` latent frames."""
    if isinstance(network, MOVQDecoder3D):
        return list(x.split(steps, dim=2))
    first, *later = (network.temporal_stride * step for step in steps)
    return list(x.split([1 + first - network.temporal_stride, *later], dim=2))


def in_pieces(network: Network3D, pieces: list[Tensor]) -> Tensor:
    state, outputs = None, []
    for piece in pieces:
        output, state = network.stream(piece, state)
        outputs.append(output)
    return torch.cat(outputs, dim=2)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(("pad_mode", "attention"), [("first", (16, 8)), ("constant", ())])
@settings(max_examples=6)
@given(steps=st.lists(st.integers(1, 2), min_size=1, max_size=4))
def test_pieces_agree_with_the_whole_wherever_it_is_cut(
    kind: str, pad_mode: PadMode, attention: tuple[int, ...], steps: list[int]
) -> None:
    network = NETWORKS[kind](pad_mode=pad_mode, attn_resolutions=attention)
    x = clip_for(network, sum(steps), batch=2)
    pieces = cut(network, x, steps)
    torch.testing.assert_close(in_pieces(network, pieces), network(x), atol=1e-5, rtol=0)
    network, x, pieces = network.double(), x.double(), [piece.double() for piece in pieces]
    torch.testing.assert_close(in_pieces(network, pieces), network(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("decoder", {"post_quant_conv": True, "zq_ch": 4, "z_channels": 6}),
        ("decoder", {"add_conv": True, "attn_resolutions": (16,)}),
        ("decoder", {"give_pre_end": True}),
        ("decoder", {"temporal_compress_times": 2}),
        ("decoder", {"temporal_compress_times": 1}),
        ("decoder", {"resamp_with_conv": False}),
        ("encoder", {"temporal_compress_times": 2}),
        ("encoder", {"temporal_compress_times": 1, "resamp_with_conv": False}),
    ],
    ids=str,
)
def test_networks_of_every_kind_stream(kind: str, changes: dict[str, Any]) -> None:
    network = NETWORKS[kind](**changes).double()
    x = clip_for(network, 6).double()
    for steps in ([1] * 6, [3, 1, 2], [2, 4]):
        found = in_pieces(network, cut(network, x, steps))
        torch.testing.assert_close(found, network(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_stream_too(kind: str, dtype: torch.dtype) -> None:
    network = NETWORKS[kind](attn_resolutions=(8,))
    x = clip_for(network, 5)
    wide = network(x)
    found = in_pieces(network.to(dtype), cut(network, x.to(dtype), [2, 1, 2]))
    assert found.dtype == dtype
    assert (found.float() - wide).norm() < 0.03 * wide.norm()
    torch.testing.assert_close(found, network(x.to(dtype)), atol=2e-2, rtol=2e-2)


def layer_in_pieces(layer: nn.Module, pieces: Iterable[Tensor], *others: Tensor | None) -> Tensor:
    state, outputs = None, []
    for piece in pieces:
        stream = Stream(layer, state)
        outputs.append(layer(piece, *others, stream))
        state = stream.state()
    return torch.cat(outputs, 2)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 2), (2, 1), (2, 3), (3, 1)])
def test_strided_and_dilated_convolutions_stream(stride: int, dilation: int) -> None:
    x = torch.rand(2, 3, 12, 4, 5, dtype=torch.float64)
    conv = CausalConv3d(3, 4, 3, "first", stride=stride, dilation=dilation).double()
    found = layer_in_pieces(conv.requires_grad_(False), x.split(6, dim=2))
    torch.testing.assert_close(found, conv(x), atol=1e-12, rtol=0)


def test_shortcuts_by_convolution_and_embeddings_stream() -> None:
    block = RESNET(out_channels=64, conv_shortcut=True, temb_channels=8, pad_mode="first").double()
    golden.fill(block.requires_grad_(False))
    x, temb = torch.rand(2, 32, 6, 4, 4).double(), torch.rand(2, 8).double()
    found = layer_in_pieces(block, x.split([1, 3, 2], dim=2), temb, None)
    torch.testing.assert_close(found, block(x, temb), atol=1e-12, rtol=0)


def size_of(state: StreamState) -> int:
    """Bytes of the memory that a state keeps alive."""
    return sum(tensor.untyped_storage().nbytes() for tensor in state.tensors)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_state_is_as_large_after_thirty_pieces_as_after_one(kind: str) -> None:
    network = NETWORKS[kind](attn_resolutions=(8,))
    x = clip_for(network, 31)
    sizes, state = [], None
    for piece in cut(network, x, [1] * 31):
        _, state = network.stream(piece, state)
        sizes.append(size_of(state))
    assert len(set(sizes)) == 1
    assert state is not None
    own = sum(tensor.numel() * tensor.element_size() for tensor in state.tensors)
    assert own == size_of(state) <= len(pickle.dumps(state)) < own + 20_000


def test_a_state_has_no_gradient_history() -> None:
    """Otherwise the whole clip would stay in memory."""
    network = encoder().requires_grad_()
    _, state = network.stream(clip_for(network, 1), None)
    assert not any(tensor.requires_grad for tensor in state.tensors)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_state_can_be_pickled_moved_and_used_twice(kind: str) -> None:
    network = NETWORKS[kind]()
    first, second, third = cut(network, clip_for(network, 4), [1, 1, 2])
    _, state = network.stream(first, None)
    kept = [tensor.clone() for tensor in state.tensors]
    wanted, _ = network.stream(second, state)
    other, _ = network.stream(third, state)
    assert other.shape[2] == 2 * wanted.shape[2]
    travelled: StreamState = pickle.loads(pickle.dumps(state)).to("cpu")
    assert torch.equal(network.stream(second, travelled)[0], wanted)
    assert all(map(torch.equal, kept, state.tensors))
    moved = state.to("meta")
    assert {tensor.device.type for tensor in moved.tensors} == {"meta"}
    assert moved.network == state.network


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("wrong", ["batch", "rows", "dtype", "device"])
def test_the_state_of_another_clip_is_rejected(kind: str, wrong: str) -> None:
    network = NETWORKS[kind]()
    first, second = cut(network, clip_for(network, 2), [1, 1])
    _, state = network.stream(first, None)
    if wrong == "batch":
        second = second.expand(2, -1, -1, -1, -1)
    elif wrong == "rows":
        second = second.repeat(1, 1, 1, 2, 1)
    elif wrong == "dtype":
        network, second = network.bfloat16(), second.bfloat16()
    else:
        state = state.to("meta")
    with pytest.raises(ValueError, match=r"carries .* where this piece needs .* start a clip"):
        network.stream(second, state)


def test_the_state_of_another_network_is_rejected() -> None:
    ours, other = encoder(), encoder(num_res_blocks=2)
    first, second = cut(ours, clip_for(ours, 2), [1, 1])
    _, state = other.stream(first, None)
    with pytest.raises(ValueError, match=r"made by Encoder3D of [\d,]+ parameters, but passed to"):
        ours.stream(second, state)
    renamed = StreamState(ours.stream(first, None)[1].network, state.tensors)
    with pytest.raises(ValueError, match="carries"):
        ours.stream(second, renamed)


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_that_see_later_frames_say_why_they_do_not_stream(kind: str) -> None:
    clip_norm, reflect = NETWORKS[kind](norm="clip"), NETWORKS[kind](pad_mode="reflect")
    for network, reason in [(clip_norm, "norm='clip'"), (reflect, "pad_mode .*reflect")]:
        with pytest.raises(ValueError, match=f"cannot take a .* in pieces, .* under .*{reason}"):
            network.stream(clip_for(network, 1), None)
    for mode in CAUSAL:
        network = NETWORKS[kind](pad_mode=mode)
        network.stream(clip_for(network, 1), None)


def test_pieces_that_end_within_a_latent_frame_are_rejected() -> None:
    network = encoder()
    _, state = network.stream(torch.zeros(1, 3, 5, 8, 8), None)
    for frames in range(1, 10):
        piece = torch.zeros(1, 3, frames, 8, 8)
        if frames % 4 != 1:
            with pytest.raises(ValueError, match=rf"^{frames} frames .* 1 frame plus .* of 4$"):
                network.stream(piece, None)
        if frames % 4 != 0:
            with pytest.raises(ValueError, match=rf"^{frames} frames .* pass a multiple of 4$"):
                network.stream(piece, state)


@pytest.mark.parametrize("kind", NETWORKS)
def test_empty_pieces_are_rejected(kind: str) -> None:
    network = NETWORKS[kind]()
    x = clip_for(network, 1)
    _, state = network.stream(x, None)
    for before in (None, state):
        with pytest.raises(ValueError, match="none of them 0"):
            network.stream(x[:, :, :0], before)


def test_layers_reject_pieces_that_would_lose_frames() -> None:
    strided = CausalConv3d(2, 2, 3, "first", stride=2)
    pool = DownSample3D(2, with_conv=False, compress_time=True)
    later = StreamState(Stream(pool, None).network, ())
    for layer, state, frames, problem in (
        (strided, None, 3, "3 frames do not fill an output of stride 2"),
        (pool, None, 4, "4 frames are not 1 plus whole pairs"),
        (pool, later, 3, "3 frames are not 0 plus whole pairs"),
    ):
        with pytest.raises(ValueError, match=problem):
            layer(torch.zeros(1, 2, frames, 4, 4), Stream(layer, state))


@pytest.mark.parametrize("pad_mode", CAUSAL)
@pytest.mark.parametrize(
    "network",
    [
        partial(encoder, attn_resolutions=()),
        partial(encoder, attn_resolutions=(8,)),
        partial(decoder, attn_resolutions=(8,)),
        partial(decoder, attn_resolutions=(8,), add_conv=True, post_quant_conv=True),
    ],
    ids=lambda network: str(network.keywords),
)
def test_a_prefix_has_the_bits_of_the_whole_clip(network: Any, pad_mode: PadMode) -> None:
    """So no frame changes the latents before it, and no latent the frames before it."""
    network = network(pad_mode=pad_mode)
    x = clip_for(network, 4)
    whole = network(x)
    for steps in range(1, 4):
        prefix = network(cut(network, x, [steps, 4 - steps])[0])
        assert torch.equal(prefix, whole[:, :, : prefix.shape[2]])


@pytest.mark.parametrize("broken", [{"norm": "clip"}, {"pad_mode": "reflect"}], ids=str)
@pytest.mark.parametrize("kind", NETWORKS)
def test_clip_norms_and_mirrored_frames_see_later_frames(kind: str, broken: dict[str, Any]) -> None:
    """So they cannot be streamed."""
    network = NETWORKS[kind](**broken)
    assert 0 in changed_frames(network, clip_for(network, 3), 1)


def same(frame: int) -> int:
    return frame


LAYERS: dict[str, tuple[Callable[[PadMode], nn.Module], Callable[[int], int]]] = {
    "block": (lambda mode: RESNET(pad_mode=mode, temb_channels=0), same),
    "shortcut": (lambda mode: RESNET(pad_mode=mode, out_channels=64, conv_shortcut=True), same),
    "attention": (lambda mode: AttnBlock2D(32, norm="frame"), same),
    "norm": (lambda mode: FrameGroupNorm(32, 32), same),
    "down": (lambda mode: DownSample3D(32, True, True), lambda frame: (frame + 1) // 2),
    "down in space": (lambda mode: DownSample3D(32, False), same),
    "up": (lambda mode: Upsample3D(32, True, True), lambda frame: 2 * frame - 1),
    "up in space": (lambda mode: Upsample3D(32, False), same),
}
"""Each layer, with the first output frame that depends on an input frame."""


@pytest.mark.parametrize("mode", CAUSAL)
@pytest.mark.parametrize("layer", LAYERS)
def test_no_layer_lets_later_frames_change_earlier_outputs(layer: str, mode: PadMode) -> None:
    make, first_output = LAYERS[layer]
    module = make(mode)
    golden.fill(module.eval().requires_grad_(False))
    x = torch.rand(2, 32, 7, 6, 6)
    for frame in range(1, 7):
        wanted = range(first_output(frame), module(x).shape[2])
        assert changed_frames(module, x, frame) == list(wanted)


@pytest.mark.parametrize("kind", NETWORKS)
def test_on_a_cpu_pieces_have_the_same_bits_as_the_whole_in_float32(kind: str) -> None:
    """So that no code depends on the cuts."""
    network = NETWORKS[kind](attn_resolutions=(8,))
    x = clip_for(network, 5).repeat(1, 1, 1, 2, 3)
    pieces = cut(network, x, [1] * 5)
    assert_same_bits(lambda _: in_pieces(network, pieces), ([0],), (1, 3))
    assert torch.equal(in_pieces(network, pieces), network(x))
