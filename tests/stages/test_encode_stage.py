import pickle
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokpipe.config.job import ChunkingConfig, EncodeConfig
from tokpipe.config.native_parts import Encoder3DConfig, FSQConfig, LFQConfig, VQConfig
from tokpipe.config.tokenizer import NativeConfig
from tokpipe.errors import RuntimeFault
from tokpipe.models.tokenizers import build_tokenizer
from tokpipe.models.tokenizers.native import NativeTokenizer
from tokpipe.stages.chunks import plan_chunks
from tokpipe.stages.encode import EncodeStage
from tokpipe.types import ClipRef, Cut, DecodedClip, EncodedClip, Failed, Piece, Rejected

Quantizer = FSQConfig | LFQConfig | VQConfig
Result = EncodedClip | Rejected | Failed

CHUNKINGS = [
    ChunkingConfig(policy="independent", chunk_frames=5),
    ChunkingConfig(policy="overlap", chunk_frames=7, overlap_latents=1),
    ChunkingConfig(policy="whole"),
]
FSQ = FSQConfig(kind="fsq", levels=(8, 5, 5))
VQ = VQConfig(kind="vq", codebook_size=300, codebook_dim=4)


def tokenizer_config(quantizer: Quantizer = FSQ) -> NativeConfig:
    """Two levels, which halve space and time once."""
    encoder = Encoder3DConfig(
        ch=32, ch_mult=(1, 1), num_res_blocks=1, temporal_compress_times=2,
        z_channels=quantizer.codebook_dim,
    )  # fmt: skip
    return NativeConfig(encoder=encoder, quantizer=quantizer)


def ready_stage(
    chunking: ChunkingConfig = CHUNKINGS[0],
    quantizer: Quantizer = FSQ,
    norm: str = "clip",
    **encode: Any,
) -> EncodeStage:
    config = tokenizer_config(quantizer).model_copy(update={"norm": norm})
    stage = EncodeStage(config, chunking, EncodeConfig(**encode))
    stage.setup("cpu", None)
    return stage


def native(stage: EncodeStage) -> NativeTokenizer:
    """The stage's tokenizer, with its parts."""
    assert isinstance(stage.tokenizer, NativeTokenizer)
    return stage.tokenizer


def clip(name: int, num_frames: int, height: int = 4, width: int = 6) -> DecodedClip:
    """Noise that depends on ``name`` and the shape, read-only as from an object store."""
    shape = (num_frames, height, width, 3)
    frames = np.random.default_rng(name).integers(0, 256, shape, dtype=np.uint8)
    frames.flags.writeable = False
    ref = ClipRef(f"clip-{name}", name, 0, 1, f"s3://raw/{name}.mp4")
    return DecodedClip(ref, frames, np.arange(num_frames) / 8, 8.0, "pyav")


def codes_of(result: Result) -> list[NDArray[Any]]:
    assert isinstance(result, EncodedClip), result
    return list(result.codes)


def assert_same_codes(found: Result, wanted: Result) -> None:
    for a, b in zip(codes_of(found), codes_of(wanted), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module", autouse=True)
def process_wide_switches() -> Iterator[None]:
    """Undo the settings of the whole process that ``setup`` changes."""
    threads, backends = torch.get_num_threads(), torch.backends
    before = backends.cudnn.benchmark, backends.cudnn.deterministic
    yield
    backends.cudnn.benchmark, backends.cudnn.deterministic = before
    torch.set_num_threads(threads)


@pytest.mark.parametrize("chunking", CHUNKINGS, ids=lambda c: c.policy)
@pytest.mark.parametrize("num_frames", [1, 2, 5, 6, 7, 8, 12, 13, 16])
def test_codes_are_those_of_each_chunk_alone(chunking: ChunkingConfig, num_frames: int) -> None:
    whole = clip(0, num_frames)
    (found,) = ready_stage(chunking).process([whole])
    assert isinstance(found, EncodedClip)
    assert found.chunks == plan_chunks(num_frames, chunking, tokenizer_config().traits)
    assert (found.ref, found.fps, found.backend) == (whole.ref, 8.0, "pyav")
    assert found.pts_s is whole.pts_s
    assert found.grid == (2, 3)
    assert found.num_codes == sum(len(block) for block in found.codes) * 2 * 3
    tokenizer = build_tokenizer(tokenizer_config(), None)
    for span, codes in zip(found.chunks, found.codes, strict=True):
        first = span.first_frame - span.num_context_frames
        frames = [min(first + i, num_frames - 1) for i in range(span.num_input_frames)]
        pixels = torch.from_numpy(whole.frames[frames]).unsqueeze(0)
        wanted = tokenizer.encode(pixels)[0, span.num_dropped_latents :].numpy()
        assert codes.dtype == np.uint16
        np.testing.assert_array_equal(codes, wanted)


@pytest.fixture(scope="module")
def shared_stage() -> EncodeStage:
    return ready_stage(CHUNKINGS[1], VQ, batch_chunks=3)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    clips=st.lists(
        st.tuples(st.integers(0, 99), st.integers(1, 14), st.sampled_from([(4, 6), (6, 4)])),
        min_size=1, max_size=6, unique_by=lambda drawn: drawn[0],
    ),
    data=st.data(),
)  # fmt: skip
def test_codes_of_a_clip_do_not_depend_on_other_clips(
    shared_stage: EncodeStage, clips: list[tuple[int, int, tuple[int, int]]], data: st.DataObject
) -> None:
    made = [clip(name, frames, *size) for name, frames, size in clips]
    together = shared_stage.process(made)
    assert [result.ref for result in together] == [one.ref for one in made]
    order = data.draw(st.permutations(range(len(made))))
    for index, result in zip(order, shared_stage.process([made[i] for i in order]), strict=True):
        assert_same_codes(result, together[index])
    alone = data.draw(st.sampled_from(range(len(made))))
    assert_same_codes(shared_stage.process([made[alone]])[0], together[alone])


@pytest.mark.parametrize("quantizer", [FSQ, VQ])
def test_codes_do_not_depend_on_batch_size_threads_or_position(quantizer: Quantizer) -> None:
    """Latents are compared too, because codes rarely show a difference in the last bit."""
    clips = [clip(name, 5, 16, 12) for name in range(4)]
    wanted, latents = None, []
    for batch_chunks in (1, 2, 4):
        stage = ready_stage(quantizer=quantizer, batch_chunks=batch_chunks)

        def keep(_module: Any, _args: Any, latent: torch.Tensor) -> None:
            latents.append(latent)

        handle = native(stage).encoder.register_forward_hook(keep)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for shift in range(4):
                latents.clear()
                found = stage.process(clips[shift:] + clips[:shift])
                rows = torch.cat(latents)[:4].roll(shift, 0)
                results = found[-shift:] + found[:-shift] if shift else found
                wanted = wanted or (rows, results)
                assert torch.equal(rows, wanted[0])
                for one, other in zip(results, wanted[1], strict=True):
                    assert_same_codes(one, other)
        handle.remove()


def test_every_batch_has_the_size_that_the_job_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, shapes = ready_stage(batch_chunks=4), []
    encode = stage.tokenizer.encode

    def watched(pixels: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(pixels.shape))
        return encode(pixels)

    monkeypatch.setattr(stage.tokenizer, "encode", watched)
    stage.process([clip(0, 12), clip(1, 17), clip(2, 3, 8, 8)])
    assert shapes == [
        *[(4, 5, 4, 6, 3)] * 2,  # five whole chunks: two of clip 0, three of clip 1
        (4, 3, 4, 6, 3),  # both tails of two frames
        (4, 3, 8, 8, 3),
    ]


def test_rejected_clips_keep_their_place_and_do_not_affect_others() -> None:
    stage = ready_stage()
    clips = [clip(0, 5), clip(1, 5, 5, 6), clip(2, 0), clip(3, 5, 4, 7), clip(4, 5)]
    found = stage.process(clips)
    assert [result.ref for result in found] == [one.ref for one in clips]
    rejected = [r for r in found if isinstance(r, Rejected)]
    assert [r.reason for r in rejected] == ["frame_size", "no_frames", "frame_size"]
    assert {(r.stage, r.backend) for r in rejected} == {("encode", "pyav")}
    assert "s3://raw/1.mp4: its frames are 5x6 pixels" in rejected[0].message
    assert "spatial stride 2" in rejected[0].message
    assert "s3://raw/2.mp4: it has no frames" in rejected[1].message
    assert_same_codes(found[0], stage.process([clips[0]])[0])
    assert_same_codes(found[4], stage.process([clips[4]])[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_only_the_clip_whose_latents_are_not_finite_is_rejected(value: float) -> None:
    stage = ready_stage(batch_chunks=4)
    clips = [clip(name, 10) for name in range(3)]
    wanted = stage.process(clips)

    def spoil(_module: Any, _args: Any, latent: torch.Tensor) -> None:
        if not calls:
            latent[3, 0, 2, 1, 2] = value  # second chunk of the second clip
        calls.append(1)

    calls: list[int] = []
    native(stage).encoder.register_forward_hook(spoil)
    found = stage.process(clips)
    assert len(calls) == 2
    assert isinstance(found[1], Rejected)
    assert (found[1].stage, found[1].reason) == ("encode", "non_finite")
    assert "s3://raw/1.mp4: the encoder produced NaN or infinity in float32" in found[1].message
    assert_same_codes(found[0], wanted[0])
    assert_same_codes(found[2], wanted[2])


@pytest.mark.parametrize("wrong", [-2, 200, 70_000])
def test_codes_outside_the_codebook_are_a_fault(wrong: int) -> None:
    stage = ready_stage()
    quantizer = native(stage).quantizer
    codes_of_latent = quantizer.codes_of

    def broken(latent: torch.Tensor) -> torch.Tensor:
        codes = codes_of_latent(latent)
        codes[0, 1, 1, 1] = wrong
        return codes

    quantizer.codes_of = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeFault, match=rf"clip clip-7 got codes from .*{wrong}.* 0 to 199"):
        stage.process([clip(7, 5)])


def test_codes_that_exceed_uint16_are_uint32() -> None:
    (found,) = ready_stage(quantizer=LFQConfig(kind="lfq", dim=17)).process([clip(0, 16, 16, 16)])
    codes = np.concatenate([block.ravel() for block in codes_of(found)])
    assert codes.dtype == np.uint32
    assert codes.max() > 65_535


def test_bfloat16_is_used_in_the_encoder_but_not_in_the_quantizer() -> None:
    stage = ready_stage(quantizer=VQ, dtype="bfloat16")
    weights = list(native(stage).encoder.parameters())
    num_narrow = sum(p.numel() for p in weights if p.dtype == torch.bfloat16)
    assert num_narrow > 0.8 * sum(p.numel() for p in weights)
    assert {p.dtype for p in native(stage).quantizer.parameters()} == {torch.float32}
    narrow = codes_of(stage.process([clip(0, 5, 16, 16)])[0])[0]
    wide = codes_of(ready_stage(quantizer=VQ).process([clip(0, 5, 16, 16)])[0])[0]
    assert 0.9 < (narrow == wide).mean() < 1.0


def test_a_pickled_stage_is_small_and_encodes_with_the_weights_passed_as_bytes() -> None:
    config, whole = tokenizer_config(), clip(0, 5)
    parcel = pickle.dumps(EncodeStage(config, CHUNKINGS[0], EncodeConfig()))
    assert len(parcel) < 4096
    arrived: EncodeStage = pickle.loads(parcel)
    other = build_tokenizer(config.model_copy(update={"seed": 9}), None)
    arrived.setup("cpu", safetensors.torch.save(other.state_dict()))
    wanted = other.encode(torch.from_numpy(whole.frames.copy()).unsqueeze(0))[0]
    np.testing.assert_array_equal(codes_of(arrived.process([whole])[0])[0], wanted.numpy())


def test_pixels_are_freed_after_the_call() -> None:
    stage, made = ready_stage(), clip(0, 7)
    alive = weakref.ref(made.frames)
    results = stage.process([made])
    del made
    assert alive() is None
    assert len(codes_of(results[0])) == 2


STREAMING = ChunkingConfig(policy="streaming", chunk_frames=5)


@pytest.fixture(scope="module")
def streamer() -> EncodeStage:
    return ready_stage(STREAMING, VQ, "frame")


def pieces_of_clip(whole: DecodedClip, cut: Cut) -> list[DecodedClip]:
    """A clip as it is decoded piece by piece."""
    pieces, total = [], cut.num_parts(len(whole.frames))
    for index in range(total):
        start, stop = cut.bounds(index)
        frames, pts_s = whole.frames[start:stop], whole.pts_s[start:stop]
        pieces.append(replace(whole, frames=frames, pts_s=pts_s, piece=Piece(index, total, start)))
    return pieces


def stream(stage: EncodeStage, pieces: list[DecodedClip]) -> list[EncodedClip]:
    """Encode pieces in order, the state carried as Ray carries it."""
    encoded, state = [], None
    for piece in pieces:
        result, state = stage.process_piece(piece, pickle.loads(pickle.dumps(state)))
        assert isinstance(result, EncodedClip)
        encoded.append(result)
    assert state is None
    return encoded


@pytest.mark.parametrize("num_frames", [1, 2, 5, 6, 14, 15, 21])
def test_streamed_codes_equal_those_of_a_whole_clip(streamer: EncodeStage, num_frames: int) -> None:
    whole = clip(0, num_frames, 8, 12)
    padded = np.concatenate([whole.frames, whole.frames[-1:]])[: num_frames + 1 - num_frames % 2]
    wanted = streamer.tokenizer.encode(torch.from_numpy(padded).unsqueeze(0))[0].numpy()
    for cut in (Cut(1000, 1000), Cut(5, 4), Cut(9, 8), Cut(17, 16)):
        results = stream(streamer, pieces_of_clip(whole, cut))
        found = np.concatenate([block for result in results for block in result.codes])
        np.testing.assert_array_equal(found, wanted)
        spans = tuple(span for result in results for span in result.chunks)
        assert spans == plan_chunks(num_frames, STREAMING, streamer.tokenizer.traits)


def test_streamed_clips_of_one_piece_do_not_affect_each_other(streamer: EncodeStage) -> None:
    clips = [clip(0, 9), clip(1, 5, 5, 6), clip(2, 14)]
    found = streamer.process(clips)
    assert isinstance(found[1], Rejected)
    for index in (0, 2):
        assert_same_codes(found[index], streamer.process([clips[index]])[0])
        assert_same_codes(found[index], streamer.process_piece(clips[index], None)[0])


def test_a_piece_needs_the_finite_state_before_it(streamer: EncodeStage) -> None:
    one, other = (pieces_of_clip(clip(name, 13, 8, 12), Cut(5, 4)) for name in (0, 1))
    _, state = streamer.process_piece(one[0], None)
    _, foreign = streamer.process_piece(other[0], None)
    right, wrong = (streamer.process_piece(one[1], past)[0] for past in (state, foreign))
    assert (codes_of(right)[0] != codes_of(wrong)[0]).any()
    with pytest.raises(ValueError, match="piece 1 of clip clip-0 came with no state"):
        streamer.process_piece(one[1], None)
    with pytest.raises(ValueError, match="piece 0 of clip clip-0 came with a state"):
        streamer.process_piece(one[0], state)
    with pytest.raises(ValueError, match=r"the state of .* carries"):
        streamer.process_piece(replace(one[1], frames=one[1].frames[:, :4, :4]), state)
    assert state is not None
    spoilt = replace(state, tensors=tuple(torch.full_like(t, np.nan) for t in state.tensors))
    result, after = streamer.process_piece(one[1], spoilt)
    assert isinstance(result, Rejected)
    assert (result.reason, result.ref, after) == ("non_finite", one[1].ref, None)


def test_states_are_on_the_cpu_in_the_dtype_of_their_layers() -> None:
    stage = ready_stage(STREAMING, VQ, "frame", dtype="bfloat16")
    first, second, _ = pieces_of_clip(clip(0, 13, 8, 12), Cut(5, 4))
    _, state = stage.process_piece(first, None)
    assert state is not None
    assert {t.device.type for t in state.tensors} == {"cpu"}
    assert {t.dtype for t in state.tensors} == {torch.bfloat16, torch.float32}
    before = [tensor.clone() for tensor in state.tensors]
    once, again = (stage.process_piece(second, state)[0] for _ in range(2))
    assert_same_codes(once, again)  # a piece can be encoded again from the same state
    assert all(torch.equal(a, b) for a, b in zip(before, state.tensors, strict=True))
