"""When a batch fails, the clips that cause it are found and no other clip loses a code."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.models.test_graphs import Captures
from tests.stages.test_encode_stage import STREAMING, assert_same_codes, clip, ready_stage
from tokpipe.errors import ConfigError, NodeTrouble
from tokpipe.models.graphs import CAPTURED_AT, GraphedCall
from tokpipe.stages import encode as encode_module
from tokpipe.stages.device import Device, Trouble, trouble_of
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
    assert rows == [8, 4, *[2] * 6], "after a failure nothing else is launched first"
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
    monkeypatch.setattr("tokpipe.stages.encode.computes", lambda device: False)
    with pytest.raises(RuntimeError, match="device-side assert"):
        stage.process([clip(0, 5), clip(1, 5)])


SHORT_OF_MEMORY = [
    "GET was unable to find an engine to execute this computation",
    "FIND was unable to find an engine to execute this computation",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried",
    "cudaErrorMemoryAllocation",
]
BROKEN = [
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: unspecified launch failure",
    "CUDA error: misaligned address",
    "CUDA error: an illegal instruction was encountered",
    "Unable to determine the device handle: GPU is lost. Reboot the system",
    "GPU has fallen off the bus",
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
    "CUDA error: unknown error",
    "Triton Error [CUDA]: an illegal memory access was encountered",
    "CUDA error: hardware stack error",
    "CUDA error: the launch timed out and was terminated",
    "NCCL or NVLink: Invalid access of peer GPU memory over nvlink or a hardware error",
]
OTHER = [
    "Triton Error: out of resource: shared memory, Required: 300000, Hardware limit: 232448",
    "CUDA error: device-side assert triggered",
    "mat1 and mat2 shapes cannot be multiplied",
    "a spec error in the second record",
]


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        *((text, "memory") for text in SHORT_OF_MEMORY),
        *((text, "broken") for text in BROKEN),
        *((text, "other") for text in OTHER),
    ],
)
def test_errors_mean_what_they_say_under_any_type(text: str, trouble: Trouble) -> None:
    assert trouble_of(RuntimeError(text)) == trouble
    assert trouble_of(torch.AcceleratorError(text)) == trouble
    wrapped = ValueError("the tokenizer could not encode")
    wrapped.__cause__ = RuntimeError(text)
    assert trouble_of(wrapped) == trouble


@pytest.mark.parametrize("text", SHORT_OF_MEMORY[:3])
def test_short_memory_under_another_name_halves_batches(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = ready_stage(batch_chunks=4)

    def no_engine_for_three(pixels: Tensor) -> None:
        if len(pixels) > 2:
            raise RuntimeError(text)

    rows = spoil(stage, monkeypatch, no_engine_for_three)
    results = stage.process([clip(name, 5) for name in range(5)])
    assert [type(one) for one in results] == [EncodedClip] * 5
    assert rows == [4, 2, 2, 2]


def test_graphs_give_their_memory_before_batches_shrink(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage = ready_stage(batch_chunks=4)
    graphs = Graphs()
    rows = spoil(stage, monkeypatch, lambda pixels: graphs.takes_memory(pixels))
    stage._graphed = GraphedCall(stage.tokenizer.encode, graphs)
    for _ in range(CAPTURED_AT):
        stage.process([clip(0, 5)])
    rows.clear()
    graphs.most_rows = 2
    results = stage.process([clip(name, 5, height=16) for name in range(4)])
    assert [type(one) for one in results] == [EncodedClip] * 4
    assert rows[:2] == [4, 4], "the same batch again, without graphs"
    assert set(rows[2:]) == {2}
    assert stage._graphed.state == "off: their memory was needed"
    assert "graphs are not used any more" in caplog.text


@pytest.mark.parametrize("text", BROKEN[:3])
def test_a_broken_gpu_is_its_nodes_trouble(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = ready_stage(batch_chunks=4)

    def problem(pixels: Tensor) -> None:
        raise torch.AcceleratorError(text)

    spoil(stage, monkeypatch, problem)
    with pytest.raises(NodeTrouble, match="is broken"):
        stage.process([clip(0, 5), clip(1, 5)])


def test_what_failed_keeps_no_memory_while_it_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage, held = ready_stage(batch_chunks=2), list[weakref.ref[Any]]()

    class Held:
        """Stands for the activations that the stack of an error refers to."""

    def problem(pixels: Tensor) -> None:
        assert not [one for one in held if one() is not None], "an earlier batch is in memory"
        activations = Held()
        held.append(weakref.ref(activations))
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("no room")

    spoil(stage, monkeypatch, problem)
    assert all(isinstance(one, EncodedClip) for one in stage.process([clip(0, 5), clip(1, 5)]))
    assert len(held) == 3


@pytest.mark.parametrize(
    "switch",
    [
        lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
        lambda: setattr(torch.backends.cudnn, "allow_tf32", True),
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: setattr(torch.backends.cudnn, "benchmark", True),
    ],
    ids=["matmul", "cudnn", "precision", "benchmark"],
)
def test_a_tokenizer_cannot_have_codes_rounded(
    switch: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    switch()  # before, such as on import: it is undone
    stage = ready_stage(batch_chunks=2)
    stage.process([clip(0, 5)])
    spoil(stage, monkeypatch, lambda pixels: switch())
    with pytest.raises(ConfigError, match="lets float32 products be rounded"):
        stage.process([clip(0, 5)])
    monkeypatch.undo()
    assert isinstance(stage.process([clip(0, 5)])[0], EncodedClip)


class Graphs(Captures):
    """Graphs whose memory is what batches lack."""

    most_rows = 99

    def takes_memory(self, pixels: Tensor) -> None:
        if len(pixels) > self.most_rows:
            raise torch.OutOfMemoryError("no room")


def test_codes_are_read_back_before_the_next_batch_is_launched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model of a GPU with one stream: what is launched runs in order, the host goes on."""
    stage = ready_stage(batch_chunks=1)
    device = Timeline()
    stage._on_device = device
    spoil(stage, monkeypatch, lambda pixels: device.launch("compute", 10.0))
    stage.process([clip(name, 5) for name in range(6)])
    busy = sum(end - start for _, start, end in device.ran)
    assert device.ran[-1][2] - device.ran[0][1] - busy < 0.01, "the GPU never waits for the host"
    computed = [name for name, _, _ in device.ran]
    assert computed == ["compute", "read back"] * 6


class Timeline(Device):
    """Work takes time on the host (pixels) and on the GPU; waiting moves the host's clock."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.host_s = self.gpu_s = 0.0
        self.ran: list[tuple[str, float, float]] = []

    def launch(self, name: str, seconds: float) -> None:
        start = max(self.host_s, self.gpu_s)
        self.gpu_s = start + seconds
        self.ran.append((name, start, self.gpu_s))

    def upload(self, pixels: Tensor) -> Tensor:
        self.host_s += 6.0  # assembling them
        return super().upload(pixels)

    def read_back(self, codes: Tensor) -> Callable[[], NDArray[Any]]:
        self.launch("read back", 0.1)
        done_s = self.gpu_s
        wait = super().read_back(codes)

        def waits() -> NDArray[Any]:
            self.host_s = max(self.host_s, done_s)
            return wait()

        return waits


ILLEGAL = RuntimeError("CUDA error: an illegal memory access was encountered")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def probe_failed(cause: Exception | None) -> ConfigError:
    error = ConfigError("custom tokenizer, probed by encoding, raised an error")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ILLEGAL, NodeTrouble),
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"), NodeTrouble),
        (RuntimeError("No CUDA GPUs are available"), NodeTrouble),
        (RuntimeError("Found no NVIDIA driver on your system"), NodeTrouble),
        (FULL, NodeTrouble),
        (probe_failed(ILLEGAL), NodeTrouble),
        (probe_failed(None), ConfigError),
        (probe_failed(ValueError("wrong shape")), ConfigError),
        (ValueError("wrong shape"), ValueError),
    ],
    ids=str,
)
def test_a_gpu_that_fails_while_an_encoder_starts_is_trouble_of_its_node(
    error: Exception, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(encode_module, "build_tokenizer", build)
    with pytest.raises(kind) as raised:
        ready_stage()
    assert isinstance(raised.value, NodeTrouble) == (kind is NodeTrouble)


def test_a_gpu_that_fails_on_a_streamed_clip_is_trouble_of_its_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = ready_stage(STREAMING, norm="frame")

    def fail(*arguments: Any) -> None:
        raise ILLEGAL

    monkeypatch.setattr(stage.tokenizer, "encode_piece", fail)
    with pytest.raises(NodeTrouble, match="cpu is broken or in use"):
        stage.process_piece(clip(0, 5), None)


def test_settings_that_a_tokenizer_changes_on_a_streamed_clip_end_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = ready_stage(STREAMING, norm="frame")
    encode = stage.tokenizer.encode_piece

    def with_tf32(*arguments: Any) -> Any:
        torch.backends.cudnn.allow_tf32 = True
        return encode(*arguments)

    monkeypatch.setattr(stage.tokenizer, "encode_piece", with_tf32)
    with pytest.raises(ConfigError, match="remove such switches"):
        stage.process_piece(clip(0, 5), None)
