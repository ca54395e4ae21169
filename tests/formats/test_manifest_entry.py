import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.formats.formats_helpers import flipped
from tokpipe.errors import CorruptOutput
from tokpipe.formats.manifest import Claim, Growth, ManifestEntry, Reopened, Totals
from tokpipe.formats.sealed_json import dump_lines, seal
from tokpipe.telemetry.account import Account
from tokpipe.types import ClipRef, Receipt, Rejected

REF = ClipRef("ab" * 16, 7, 0, 1, "s3://videos/7.mp4")
ENTRY = ManifestEntry(
    seq=3,
    writer="driver-1",
    written_at="2026-01-02T03:04:05.678+00:00",
    shards=(
        Receipt(
            "shards/p-1-a.parquet", 1000, "cd" * 32, 2, 240, 22, (4, 6),
            "clips/p-1-a.parquet", "ef" * 32, 500,
            (REF, ClipRef("cd" * 16, 8, 1, 3, "s3://videos/8.mp4")), {"cpu avx2": 2},
        ),
    ),
    rejected=(Rejected(ClipRef("ef" * 16, 9, 0, 1, "x"), "decode", "truncated", "why", "pyav", 2),),
)  # fmt: skip

# Other programs parse this layout, so a change of it must be noticed.
TEXT = """{"format": 1,
"seq": 3,
"writer": "driver-1",
"written_at": "2026-01-02T03:04:05.678+00:00",
"clip_fields": ["clip_id", "row", "segment", "num_segments", "source_uri"],
"shards": [
{"shard": "shards/p-1-a.parquet", "size_bytes": 1000, "sha256": "SHA", "num_rows": 2, \
"num_codes": 240, "num_frames": 22, "grid": [4, 6], "side_table": "clips/p-1-a.parquet", \
"side_table_sha256": "SIDE", "side_table_size_bytes": 500, "clips": [
["ID1", 7, 0, 1, "s3://videos/7.mp4"],
["ID2", 8, 1, 3, "s3://videos/8.mp4"]
], "encoders": {"cpu avx2": 2}}
],
"rejected": [
{"ref": {"clip_id": "ID3", "row": 9, "segment": 0, "num_segments": 1, "source_uri": "x"}, \
"stage": "decode", "reason": "truncated", "message": "why", "backend": "pyav", "attempts": 2, \
"error": null}
],
"checksum": "CHECKSUM"}
"""


def test_the_text_of_an_entry_is_as_documented() -> None:
    checksum = json.loads(ENTRY.to_json())["checksum"]
    names = {"SHA": "cd" * 32, "SIDE": "ef" * 32, "CHECKSUM": checksum}
    names |= {"ID1": "ab" * 16, "ID2": "cd" * 16, "ID3": "ef" * 16}
    text = TEXT
    for name, value in names.items():
        text = text.replace(f'"{name}"', f'"{value}"')
    assert ENTRY.to_json().decode() == text


# With surrogates: a decoder's message may hold bytes that are not text.
texts = st.text(max_size=10)
counts = st.integers(0, 2**40)
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
sides = st.integers(1, 2**15 - 1)
names = st.text("aZ09_.-", max_size=9).map(lambda text: f"a{text}.parquet")
refs = st.builds(ClipRef, texts, counts, counts, st.integers(1, 2**31 - 1), texts)
receipts = st.builds(
    Receipt, names.map("shards/{}".format), counts, hashes, counts, counts, counts,
    st.tuples(sides, sides), names.map("clips/{}".format), hashes, counts,
    st.lists(refs, max_size=3).map(tuple),
)  # fmt: skip
rejections = st.builds(
    Rejected, refs, st.sampled_from(["plan", "decode"]), texts, texts, st.none() | texts, counts
)
entries = st.builds(
    ManifestEntry, counts, texts, texts,
    st.lists(receipts, max_size=3).map(tuple), st.lists(rejections, max_size=3).map(tuple),
)  # fmt: skip


@given(entries)
@settings(max_examples=150)
def test_entries_survive_the_round_trip(entry: ManifestEntry) -> None:
    assert ManifestEntry.from_json("mem://e", entry.to_json()) == entry


def test_every_flipped_bit_in_an_entry_is_detected() -> None:
    data = ENTRY.to_json()
    seen = 0
    for bit in range(len(data) * 8):
        try:
            # A newline that became a tab changes nothing.
            assert ManifestEntry.from_json("mem://e", flipped(data, bit)) == ENTRY
        except CorruptOutput:
            seen += 1
    assert seen > 0.99 * len(data) * 8


def with_fields(**fields: Any) -> bytes:
    body = json.loads(ENTRY.to_json())
    del body["checksum"]
    return dump_lines(seal({**body, **fields}))


@pytest.mark.parametrize(
    ("field", "value"),
    [("seq", "three"), ("shards", None), ("shards", [{}]), ("clip_fields", ["clip_id"]),
     ("rejected", [{"ref": 1}])],
)  # fmt: skip
def test_an_entry_with_wrong_fields_is_rejected(field: str, value: Any) -> None:
    with pytest.raises(CorruptOutput, match="does not parse as a manifest entry"):
        ManifestEntry.from_json("mem://e", with_fields(**{field: value}))


SHORT = ENTRY.to_json()[:500]


@pytest.mark.parametrize("text", [b"", b"\xff", b"[1]", b"{}", b'{"checksum": "no"}', SHORT])
def test_text_that_is_not_an_entry_is_rejected(text: bytes) -> None:
    with pytest.raises(CorruptOutput, match="mem://e is damaged"):
        ManifestEntry.from_json("mem://e", text)


def test_later_fields_are_ignored_but_a_newer_format_asks_for_an_upgrade() -> None:
    assert ManifestEntry.from_json("mem://e", with_fields(later=1)) == ENTRY
    with pytest.raises(CorruptOutput, match=r"format 5, .* up to 4\. .* Upgrade tokpipe"):
        ManifestEntry.from_json("mem://e", with_fields(format=5))


def test_what_earlier_versions_cannot_read_requires_a_later_format() -> None:
    claim = replace(ENTRY, shards=(), rejected=(), claim=Claim("host", 7, "0.1.0"))
    reopening = replace(ENTRY, shards=(), rejected=(), reopened=(Reopened(REF, "truncated"),))
    account = Account({"decode": 1.5}, {"decode": 2.0}, 3.0, 2.0, {"no compiler": 1.0}, 0.5)
    paid = replace(ENTRY, account=account)
    first, linked = replace(claim, previous=""), replace(reopening, previous="ab" * 16)
    grown = replace(first, growth=Growth(9, 2, {"plan_id": "x"}, [{"uri": "u"}]))
    versions = ((claim, 1), (reopening, 2), (paid, 1), (first, 3), (linked, 3), (grown, 4))
    for entry, version in versions:
        assert json.loads(entry.to_json())["format"] == version
        assert ManifestEntry.from_json("mem://e", entry.to_json()) == entry


def test_totals_are_the_same_before_an_entry_is_stored_and_after_it_is_read() -> None:
    account = Account(paid_s=1 / 3, useful_s=2 / 3, lost_s=1 / 7, slow_s={"no compiler": 1 / 3})
    entry = ManifestEntry(seq=0, writer="w", written_at="", account=account)
    stored = ManifestEntry.from_json("", entry.to_json())
    sums = Totals(), Totals()
    for totals, one in zip(sums, (entry, stored), strict=True):
        totals.add(one)
    assert sums[0] == sums[1]
