import json
from pathlib import Path

import pytest

from tests.formats.formats_helpers import DictStore, record, tokenizer_spec
from tokpipe.config import parse_job
from tokpipe.errors import CorruptOutput, NotFound, PlanMismatch
from tokpipe.formats.job_record import JobRecord, check_same, flatten, read, write_once
from tokpipe.formats.sealed_json import seal
from tokpipe.formats.shard import TokenizerSpec


def test_only_the_first_record_is_written() -> None:
    store = DictStore()
    assert write_once(store, record("driver-1")) == record("driver-1")
    assert write_once(store, record("driver-2")) == record("driver-1")
    assert read(store) == record("driver-1")


def test_the_record_is_readable_by_people() -> None:
    store = DictStore()
    write_once(store, record())
    text = store.objects["job.json"].decode()
    assert '\n  "fingerprint": "ffff' in text
    assert json.loads(text)["tokenizer"]["code_order"] == "t,h,w"
    assert json.loads(text)["format"] == 1


def test_a_prefix_without_a_record_is_not_an_output() -> None:
    with pytest.raises(NotFound, match=r"mem://out has no job\.json.*has not started"):
        read(DictStore())


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": "1"}', '{"format": 1}', "\xff", "[" * 9999]
)
def test_a_damaged_record_is_rejected(text: str) -> None:
    store = DictStore()
    store.objects["job.json"] = text.encode("latin-1")
    with pytest.raises(CorruptOutput, match=r"mem://out/job\.json is damaged"):
        read(store)


def test_a_record_of_a_newer_format_asks_for_an_upgrade() -> None:
    store = DictStore()
    newer = record().model_copy(update={"format": 2}).to_json()
    store.objects["job.json"] = newer.replace(b'"checksum": "', b'"checksum": "another-')
    with pytest.raises(CorruptOutput, match=r"has format 2, .* up to 1\. .* Upgrade tokpipe"):
        read(store)


def test_keys_added_by_a_later_version_are_ignored() -> None:
    fields = {**json.loads(record().to_json()), "later": 1}
    fields["tokenizer"]["later"] = 2
    del fields["checksum"]
    assert JobRecord.from_json("mem://j", json.dumps(seal(fields)).encode()) == record()


def test_an_edited_record_is_rejected() -> None:
    data = record().to_json().replace(b'"fps": 8.0', b'"fps": 9.0')
    with pytest.raises(CorruptOutput, match="does not match its checksum"):
        JobRecord.from_json("mem://j", data)


def test_resuming_with_other_settings_names_each_of_them() -> None:
    written = {"sampling": {"fps": 8.0, "max": 9}, "frames": {"size": [1, 2]}, "gone": True}
    wanted = {"sampling": {"fps": 12.0, "max": 9}, "frames": {"size": (1, 3)}, "new": None}
    with pytest.raises(PlanMismatch) as caught:
        check_same("s3://out", written, wanted)
    assert str(caught.value) == (
        "s3://out was written with different settings (frames.size: [1, 2] -> [1, 3]; "
        "gone: True -> (not set); new: (not set) -> None; sampling.fps: 8.0 -> 12.0). "
        "Resuming would mix two kinds of codes in one dataset. "
        "Write to a new output prefix. "
        "Sources may only be added after those that there were, by --extend."
    )


def test_settings_survive_a_round_trip_through_json() -> None:
    wanted = {"frames": {"size": (128, 128), "buckets": None}, "libraries": {}}
    check_same("s3://out", json.loads(json.dumps(wanted)), wanted)


def test_settings_are_named_by_dotted_keys() -> None:
    nested = {"a": {"b": {"c": 1}, "d": [1, {"x": 2}]}, "e": {}}
    assert flatten(nested) == {"a.b.c": 1, "a.d": [1, {"x": 2}], "e": {}}
    assert flatten({}) == {}


def test_the_tokenizer_spec_comes_from_the_job() -> None:
    path = Path(__file__).parents[1] / "config/native_job.yaml"
    job = parse_job(path.read_text(), name="job", root=path.parent, environ={})
    spec = TokenizerSpec.of(job.tokenizer, job.chunking, "random, seed 0")
    assert spec == tokenizer_spec(64_000).model_copy(update={"name": "random"})
