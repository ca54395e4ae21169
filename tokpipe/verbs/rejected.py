"""``tokpipe rejected``: the clips of an output that were refused, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from tokpipe.reader import Output
from tokpipe.telemetry.human import counts_text
from tokpipe.types import Rejected


def rejected_lines(
    output: Output, *, reason: str | None = None, stage: str | None = None, as_json: bool = False
) -> Iterator[str]:
    """Yield a line or a few for each clip that stands rejected, the newest first.

    Reads the manifest backwards and holds one entry of it at a time.

    Args:
        reason: only clips rejected for this reason.
        stage: only clips rejected by this stage.
        as_json: one JSON object a line, with every field of ``tokpipe.types.Rejected``.
    """
    if not as_json:
        totals = output.totals
        reasons = counts_text(totals.rejected)
        yield f"{totals.num_rejected:,} rejected{': ' + reasons if reasons else ''}"
    for rejected in output.rejected():
        if reason in (None, rejected.reason) and stage in (None, rejected.stage):
            yield json.dumps(asdict(rejected)) if as_json else _described(rejected)


def _described(rejected: Rejected) -> str:
    ref = rejected.ref
    part = f" (segment {ref.segment} of {ref.num_segments})" if ref.num_segments > 1 else ""
    facts = {
        "stage": rejected.stage,
        "decoder": rejected.backend,
        "error": rejected.error,
        "attempts": rejected.attempts if rejected.attempts > 1 else None,
        "clip": ref.clip_id,
    }
    known = ", ".join(f"{name} {value}" for name, value in facts.items() if value)
    return f"{rejected.reason}: {ref.source_uri}{part}\n  {rejected.message}\n  ({known})"
