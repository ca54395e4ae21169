"""What ``tokpipe report`` shows of outputs in any state."""

import base64
import io
import json
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import av
import pytest

from tests.formats.formats_helpers import DictStore, encoded_clip
from tests.reader.reader_helpers import NUM_ROWS, begin, put_shard
from tests.report.html_tree import Node, parsed
from tests.report.report_outputs import BEGAN, HOSTILE, NUM_SHARDS, entry, with_history
from tokpipe.config.trust import Trust
from tokpipe.errors import CorruptOutput
from tokpipe.formats.layout import JOB_RECORD, entry_key
from tokpipe.formats.manifest import Reopened, append
from tokpipe.formats.sealed_json import CHECKSUM, seal
from tokpipe.reader import open_output
from tokpipe.reader.output import Output
from tokpipe.reconstruct.command import Decoded
from tokpipe.report.write import WrittenReport
from tokpipe.telemetry.account import Account
from tokpipe.telemetry.human import json_line

NOW = BEGAN + timedelta(days=2)


def page_of(store: DictStore, folder: Path, **options: int) -> tuple[Node, WrittenReport]:
    wanted = {"num_pairs": 0, "num_shards": 0, **options}
    report = WrittenReport(Output(store), folder / "report.html", now=NOW, **wanted)  # type: ignore[arg-type]
    html = report.path.read_text("utf-8")
    assert report.size_bytes == len(html.encode())
    return parsed(html), report


def tiles(page: Node) -> dict[str, str]:
    """Return all key figures of the page, by name."""
    tiles = (tile for group in page.all("dl", class_="tiles") for tile in group.all("div"))
    return {tile.one("dt").text: tile.one("b").text for tile in tiles}


def test_a_real_output_is_shown_with_figures_and_pictures(
    real_report: WrittenReport, tmp_path: Path
) -> None:
    page = parsed(real_report.path.read_text("utf-8"))
    output = open_output(str(real_report.path.parent / "out"), trust=Trust(uris=True))
    totals = output.totals
    assert page.one("h1").text == "bunny"
    assert "Settled: all of 1 plan row." in page.text
    found = tiles(page)
    assert (found["clips"], found["frames"]) == (f"{totals.num_clips}", f"{totals.num_frames}")
    assert found["codes"] == f"{totals.num_codes:,}"
    assert found["bits per code"] == f"{8 * totals.size_bytes / totals.num_codes:.2f}"
    assert found["working time"] == "0:12"
    assert "90% of the speed of light" in page.text
    assert "Frames per clip" in page.text
    assert output.fingerprint in page.text
    assert "builtin://fsq-4x8x8" in page.one("pre").text
    assert re.search(r"\btorch [\d.]+", page.one("section", id="provenance").text)

    pictures = list(page.all("img"))
    assert len(pictures) == 4
    for picture in pictures:
        assert len(picture.attributes["alt"]) > 20
        kind, data = picture.attributes["src"].split(",", 1)
        assert kind == "data:image/jpeg;base64"
        with av.open(io.BytesIO(base64.b64decode(data))) as image:
            (frame,) = image.decode(video=0)
        assert (frame.width, frame.height) == (4 * 64, 64)
    figures = json.loads(json_line(real_report.to_dict()))
    for pair in figures["pairs"]["clips"]:
        decoded = Decoded(
            output, tmp_path / "clip.png", clip_id=pair["clip_id"], compare=True, device="cpu"
        )
        assert decoded.quality is not None
        assert pair["psnr_db"] == pytest.approx(decoded.quality.psnr_db)
        assert f"PSNR {decoded.quality.psnr_db:.2f} dB" in page.text
    assert figures["speed_of_light"] == pytest.approx(0.9)
    assert any("report on" in line for line in real_report.lines())


def test_each_section_shows_what_the_output_holds(tmp_path: Path) -> None:
    store = with_history()
    page, report = page_of(store, tmp_path)
    found = tiles(page)
    assert (found["clips"], found["rejected"]) == (str(3 * NUM_SHARDS), str(NUM_SHARDS // 2))
    assert (found["goodput"], found["working time"]) == ("75%", "1:20")
    assert f"Settled: {3.5 * NUM_SHARDS:.0f} of {NUM_ROWS:,} plan rows." in page.text
    assert re.search(r"Recently [\d.]+ clips/s, [\d:]+ left\. Last commit 23:58:40 ", page.text)
    assert "80% of the speed of light : encoders busy 80%: as fast as they can go" in page.text
    tables = {one.one("caption").text: one.cells()[1:] for one in page.all("table")}
    over_time = tables["Throughput over time"]
    assert sum(float(row[1]) for row in over_time) == pytest.approx(3 * NUM_SHARDS, abs=1)
    assert {(row[3], row[4]) for row in over_time} == {("80%", "encode")}
    assert tables["How each stage's actors spent their time"] == [
        ["decode", "1.0", "40.0%", "5.0%", "55.0%", "5.3"],
        ["encode", "1.0", "80.0%", "1.0%", "19.0%", "3.0"],
        ["write", "0.5", "4.0%", "0.0%", "96.0%", "60.0"],
    ]
    rejected = tables["Newest clips rejected for truncated"]
    assert [row[3] for row in rejected] == ["bad7", "bad5", "bad3"]
    assert sum(int(row[1]) for row in tables["Frames per clip"]) == 3 * NUM_SHARDS
    assert sum(int(row[1]) for row in tables["How often codes occur"]) == Output(store).num_codes
    usage = report.sample.usage
    assert found["perplexity"] == f"{usage.perplexity:,.0f}"
    assert found["dead"] == f"{8192 - usage.num_used:,}"
    assert "the whole output (8 shards)" in page.text
    assert "a sample of 3 of 8 shards" in page_of(store, tmp_path, num_shards=3)[0].text


def test_text_from_an_output_never_becomes_markup(tmp_path: Path) -> None:
    page, _ = page_of(with_history(), tmp_path)
    assert HOSTILE in page.text
    assert "<b>cut short</b> at 7 s" in page.text
    assert not list(page.all("script"))
    assert not list(page.all("img"))
    assert all(not name.startswith("on") for node in page.all() for name in node.attributes)


def test_the_page_is_self_contained(real_report: WrittenReport) -> None:
    html = real_report.path.read_text("utf-8")
    page = parsed(html)
    for node in page.all():
        for name in ("src", "href", "srcset", "action", "data", "poster", "style"):
            if (value := node.attributes.get(name)) is not None:
                assert value.startswith(("#", "data:image/jpeg")), f"<{node.tag} {name}={value!r}>"
    assert "url(" not in html
    assert "@import" not in html
    assert not list(page.all("link"))
    links = {node.attributes["href"].removeprefix("#") for node in page.all("a")}
    ids = [node.attributes["id"] for node in page.all() if "id" in node.attributes]
    assert links <= set(ids)
    assert len(ids) == len(set(ids))


def test_secrets_are_masked_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = with_history()
    fields = json.loads(store.objects[JOB_RECORD])
    del fields[CHECKSUM]
    fields["job"] = {
        "sources": [{"uri": "https://someone:hunter2hunter2@host/x?X-Amz-Signature=abcdef"}],
        "storage": {"options": {"secret": "plain-as-day"}},
        "note": "made with 'tok-1234567890'",
    }
    fields["dataset"] = "tok-1234567890"
    fields["libraries"] = {"torch": "2.13 from https://someone:hunter2hunter2@host/"}
    store.objects[JOB_RECORD] = json.dumps(seal(fields)).encode()
    monkeypatch.setenv("HUB_TOKEN", "tok-1234567890")
    page_of(store, tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "https://***@host/x?X-Amz-Signature=***" in html
    for secret in ("hunter2", "abcdef", "plain-as-day", "tok-1234567890"):
        assert secret not in html


def test_an_output_without_commits_has_a_report(tmp_path: Path) -> None:
    store = DictStore()
    begin(store)
    page, _ = page_of(store, tmp_path, num_pairs=2)
    assert "0.0% done" in page.text
    absent = ("Nothing has been", "No frames have been", "No clip was", "There are no codes")
    for text in (*absent, "There are no clips yet."):
        assert text in page.text


def test_an_output_of_an_early_version_has_no_speed_of_light(tmp_path: Path) -> None:
    page, report = page_of(with_history(actors=Account()), tmp_path)
    assert "does not record how actors spent their time" in page.text
    assert "Fraction of the speed of light" not in page.text
    assert json.loads(json_line(report.to_dict()))["speed_of_light"] is None


def test_a_damaged_shard_is_left_out_and_reported(tmp_path: Path) -> None:
    store = with_history()
    key = next(key for key in sorted(store.objects) if key.startswith("shards/"))
    store.objects[key] = store.objects[key][:-1] + b"?"
    page, report = page_of(store, tmp_path)
    assert "1 shard of the sample could not be read and is left out." in page.text
    assert key in page.one("section", id="codes").text
    assert report.sample.num_clips == 3 * (NUM_SHARDS - 1)
    assert any(key in line for line in report.lines())


def test_a_damaged_manifest_leaves_no_file(tmp_path: Path) -> None:
    store = with_history()
    output = Output(store)
    store.objects[entry_key(2)] = store.objects[entry_key(2)].replace(b"driver-0", b"driver-9")
    with pytest.raises(CorruptOutput, match="00000002"):
        WrittenReport(output, tmp_path / "report.html", num_pairs=0)
    assert list(tmp_path.iterdir()) == []


def test_withdrawn_rejections_are_not_shown(tmp_path: Path) -> None:
    store = with_history()
    reopened = [one for one in Output(store).rejected() if one.ref.clip_id in ("bad5", "bad7")]
    withdrawn = tuple(Reopened(one.ref, one.reason) for one in reopened)
    seq = Output(store).state.next_seq
    assert append(store, entry(seq, 90_000.0, "driver-1", reopened=withdrawn))
    page, _ = page_of(store, tmp_path)
    assert tiles(page)["rejected"] == "2"
    examples = page.one("section", id="rejected").text
    assert "bad3" in examples
    assert "bad7" not in examples


def test_a_clip_without_its_source_is_still_decoded(
    real_report: WrittenReport, tmp_path: Path
) -> None:
    source = real_report.path.with_name("video.mp4")
    source.rename(tmp_path / "away.mp4")
    try:
        output = open_output(str(real_report.path.parent / "out"), trust=Trust(uris=True))
        report = WrittenReport(output, tmp_path / "report.html", num_pairs=1, device="cpu")
    finally:
        (tmp_path / "away.mp4").rename(source)
    page = parsed(report.path.read_text())
    assert len(list(page.all("img"))) == 1
    assert "Without its source." in page.text
    assert "does not decode any more" in page.one("section", id="pairs").text
    assert "PSNR 2" not in page.text


def test_a_report_without_torch_has_no_pictures_and_never_loads_ray(
    real_report: WrittenReport, tmp_path: Path
) -> None:
    script = (
        "import sys; sys.modules['torch'] = None; sys.modules['ray'] = None\n"
        "from tokpipe.cli import main; main(['report', *sys.argv[1:]])\n"
    )
    path = tmp_path / "report.html"
    command = [sys.executable, "-c", script, str(real_report.path.parent / "out"), "-o", str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "without pictures" in printed
    page = parsed(path.read_text())
    assert "Clips cannot be decoded here." in page.text
    assert "tokpipe[run]" in page.text
    assert "torch" in page.one("section", id="pairs").text


def test_the_page_stays_small_as_the_output_grows(tmp_path: Path) -> None:
    store = with_history()
    page_of(store, tmp_path)
    size = (tmp_path / "report.html").stat().st_size
    seq = Output(store).state.next_seq
    for number in range(60):
        clips = [encoded_clip(100 + number, [5] * (1 + number % 7))]
        shards = (put_shard(store, f"more{number}", clips),)
        assert append(store, entry(seq + number, 90_000 + 30 * number, "late", shards=shards))
    page_of(store, tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 3 * size
