"""A stored plan: its description in ``job.json``, and its Parquet files."""

import io
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter

from tokpipe.errors import CorruptOutput
from tokpipe.formats.checks import damaged, explained, sha256
from tokpipe.formats.tables import check_texts, from_parquet
from tokpipe.sources.rows import ROW_SCHEMA
from tokpipe.storage.left_out import LeftOut
from tokpipe.storage.store import Store
from tokpipe.types import Count, Sha256

ROW_ID = pa.field("row_id", pa.string(), nullable=False)
_OWN = [ROW_ID, *ROW_SCHEMA]
OWN_COLUMNS = [one.name for one in _OWN]


@dataclass(frozen=True, slots=True)
class PlanPart:
    """One file of the plan. All of its rows come from one source."""

    key: Annotated[str, Field(pattern=r"^plan/[A-Za-z0-9_-]+/[0-9]+\.parquet$")]
    num_rows: Count
    sha256: Sha256
    size_bytes: Count
    source: Count = 0
    """Position of its source in the job; unknown, like the sources' versions, in older plans."""


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """What ``job.json`` records of a plan: enough to find, check and read every row."""

    plan_id: str
    """Hash of the parts' hashes: plans with the same id have the same rows in the same order."""
    parts: tuple[PlanPart, ...]
    num_rows: Count
    num_problems: Count  # Rows found unusable while planning; they count in ``num_rows``
    num_duplicates: Count  # Rows dropped because an earlier row is the same clip
    duplicate_examples: tuple[str, ...]
    columns: dict[str, str]
    """Columns carried from the sources, by name, with the Arrow type as people read it."""
    columns_schema: str  # The same as a serialized Arrow schema in base64, for ``PlanReader``
    left_out: LeftOut = field(default_factory=LeftOut)
    """What the sources found and did not take; earlier versions did not count it."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "StoredPlan":
        """Reverse ``to_json``."""
        try:
            return _STORED.validate_python(value)
        except ValueError as error:
            found = f"job.json does not describe a stored plan ({explained(error)})"
            do = "Restore job.json from a copy of the output, or tokenize to a new output prefix"
            raise CorruptOutput(f"{found}. It lists the clips to make. {do}.") from error


_STORED = TypeAdapter(StoredPlan)


def store_part(store: Store, key: str, table: pa.Table, source: int) -> PlanPart:
    sink = io.BytesIO()
    # Parquet would try a dictionary for unique texts, and then drop it.
    unique = {ROW_ID.name, "source_uri", "source_version"}
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=1,
        use_dictionary=[name for name in table.column_names if name not in unique],
        write_statistics=False,
    )
    data = sink.getvalue()
    store.put(key, data)
    return PlanPart(key, table.num_rows, sha256(data), len(data), source)


def read_part(store: Store, part: PlanPart, columns: list[str] | None = None) -> pa.Table:
    data = store.get_range(part.key, 0, part.size_bytes + 1)
    if sha256(data) != part.sha256:
        raise CorruptOutput(
            f"{store.uri_of(part.key)}: its {len(data)} bytes are not the {part.size_bytes} that "
            "were planned (SHA-256 differs). Its rows may not be the clips that were committed: "
            "restore the file, or plan again under a new output prefix."
        )
    table = from_parquet(store.uri_of(part.key), data, "part of a plan", columns=columns)
    known = [(one, table.schema.field(one.name)) for one in _OWN if one.name in table.column_names]
    if table.num_rows != part.num_rows or any(a.type != b.type for a, b in known) or not known:
        raise damaged(store.uri_of(part.key), "its rows or columns are not those of the plan")
    own = table.select([one.name for one, _ in known])
    check_texts(store.uri_of(part.key), own, row_id="^[0-9a-f]{32}$")
    return table
