"""A folder for Hugging Face ``datasets``: ``data/*.parquet``, and a card, ``README.md``."""

from itertools import islice
from pathlib import Path

import pyarrow as pa

from tokpipe.export.samples import Source
from tokpipe.formats.side_table import without_names
from tokpipe.formats.tables import to_parquet
from tokpipe.telemetry.redact import printable

_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")
_CODES = '`row["codes"].reshape(row["shape"])`, codes (t, h, w[, c])'
_TOKENS = '`tokens`, `loss`, and `row["positions"].reshape(-1, 3)`'


def write_huggingface(source: Source, folder: Path) -> None:
    """Write side tables, shard by shard, with the arrays of each clip as flat lists."""
    (folder / "data").mkdir()
    output, rest = source.output, iter(source)
    for number, info in enumerate(output.shards):
        table = output.side_table(info)
        found = [sample.arrays for sample in islice(rest, table.num_rows)]
        columns = {name: pa.array([one[name].ravel() for one in found]) for name in source.dtypes}
        if source.template is None:
            columns["shape"] = pa.array([one["codes"].shape for one in found])
        table = without_names(table, columns)
        for name, column in columns.items():
            table = table.append_column(name, column)
        (folder / f"data/{number:06}.parquet").write_bytes(to_parquet(table))
    source.describe(folder)
    spec = output.tokenizer
    card = Path(__file__).with_name("huggingface_card.md").read_text(encoding="utf-8")
    card = card.format(
        size=_SIZES[min(max(len(str(output.num_clips)), 3), 9) - 3],
        name=printable(output.record.dataset),
        output=output,
        arrays=_TOKENS if source.template else _CODES,
        fingerprint=output.fingerprint,
        tokenizer=printable(spec.name),
        weights=printable(spec.weights_hash),
        license=printable(spec.licence) or "not declared",
    )
    (folder / "README.md").write_text(card)
