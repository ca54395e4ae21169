"""The worker process of the encode stage, the only one to load torch. See ``actors``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray

from tokpipe.runtime.actors import Payload, Report, Worker
from tokpipe.runtime.dispatch.protocol import EncodedInfo
from tokpipe.runtime.packing import Packed
from tokpipe.stages.encode import EncodeStage
from tokpipe.telemetry.logs import WorkerLog
from tokpipe.types import DecodedClip, EncodedClip, Failed, Rejected


class EncodeActor(Worker):
    """Runs the encode stage, on a GPU when the job has any."""

    def __init__(self, stage: EncodeStage, log: WorkerLog, device: str) -> None:
        self.stage = stage
        self.log = log
        self.device = device

    def setup(self, weights: bytes | None) -> None:
        self.log.start()
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


def _encoded_info(result: EncodedClip | Rejected | Failed) -> EncodedInfo | Rejected | Failed:
    if not isinstance(result, EncodedClip):
        return result
    return EncodedInfo(result.ref, result.grid, result.num_codes, result.marks)
