"""On start-up, the encode stage checks that the device computes the right codes."""

from collections.abc import Callable
from threading import Lock
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.stages.test_encode_stage import (
    CHUNKINGS,
    FSQ,
    VQ,
    Quantizer,
    ready_stage,
    tokenizer_config,
)
from tokpipe.config.job import EncodeConfig
from tokpipe.config.native_parts import FSQConfig, LFQConfig
from tokpipe.config.traits import TokenizerTraits
from tokpipe.errors import NodeTrouble
from tokpipe.models import operations
from tokpipe.models.tokenizers import VideoTokenizer
from tokpipe.models.tokenizers.native import NativeTokenizer
from tokpipe.models.tokenizers.probe import Parity, moving_picture
from tokpipe.stages.encode import EncodeStage

CPU = torch.device("cpu")
LFQ = LFQConfig(kind="lfq", dim=16, bit_order="big")
FINE = FSQConfig(kind="fsq", levels=(64, 64, 64))


@pytest.fixture
def wrong_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in bfloat16 sum half of the channels, as a broken library might."""
    right = operations.conv3d

    def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        if x.dtype == torch.bfloat16:
            x = x.clone()
            x[:, x.shape[1] // 2 :] = 0
        return right(x, weight, bias, *rest)

    monkeypatch.setattr(operations, "conv3d", conv3d)


def set_up(quantizer: Quantizer, dtype: str) -> None:
    """Set up a stage whose job has larger chunks than the small picture of the check."""
    config = EncodeConfig(dtype=dtype, batch_chunks=2)  # type: ignore[arg-type]
    job = tokenizer_config(quantizer), CHUNKINGS[0], config
    EncodeStage(*job, largest=(9, 56, 96)).setup("cpu", None)


@pytest.mark.parametrize("quantizer", [FSQ, VQ, LFQ, FINE], ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_passes_the_check(dtype: str, quantizer: Quantizer) -> None:
    set_up(quantizer, dtype)


def one_channel(x: Tensor, y: Tensor) -> None:
    y[:, 3] *= 1.1


def one_tile(x: Tensor, y: Tensor) -> None:
    y[:, :, 0, :8, :8] = 0


def large_inputs(x: Tensor, y: Tensor) -> None:
    if x[0, 0].numel() > 5 * 96 * 96:
        y[:, y.shape[1] // 2 :] = 0


def last_row(x: Tensor, y: Tensor) -> None:
    if len(x) > 1:
        y[-1] *= 0.99


@pytest.mark.parametrize("quantizer", [FSQ, LFQ, FINE], ids=str)
@pytest.mark.parametrize("fault", [one_channel, one_tile, large_inputs, last_row])
def test_wrong_sums_in_few_places_of_a_device_are_found(
    fault: Callable[[Tensor, Tensor], None],
    quantizer: Quantizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right, move, on_device = operations.conv3d, NativeTokenizer.to, list[bool]()

    def conv3d(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = right(x, *args, **kwargs)
        if on_device and x.dtype == torch.bfloat16:
            fault(x, y)
        return y

    def to(self: NativeTokenizer, device: torch.device) -> NativeTokenizer:
        on_device.append(True)  # what is computed before, the CPU computes
        return move(self, device)

    monkeypatch.setattr(operations, "conv3d", conv3d)
    monkeypatch.setattr(NativeTokenizer, "to", to)
    with pytest.raises(NodeTrouble, match=r"test picture in torch.bfloat16 .* silently wrong"):
        set_up(quantizer, "bfloat16")


@pytest.mark.usefixtures("wrong_sums")
@pytest.mark.parametrize("quantizer", [FSQ, VQ, LFQ], ids=lambda one: one.kind)
def test_a_device_that_computes_wrong_sums_is_rejected(quantizer: Quantizer) -> None:
    ready_stage(quantizer=quantizer, dtype="float32")
    with pytest.raises(NodeTrouble, match=r"% of the codes of a test picture in torch.bfloat16"):
        ready_stage(quantizer=quantizer, dtype="bfloat16")


class Fixed(VideoTokenizer):
    """Returns the same codes for every clip, with changes made by a test."""

    usual = 0.0  # Share that a narrow dtype changes anywhere
    wrong = 0.0  # Share that the device changes
    overflowing = 0.0

    def _encode(self, x: Tensor) -> Tensor:
        shape = len(x), 1 + (x.shape[2] - 1) // 4, x.shape[3] // 8, x.shape[4] // 8
        chance = torch.rand(shape[1:], generator=torch.Generator().manual_seed(1))
        changed = self.wrong or (self.usual if self.dtype != torch.float32 else 0.0)
        codes = torch.where(chance < changed, 200, 100)
        return torch.where(chance > 1 - self.overflowing, -1, codes).expand(shape)

    def _decode(self, codes: Tensor) -> Tensor:
        raise NotImplementedError

    def _cast(self, dtype: torch.dtype) -> None:
        pass


TRAITS = TokenizerTraits(temporal_stride=4, spatial_stride=8, codebook_size=256)


@pytest.mark.parametrize(
    ("dtype", "usual", "wrong", "overflowing", "is_rejected"),
    [
        (torch.float32, 0.0, 0.005, 0.0, False),
        (torch.float32, 0.0, 0.05, 0.0, True),
        (torch.bfloat16, 0.0, 0.01, 0.0, False),
        (torch.bfloat16, 0.0, 0.1, 0.0, True),
        (torch.bfloat16, 0.1, 0.1, 0.0, False),
        (torch.bfloat16, 0.1, 0.3, 0.0, True),
        (torch.bfloat16, 0.9, 0.9, 0.0, True),
        (torch.float16, 0.0, 0.0, 0.6, False),
        (torch.float16, 0.0, 0.0, 1.0, False),
    ],
)
def test_the_check_allows_as_many_changed_codes_as_the_dtype_changes_on_the_cpu(
    dtype: torch.dtype, usual: float, wrong: float, overflowing: float, is_rejected: bool
) -> None:
    tokenizer = Fixed(TRAITS)
    tokenizer.usual = usual
    parity = Parity(tokenizer, dtype)
    parity.check_float32(tokenizer, CPU, (9, 128, 128))
    tokenizer.wrong, tokenizer.overflowing = wrong, overflowing
    tokenizer.compute_in(dtype)
    if is_rejected:
        with pytest.raises(NodeTrouble, match="would be silently wrong"):
            parity.check(tokenizer, CPU, 2)
    else:
        parity.check(tokenizer, CPU, 2)


def test_a_tokenizer_that_cannot_be_copied_is_checked_all_the_same() -> None:
    tokenizer = Fixed(TRAITS)
    tokenizer.lock = Lock()  # type: ignore[assignment]
    parity = Parity(tokenizer, torch.bfloat16)
    parity.check_float32(tokenizer, CPU, None)
    tokenizer.wrong = 0.9
    with pytest.raises(NodeTrouble, match=r"Rounding explains 50\.0%"):
        parity.check(tokenizer, CPU, 2)


def test_a_job_whose_batch_does_not_fit_is_checked_with_a_smaller_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encode, shapes = NativeTokenizer.encode, []

    def short(self: NativeTokenizer, pixels: Tensor) -> Tensor:
        shapes.append((self.dtype, *pixels.shape[:2]))
        if pixels.shape[1] == 9 and (len(pixels) > 1 or self.dtype == torch.float32):
            raise torch.OutOfMemoryError("no room")
        return encode(self, pixels)

    monkeypatch.setattr(NativeTokenizer, "encode", short)
    set_up(FSQ, "bfloat16")
    assert shapes[-1][1:] == (2, 3), "the reference did not fit, so the small picture has to do"
    assert "leaves out the job's largest batch" in caplog.text


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
