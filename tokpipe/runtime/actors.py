"""The worker processes: each wraps one stage, and answers with small facts about big objects.

An actor is built (which proves that the cluster found room), then set up (weights, scratch
space), then works. What it makes goes into the object store; the driver sees only the facts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ObjectLostError

from tokpipe.runtime.protocol import (
    Answer,
    AttemptId,
    DecodedInfo,
    EncodedInfo,
)
from tokpipe.runtime.scratch import make_scratch
from tokpipe.stages.decode import DecodeStage
from tokpipe.stages.encode import EncodeStage
from tokpipe.stages.write import WriteStage
from tokpipe.types import DecodedClip, EncodedClip, Failed, Rejected, WorkItem

Payload = list[DecodedClip | None] | list[EncodedClip | None]
"""Clips by position in the lease; None where the clip was rejected or failed."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the driver gets to see of one attempt."""

    answer: Answer
    busy_s: float


@dataclass(frozen=True, slots=True)
class InputsLost:
    """Codes that this lease needs vanished with the node that held them."""

    attempts: tuple[AttemptId, ...]


class _Worker:
    """What all actors have: a constructor that does nothing that can fail, and a node."""

    def node_id(self) -> str:
        """Hex id of the node that this actor runs on."""
        return str(ray.get_runtime_context().get_node_id())


class DecodeActor(_Worker):
    """Runs the decode stage on CPUs."""

    def __init__(self, stage: DecodeStage) -> None:
        self.stage = stage

    def setup(self) -> None:
        self.stage.setup(make_scratch("decode"))

    def work(self, items: Sequence[WorkItem]) -> tuple[Payload, Report]:
        started = time.monotonic()
        results = self.stage.process(list(items))
        payload = [one if isinstance(one, DecodedClip) else None for one in results]
        infos = tuple(
            one
            if isinstance(one, Rejected | Failed)
            else DecodedInfo(one.ref, len(one.frames), one.piece.num_pieces)
            for one in results
        )
        return payload, Report(infos, time.monotonic() - started)


class EncodeActor(_Worker):
    """Runs the encode stage, on a GPU when the job has any."""

    def __init__(self, stage: EncodeStage, device: str) -> None:
        self.stage = stage
        self.device = device

    def setup(self, weights: bytes | None) -> None:
        self.stage.setup(self.device, weights)

    def work(
        self, positions: Sequence[int], decoded: list[DecodedClip | None]
    ) -> tuple[Payload, Report]:
        started = time.monotonic()
        clips = [clip for position in positions if (clip := decoded[position]) is not None]
        assert len(clips) == len(positions), "only decoded clips are picked"
        results = self.stage.process(clips)
        payload = [one if isinstance(one, EncodedClip) else None for one in results]
        infos = tuple(_encoded_info(one) for one in results)
        return payload, Report(infos, time.monotonic() - started)

    def work_piece(
        self, position: int, decoded: list[DecodedClip | None], state: Any
    ) -> tuple[Payload, Any, Report]:
        """``state``: what this returned for the piece before, or None. A reference given for it is
        resolved by Ray, so that it travels from encoder to encoder."""
        started = time.monotonic()
        piece = decoded[position]
        assert piece is not None, "only decoded clips are picked"
        result, after = self.stage.process_piece(piece, state)
        payload = [None if isinstance(result, Rejected) else result]
        return payload, after, Report((_encoded_info(result),), time.monotonic() - started)


def _encoded_info(result: EncodedClip | Rejected | Failed) -> EncodedInfo | Rejected | Failed:
    if not isinstance(result, EncodedClip):
        return result
    return EncodedInfo(result.ref, result.grid, result.num_codes, result.marks)


class WriteActor(_Worker):
    """Runs the write stage. Gathers its inputs itself, so as to tell which of them are lost."""

    def __init__(self, stage: WriteStage) -> None:
        self.stage = stage

    def setup(self) -> None:
        self.stage.setup()

    def work(
        self, shard: str, picks: Sequence[tuple[AttemptId, Any, tuple[int, ...]]]
    ) -> Report | InputsLost:
        """``picks``: (attempt, reference to its payload, positions) in shard order."""
        started = time.monotonic()
        clips: list[EncodedClip] = []
        lost: list[AttemptId] = []
        for attempt, reference, positions in picks:
            try:
                payload = ray.get(reference)
            except ObjectLostError:
                lost.append(attempt)
                continue
            clips.extend(payload[position] for position in positions)
        if lost:
            return InputsLost(tuple(lost))
        return Report(self.stage.process(shard, clips), time.monotonic() - started)
