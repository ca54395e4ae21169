"""OUT/job.json: how an output was made. Written once, before any shard."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from tokpipe.config.base import RECORDED
from tokpipe.config.job import JobConfig
from tokpipe.errors import ConfigError, NotFound, PlanMismatch
from tokpipe.formats.checks import as_damage, damaged, explained
from tokpipe.formats.layout import JOB_RECORD
from tokpipe.formats.manifest import Growth
from tokpipe.formats.sealed_json import CHECKSUM, read_sealed, seal, unseal
from tokpipe.formats.shard import TokenizerSpec
from tokpipe.identity import fingerprint_settings
from tokpipe.storage.store import Store

JOB_RECORD_FORMAT = 1
_JSON: TypeAdapter[Any] = TypeAdapter(dict[str, JsonValue])


class JobRecord(BaseModel):
    """Everything that a reader, a resume or another program needs to know about an output."""

    # A later version may have added keys.
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    format: int = JOB_RECORD_FORMAT
    tokpipe_version: str
    created_at: str  # UTC, ISO 8601
    writer: str  # Attempt id of the driver that wrote this. Makes every record unique
    dataset: str
    fingerprint: str
    settings: dict[str, Any]  # What the fingerprint hashes, by dotted key
    tokenizer: TokenizerSpec
    num_rows: Annotated[int, Field(ge=0, le=2**32)]  # Of the stored plan; the manifest settles them
    plan: dict[str, Any]  # Location and checksums of the stored plan
    libraries: dict[str, str]  # Versions at the first start, for people. A resume may run others
    job: dict[str, Any]  # The resolved job file

    @property
    def device(self) -> str:
        """The kind of device that encodes since the first run, ``cpu`` or ``cuda``."""
        encode = self.settings.get("encode")
        if isinstance(encode, dict) and (device := encode.get("device")) in ("cpu", "cuda"):
            return str(device)
        raise damaged(JOB_RECORD, "its settings have no device", "Other codes could be mixed in")

    def settled(self, job: JobConfig) -> JobConfig:
        """The job with what it leaves to the first run (``auto``) as that run decided it."""
        decided: dict[str, Any] = {"device": self.device}
        if isinstance(rows := self.settings["encode"].get("batch_chunks"), int) and rows > 0:
            decided["batch_chunks"] = rows
        left = {k: v for k, v in decided.items() if getattr(job.encode, k) == "auto"}
        return job.model_copy(update={"encode": job.encode.model_copy(update=left)})

    def to_json(self) -> bytes:
        """Return indented JSON that ends with a checksum."""
        return (json.dumps(seal(self.model_dump(mode="json")), indent=2) + "\n").encode()

    def recorded_job(self, uri: str) -> JobConfig:
        """Return the job as data, not to be run (``Output.trusted_job``); ``uri`` is for errors.

        Raises:
            ConfigError: another version of tokpipe wrote settings that are unknown here.
        """
        try:
            settings = {**self.job, "storage": {}, "runtime": {}}
            return JobConfig.model_validate_json(json.dumps(settings), context=RECORDED)
        except ValidationError as error:
            raise ConfigError(
                f"{uri}: its job was recorded by tokpipe {self.tokpipe_version} with settings that "
                f"this version does not accept ({explained(error)}). Only its codes can be read"
            ) from error

    @classmethod
    def from_json(cls, uri: str, data: bytes) -> "JobRecord":
        # Early versions wrote no checksum; an audit reports it.
        fields = unseal(uri, data, newest_format=JOB_RECORD_FORMAT, may_lack_checksum=True)
        with as_damage(uri, "it does not parse as a job record", ValueError):
            _JSON.validate_python(fields)  # not nested too deeply for functions that recurse
            return cls.model_validate(fields)


def write_once(store: Store, record: JobRecord) -> JobRecord:
    """Write the record unless one exists. Return the one that is in the store."""
    return record if store.create(JOB_RECORD, record.to_json()) else read(store)


def rewrite_plan(store: Store, plan: Mapping[str, Any]) -> None:
    """Replace what the record says of the stored plan, and leave the rest as it is."""
    body = json.loads(store.get(JOB_RECORD))
    body = seal({**{key: value for key, value in body.items() if key != CHECKSUM}, "plan": plan})
    store.put(JOB_RECORD, (json.dumps(body, indent=2) + "\n").encode())


def read(store: Store) -> JobRecord:
    """Return an output's record.

    Raises:
        NotFound: there is no output at this prefix.
        CorruptOutput: the record is damaged.
    """
    uri = store.uri_of(JOB_RECORD)
    try:
        data = read_sealed(store, JOB_RECORD)
    except NotFound as error:
        found = "it is not the output of a tokpipe job, or the job has not started"
        raise NotFound(f"{store.uri} has no {JOB_RECORD}: {found}") from error
    return JobRecord.from_json(uri, data)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested settings into one mapping with dotted keys. Lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        is_nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if is_nested else {f"{prefix}{key}": value}
    return flat


def compared(
    store: Store,
    record: JobRecord,
    job: JobConfig,
    weights_hash: str,
    decoders: Mapping[str, str],
    growth: Sequence[Growth] = (),
    *,
    extends: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what decides the codes and rows of an output, for its ``record`` and for a job.

    A job that ``extends`` what was planned with its ``growth`` may have sources after those.
    """
    job = record.settled(job)
    wanted_plan = _plan_inputs(job.model_dump(mode="json"))
    try:
        latest = {"sources": growth[-1].sources} if growth else {}
        planned = _plan_inputs({**record.job, **latest})
        if extends:
            wanted_plan["sources"] = wanted_plan["sources"][: len(planned["sources"])]
    except (AttributeError, KeyError, TypeError) as error:
        found = f"its job lacks what a plan is made from ({explained(error)})"
        raise damaged(store.uri_of(JOB_RECORD), found, "Other clips could be mixed in") from error
    device = job.encode.device
    wanted = fingerprint_settings(job, weights_hash=weights_hash, device=device, decoders=decoders)
    return {**record.settings, **planned}, {**wanted, **wanted_plan}


def _plan_inputs(job: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a resolved job that decide the rows of its plan."""
    # The first is checked while planning, and the second decides about clips and not rows.
    left_out = ("allowed_prefixes", "on_change")
    # Earlier versions had no pictures.
    known = [{"media": "video", "animation_as_picture": False, **one} for one in job["sources"]]
    sources = [{k: v for k, v in one.items() if k not in left_out} for one in known]
    kept = {"dataset": job["dataset"], "on_duplicate": job["on_duplicate"]}
    return {**kept, "part": job.get("part"), "sources": sources}


def check_same(uri: str, written: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise PlanMismatch unless both settings, as ``compared`` returns them, are the same."""
    if changed := differences(written, wanted, "->"):
        raise PlanMismatch(
            f"{uri} was written with different settings ({'; '.join(changed)}). "
            "Resuming would mix two kinds of codes in one dataset. Write to a new output prefix. "
            "Sources may only be added after those that there were, by --extend."
        )


def differences(before: Mapping[str, Any], after: Mapping[str, Any], between: str) -> list[str]:
    """Return ``key: before -> after`` for each dotted key whose values differ as JSON."""
    sides = (flatten(json.loads(json.dumps(side))) for side in (before, after))
    old, new = ({key: repr(value) for key, value in side.items()} for side in sides)
    pairs = {key: (old.get(key, "(not set)"), new.get(key, "(not set)")) for key in {**old, **new}}
    return [f"{key}: {a} {between} {b}" for key, (a, b) in sorted(pairs.items()) if a != b]
