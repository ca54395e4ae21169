"""Where the codes come from."""

from __future__ import annotations

import yaml

from tokpipe.formats.job_record import flatten
from tokpipe.report.facts import Facts
from tokpipe.report.markup import Markup, el
from tokpipe.report.parts import UNKNOWN, counted, definitions, details, moment, section, table
from tokpipe.telemetry.redact import redact_nested


def provenance(facts: Facts) -> Markup:
    """Where the codes come from."""
    record, status, history = facts.record, facts.status, facts.history
    spec = record.tokenizer
    first, last = history.first_at, history.last_at
    commits = f"{moment(first)} to {moment(last)}" if first and last else UNKNOWN
    known = [
        ("dataset", record.dataset),
        ("output", status.uri),
        ("fingerprint", record.fingerprint),
        (
            "tokenizer",
            f"{spec.name}, {spec.codebook_size:,} codes of {spec.temporal_stride}x"
            f"{spec.spatial_stride}x{spec.spatial_stride} pixels, chunks {spec.chunk_policy}",
        ),
        ("weights", spec.weights_hash),
        ("licence of the weights", spec.licence or "not declared"),
        ("begun", f"{moment(record.created_at)} by tokpipe {record.tokpipe_version}"),
        ("tokpipe versions", ", ".join(history.versions) or UNKNOWN),
        ("first and last commit", commits),
        ("newest driver", status.driver or UNKNOWN),
        ("manifest", f"{counted(facts.num_entries, 'entry', 'entries')}"),
        ("this report", f"{moment(facts.made_at)} by tokpipe {facts.made_by}"),
    ]
    libraries = ((name, version) for name, version in sorted(record.libraries.items()))
    job = yaml.safe_dump(redact_nested(record.job), sort_keys=False, allow_unicode=True, width=88)
    settings = ((key, str(value)) for key, value in flatten(redact_nested(record.settings)).items())
    return section(
        "provenance",
        "Provenance",
        definitions(known),
        details(
            "The job, resolved",
            el("pre", el("code", job), tabindex=0, role="region", aria_label="The resolved job"),
        ),
        details(
            "Settings behind the fingerprint",
            table(
                "Settings behind the fingerprint", ("setting", "value"), settings, numbers_from=9
            ),
        ),
        details(
            "Libraries at the first start",
            table(
                "Libraries at the first start", ("library", "version"), libraries, numbers_from=9
            ),
        ),
    )
