"""Encodes some clips of an output again: the one check that does not trust the stored codes."""

from collections.abc import Callable, Sequence
from contextlib import closing

from tokpipe.audit.findings import Findings
from tokpipe.audit.report import Sampled
from tokpipe.errors import NotFound, SourceError
from tokpipe.plan import PlanReader, StoredPlan
from tokpipe.reader import Output
from tokpipe.reconstruct.frames import Reencoder, equal_fraction


def encode_again(
    output: Output,
    clip_ids: Sequence[str],
    findings: Findings,
    say: Callable[[str], None],
) -> tuple[Sampled, ...]:
    """Encode clips again from their sources. Codes that differ are a finding."""
    job = output.trusted_job()
    store, record = output.store, output.record
    plan = PlanReader(store, StoredPlan.from_json(record.plan), job.sources)
    sampled = []
    with closing(Reencoder(job, record.tokenizer, plan, record.device)) as reencoder:
        for number, clip_id in enumerate(clip_ids):
            say(f"encoding clip {number + 1} of {len(clip_ids)} again")
            clip = output.clip(clip_id)
            where = f"{store.uri}: clip {clip_id} of {clip.source_uri}"
            try:
                codes = list(reencoder.codes(clip))
                same = equal_fraction(clip, codes)
                psnr = reencoder.psnr_db(clip, codes) if same else None
            except (SourceError, NotFound) as error:
                findings.add(
                    "codes_differ",
                    store.uri,
                    f"{where} cannot be encoded again ({error}), so its codes are not confirmed. "
                    "Restore its source, or sample other clips with --seed",
                )
                continue
            sampled.append(Sampled(clip_id, clip.source_uri, same, *(psnr or (None, None))))
            if same < 1:
                findings.add(
                    "codes_differ",
                    store.uri,
                    f"{where} produces different codes when it is encoded again: {same:.2%} are "
                    "the same. Training would see a video that differs from the source. Other "
                    "hardware, or other library versions than job.json lists, can break ties "
                    "differently; otherwise tokenize it again to a new output prefix",
                )
    return tuple(sampled)
