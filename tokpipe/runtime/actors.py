"""The worker processes: each wraps one stage, and answers with small facts about big objects.

An actor is built (which proves that the cluster found room), then set up (weights, scratch
space), then works. What it makes goes into the object store; the driver sees only the facts.

Only the encode actor imports torch, in its ``setup``: for the driver and for many decoders it would
cost seconds and hundreds of megabytes each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ObjectLostError

from tokpipe.runtime.dispatch.protocol import Answer, AttemptId, DecodedInfo, EncodedInfo
from tokpipe.runtime.packing import Packed
from tokpipe.runtime.scratch import make_scratch
from tokpipe.stages.decode import DecodeStage
from tokpipe.stages.write import WriteStage
from tokpipe.telemetry.logs import WorkerLog
from tokpipe.types import DecodedClip, EncodedClip, Failed, Rejected, Travels, WorkItem

if TYPE_CHECKING:
    from tokpipe.stages.encode import EncodeStage

Payload = list[DecodedClip | None] | list[EncodedClip | None]
"""Clips by position in the lease; None where the clip was rejected or failed."""


@dataclass(frozen=True, slots=True)
class Report(Travels):
    """What the driver gets to see of one attempt."""

    answer: Answer
    busy_s: float
    download_s: float = 0.0
    """Of the busy ones, those that went into fetching sources."""
    download_bytes: int = 0


@dataclass(frozen=True, slots=True)
class InputsLost:
    """Codes that this lease needs vanished with the node that held them."""

    attempts: tuple[AttemptId, ...]


class Worker:
    """What all actors have: a constructor that does nothing that can fail, a log, and a node."""

    log: WorkerLog

    def node_id(self) -> str:
        """Hex id of the node that this actor runs on."""
        return str(ray.get_runtime_context().get_node_id())


class DecodeActor(Worker):
    """Runs the decode stage on CPUs."""

    def __init__(self, stage: DecodeStage, log: WorkerLog) -> None:
        self.stage = stage
        self.log = log

    def setup(self) -> None:
        self.log.start()
        self.stage.setup(make_scratch("decode"))

    @ray.method(num_returns=2)
    def work(self, items: Sequence[WorkItem]) -> tuple[Packed[Payload], Packed[Report]]:
        started, stage = time.monotonic(), self.stage
        fetched_s, fetched_bytes = stage.fetched_s, stage.fetched_bytes
        results = self.stage.process(list(items))
        payload = [one if isinstance(one, DecodedClip) else None for one in results]
        infos = tuple(
            one
            if isinstance(one, Rejected | Failed)
            else DecodedInfo(one.ref, len(one.frames), one.piece.num_pieces)
            for one in results
        )
        report = Report(
            infos,
            time.monotonic() - started,
            stage.fetched_s - fetched_s,
            stage.fetched_bytes - fetched_bytes,
        )
        return Packed(payload), Packed(report)


class EncodeActor(Worker):
    """Runs the encode stage, on a GPU when the job has any."""

    def __init__(self, build: Callable[[], EncodeStage], log: WorkerLog, device: str) -> None:
        self.build = build
        self.log = log
        self.device = device

    def setup(self, weights: bytes | None) -> None:
        self.log.start()
        self.stage = self.build()
        self.stage.setup(self.device, weights)

    @ray.method(num_returns=2)
    def work(
        self, positions: Sequence[int], decoded: list[DecodedClip | None]
    ) -> tuple[Packed[Payload], Packed[Report]]:
        started = time.monotonic()
        clips = [clip for position in positions if (clip := decoded[position]) is not None]
        assert len(clips) == len(positions), "only decoded clips are picked"
        results = self.stage.process(clips)
        payload = [one if isinstance(one, EncodedClip) else None for one in results]
        infos = tuple(_encoded_info(one) for one in results)
        return Packed(payload), Packed(Report(infos, time.monotonic() - started))

    @ray.method(num_returns=3)
    def work_piece(
        self, position: int, decoded: list[DecodedClip | None], state: Any
    ) -> tuple[Packed[Payload], Any, Packed[Report]]:
        """``state``: what this returned for the piece before, or None. A reference given for it is
        resolved by Ray, so that it travels from encoder to encoder."""
        started = time.monotonic()
        piece = decoded[position]
        assert piece is not None, "only decoded clips are picked"
        result, after = self.stage.process_piece(piece, state)
        payload = [None if isinstance(result, Rejected) else result]
        report = Report((_encoded_info(result),), time.monotonic() - started)
        return Packed(payload), after, Packed(report)


class WriteActor(Worker):
    """Runs the write stage. Gathers its inputs itself, so as to tell which of them are lost."""

    def __init__(self, stage: WriteStage, log: WorkerLog) -> None:
        self.stage = stage
        self.log = log

    def setup(self) -> None:
        self.log.start()
        self.stage.setup()

    def work(
        self, shard: str, picks: Sequence[tuple[AttemptId, Any, tuple[int, ...]]]
    ) -> Packed[Report] | InputsLost:
        """``picks``: (attempt, reference to its payload, positions) in shard order."""
        started = time.monotonic()
        clips: list[EncodedClip] = []
        try:
            payloads = ray.get([reference for _, reference, _ in picks])  # at once: one wait
        except ObjectLostError:
            return InputsLost(tuple(_lost(picks)))
        for (_, _, positions), payload in zip(picks, payloads, strict=True):
            clips.extend(payload[position] for position in positions)
        receipt = self.stage.process(shard, clips)
        return Packed(Report(receipt, time.monotonic() - started))


def _lost(picks: Sequence[tuple[AttemptId, Any, tuple[int, ...]]]) -> Iterator[AttemptId]:
    """Find out which inputs are gone."""
    for attempt, reference, _ in picks:
        try:
            ray.get(reference)
        except ObjectLostError:
            yield attempt


def _encoded_info(result: EncodedClip | Rejected | Failed) -> EncodedInfo | Rejected | Failed:
    if not isinstance(result, EncodedClip):
        return result
    return EncodedInfo(result.ref, result.grid, result.num_codes, result.marks)
