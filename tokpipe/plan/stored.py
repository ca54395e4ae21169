"""A stored plan: its description in ``job.json``, and its Parquet files."""

import hashlib
import io
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokpipe.errors import CorruptOutput
from tokpipe.sources.rows import ROW_SCHEMA
from tokpipe.storage.left_out import LeftOut
from tokpipe.storage.store import Store

ROW_ID = pa.field("row_id", pa.string(), nullable=False)
OWN_COLUMNS = [ROW_ID.name, *ROW_SCHEMA.names]


@dataclass(frozen=True, slots=True)
class PlanPart:
    """One file of the plan. All of its rows come from one source."""

    key: str
    num_rows: int
    sha256: str
    size_bytes: int
    source: int = 0
    """Position of its source in the job; unknown, like the sources' versions, in older plans."""


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """What ``job.json`` records of a plan: enough to find, check and read every row."""

    plan_id: str
    """Hash of the parts' hashes: plans with the same id have the same rows in the same order."""
    parts: tuple[PlanPart, ...]
    num_rows: int
    num_problems: int  # Rows found unusable while planning; they count in ``num_rows``
    num_duplicates: int  # Rows dropped because an earlier row is the same clip
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
            own = {
                "parts": tuple(PlanPart(**part) for part in value["parts"]),
                "duplicate_examples": tuple(value["duplicate_examples"]),
                "left_out": LeftOut.from_json(value.get("left_out", {})),
            }
            return cls(**{**value, **own})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            found = f"job.json does not describe a stored plan ({error!r})"
            do = "Restore job.json from a copy of the output, or tokenize to a new output prefix"
            raise CorruptOutput(f"{found}. It lists the clips to make. {do}.") from error


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
    return PlanPart(key, table.num_rows, hashlib.sha256(data).hexdigest(), len(data), source)


def read_part(store: Store, part: PlanPart, columns: list[str] | None = None) -> pa.Table:
    data = store.get(part.key)
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise CorruptOutput(
            f"{store.uri_of(part.key)}: its {len(data)} bytes are not the {part.size_bytes} that "
            "were planned (SHA-256 differs). Its rows may not be the clips that were committed: "
            "restore the file, or plan again under a new output prefix."
        )
    return pq.read_table(io.BytesIO(data), columns=columns)
