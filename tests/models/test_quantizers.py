"""What all quantizers promise."""

import pytest
import torch

from tests.models import golden_fixtures as golden
from tests.models.checks import assert_same_bits
from tests.models.quantizer_cases import every_quantizer
from tokpipe.models import (
    FSQ,
    LFQ,
    EMAVectorQuantizer,
    GumbelQuantizer,
    Quantizer,
    VectorQuantizer,
    VectorQuantizer2,
)

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY = pytest.mark.parametrize("name", every_quantizer())


@pytest.fixture
def quantizer(name: str) -> Quantizer:
    return every_quantizer()[name]


@pytest.mark.parametrize(
    ("case", "cls", "vectors"),
    [
        ("vector_quantizer", VectorQuantizer, "z_q"),
        ("ema_vector_quantizer", EMAVectorQuantizer, "z_q"),
        ("fsq", FSQ, "quantized"),
        ("lfq", LFQ, "quantized"),
    ],
)
def test_matches_the_published_values(case: str, cls: type[Quantizer], vectors: str) -> None:
    # FSQ and LFQ were fed three times the input, as the fixtures' notes say.
    scale = 3 if "note" in golden.spec(case) else 1
    latent = golden.inputs(case)[0] * scale
    module = golden.build(case, cls)
    with torch.no_grad():
        found = module(latent)
    wanted = golden.outputs(case)
    golden.assert_agree(found.vectors, wanted[vectors])
    assert torch.equal(found.codes, wanted["indices"].long())
    if "loss" in wanted:
        golden.assert_agree(found.loss, wanted["loss"])


def test_gumbel_matches_the_published_logits_and_their_argmax() -> None:
    case = "gumbel_quantizer_logits"
    module, latent = golden.build(case, GumbelQuantizer), golden.inputs(case)[0]
    assert isinstance(module, GumbelQuantizer)
    wanted = golden.outputs(case)
    with torch.no_grad():
        golden.assert_agree(module.logits_of(latent), wanted["logits"])
        golden.assert_agree(module.proj(latent), wanted["logits"])
        assert torch.equal(module(latent).codes, wanted["indices"])
    assert torch.equal(module.codes_of(latent), wanted["indices"])


def test_the_published_name_with_all_arguments_is_the_same_class() -> None:
    assert VectorQuantizer2 is VectorQuantizer


@EVERY
@pytest.mark.parametrize("grid", [(), (7,), (2, 3), (2, 3, 4)])
def test_channels_are_second_in_any_number_of_dimensions(
    quantizer: Quantizer, grid: tuple[int, ...]
) -> None:
    latent = torch.randn(5, 3, *grid)
    codes = quantizer.codes_of(latent)
    assert codes.dtype == torch.int64
    flat = quantizer.codes_of(latent.movedim(1, -1).reshape(-1, 3))
    assert torch.equal(codes, flat.view(5, *grid))
    vectors = quantizer.vectors_of(codes.to(torch.int32))
    assert vectors.shape == latent.shape
    assert vectors.dtype == torch.float32
    wanted = quantizer.vectors_of(flat)
    torch.testing.assert_close(vectors.movedim(1, -1).reshape(-1, 3), wanted)


@EVERY
@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 3, 0, 4), (0, 3)])
def test_nothing_to_quantize_gives_no_codes(quantizer: Quantizer, shape: tuple[int, ...]) -> None:
    codes = quantizer.codes_of(torch.zeros(shape))
    assert codes.shape == shape[:1] + shape[2:]
    assert quantizer.vectors_of(codes).shape == shape


@EVERY
def test_forward_agrees_with_codes_of_in_float32(quantizer: Quantizer) -> None:
    latent = torch.randn(2, 3, 3, 4, 5)
    for given in (latent, latent.double(), latent.bfloat16(), latent.half()):
        found = quantizer(given)
        assert torch.equal(found.codes.view(2, 3, 4, 5), quantizer.codes_of(given.float()))
        assert found.vectors.dtype == torch.float32
        assert found.vectors.shape == latent.shape
        if quantizer.codebook_size not in (4, 5):  # there the nearest vector may have no code
            wanted = quantizer.vectors_of(found.codes.view(2, 3, 4, 5))
            torch.testing.assert_close(found.vectors, wanted, atol=1e-6, rtol=0)
        assert found.loss is None or (found.loss.isfinite() and found.loss.dtype == torch.float32)


@EVERY
def test_autocast_and_memory_layout_change_nothing(quantizer: Quantizer) -> None:
    latent = torch.randn(2, 3, 64, 64)
    wanted = quantizer(latent)
    for given in (latent, latent.to(memory_format=torch.channels_last), latent.bfloat16()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, codes = quantizer(given), quantizer.codes_of(given)
        assert torch.equal(codes, quantizer.codes_of(given.float()))
        if given.dtype == torch.float32:
            assert torch.equal(codes, quantizer.codes_of(latent))
            assert torch.equal(found.vectors, wanted.vectors)
            assert found.loss is None or given is not latent or torch.equal(found.loss, wanted.loss)


@EVERY
def test_another_default_dtype_changes_nothing(quantizer: Quantizer) -> None:
    latent = torch.randn(2, 3, 32, 32)
    codes = quantizer.codes_of(latent)
    vectors = quantizer.vectors_of(codes)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(quantizer.codes_of(latent), codes)
        found = quantizer.vectors_of(codes)
        forward = quantizer(latent)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == forward.vectors.dtype == torch.float32
    assert forward.loss is None or forward.loss.dtype == torch.float32
    assert torch.equal(found, vectors)


@EVERY
@pytest.mark.parametrize("positions", [1, 7, 100])
def test_codes_and_vectors_are_the_same_in_any_batch_on_any_number_of_threads(
    quantizer: Quantizer, positions: int
) -> None:
    latents = torch.randn(4, 3, positions)
    assert_same_bits(lambda batch: quantizer.codes_of(latents[batch]))
    assert_same_bits(lambda batch: quantizer.vectors_of(quantizer.codes_of(latents[batch])))


@EVERY
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_latents_that_are_not_finite_get_a_code_and_do_not_affect_the_others(
    quantizer: Quantizer, value: float
) -> None:
    latent = torch.randn(2, 3, 4)
    wanted = quantizer.codes_of(latent)
    latent[1, 1, 2] = value
    found = quantizer.codes_of(latent)
    quantizer.vectors_of(found)
    found[1, 2] = wanted[1, 2]
    assert torch.equal(found, wanted)


@EVERY
def test_codes_outside_the_codebook_are_rejected(quantizer: Quantizer) -> None:
    quantizer.vectors_of(torch.tensor([0, quantizer.codebook_size - 1], dtype=torch.uint16))
    for wrong in (-1, quantizer.codebook_size, 2**62):
        with pytest.raises(ValueError, match=r"codes from .* but the codebook has 0 to \d+:"):
            quantizer.vectors_of(torch.tensor([0, wrong]))
    with pytest.raises(TypeError, match=r"codes are torch.float32, but codes are integers"):
        quantizer.vectors_of(torch.zeros(2))


@EVERY
def test_latents_with_other_channels_are_rejected(quantizer: Quantizer) -> None:
    for shape in ((2, 4, 4), (3,), (2, 4, 4, 3)):
        with pytest.raises(ValueError, match=rf"shape \({shape[0]},.* takes \(B, 3, \.\.\.\)"):
            quantizer.codes_of(torch.zeros(shape))
        with pytest.raises(ValueError, match=r"takes \(B, 3, \.\.\.\)"):
            quantizer(torch.zeros(shape))


@EVERY
def test_state_survives_a_file(quantizer: Quantizer, name: str) -> None:
    torch.manual_seed(5)
    fresh, latent = every_quantizer()[name], torch.randn(2, 3, 6)
    for parameter in fresh.parameters():
        parameter.data.add_(1)
    fresh.load_state_dict(quantizer.state_dict(), strict=True)
    assert torch.equal(fresh.codes_of(latent), quantizer.codes_of(latent))


@EVERY
@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_the_latent(quantizer: Quantizer, training: bool) -> None:
    latent = torch.randn(2, 3, 4, 4, requires_grad=True)
    found = quantizer.train(training)(latent)
    (found.vectors * torch.randn_like(found.vectors)).sum().backward()
    assert latent.grad is not None
    assert latent.grad.isfinite().all()
    assert (latent.grad != 0).all()


@pytest.mark.parametrize("name", ["lfq", "lfq_little", "vq", "vq_remapped", "ema"])
def test_gradients_pass_straight_through(quantizer: Quantizer) -> None:
    latent = torch.randn(2, 3, 4, 4, requires_grad=True)
    quantizer(latent).vectors.sum().backward()
    assert torch.equal(latent.grad, torch.ones_like(latent))  # type: ignore[arg-type]


def test_a_misspelt_search_is_no_other_search() -> None:
    with pytest.raises(ValueError, match="search='cosin': use 'nearest', 'dot' or 'cosine'"):
        VectorQuantizer(8, 4, search="cosin")
