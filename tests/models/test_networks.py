"""What all published networks promise: values, bits, precision, gradients and arguments."""

import inspect
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models import golden_fixtures as golden
from tests.models.checks import assert_same_bits, difference
from tests.models.networks import IMAGES, LATENT, SMALL
from tokpipe.models import (
    FSQ,
    LFQ,
    AttnBlock,
    AttnBlock2D,
    CausalConv3d,
    Decoder,
    EMAVectorQuantizer,
    Encoder,
    Encoder3D,
    GumbelQuantizer,
    LinearAttention,
    MOVQDecoder,
    MOVQDecoder3D,
    ResnetBlock,
    ResnetBlock3D,
    SpatialNorm,
    UNet,
    VectorQuantizer,
)

SHARED = SMALL | IMAGES
TIME: dict[str, Any] = LATENT | {"temporal_compress_times": 2}
LINEAR: dict[str, Any] = {"attn_type": "linear"}

Network = Callable[..., nn.Module]
NETWORKS: dict[str, tuple[Network, list[tuple[int, ...]]]] = {
    "Encoder": (partial(Encoder, **SHARED, **LATENT), [(3, 10, 14)]),
    "Decoder": (partial(Decoder, **SHARED, **LATENT), [(4, 5, 7)]),
    "MOVQDecoder": (partial(MOVQDecoder, **SHARED, **LATENT, add_conv=True), [(4, 5, 7)] * 2),
    "Encoder3D": (partial(Encoder3D, **SHARED, **TIME), [(3, 5, 12, 20)]),
    "MOVQDecoder3D": (partial(MOVQDecoder3D, **SHARED, **TIME, add_conv=True), [(4, 3, 3, 5)]),
    "Encoder, linear": (partial(Encoder, **SHARED, **LATENT, **LINEAR), [(3, 10, 6)]),
    "Decoder, linear": (partial(Decoder, **SHARED, **LATENT, **LINEAR), [(4, 5, 3)]),
    "UNet": (partial(UNet, **SHARED), [(3, 8, 12)]),
}
"""Each with the arguments that both ends of an autoencoder share, and the shapes of its inputs."""
EVERY = pytest.mark.parametrize("name", NETWORKS)


def built(name: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name][0](**changes).eval()


def inputs(name: str, batch: int) -> list[Tensor]:
    torch.manual_seed(1)
    given = [torch.rand(batch, *shape) * 2 - 1 for shape in NETWORKS[name][1]]
    return [*given, torch.arange(3, 3 + batch) * 100] if name == "UNet" else given


CAUSAL_CONV_CASES = ["constant", "constant_published", "first", "reflect"]
ENCODER_3D_CASES = ["constant_t9", "first_t1", "first_t9", "first_t16_attn", "reflect_t9"]


@pytest.mark.parametrize(
    ("case", "cls", "more"),
    [
        *((f"causal_conv3d_{mode}", CausalConv3d, ()) for mode in CAUSAL_CONV_CASES),
        *((f"encoder_3d_{case}", Encoder3D, ()) for case in ENCODER_3D_CASES),
        ("encoder_3d_constant_published", Encoder3D, ()),
        ("movq_decoder_3d", MOVQDecoder3D, ()),
        ("movq_decoder_3d_post_quant_conv", MOVQDecoder3D, ()),
        ("movq_decoder_3d_add_conv", MOVQDecoder3D, ()),
        ("vqvae_encoder_2d", Encoder, ()),
        ("vqvae_decoder_2d", Decoder, ()),
        ("movq_decoder_2d", MOVQDecoder, ()),
        ("spatial_norm_2d", SpatialNorm, ()),
        ("diffusion_encoder_vanilla", Encoder, ()),
        ("diffusion_encoder_linear", Encoder, ()),
        ("diffusion_decoder_vanilla", Decoder, ()),
        ("diffusion_model_unet", UNet, (torch.tensor([3, 977]),)),
    ],
)
def test_outputs_match_the_published_values(
    case: str, cls: type[nn.Module], more: tuple[Tensor, ...]
) -> None:
    with torch.no_grad():
        found = golden.build(case, cls)(*golden.inputs(case), *more)
    golden.assert_agree(found, golden.outputs(case)["output"])


@pytest.mark.parametrize(
    ("name", "changes", "shapes"),
    [
        *((name, {}, shapes) for name, (_, shapes) in NETWORKS.items() if name != "UNet"),
        ("Encoder", {"attn_resolutions": (8, 16)}, [(3, 8, 8)]),
        ("Decoder", {"attn_resolutions": (8, 16)}, [(4, 8, 8)]),
        ("MOVQDecoder", {}, [(4, 8, 8)] * 2),
        ("Encoder3D", {"attn_resolutions": ()}, [(3, 1, 32, 32)]),
        ("Encoder3D", {"attn_resolutions": (16,), "norm": "frame"}, [(3, 1, 32, 32)]),
        ("MOVQDecoder3D", {"norm": "frame"}, [(4, 3, 3, 5)]),
        ("MOVQDecoder3D", {}, [(4, 1, 8, 8)]),
        ("Encoder, linear", {}, [(3, 16, 16)]),
        ("Decoder, linear", {}, [(4, 16, 16)]),
    ],
)
def test_results_have_the_same_bits_in_any_batch_on_any_number_of_threads(
    name: str, changes: dict[str, Any], shapes: list[tuple[int, ...]]
) -> None:
    network = built(name, **changes)
    samples = [torch.rand(4, *shape) for shape in shapes]
    assert_same_bits(lambda batch: network(*(one[batch] for one in samples)))


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_stay_near_float32(name: str, dtype: torch.dtype) -> None:
    network, given = built(name), inputs(name, 2)
    with torch.inference_mode():
        wide = network(*given)
        cast = [one.to(dtype) if one.is_floating_point() else one for one in given]
        other = deepcopy(network).to(dtype)(*cast)
    assert other.dtype == dtype
    bounds = {torch.float64: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.06}
    assert difference(other, wide) < bounds[dtype]
    assert dtype != torch.float64 or not torch.equal(other.float().double(), other)


@EVERY
@pytest.mark.parametrize("with_conv", [True, False])
def test_gradients_reach_every_parameter_and_the_input(name: str, with_conv: bool) -> None:
    network, given = built(name, resamp_with_conv=with_conv).train(), inputs(name, 2)
    for tensor in given:
        tensor.requires_grad_(tensor.is_floating_point())
    network(*given).square().mean().backward()
    for key, tensor in [*network.named_parameters(), *enumerate(given)]:
        if tensor.is_floating_point():
            assert tensor.grad is not None, key
            assert tensor.grad.isfinite().all(), key
            # A norm or a softmax may cancel a bias, and with it all that is added to a channel.
            if tensor.ndim > 1 and "temb_proj" not in str(key):
                assert tensor.grad.abs().max() > 1e-8, key


@EVERY
def test_autocast_runs_float32_weights_in_bfloat16(name: str) -> None:
    network, given = built(name), inputs(name, 2)
    with torch.no_grad():
        wide = network(*given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = network(*given)
    assert narrow.dtype == torch.bfloat16
    assert difference(narrow, wide) < 0.06
    narrow.float().square().mean().backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in network.parameters())


@EVERY
def test_signatures_name_the_published_arguments(name: str) -> None:
    network: Any = NETWORKS[name][0]
    parameters = inspect.signature(network.func).parameters
    assert {*network.keywords, "ch_mult", "dropout", "resamp_with_conv"} <= parameters.keys()
    assert {one.kind for one in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert parameters["ch_mult"].default == (1, 2, 4, 8)


@EVERY
def test_inputs_that_do_not_fit_are_rejected(name: str) -> None:
    network, (x, *others) = built(name), inputs(name, 1)
    wrong = [x[..., 0], x[:, 1:], x[..., :0], x.double(), x.byte(), x.half()]
    wrong += [] if others else [x[:0]]
    for given in wrong:
        with pytest.raises(ValueError, match=rf"{given.dtype} of .* takes torch.float32 of \(B, "):
            network(given, *others)
    with (
        pytest.raises(ValueError, match=r"takes torch\.float32"),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        network(x.byte(), *others)
    if "3D" in name:
        with pytest.raises(ValueError, match="none of them 0"):
            network(x[:, :, :0])


@pytest.mark.parametrize(
    ("attn_resolutions", "down", "up"),
    [
        ((), [0, 0, 0], [0, 0, 0]),
        ((18, 9), [1, 1, 0], [0, 0, 0]),
        ((16, 8), [0, 0, 0], [0, 1, 1]),
        ((4, 64), [0, 0, 1], [1, 0, 0]),
    ],
)
def test_nominal_sizes_halve_rounding_down_and_double_from_the_coarsest(
    attn_resolutions: tuple[int, ...], down: list[int], up: list[int]
) -> None:
    """18 halves to 9 and 4, which doubles to 8 and 16."""
    shape: dict[str, Any] = {"ch": 32, "ch_mult": (1, 2, 4), "num_res_blocks": 2, "resolution": 18}
    names = "Encoder", "Decoder"
    both: list[Any] = [built(one, **shape, attn_resolutions=attn_resolutions) for one in names]
    fine, coarse = both[0].down.in_order(), both[1].up.in_order()
    for levels, attends in ((fine, down), (coarse, up)):
        assert [len(one.attn) for one in levels] == [len(levels[0].block) * one for one in attends]
    inputs = [[block.conv1.in_channels for block in level.block] for level in fine + coarse]
    assert inputs[:3] == [[32, 32], [32, 64], [64, 128]]
    assert inputs[3:] == [[128] * 3, [128, 64, 64], [64, 32, 32]]


@pytest.mark.parametrize("name", ["Encoder", "Decoder", "UNet"])
@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"attn_type": "vanilla"}, AttnBlock),
        ({"attn_type": "linear"}, LinearAttention),
        ({"use_linear_attn": True, "attn_type": "vanilla"}, LinearAttention),
        ({"use_linear_attn": True, "attn_type": "none"}, LinearAttention),
        ({"attn_type": "none"}, nn.Identity),
    ],
)
def test_attention_is_of_the_named_kind(
    name: str, changes: dict[str, Any], kind: type[nn.Module]
) -> None:
    network: Any = built(name, num_res_blocks=2, **changes)
    for levels, blocks in ((getattr(network, "down", ()), 2), (getattr(network, "up", ()), 3)):
        for level, attends in zip(levels, (0, 1), strict=False):
            assert [type(attn) for attn in level.attn] == [kind] * blocks * attends
    assert type(network.mid.attn_1) is kind


@pytest.mark.parametrize("cls", [Encoder, Encoder3D])
def test_encoders_return_mean_and_variance_by_default(cls: type[nn.Module]) -> None:
    changes = {"temporal_compress_times": 2} if cls is Encoder3D else {}
    state = cls(**SHARED, **changes, z_channels=4).state_dict()
    assert len(state["conv_out.conv.bias" if cls is Encoder3D else "conv_out.bias"]) == 8


@EVERY
def test_networks_that_cannot_be_built_are_rejected(name: str) -> None:
    with pytest.raises(TypeError, match="num_res_block'"):
        built(name, num_res_block=2)
    with pytest.raises(ValueError, match=r"num_channels \(48\) must be divisible"):
        built(name, ch=48)
    with pytest.raises(ValueError, match=r"ch_mult=\(\) with num_res_blocks=1: .* a level"):
        built(name, ch_mult=())
    if "Decoder" not in name:  # the way up has one block more at each level
        with pytest.raises(ValueError, match=r"num_res_blocks=0: .* at least one block"):
            built(name, num_res_blocks=0)


@pytest.mark.parametrize(
    ("name", "argument", "value", "problem"),
    [
        ("MOVQDecoder", "attn_type", "linear", "attn_type='linear' has no norm .* zq_ch=4"),
        ("MOVQDecoder", "zq_channels", 4, "zq_channels"),
        ("MOVQDecoder3D", "tanh_out", True, "tanh_out"),
        ("MOVQDecoder3D", "attn_type", False, "attn_type"),
        ("UNet", "z_channels", 4, "z_channels"),
        ("Encoder", "attn_type", "vanila", r"attn_type='vanila': use 'vanilla'"),
        ("Decoder", "attn_type", "vanila", r"attn_type='vanila': use 'vanilla'"),
        ("UNet", "attn_type", "memory-efficient-cross-attn", "attn_type='mem.* use 'vanilla'"),
        ("Encoder3D", "norm", "layer", r"norm='layer': use 'clip' .* or 'frame'"),
        ("MOVQDecoder3D", "norm", "layer", r"norm='layer': use 'clip' .* or 'frame'"),
        ("Encoder3D", "temporal_compress_times", 4, r"times=4 .* one of \[1, 2\]"),
        ("Encoder3D", "temporal_compress_times", 3, "temporal_compress_times=3 "),
        ("MOVQDecoder3D", "temporal_compress_times", 4, r"times=4 .* one of \[1, 2\]"),
        ("MOVQDecoder3D", "zq_ch", 3, r"zq_ch=3 with z_channels=4.* post_quant_conv=True"),
    ],
)
def test_arguments_without_a_meaning_are_rejected(
    name: str, argument: str, value: Any, problem: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=problem):
        built(name, **{argument: value})


ZQ = torch.zeros(1, 4, 4, 4)
X = torch.zeros(1, 32, 4, 4)
BLOCK: dict[str, Any] = {"in_channels": 32, "dropout": 0.0}
CODES = torch.zeros(5, 3, dtype=torch.int64)
LFQ_OF_TWO = partial(LFQ, codebook_size=4, num_codebooks=2, keep_num_codebooks_dim=False)


@pytest.mark.parametrize(
    ("build", "problem"),
    [
        (partial(CausalConv3d, 3, 4, 2), r"kernel_size=2.*last two odd"),
        (lambda: CausalConv3d(3, 4, 3, "replicate"), r"pad_mode='replicate': use one of"),  # type: ignore[arg-type]
        (partial(CausalConv3d, 3, 4, 3, stride=4), "stride=4 is longer than the 3 frames"),
        (partial(AttnBlock, 32, add_conv=True), r"add_conv=True without zq_ch.*Pass zq_ch"),
        (partial(AttnBlock2D, 32, add_conv=True), "add_conv=True without zq_ch"),
        (partial(ResnetBlock(**BLOCK, zq_ch=4), X), "built with zq_ch, .* zq"),
        (partial(AttnBlock(32), X, ZQ), "built without zq_ch, .* leave it out"),
        (partial(ResnetBlock(**BLOCK, temb_channels=0), X, X[:, :, 0, 0]), "with temb_channels=0"),
        (partial(ResnetBlock3D(**BLOCK, zq_ch=4), X[:, :, None]), "built with zq_ch"),
        (partial(VectorQuantizer, 0, 4), "a codebook of 0 vectors of 4 channels"),
        (partial(GumbelQuantizer, 8, 4, 64, temp_init=0), "temperature=0"),
        (partial(GumbelQuantizer(8, 4, 64), torch.zeros(1, 8, 2), temp=-1.0), r"temperature=-1\.0"),
        (partial(EMAVectorQuantizer, 8, 4, 0.25, decay=1), "decay=1"),
        (partial(EMAVectorQuantizer, 8, 4, 0.25, eps=0), "eps=0"),
        (partial(FSQ, [8, 1]), r"levels=\[8, 1\]: each channel needs 2 to "),
        (partial(FSQ, []), "levels="),
        (partial(FSQ, [2**22 + 1]), "each channel needs 2 to 4194304"),
        (partial(FSQ, [2] * 63), r"at most 2\*\*62 codes in all"),
        (partial(FSQ, [8], num_codebooks=0), "num_codebooks=0"),
        (partial(FSQ([8], num_codebooks=2).vectors_of, CODES), r"\(5, 3\), .* of the 2 codebooks"),
        (partial(LFQ, 63), "dim=63"),
        (partial(LFQ, 0), "dim=0"),
        *((partial(LFQ, codebook_size=n), f"={n}: .* a power of two") for n in (0, 1, 12, -8)),
        (LFQ, "dim=None, codebook_size=None: a code has 1 to 62 bits"),
        (partial(LFQ, 4, bit_order="middle"), "bit_order='middle': use 'big'"),  # type: ignore[arg-type]
        (partial(LFQ, 4, codebook_scale=0), "codebook_scale=0"),
        (LFQ_OF_TWO, "num_codebooks=2 returns as many codes per position"),
    ],
)
def test_parts_reject_arguments_without_a_meaning(build: Callable[..., Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        build()
