"""When a batch fails, the clips that cause it are found and no other clip loses a code."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.stages.test_encode_stage import assert_same_codes, clip, ready_stage
from tokpipe.stages.encode import EncodeStage
from tokpipe.types import EncodedClip, Failed


def spoil(
    stage: EncodeStage, monkeypatch: pytest.MonkeyPatch, problem: Callable[[Tensor], None]
) -> list[int]:
    """Call ``problem`` with each batch of pixels first; return the number of rows of each batch."""
    encode, rows = stage.tokenizer.encode, []

    def spoiled(pixels: Tensor) -> Tensor:
        rows.append(len(pixels))
        problem(pixels)
        return encode(pixels)

    monkeypatch.setattr(stage.tokenizer, "encode", spoiled)
    return rows


@pytest.mark.parametrize("bad", [{0}, {3}, {6}, {1, 5}, set(range(7))], ids=str)
def test_clips_that_make_the_encoder_fail_are_found_among_others(
    bad: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [clip(name, 7) for name in range(7)]
    wanted = ready_stage(batch_chunks=4).process(clips)
    stage = ready_stage(batch_chunks=4)
    marked = torch.stack([torch.from_numpy(clips[name].frames[:5].copy()) for name in sorted(bad)])

    def problem(pixels: Tensor) -> None:
        comparable = pixels.shape[1:] == marked.shape[1:]
        if comparable and (pixels[:, None] == marked).flatten(2).all(2).any():
            raise ValueError("this picture divides by zero\nand more")

    rows = spoil(stage, monkeypatch, problem)
    for name, result in enumerate(stage.process(clips)):
        if name in bad:
            assert isinstance(result, Failed)
            assert (result.reason, result.error) == ("encode_error", "ValueError")
            assert "this picture divides by zero; see" in result.message
        else:
            assert_same_codes(result, wanted[name])
    assert set(rows) == {4}, "a batch of another shape may be rounded differently"


def test_running_out_of_memory_halves_later_batches(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clips = [clip(name, 7) for name in range(5)]
    wanted = ready_stage(batch_chunks=8).process(clips)
    stage = ready_stage(batch_chunks=8)

    def no_memory_for_three(pixels: Tensor) -> None:
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("no room")

    rows = spoil(stage, monkeypatch, no_memory_for_three)
    for found, want in zip(stage.process(clips), wanted, strict=True):
        assert isinstance(found, EncodedClip)
        assert isinstance(want, EncodedClip)
        assert (found.marks, want.marks) == (("small_batch",), ())
        assert_same_codes(found, want)
    assert rows == [8, 8, 4, *[2] * 6]
    assert "batches are 2 now" in caplog.text
    rows.clear()
    stage.process(clips)
    assert set(rows) == {2}, "each call runs out of memory again"


def test_a_chunk_too_large_for_memory_fails_only_its_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = ready_stage(batch_chunks=2)

    def problem(pixels: Tensor) -> None:
        if pixels.shape[2] > 4:
            raise torch.OutOfMemoryError("no room")

    spoil(stage, monkeypatch, problem)
    small, large, other = stage.process([clip(0, 5), clip(1, 5, height=8), clip(2, 5)])
    assert [type(one) for one in (small, other)] == [EncodedClip] * 2
    assert isinstance(large, Failed)
    assert (large.reason, large.error) == ("out_of_memory", "OutOfMemoryError")


def test_a_broken_device_is_not_blamed_on_a_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = ready_stage(batch_chunks=2)

    def problem(pixels: Tensor) -> None:
        raise RuntimeError("device-side assert triggered")

    spoil(stage, monkeypatch, problem)
    monkeypatch.setattr(stage, "_works", lambda: False)
    with pytest.raises(RuntimeError, match="device-side assert"):
        stage.process([clip(0, 5), clip(1, 5)])
