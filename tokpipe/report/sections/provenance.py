"""How the codes were made."""

import yaml

import tokpipe
from tokpipe.formats.job_record import flatten
from tokpipe.report.facts import Facts
from tokpipe.report.markup import UNKNOWN, Markup, details, html, moment, table
from tokpipe.telemetry.human import counted
from tokpipe.telemetry.redact import redact_nested


def provenance(facts: Facts) -> list[Markup]:
    """Dataset, tokenizer, versions, and the job with every default."""
    record, status, history = facts.record, facts.status, facts.history
    spec, stride = record.tokenizer, record.tokenizer.spatial_stride
    times = history.first_at, history.last_at
    commits = " to ".join(moment(at) for at in times if at)
    known = {
        "dataset": record.dataset,
        "output": status.uri,
        "fingerprint": record.fingerprint,
        "tokenizer": f"{spec.name}, {spec.codebook_size:,} codes, each of {spec.temporal_stride}x"
        f"{stride}x{stride} pixels, chunks {spec.chunk_policy}",
        "weights": spec.weights_hash,
        "licence of the weights": spec.licence or "not declared",
        "started": f"{moment(record.created_at)} by tokpipe {record.tokpipe_version}",
        "tokpipe versions": ", ".join(history.versions) or UNKNOWN,
        "first and last commit": commits or UNKNOWN,
        "clips by encoder": status.totals.encoders_text(),
        "newest driver": status.driver or UNKNOWN,
        "manifest": counted(facts.num_entries, "entry", "entries"),
        "this report": f"{moment(facts.made_at)} by tokpipe {tokpipe.__version__}",
    }
    job = yaml.safe_dump(redact_nested(record.job), sort_keys=False, allow_unicode=True, width=88)
    settings = flatten(redact_nested(record.settings))
    code = '<pre tabindex="0" role="region" aria-label="The resolved job"><code>{}</code></pre>'
    tables = {
        "Settings behind the fingerprint": ("setting", settings),
        "Libraries at the first start": ("library", dict(sorted(record.libraries.items()))),
    }
    entry = "<div><dt>{}</dt><dd>{}</dd></div>"
    return [
        html("<dl>{}</dl>", [html(entry, *item) for item in known.items()]),
        details("The resolved job", html(code, job)),
        *(
            details(title, table(title, (column, "value"), _rows(values), is_numeric=False))
            for title, (column, values) in tables.items()
        ),
    ]


def _rows(values: dict[str, object]) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in values.items()]
