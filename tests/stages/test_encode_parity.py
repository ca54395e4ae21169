"""On start-up, the encode stage checks that the device computes the right codes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.stages.test_encode_stage import FSQ, VQ, Quantizer, ready_stage, tokenizer_config
from tokpipe.config.native_parts import LFQConfig
from tokpipe.config.traits import TokenizerTraits
from tokpipe.errors import NodeTrouble
from tokpipe.models import operations
from tokpipe.models.tokenizers import VideoTokenizer, build_tokenizer
from tokpipe.models.tokenizers.probe import NARROW_AGREEMENT, Parity, moving_picture

CPU = torch.device("cpu")
LFQ = LFQConfig(kind="lfq", dim=16, bit_order="big")


@pytest.fixture
def wrong_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in bfloat16 sum half of the channels, as a broken library might."""
    right = operations.conv3d

    def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None, **kwargs: Any) -> Tensor:
        if x.dtype == torch.bfloat16:
            x = x.clone()
            x[:, x.shape[1] // 2 :] = 0
        return right(x, weight, bias, **kwargs)

    monkeypatch.setattr(operations, "conv3d", conv3d)


@pytest.mark.parametrize("quantizer", [FSQ, VQ, LFQ], ids=lambda one: one.kind)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_passes_the_check(dtype: str, quantizer: Quantizer) -> None:
    tokenizer = build_tokenizer(tokenizer_config(quantizer), None)
    parity = Parity(tokenizer)
    assert parity.agreement(tokenizer, CPU) == 1
    tokenizer.compute_in(getattr(torch, dtype))
    assert parity.agreement(tokenizer, CPU) > NARROW_AGREEMENT + 0.1
    ready_stage(quantizer=quantizer, dtype=dtype)


@pytest.mark.usefixtures("wrong_sums")
@pytest.mark.parametrize("quantizer", [FSQ, VQ, LFQ], ids=lambda one: one.kind)
def test_a_device_that_computes_wrong_sums_is_rejected(quantizer: Quantizer) -> None:
    ready_stage(quantizer=quantizer, dtype="float32")
    with pytest.raises(NodeTrouble, match=r"% of the codes of a test picture in torch.bfloat16"):
        ready_stage(quantizer=quantizer, dtype="bfloat16")


class Fixed(VideoTokenizer):
    """Returns the same codes for every clip, with changes made by a test."""

    wrong = 0.0
    overflowing = 0.0

    def _encode(self, x: Tensor) -> Tensor:
        codes = torch.arange(128).view(1, 2, 8, 8).clone()
        codes.view(-1)[: round(self.wrong * 128)] = 200
        codes.view(-1)[128 - round(self.overflowing * 128) :] = -1
        return codes

    def _decode(self, codes: Tensor) -> Tensor:
        raise NotImplementedError

    def _cast(self, dtype: torch.dtype) -> None:
        pass


TRAITS = TokenizerTraits(temporal_stride=4, spatial_stride=8, codebook_size=256)


@pytest.mark.parametrize(
    ("dtype", "wrong", "overflowing", "is_rejected"),
    [
        (torch.float32, 0.05, 0.0, False),
        (torch.float32, 0.2, 0.0, True),
        (torch.bfloat16, 0.2, 0.0, False),
        (torch.bfloat16, 0.6, 0.0, True),
        (torch.float16, 0.0, 0.6, False),
        (torch.float16, 0.0, 1.0, False),
    ],
)
def test_the_check_allows_few_wrong_codes_more_in_narrow_dtypes_and_overflow(
    dtype: torch.dtype, wrong: float, overflowing: float, is_rejected: bool
) -> None:
    tokenizer = Fixed(TRAITS)
    parity = Parity(tokenizer)
    tokenizer.wrong, tokenizer.overflowing = wrong, overflowing
    tokenizer.compute_in(dtype)
    if is_rejected:
        with pytest.raises(NodeTrouble, match="would be silently wrong"):
            parity.check(tokenizer, CPU)
    else:
        parity.check(tokenizer, CPU)


@pytest.mark.parametrize(
    "traits",
    [
        TRAITS,
        TRAITS.model_copy(update={"size_multiple": 48}),
        TRAITS.model_copy(update={"chunk_frames": 33}),
        TokenizerTraits(temporal_stride=1, spatial_stride=16, codebook_size=2, layout="BCHW"),
    ],
)
def test_the_test_picture_fits_the_tokenizer(traits: TokenizerTraits) -> None:
    picture = moving_picture(traits)
    traits.check_num_frames(picture.shape[1])
    traits.check_size(*picture.shape[2:4])
    assert picture.dtype == torch.uint8
    assert int(picture.max()) - int(picture.min()) > 128
    assert not torch.equal(picture[:, 0], picture[:, -1])
    assert torch.equal(picture, moving_picture(traits))
