"""``tokpipe rejected``: the rejected clips of an output, with reasons."""

import json
from collections.abc import Iterator
from dataclasses import asdict

from tokpipe.reader import Output
from tokpipe.telemetry.human import counts_text
from tokpipe.types import Rejected


def rejected_lines(
    output: Output, *, reason: str | None = None, stage: str | None = None, as_json: bool = False
) -> Iterator[str]:
    """Yield the totals, then three lines per rejected clip, newest first.

    Reads the manifest backwards and holds one entry of it at a time. With ``as_json``, yields
    only one JSON object per clip, with every field of ``tokpipe.types.Rejected``.
    """
    if not as_json:
        totals = output.totals
        reasons = counts_text(totals.rejected)
        yield f"{totals.num_rejected:,} rejected{': ' + reasons if reasons else ''}"
    for rejected in output.rejected():
        if reason in (None, rejected.reason) and stage in (None, rejected.stage):
            yield json.dumps(asdict(rejected)) if as_json else _text(rejected)


def _text(rejected: Rejected) -> str:
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
