"""What ``tokpipe report`` puts on its page, against outputs made by hand."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.formats.formats_helpers import DictStore, encoded_clip
from tests.reader.reader_helpers import NUM_ROWS, begin, put_shard
from tokpipe.errors import ConfigError, CorruptOutput
from tokpipe.formats.manifest import ActorUse, Claim, EncoderUse, ManifestEntry, append
from tokpipe.reader.output import Output
from tokpipe.report import history, write_report
from tokpipe.report.facts import gather
from tokpipe.types import ClipRef, Rejected

HOSTILE = '<script>alert("x")</script>&a.mp4'


def entry(seq: int, second: float, **content: object) -> ManifestEntry:
    time = f"2026-01-01T00:00:{second:06.3f}+00:00"
    return ManifestEntry(seq, "driver-1", time, **content)  # type: ignore[arg-type]


@pytest.fixture
def store() -> DictStore:
    """Ten seconds of a job: four shards of three clips each, and two rejected clips."""
    store = DictStore()
    begin(store)
    assert append(store, entry(0, 0.0, claim=Claim("host", 1, "0.1.0")))
    for number in range(4):
        clips = [encoded_clip(10 * number + row, [5, 9]) for row in range(3)]
        ref = ClipRef(f"bad{number}", 900 + number, 0, 1, HOSTILE)
        rejected = [Rejected(ref, "decode", "truncated", "<b>short</b>")] if number < 2 else []
        assert append(
            store,
            entry(
                1 + number,
                2.5 * (1 + number),
                shards=(put_shard(store, f"s{number}", clips),),
                rejected=tuple(rejected),
                encoders=EncoderUse(paid_s=4.0, useful_s=3.0),
                actors=ActorUse(
                    {"download": 0.5, "decode": 1.0, "encode": 2.4, "write": 0.1},
                    {"decode": 2.5, "encode": 2.5, "write": 2.5},
                ),
            ),
        )
    return store


class Page(HTMLParser):
    """What a browser would see: text, tags, and everything that an attribute refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self._hidden = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._hidden += tag in ("style", "script")
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data


def page_of(store: DictStore, folder: Path, num_pairs: int = 0) -> tuple[Page, str]:
    path = folder / "report.html"
    write_report(Output(store), path, num_shards=0, num_pairs=num_pairs)
    return Page(path.read_text()), path.read_text()


def test_the_page_tells_what_there_is(store: DictStore, tmp_path: Path) -> None:
    page, html = page_of(store, tmp_path)
    output = Output(store)
    for wanted in (
        f"not finished: 14 of {NUM_ROWS:,} plan rows are settled",
        f"{output.totals.num_frames:,}",
        f"{output.num_codes:,}",
        "14.29% of the clips",  # 2 rejected beside 12
        "Goodput75%",
        "Speed of light96%limited by encode",
        "speed of light 96%, limited by encode (busy 96%): as fast as its encoders",
        output.fingerprint,
    ):
        assert wanted in page.text, wanted
    assert re.search(r"download\s*0:02\s*20\.0%", page.text)
    # Every clip of three stands in the chart of the time in which it was committed.
    rates = re.findall(r'<th scope="row">2026-01-01 00:00:[^<]*</th><td>([^<]*)</td>', html)
    assert [float(rate) for rate in rates[:4]] == pytest.approx([0, 1.2, 1.2, 2.4], abs=0.01)


def test_nothing_that_an_output_says_becomes_part_of_the_page(
    store: DictStore, tmp_path: Path
) -> None:
    page, html = page_of(store, tmp_path)
    assert HOSTILE in page.text
    assert "<b>short</b>" in page.text
    assert page.tags.count("script") == 1  # the theme's
    assert "b" not in page.tags
    assert "default-src 'none'" in html


def test_the_page_refers_to_itself_alone(store: DictStore, tmp_path: Path) -> None:
    page, html = page_of(store, tmp_path)
    assert page.references
    assert all(one.startswith(("#", "data:")) for one in page.references)
    assert "http" not in html.replace('http-equiv="Content-Security-Policy"', "")
    assert "url(" not in html
    assert len(html) < 300_000


def test_clips_that_cannot_be_decoded_are_told_and_harm_nothing(
    store: DictStore, tmp_path: Path
) -> None:
    page, _ = page_of(store, tmp_path, num_pairs=2)
    assert "Clips could not be put beside their sources:" in page.text
    assert "Perplexity" in page.text


def test_an_output_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    store = DictStore()
    begin(store)
    page, _ = page_of(store, tmp_path, num_pairs=2)
    for wanted in ("Nothing is committed yet.", "No codes yet.", "No clip was rejected."):
        assert wanted in page.text


def test_a_damaged_shard_is_no_page(store: DictStore, tmp_path: Path) -> None:
    key = next(key for key in store.objects if key.startswith("shards/"))
    store.objects[key] = store.objects[key][:-1] + b"?"
    with pytest.raises(CorruptOutput, match=key):
        page_of(store, tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_page_in_no_folder_is_refused(store: DictStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its folder does not exist"):
        write_report(Output(store), tmp_path / "no" / "report.html", num_pairs=0)


@pytest.mark.parametrize("most", [3, 100])
def test_what_was_made_is_exact_however_few_entries_are_read(
    store: DictStore, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MAX_ENTRIES", most)
    found = gather(Output(store), num_shards=1, num_pairs=0).history
    assert (found.num_entries, found.num_read) == (5, min(most, 5))
    assert sum(span.num_clips for span in found.spans) == 12
    assert sum(span.num_codes for span in found.spans) == Output(store).num_codes
    assert found.elapsed_s == pytest.approx(10.0)
    assert found.begin is not None
    assert found.begin.second == 0


def test_seconds_of_actors_are_laid_over_the_time_that_they_were_spent_in(
    store: DictStore,
) -> None:
    found = gather(Output(store), num_shards=1, num_pairs=0).history
    up = np.array([span.actors.up_s.get("encode", 0.0) for span in found.spans])
    np.testing.assert_allclose(up, 2.5)
    assert found.actors.spent_s["encode"] == pytest.approx(9.6)
