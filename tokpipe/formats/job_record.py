"""OUT/job.json: what an output is made of. Written once, before any shard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from tokpipe.config.job import JobConfig
from tokpipe.errors import ConfigError, NotFound, PlanMismatch
from tokpipe.formats.checks import damaged, too_new
from tokpipe.formats.layout import JOB_RECORD
from tokpipe.formats.sealed_json import CHECKSUM, seal
from tokpipe.formats.tokenizer_spec import TokenizerSpec
from tokpipe.identity.ids import digest
from tokpipe.storage.store import Store

JOB_RECORD_FORMAT = 1


class JobRecord(BaseModel):
    """Everything that a stranger, a reader and a resume need to know of an output."""

    # Unknown keys are ignored: a later version may have added some.
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    format: int = JOB_RECORD_FORMAT
    tokpipe_version: str
    created_at: str
    """UTC, ISO 8601."""
    writer: str
    """Attempt id of the driver that wrote this: makes the record unlike any other."""
    dataset: str
    fingerprint: str
    settings: dict[str, Any]
    """What the fingerprint is made of, by dotted key."""
    tokenizer: TokenizerSpec
    num_rows: NonNegativeInt
    """Rows of the stored plan: those that the manifest counts off."""
    plan: dict[str, Any]
    """Where the stored plan is, and its checksums."""
    libraries: dict[str, str]
    """Versions at the first start, for people: a resume may run others."""
    job: dict[str, Any]
    """The resolved job file."""

    def to_json(self) -> bytes:
        """Return JSON for people, closed by a checksum of itself."""
        return (json.dumps(seal(self.model_dump(mode="json")), indent=2) + "\n").encode()

    def job_config(self, uri: str) -> JobConfig:
        """The resolved job file as settings again; ``uri`` is the output's, for the error.

        Raises:
            ConfigError: another version of tokpipe wrote it, whose settings are not known here.
        """
        try:
            return JobConfig.model_validate_json(json.dumps(self.job))
        except ValidationError as error:
            raise ConfigError(
                f"{uri}: its job was recorded by tokpipe {self.tokpipe_version}, and has settings "
                f"that this version does not take ({error.error_count()} problems, the first: "
                f"{error.errors(include_url=False)[0]['msg']}). Its codes can be read all the "
                "same; to run its tokenizer again, install that version"
            ) from error

    @classmethod
    def from_json(cls, uri: str, data: bytes) -> JobRecord:
        """Parse a record.

        Raises:
            CorruptOutput: it is no record, or one of a later format.
        """
        try:
            fields = json.loads(data)
            version = fields["format"]
            if not isinstance(version, int):
                raise TypeError(f"its format is {version!r}")
            if version > JOB_RECORD_FORMAT:
                raise too_new(uri, version, JOB_RECORD_FORMAT)
            # Records of early versions carry none; an audit says so.
            if fields.pop(CHECKSUM, None) not in (None, digest(fields)):
                raise damaged(uri, "its content does not have the checksum that it carries")
            return cls.model_validate(fields)
        except (ValueError, KeyError, TypeError, RecursionError) as error:  # pydantic's, too
            raise damaged(uri, f"it does not parse as the record of a job: {error}") from error


def write_once(store: Store, record: JobRecord) -> JobRecord:
    """Write the record unless there is one. Returns the one that stands, ours or an earlier."""
    if store.create(JOB_RECORD, record.to_json()):
        return record
    return read(store)


def read(store: Store) -> JobRecord:
    """Return an output's record.

    Raises:
        NotFound: nothing was ever written below this prefix.
        CorruptOutput: the record is damaged.
    """
    uri = store.uri_of(JOB_RECORD)
    try:
        data = store.get(JOB_RECORD)
    except NotFound as error:
        raise NotFound(
            f"{store.uri} has no {JOB_RECORD}, so it is not the output of a tokpipe job, or of one "
            "that has not begun. Nothing below it can be read. Check the URI, or wait for the job."
        ) from error
    return JobRecord.from_json(uri, data)


def flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Turn nested settings into one mapping with dotted keys; lists stay values."""

    def pairs(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                yield from pairs(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            yield prefix, value

    return dict(pairs("", settings)) if settings else {}


def check_same(uri: str, written: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Compare the settings of an output with those of the job about to resume it.

    Both are compared as JSON would store them, so a tuple equals the list it was read back as.

    Raises:
        PlanMismatch: naming every setting that changed, by dotted key.
    """
    before, after = (flatten(json.loads(json.dumps(side))) for side in (written, wanted))
    changed = [
        f"{key}: {_shown(before, key)} -> {_shown(after, key)}"
        for key in sorted(before.keys() | after.keys())
        if _shown(before, key) != _shown(after, key)
    ]
    if changed:
        raise PlanMismatch(
            f"{uri} was written with other settings ({'; '.join(changed)}). "
            "Resuming would mix two kinds of codes in one dataset. "
            "Write to a new output prefix, or restore the earlier job file."
        )


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "(not set)"
