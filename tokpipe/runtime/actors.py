"""The worker processes: each wraps one stage, and answers with small facts about big objects.

An actor is built (which proves that the cluster found room), then set up (looks for the output,
loads weights), then works. Its results go into the object store; the driver sees only the facts.

Only the encode actor imports torch, in ``setup``: it costs seconds and hundreds of megabytes.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import ObjectLostError

from tokpipe.runtime.dispatch import protocol
from tokpipe.runtime.dispatch.fleet import INPUTS_WITHIN_S
from tokpipe.runtime.dispatch.protocol import AttemptId, LeaseDone, LeaseFailed
from tokpipe.storage.store import Landmark
from tokpipe.types import DecodedClip, EncodedClip, EncoderPath, WorkItem

STUCK = (
    "its inputs do not come from Ray's object store: the disk that it spills to (/tmp/ray*) is "
    "full, broken or was cleaned"
)
Positions = tuple[int, ...]


class Packed:
    """Carries a value across Ray: the receiver gets the value itself. It is pickled in C, as Ray's
    pickler visits every object in Python, and Ray sees some bytes and the buffers of arrays, which
    are not copied."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, tuple[Any, ...]]:
        buffers: list[pickle.PickleBuffer] = []
        inside = pickle.dumps(self.value, protocol=5, buffer_callback=buffers.append)
        return _unpack, (inside, *buffers)


def _unpack(inside: bytes, *buffers: Any) -> Any:
    return pickle.loads(inside, buffers=buffers)


class Worker:
    def __init__(self, start_log: Callable[[], None]) -> None:
        start_log()

    def setup(self, output: Landmark, stage: Any, *arguments: Any) -> tuple[Any, Any]:
        """Set up a stage, or one that ``stage`` builds here. Return an encoder's class and path."""
        output.check()
        self.stage = stage() if callable(stage) else stage
        self.stage.setup(*arguments)
        self.path: EncoderPath | None = getattr(self.stage, "path", None)
        return getattr(self.stage, "hardware", None), self.path

    def node_id(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


class DecodeActor(Worker):
    """Runs the decode stage on CPUs."""

    def work(
        self, attempt: AttemptId, items: Sequence[WorkItem], sizes: Sequence[tuple[int, int]]
    ) -> tuple[Packed, ...]:
        """Return pixels of each size of frames and codes that are reused, by position in the lease
        and None for other clips, and a ``LeaseDone``."""
        started, stage = time.monotonic(), self.stage
        results = stage.process(list(items))
        payloads: list[list[Any]] = [[None] * len(results) for _ in (*sizes, protocol.REUSED)]
        infos: list[Any] = []
        for at, one in enumerate(results):
            if isinstance(one, DecodedClip):
                payloads[part := sizes.index(one.frames.shape[1:3])][at] = one
                num_frames, num_pieces = len(one.frames), one.piece.num_pieces
                one = protocol.DecodedInfo(one.ref, num_frames, num_pieces, part, one.version)
            elif isinstance(one, EncodedClip):
                payloads[protocol.REUSED][at] = one
                one = _info(one)
            infos.append(one)
        busy_s = time.monotonic() - started
        done = LeaseDone(attempt, tuple(infos), busy_s, stage.fetched_s, stage.fetched_bytes)
        return *map(Packed, payloads), Packed(done)


class EncodeActor(Worker):
    """Runs the encode stage, on a GPU if the job has any."""

    @ray.method(num_returns=3)
    def work(
        self,
        attempt: AttemptId,
        picks: Sequence[Positions],
        state: Any,
        *decoded: list[DecodedClip | None],
    ) -> tuple[Packed, Any, Packed]:
        """Return codes, the state after a piece of a streamed clip, and a ``LeaseDone``. ``picks``:
        from each payload in ``decoded``. ``state``: after the previous piece, if there was one."""
        started, after = time.monotonic(), None
        clips = _picked(decoded, picks)
        if clips[0].piece.num_pieces > 1:  # it is alone
            result, after = self.stage.process_piece(clips[0], state)
            results = [result]
        else:
            results = self.stage.process(clips)
        payload = [one if isinstance(one, EncodedClip) else None for one in results]
        infos = tuple(_info(one) if isinstance(one, EncodedClip) else one for one in results)
        busy_s, path = time.monotonic() - started, self.stage.path
        news, self.path = None if path == self.path else path, path
        return Packed(payload), after, Packed(LeaseDone(attempt, infos, busy_s, path=news))


class WriteActor(Worker):
    """Runs the write stage. It gets its inputs by reference, to find out which of them are lost."""

    def work(
        self, attempt: AttemptId, shard: str, codes: Sequence[tuple[AttemptId, Any, Positions]]
    ) -> Packed:
        """``codes``, in shard order: an attempt, a reference to its payload, positions in that."""
        started = time.monotonic()
        sources, references, picks = zip(*codes, strict=True)
        if missing := missing_inputs(references, 2 * INPUTS_WITHIN_S):
            lost = tuple(sources[at] for at in missing)
            return Packed(LeaseFailed(attempt, "node", STUCK, lost))
        payloads, gone = [], []
        for source, reference in zip(sources, references, strict=True):
            try:
                payloads.append(ray.get(reference))
            except ObjectLostError:
                gone.append(source)
        if gone:
            return Packed(LeaseFailed(attempt, "inputs_lost", "a node was lost", tuple(gone)))
        receipt = self.stage.process(shard, _picked(payloads, picks))
        return Packed(LeaseDone(attempt, receipt, time.monotonic() - started))


def _info(clip: EncodedClip) -> protocol.EncodedInfo:
    return protocol.EncodedInfo(clip.ref, clip.grid, clip.num_codes, clip.marks, clip.version)


def _picked(payloads: Sequence[list[Any]], picks: Sequence[Positions]) -> list[Any]:
    pairs = zip(payloads, picks, strict=True)
    clips = [payload[at] for payload, positions in pairs for at in positions]
    assert all(clip is not None for clip in clips), "only clips that were made are picked"
    return clips


def missing_inputs(references: Sequence[Any], wait_s: float) -> list[int]:
    """Return which objects do not reach this node in that time. Ones that are lost do."""
    _, missing = ray.wait(list(references), num_returns=len(references), timeout=wait_s)
    return [at for at, one in enumerate(references) if one in missing]
