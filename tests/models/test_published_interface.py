"""What published code accepts, returns and is called, beside its values."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

import tokpipe.models
from tests.models import golden_fixtures as golden
from tests.models.checks import difference
from tests.models.networks import CLIPS, IMAGES, LATENT, SMALL, small
from tokpipe.errors import ConfigError
from tokpipe.models import (
    FSQ,
    LFQ,
    AttnBlock,
    AttnBlock2D,
    CausalConv3d,
    Decoder,
    Downsample,
    DownSample3D,
    EMAVectorQuantizer,
    Encoder,
    Encoder3D,
    GumbelQuantize,
    GumbelQuantizer,
    LinearAttention,
    Model,
    MOVQDecoder,
    MOVQDecoder3D,
    NewDecoder3D,
    Quantizer,
    ResnetBlock,
    ResnetBlock3D,
    SpatialNorm,
    SpatialNorm3D,
    UNet,
    Upsample,
    Upsample3D,
    VectorQuantizer,
    VectorQuantizer2,
    as_published,
    load_published,
)

ROWS: dict[str, Any] = {"in_channels": 3, "out_ch": 3, "resolution": 256, "dropout": 0.0}
COGVIDEOX = ROWS | {
    "ch": 128,
    "ch_mult": [1, 2, 2, 4],
    "num_res_blocks": 3,
    "attn_resolutions": [],
    "double_z": True,
    "z_channels": 16,
    "gather_norm": True,
}
MAGVIT = ROWS | {
    "ch": 128,
    "ch_mult": (1, 2, 4, 4),
    "num_res_blocks": 2,
    "attn_resolutions": (),
    "double_z": False,
    "z_channels": 16,
    "temporal_compress_times": 4,
    "pad_mode": "first",
}
STABLE_DIFFUSION = ROWS | {
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "double_z": True,
    "z_channels": 4,
    "attn_type": "vanilla-xformers",
}
TAMING = ROWS | {
    "ch": 128,
    "ch_mult": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [16],
    "double_z": False,
    "z_channels": 256,
}
SBER = ROWS | {
    "ch": 256,
    "ch_mult": [1, 2, 2, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [32],
    "double_z": False,
    "z_channels": 4,
}
DIFFUSION = ROWS | {
    "ch": 128,
    "ch_mult": (1, 1, 2, 2, 4, 4),
    "num_res_blocks": 2,
    "attn_resolutions": (16,),
    "resamp_with_conv": True,
}


@pytest.mark.parametrize(
    ("cls", "config", "million_parameters"),
    [
        (Encoder3D, COGVIDEOX, 92.2),
        (MOVQDecoder3D, COGVIDEOX, 123.4),
        (NewDecoder3D, COGVIDEOX | {"post_quant_conv": True, "tanh_out": False}, 123.4),
        (Encoder3D, MAGVIT | {"give_pre_end": False, "zq_ch": None, "add_conv": False}, 92.9),
        (Encoder, STABLE_DIFFUSION, 34.2),
        (Decoder, STABLE_DIFFUSION, 49.5),
        (Encoder, TAMING, 29.3),
        (Decoder, TAMING | {"pad_mode": "first", "temporal_compress_times": 1}, 42.4),
        (Encoder, SBER | {"zq_ch": 4, "add_conv": False}, 109.5),
        (MOVQDecoder, SBER | {"zq_ch": 4, "add_conv": False}, 161.1),
        (Model, DIFFUSION | {"use_timestep": True}, 113.7),
    ],
)
def test_published_configs_build_their_networks_at_full_size(
    cls: Callable[..., nn.Module], config: dict[str, Any], million_parameters: float
) -> None:
    with torch.device("meta"):
        network = cls(**config)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(million_parameters, abs=0.05)


def test_other_published_names_are_names_of_the_same_classes() -> None:
    for name, cls in {
        "NewDecoder3D": MOVQDecoder3D,
        "Model": UNet,
        "GumbelQuantize": GumbelQuantizer,
        "VectorQuantizer2": VectorQuantizer,
        "AutoencoderEncoder": Encoder,
        "AutoencoderDecoder": Decoder,
    }.items():
        assert getattr(tokpipe.models, name) is cls
        assert name in tokpipe.models.__all__


@pytest.mark.parametrize(
    ("build", "argument", "value"),
    [
        (Encoder3D, "attn_type", "linear"),
        (Encoder3D, "use_linear_attn", True),
        (MOVQDecoder3D, "tanh_out", True),
        (Decoder, "post_quant_conv", True),
        (VectorQuantizer, "embedding_weight_norm", True),
        (LFQ, "frac_per_sample_entropy", 0.5),
        (LFQ, "straight_through_activation", nn.Tanh()),
        (CausalConv3d, "padding", 1),
    ],
)
def test_swallowed_arguments_that_would_mean_something_are_errors(
    build: Callable[..., Any], argument: str, value: Any
) -> None:
    given = arguments_of(build)
    with pytest.raises(ValueError, match=rf"^{argument}=.*: leave it out, or pass "):
        build(**given, **{argument: value})
    with pytest.raises(TypeError, match="unheard_of"):
        build(**given, unheard_of=1)


@pytest.mark.parametrize("dead", ["gather_norm", "tanh_out", "zq_ch", "post_quant_conv"])
def test_arguments_of_other_networks_change_nothing(dead: str) -> None:
    x = torch.rand(1, 3, 1, 8, 8)
    plain, given = (small(Encoder3D, **more) for more in ({}, {dead: 8}))
    for one in (plain, given):
        golden.fill(one)
    with torch.no_grad():
        assert torch.equal(plain(x), given(x, use_cp=True))


def arguments_of(build: Callable[..., Any]) -> dict[str, Any]:
    """Those without which a class cannot be built."""
    clips, images = SMALL | CLIPS | LATENT, SMALL | IMAGES | LATENT
    block, norm = {"in_channels": 32, "dropout": 0.0}, {"f_channels": 32, "zq_channels": 4}
    table: dict[Any, dict[str, Any]] = {
        Encoder3D: clips,
        MOVQDecoder3D: clips,
        Encoder: images,
        Decoder: images,
        MOVQDecoder: images,
        UNet: SMALL | IMAGES,
        ResnetBlock: block,
        ResnetBlock3D: block | {"pad_mode": "first"},
        SpatialNorm: norm | {"num_groups": 32},
        SpatialNorm3D: norm | {"num_groups": 32},
        Downsample: {"in_channels": 4, "with_conv": True},
        AttnBlock: {"in_channels": 32},
        Upsample: {"in_channels": 4, "with_conv": True},
        AttnBlock2D: {"in_channels": 32},
        DownSample3D: {"in_channels": 4, "with_conv": True},
        LinearAttention: {"dim": 4},
        Upsample3D: {"in_channels": 4, "with_conv": True},
        FSQ: {"levels": (8, 5), "dim": 3},
        CausalConv3d: {"chan_in": 3, "chan_out": 4, "kernel_size": 3, "pad_mode": "first"},
        VectorQuantizer: {"n_e": 8, "e_dim": 4, "remap": [5, 2]},
        EMAVectorQuantizer: {"n_embed": 8, "embedding_dim": 4, "beta": 0.25},
        GumbelQuantizer: {"num_hiddens": 4, "embedding_dim": 4, "n_embed": 8, "remap": [5, 2]},
        LFQ: {"dim": 4, "codebook_size": 64, "bit_order": "little"},
    }
    return table[build]


@pytest.mark.parametrize(
    "cls",
    sorted(
        {
            one
            for one in vars(tokpipe.models).values()
            if inspect.isclass(one) and issubclass(one, nn.Module) and one is not Quantizer
        },
        key=str,
    ),
)
def test_modules_are_built_without_memory_and_filled_later(cls: type[nn.Module]) -> None:
    with torch.device("meta"):
        module = cls(**arguments_of(cls))
    assert all(one.is_meta for one in (*module.parameters(), *module.buffers()))
    module = module.to_empty(device="cpu").eval()
    wanted = cls(**arguments_of(cls)).eval()
    golden.fill(wanted)
    load_published(module, wanted.state_dict())
    assert all(map(torch.equal, module.buffers(), wanted.buffers()))
    if isinstance(module, Quantizer):
        latent = torch.randn(2, module.latent_dim, 5)
        assert torch.equal(module(latent).codes, wanted(latent).codes)


@pytest.mark.parametrize("use_cp", [False, True])
def test_frames_of_one_clip_on_several_ranks_are_an_error(use_cp: bool) -> None:
    encoder, decoder = small(Encoder3D), small(MOVQDecoder3D)
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        for network, x in (
            (encoder, torch.zeros(1, 3, 1, 8, 8)),
            (decoder, torch.zeros(1, 4, 1, 2, 2)),
        ):
            if use_cp:
                with pytest.raises(ValueError, match=r"^use_cp=True: .* pass whole clips"):
                    network(x, use_cp)
            else:
                network(x, use_cp)
    finally:
        torch.distributed.destroy_process_group()


def test_every_decoder_returns_its_last_layer() -> None:
    for cls in (Decoder, MOVQDecoder, UNet, MOVQDecoder3D):
        last: Any = cls(**arguments_of(cls))
        own = last.conv_out.conv if cls is MOVQDecoder3D else last.conv_out
        assert last.get_last_layer() is own.weight


# --- constant padding ---


@pytest.mark.parametrize("kernel", [3, 5, (3, 1, 1), (1, 3, 3), (3, 3, 5)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (1, 2), (2, 1)])
def test_published_constant_padding_confuses_time_with_width(
    kernel: Any, stride: int, dilation: int
) -> None:
    sizes = (kernel,) * 3 if isinstance(kernel, int) else kernel
    if stride > sizes[0]:
        stride = 1
    conv = CausalConv3d(2, 3, kernel, "constant_published", stride=stride, dilation=dilation)
    x = torch.randn(1, 2, 9, 8, 10)
    past, rows, columns = dilation * (sizes[0] - 1) + 1 - stride, sizes[1] // 2, sizes[2] // 2
    padded = F.pad(x, (past, 0, columns, columns, rows, rows))
    step: dict[str, Any] = {"stride": (stride, 1, 1), "dilation": (dilation, 1, 1)}
    wanted = F.conv3d(padded, conv.conv.weight, conv.conv.bias, **step)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), wanted)


def test_an_impulse_reaches_the_frame_before_and_the_columns_to_the_right() -> None:
    conv = CausalConv3d(1, 1, 3, "constant_published", bias=False)
    nn.init.ones_(conv.conv.weight)
    x = torch.zeros(1, 1, 8, 9, 9)
    x[0, 0, 3, 4, 4] = 1
    with torch.no_grad():
        reached = conv(x)[0, 0].nonzero()
    assert [sorted(set(one.tolist())) for one in reached.T] == [[2, 3, 4], [3, 4, 5], [4, 5, 6]]


def test_both_constant_paddings_have_names_of_their_own() -> None:
    state = golden.build("causal_conv3d_constant", CausalConv3d).state_dict()
    found = {}
    for name in ("constant", "constant_causal", "constant_published"):
        conv = CausalConv3d(3, 8, 3, name)
        conv.load_state_dict(state)
        found[name] = conv(golden.inputs("causal_conv3d_constant")[0])
    assert torch.equal(found["constant"], found["constant_causal"])
    assert difference(found["constant_published"], found["constant"]) > 0.5


@pytest.mark.parametrize(
    ("cls", "unclear", "clear"),
    [
        (CausalConv3d, {"pad_mode": "constant"}, {"pad_mode": "constant_causal"}),
        (CausalConv3d, {"pad_mode": "constant"}, {"pad_mode": "constant_published"}),
        (ResnetBlock3D, {"pad_mode": "constant"}, {"pad_mode": "constant_published"}),
        (SpatialNorm3D, {"add_conv": True}, {"add_conv": True, "pad_mode": "constant_causal"}),
        (Encoder3D, {"pad_mode": "constant"}, {"pad_mode": "constant_published"}),
        *(
            (MOVQDecoder3D, {"add_conv": True}, {"add_conv": True, "add_conv_pad_mode": mode})
            for mode in ("constant_published", "constant_causal", "first")
        ),
    ],
)
def test_weights_are_refused_until_their_constant_padding_is_chosen(
    cls: type[nn.Module], unclear: dict[str, Any], clear: dict[str, Any]
) -> None:
    arguments = arguments_of(cls)
    module = cls(**arguments | unclear)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    other = {key: value + 1 for key, value in before.items()}
    with pytest.raises(ConfigError, match=r"^w: .*'constant_published' .* 'constant_causal'"):
        load_published(module, other, source="w")
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    load_published(cls(**arguments | clear), other)


def test_convolutions_of_one_position_have_no_padding_to_choose() -> None:
    load_published(CausalConv3d(3, 4, 1), CausalConv3d(3, 4, 1).state_dict())
    decoder = MOVQDecoder3D(**arguments_of(MOVQDecoder3D))
    load_published(decoder, decoder.state_dict())


@pytest.mark.parametrize("where", ["pad_mode", "add_conv_pad_mode"])
def test_published_constant_padding_cannot_be_streamed(where: str) -> None:
    more = {where: "constant_published", "norm": "frame", "add_conv": True}
    decoder = MOVQDecoder3D(**arguments_of(MOVQDecoder3D) | more)
    with pytest.raises(ValueError, match=r"frames depend on later ones .* constant_published"):
        decoder.stream(torch.zeros(1, 4, 1, 2, 2), None)


# --- options ---


@pytest.mark.parametrize("options", [{"groups": 2}, {"bias": False}, {"dtype": torch.float64}])
def test_convolutions_take_the_options_of_pytorch(options: dict[str, Any]) -> None:
    conv = CausalConv3d(4, 6, 3, "first", dilation=2, padding_mode="circular", **options)
    x = torch.randn(1, 4, 5, 6, 6, dtype=options.get("dtype"))
    padded = torch.cat([x[:, :, :1]] * 4 + [x], 2)
    groups, weight = options.get("groups", 1), conv.conv.weight
    steps: dict[str, Any] = {"padding": (0, 1, 1), "dilation": (2, 1, 1), "groups": groups}
    wanted = F.conv3d(padded, weight, conv.conv.bias, **steps)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cls", [SpatialNorm, SpatialNorm3D])
def test_a_norm_without_parameters_computes(cls: type[SpatialNorm], dtype: torch.dtype) -> None:
    plain = cls(32, 4, num_groups=8, affine=False).to(dtype)
    affine = cls(32, 4, num_groups=8).to(dtype)
    affine.load_state_dict(plain.state_dict(), strict=False)
    frames = (3,) if cls is SpatialNorm3D else ()
    f, zq = (torch.randn(2, one, *frames, 5, 6, dtype=dtype) for one in (32, 4))
    with torch.no_grad():
        torch.testing.assert_close(plain(f, zq), affine(f, zq), atol=2e-2, rtol=2e-2)
        assert torch.equal(plain(f, zq)[:1], plain(f[:1], zq[:1]))


def test_a_spatial_norm_of_clips_takes_its_arguments_in_the_published_order() -> None:
    norm = SpatialNorm3D(32, 4, nn.GroupNorm, True, True, pad_mode="first", num_groups=32)
    assert norm.conv is not None
    assert norm.conv.pad_mode == "first"
    assert not any(parameter.requires_grad for parameter in norm.norm_layer.parameters())


# --- what quantizers return ---

LATENTS = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))


def quantized(cls: Callable[..., Quantizer], **changes: Any) -> Any:
    quantizer = cls(**arguments_of(cls) | changes).eval()
    golden.fill(quantizer)
    return quantizer(LATENTS)


def test_results_take_the_order_of_each_published_class() -> None:
    vq, gumbel = quantized(VectorQuantizer2, remap=None), quantized(GumbelQuantize)
    for result, name in ((vq, "VectorQuantizer2"), (gumbel, "GumbelQuantize")):
        vectors, loss, (perplexity, encodings, codes) = as_published(result, name)
        assert (vectors, loss, codes) == (result.vectors, result.loss, result.codes)
        assert perplexity is encodings is None
    assert as_published(vq)[2][2] is vq.codes
    ema = quantized(EMAVectorQuantizer)
    for result, name, key in (
        *(
            (vq, "VectorQuantizer", "min_encoding_indices"),
            (ema, "EMAVectorQuantizer", "encoding_indices"),
        ),
        (gumbel, "GumbelQuantizer", "indices"),
    ):
        vectors, log = as_published(result, name, loss_key="loss/commit")
        assert (vectors, log["loss/commit"], log[key]) == (
            result.vectors,
            result.loss,
            result.codes,
        )
    lfq, fsq = quantized(LFQ), FSQ((8, 5, 5, 4))(LATENTS)
    assert as_published(lfq, "LFQ") == (lfq.vectors, lfq.codes, lfq.loss)
    vectors, codes = as_published(fsq, "FSQ")
    assert vectors is fsq.vectors
    assert codes.dtype == torch.int32
    assert torch.equal(codes.long(), fsq.codes)
    with pytest.raises(ValueError, match=r"name='VQ': use the name of a published quantizer"):
        as_published(vq, "VQ")


def test_the_log_counts_the_codes_of_the_batch() -> None:
    result = quantized(VectorQuantizer, remap=None)
    log = as_published(result, "VectorQuantizer")[1]
    shares = torch.bincount(result.codes, minlength=8) / 18
    perplexity = (-(shares * (shares + 1e-10).log()).sum()).exp()
    torch.testing.assert_close(log["perplexity"], perplexity)
    assert log["cluster_usage"] == (shares > 0).sum() > 1


@pytest.mark.parametrize(
    ("cls", "dead"),
    [
        (
            VectorQuantizer,
            {"log_perplexity": True, "loss_key": "a", "embedding_weight_norm": False},
        ),
        (EMAVectorQuantizer, {"loss_key": "a"}),
        (GumbelQuantizer, {"loss_key": "a", "use_vqinterface": False}),
        (LFQ, {"straight_through_activation": nn.Identity(), "frac_per_sample_entropy": 1.0}),
        (FSQ, {"scale": 2.0}),
    ],
)
def test_dead_arguments_of_quantizers_change_nothing(
    cls: Callable[..., Quantizer], dead: dict[str, Any]
) -> None:
    latent: Tensor = LATENTS[:, :3] if cls is FSQ else LATENTS
    found = []
    for more in ({}, dead):
        quantizer = cls(**arguments_of(cls), **more).eval()
        golden.fill(quantizer)
        found.append(quantizer(latent))
    assert torch.equal(found[0].codes, found[1].codes)
    assert torch.equal(found[0].vectors, found[1].vectors)


def test_calls_take_the_arguments_that_published_code_takes() -> None:
    vq, lfq = VectorQuantizer(8, 4), LFQ(4)
    vq(LATENTS, temp=1.0, rescale_logits=False, return_logits=False)
    lfq(LATENTS, inv_temperature=50.0, return_loss_breakdown=False, mask=None)
    gumbel = GumbelQuantizer(4, 4, 8)
    gumbel(LATENTS, temp=0.5, return_logits=False)
    for quantizer, asked in (
        *((vq, {"temp": 0.5}), (vq, {"return_logits": True}), (gumbel, {"return_logits": True})),
        *((lfq, {"mask": LATENTS}), (lfq, {"return_loss_breakdown": True})),
    ):
        with pytest.raises(ValueError, match="there is nothing of the kind here"):
            quantizer(LATENTS, **asked)
        with pytest.raises(TypeError, match="unheard_of"):
            quantizer(LATENTS, unheard_of=1)
