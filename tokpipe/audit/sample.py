"""Encodes some clips of an output again: the one check that does not trust the stored codes."""

from collections.abc import Callable, Sequence

from tokpipe.audit.findings import Findings
from tokpipe.audit.report import Sampled
from tokpipe.errors import NotFound, SourceError
from tokpipe.reader import Output
from tokpipe.reconstruct.frames import Reencoder


def encode_again(
    output: Output,
    clip_ids: Sequence[str],
    findings: Findings,
    say: Callable[[str], None],
) -> tuple[Sampled, ...]:
    """Encode clips again from their sources. Codes that differ are a finding."""
    store = output.store
    sampled = []
    with Reencoder(output) as reencoder:
        for number, clip_id in enumerate(clip_ids):
            say(f"encoding clip {number + 1} of {len(clip_ids)} again")
            clip = output.clip(clip_id)
            where = f"{store.uri}: clip {clip_id} of {clip.source_uri}"
            try:
                same, *psnrs = reencoder.compare(clip)
            except (SourceError, NotFound) as error:
                findings.add(
                    "codes_differ",
                    store.uri,
                    f"{where} cannot be encoded again ({error}), so its codes are not confirmed. "
                    "Restore its source, or sample other clips with --seed",
                )
                continue
            sampled.append(Sampled(clip_id, clip.source_uri, same, *psnrs))
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
